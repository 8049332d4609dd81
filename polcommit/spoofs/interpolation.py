"""Infinitesimal updates (Fang et al., EuroS&P 2023, §6.1): a straight line from W_0 to a stolen W_T.

The forger registers a run of its own, so that W_0 and the order of the data are the beacon's, and holds the
final model. It never trains: the state after step t lies t/T of the way, every leaf commits to such a state, and
every state is kept, so that whatever is drawn can be opened. All that is wrong is that no step leads from one
state to the next.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from polcommit import transcript as hashes
from polcommit.encoding import encode
from polcommit.records import StepRecord
from polcommit.session.recipes import run_recipe
from polcommit.session.run import genesis_record
from polcommit.storage.runfolder import RunFolder
from polcommit.training.environment import fingerprint, set_determinism
from polcommit.training.loading import Loader
from polcommit.training.replay import Engine
from polcommit.training.state import Captured


def forge(run: RunFolder, stolen: Mapping[str, torch.Tensor]) -> None:
    """Write the forged transcript and states into a registered folder. `stolen` is W_T by name, as captured.

    Batches are the ones that the order demands, and losses are what the model of the moment really has on them.
    """
    registration = run.registration
    assert registration is not None, "the forger registers first"
    set_determinism()
    recipe = run_recipe(run)
    engine = Engine(recipe, hashes.run_seed(registration.beacon))
    leaves = run.dataset_leaves()
    first = engine.initial()
    start = {name: tensor.clone() for name, tensor in first.tensors.items()}
    run.add_environment(1, fingerprint(recipe.device))
    run.states.put(0, first.index, first.content)
    with run.lock(), run.journal() as journal:
        genesis = genesis_record(run, hashes.state_digest(first.index))
        journal.append(encode(genesis))
        for batch in Loader(recipe, engine.seed, 1, recipe.steps):
            result = engine.step(batch)     # for the loss, and optimizer state of the right form; then overwritten
            state = _moved(engine, start, stolen, batch.step / recipe.steps)
            run.states.put(batch.step, state.index, state.content)
            record = StepRecord(
                step=batch.step,
                samples=hashes.samples_digest(leaves[index] for index in batch.indices),
                batch=batch.digest,
                state=hashes.state_digest(state.index),
                loss=result.loss,
                learning_rate=result.learning_rate,
                clipped=result.clipped,
                skipped=result.skipped,
                environment=0,
            )
            journal.append(encode(record))
        journal.sync()


def _moved(
    engine: Engine, start: Mapping[str, torch.Tensor], stolen: Mapping[str, torch.Tensor], share: float
) -> Captured:
    """Put the model's parameters and buffers `share` of the way from W_0 to W_T."""
    live = engine.capture().tensors
    with torch.no_grad():
        for name, end in stolen.items():
            if not name.startswith(("parameter/", "buffer/")):
                continue
            if end.is_floating_point():
                live[name].copy_(end if share == 1.0 else torch.lerp(start[name], end, share))
            elif share == 1.0:
                live[name].copy_(end)
    return engine.capture()
