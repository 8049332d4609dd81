"""One training step, owned by polcommit: gradients from seeded micro-batches, then the recipe's `apply`.

The gradient of a step is what lies in `.grad` between the two halves: summed over micro-batches, still scaled,
not yet clipped. 'No gradient' differs from zero, so `.grad` is set to None first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polcommit.errors import UsageError
from polcommit.training.randomness import isolated, step_context
from polcommit.training.recipe import Recipe
from polcommit.training.state import TrainingState


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step did, as far as its record says: the rest is the state's digest."""

    step: int
    loss: float                 # sum of the micro-batches' contributions, in order, in float64
    learning_rate: float        # what the optimizer saw in its first group; if skipped, what was due
    clipped: bool
    skipped: bool               # the scaler skipped the update


def run_step(
    recipe: Recipe, state: TrainingState, seed: bytes, step: int, micro_batches: Sequence[Any]
) -> StepResult:
    """Gradients and update of step `step`, from 1. The process's generators are as before afterwards.

    A loss that is not finite is no error here: it is committed as it is.

    Raises:
        UsageError: the number of micro-batches is not the recipe's.
    """
    if len(micro_batches) != recipe.accumulation:
        raise UsageError(f"step {step}: {len(micro_batches)} micro-batches instead of {recipe.accumulation}")
    with isolated():
        loss = _gradients(recipe, state, seed, step, micro_batches)
        return _update(recipe, state, seed, step, loss)


def require_learning_rate(recipe: Recipe, result: StepResult) -> None:
    """Raise UsageError unless the optimizer saw the learning rate that the recipe's schedule says."""
    due = recipe.learning_rate(result.step)
    if not result.learning_rate == due:
        raise UsageError(
            f"step {result.step}: the optimizer used learning rate {result.learning_rate!r}, "
            f"but learning_rate({result.step}) is {due!r}",
            hint="make learning_rate(t) the same function of the step as the scheduler",
        )


def _gradients(recipe: Recipe, state: TrainingState, seed: bytes, step: int, micro_batches: Sequence[Any]) -> float:
    state.model.zero_grad(set_to_none=True)     # parameters that no group holds have gradients too
    state.optimizer.zero_grad(set_to_none=True)
    contributions: list[torch.Tensor] = []
    for k, micro_batch in enumerate(micro_batches):
        with step_context(seed, step, k):
            loss = recipe.loss(state, micro_batch, k, len(micro_batches))
            scaled = loss if state.scaler is None else state.scaler.scale(loss)
            scaled.backward()
        contributions.append(loss.detach())
    # read at the end: on an accelerator every item() waits for the device
    return sum((float(contribution.double().item()) for contribution in contributions), 0.0)


def _update(recipe: Recipe, state: TrainingState, seed: bytes, step: int, loss: float) -> StepResult:
    seen: list[float] = []

    def observe(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append(float(optimizer.param_groups[0]["lr"]))

    scale = None if state.scaler is None else state.scaler.get_scale()
    handle = state.optimizer.register_step_pre_hook(observe)
    try:
        with step_context(seed, step, recipe.accumulation):
            applied = recipe.apply(state, step)
    finally:
        handle.remove()
    # a fused optimizer is called, and skips by itself: then only the lower scale tells
    backed_off = state.scaler is not None and scale is not None and state.scaler.get_scale() < scale
    skipped = not seen or backed_off
    return StepResult(
        step=step,
        loss=loss,
        learning_rate=recipe.learning_rate(step) if skipped else seen[0],
        clipped=applied.clipped,
        skipped=skipped,
    )
