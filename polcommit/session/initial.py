"""W_0 of a run whose beginning no beacon fixes: the user's own, or the final state of the run that it continues.

What the user gives is parameters and buffers under the model's names; the rest of the state is as the recipe builds
it. Whether the values are from the recipe's distribution is not looked at here: a challenge tests it (spec §6, V12).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from polcommit.errors import UsageError
from polcommit.session.run import is_post_hoc, load_parent
from polcommit.storage import files
from polcommit.storage.parents import continued
from polcommit.storage.runfolder import RunFolder
from polcommit.training.replay import Engine
from polcommit.training.schema import opened_tensor
from polcommit.training.state import Captured
from polcommit.transcript import state_digest

#: Parameters and buffers by the model's names, as `state_dict()` has them, or a safetensors file of them.
Initial = Mapping[str, torch.Tensor] | str | Path


def require_own_initial(run: RunFolder) -> None:
    """Raises UsageError unless the run may begin with a W_0 of its prover's own."""
    if not is_post_hoc(run):
        raise UsageError(
            "this run's W_0 follows from its beacon, and cannot be given",
            hint="leave it out; only a run that was registered with --post-hoc begins with one of your own",
        )
    if run.manifest.parent is not None:
        raise UsageError("this run's W_0 is the final state of its parent, and cannot be given", hint="leave it out")


def initial_state(run: RunFolder, engine: Engine, given: Initial | None) -> Captured:
    """Put W_0 of a run in place, and capture it: `given`, the parent's final state, or what the seed makes it.

    Raises:
        UsageError: what is given is not the recipe's model, or none may be given.
        StorageError: what is kept of the parent is damaged.
    """
    if given is not None:
        require_own_initial(run)
        return _own(engine, given)
    parent = load_parent(run)
    if parent is None and is_post_hoc(run) and 0 in run.states.steps():     # given before an interruption
        engine.restore(run.states.get(0), run.tensors.get)
        return engine.capture()
    if parent is None:
        return engine.initial()
    entries = continued(parent.state)
    return engine.initial_from({entry.name: opened_tensor(entry, run.tensors.get) for entry in entries})


def require_same_initial(run: RunFolder, engine: Engine, given: Initial, committed: bytes) -> None:
    """Raises UsageError unless `given` is the W_0 that the run began with, whose digest is `committed`."""
    require_own_initial(run)
    if state_digest(_own(engine, given).index) != committed:
        raise UsageError(
            f"{run.path} began with another W_0 than the one given", hint="leave it out: a run goes on as it began"
        )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        StorageError: it cannot be read.
        UsageError: it is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    with files.reported("reading", path):
        data = path.read_bytes()
    try:
        found: dict[str, torch.Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        hint = "save it with safetensors.torch.save_model"
        raise UsageError(f"{path} is not a safetensors file: {error}", hint=hint) from error
    return found


def _own(engine: Engine, given: Initial) -> Captured:
    """The recipe's W_0 with the tensors given. A buffer that no `state_dict` holds stays as the recipe builds it."""
    tensors = dict(given) if isinstance(given, Mapping) else read_tensors(Path(given))
    fresh = engine.initial()
    entries = {entry.name.partition("/")[2]: entry.name for entry in continued(fresh.index)}
    aliases = {alias.partition("/")[2]: name for alias, name in fresh.index.scalars.aliases}
    chosen: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        entry = entries.get(name) or aliases.get(name)
        if entry is None:
            raise UsageError(f"W_0 holds '{name}', which the recipe's model does not have")
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"'{name}' of W_0 is {type(tensor).__name__}, not a tensor")
        tensor = tensor.detach().to("cpu")
        if entry in chosen and not torch.equal(chosen[entry], tensor):
            raise UsageError(f"'{name}' of W_0 is tied to another tensor, and differs from it")
        chosen[entry] = tensor
    held = engine.state.model.state_dict()
    missing = [name for name, entry in entries.items() if entry not in chosen and name in held]
    if missing:
        raise UsageError(f"W_0 lacks '{missing[0]}' of the recipe's model", hint="give all parameters and buffers")
    return engine.initial_from(chosen)
