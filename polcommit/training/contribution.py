"""Whether an update helps: the contribution score of decentralised networks (Templar's Gauntlet), for opened steps.

With θ the parameters before a step and Δ the step's update: L(θ) − L(θ + βΔ), on the batch that the step claims to come
from (`own`), and on another slice of the data (`other`). An honest update lowers the loss on its own batch, usually
more than elsewhere; one that was made up has no reason to. (In Gauntlet Δ is a peer's pseudo-gradient and β a share of
the learning rate; here Δ is the update as committed, with momentum and everything.)

What it does not say: that a step is honest or forged. Momentum, noise and large learning rates make honest scores
negative, and a forger who steps towards good weights has positive ones. It is reported, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from polcommit.errors import EncodingError, NotReproducible, PolcommitError, UsageError
from polcommit.records import StateIndex, TensorEntry
from polcommit.training.loading import FetchedBatch
from polcommit.training.randomness import isolated, step_context
from polcommit.training.replay import Engine, to_device
from polcommit.training.state import survey
from polcommit.training.tree import tensor_from_bytes

BETA = 0.5          # share of the update that is tried: the whole of it overshoots where learning rates are large

Fetch = Callable[[TensorEntry], bytes | bytearray | memoryview]


@dataclass(frozen=True, slots=True)
class Contribution:
    """By how much a share of the update lowers the loss, in the loss's units; NaN where a loss is."""

    own: float
    other: float


def parameters_of(index: StateIndex, fetch: Fetch) -> dict[str, torch.Tensor]:
    """The parameters of an opened state, by entry name ('parameter/…').

    Raises:
        EncodingError: the bytes that `fetch` returns do not fill a tensor's dtype and shape.
    """
    found = {}
    for entry in index.tensors:
        if entry.kind == "parameter":
            try:
                found[entry.name] = tensor_from_bytes(entry.dtype, entry.shape, fetch(entry))
            except EncodingError as error:
                raise EncodingError(f"{entry.name}: {error}") from error
    return found


def contribution(
    engine: Engine,
    before: Mapping[str, torch.Tensor],
    own: FetchedBatch,
    other: FetchedBatch,
    *,
    beta: float = BETA,
) -> Contribution:
    """The score of the step that led from the parameters `before` it (`parameters_of`) to the engine's state.

    `own` is the step's batch, `other` any other. All losses are taken under the step's random numbers of micro-batch
    accumulation + 1 + k, which no step uses, so that dropout is the same before and after, and in the mode that the
    engine is in, without gradients. Afterwards parameters, buffers and the process's generators are as they were, bit
    for bit.

    Raises:
        UsageError: `before` does not hold exactly the engine's parameters, or not in their shapes.
        NotReproducible: the recipe's code failed on them.
    """
    found = survey(engine.state).tensors
    live = {name: tensor.detach() for name, (kind, tensor) in found.items() if kind == "parameter"}
    shapes = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (live, before))
    if next(shapes) != next(shapes):
        raise UsageError("the parameters before the step are not those of the recipe")
    saved = {name: tensor.detach().clone() for name, (kind, tensor) in found.items() if kind in ("parameter", "buffer")}
    after = {name: saved[name] for name in live}
    try:
        with isolated(), torch.no_grad():
            _move(live, before, after, 0.0)
            at_start = [_loss(engine, batch, own.step) for batch in (own, other)]
            _restore(engine, saved)
            _move(live, before, after, beta)
            moved = [_loss(engine, batch, own.step) for batch in (own, other)]
    except PolcommitError:
        raise
    except Exception as error:  # the recipe's own code, on data that a prover chose
        raise NotReproducible(f"step {own.step}: its loss cannot be evaluated again: {error!r}"[:500]) from error
    finally:
        _restore(engine, saved)
    return Contribution(own=at_start[0] - moved[0], other=at_start[1] - moved[1])


def _move(
    live: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], beta: float
) -> None:
    """Put the parameters `beta` of the way from `before` to `after`; those that are not floating stay as before."""
    for name, tensor in live.items():
        start = before[name].to(tensor.device)
        if beta and tensor.is_floating_point():
            start = start + beta * (after[name] - start)
        tensor.copy_(start)


def _loss(engine: Engine, batch: FetchedBatch, step: int) -> float:
    """The loss of a batch where the parameters are, in float64, under the random numbers of `step`."""
    recipe = engine.recipe
    total = 0.0
    for k, micro_batch in enumerate(to_device(batch, recipe.device)):
        with step_context(engine.seed, step, recipe.accumulation + 1 + k):
            loss = recipe.loss(engine.state, micro_batch, k, recipe.accumulation)
        total += float(loss.double().item())
    return total


def _restore(engine: Engine, saved: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, (_, tensor) in survey(engine.state).tensors.items():
            if name in saved:
                tensor.copy_(saved[name])
