"""One training step, owned by polcommit: gradients from seeded micro-batches, then the recipe's `apply`.

The gradient of a step is what lies in `.grad` between the two halves: summed over micro-batches, still scaled,
not yet clipped. 'No gradient' differs from zero, so `.grad` is set to None first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from polcommit.errors import EncodingError, UsageError
from polcommit.records import TensorEntry
from polcommit.training.randomness import isolated, step_context
from polcommit.training.recipe import Recipe
from polcommit.training.state import TrainingState, parameter_names
from polcommit.training.tree import dtype_name, tensor_content

GRADIENT = "gradient/"      # prefix of a gradient's entry, before the parameter's name


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step did, as far as its record says: the rest is the state's digest."""

    step: int
    loss: float                 # sum of the micro-batches' contributions, in order, in float64
    learning_rate: float        # what the optimizer saw in its first group; if skipped, what was due
    clipped: bool
    skipped: bool               # the scaler skipped the update


def run_step(
    recipe: Recipe,
    state: TrainingState,
    seed: bytes,
    step: int,
    micro_batches: Sequence[Any],
    *,
    between: Callable[[], None] | None = None,
) -> StepResult:
    """Gradients and update of step `step`, from 1. The process's generators are as before afterwards.

    `between` is called between the two halves, when the step's gradient lies in `.grad`, and may replace it. A loss
    that is not finite is no error here: it is committed as it is.

    Raises:
        UsageError: the number of micro-batches is not the recipe's.
    """
    if len(micro_batches) != recipe.accumulation:
        raise UsageError(f"step {step}: {len(micro_batches)} micro-batches instead of {recipe.accumulation}")
    with isolated():
        loss = _gradients(recipe, state, seed, step, micro_batches)
        if between is not None:
            between()
        return _update(recipe, state, seed, step, loss)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The live gradients by parameter name, sorted; a tied parameter once, one without a gradient not at all."""
    return {name: p.grad for name, p in sorted(named_parameters(model).items()) if p.grad is not None}


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, by the first of its names: the one that its state and gradient are opened under."""
    names = parameter_names(model)
    return {names[id(parameter)]: parameter for parameter in model.parameters()}


def gradient_entries(found: Mapping[str, torch.Tensor]) -> tuple[TensorEntry, ...]:
    """What is committed of a step's gradient when it is opened: 'gradient/<parameter>', sorted.

    Raises:
        UsageError: a gradient is sparse, or of another form that has no encoding.
    """
    entries = []
    for name in sorted(found):
        tensor = found[name]
        try:
            dtype, content = dtype_name(tensor), tensor_content(tensor)
        except EncodingError as error:
            raise UsageError(
                f"the gradient of {name} cannot be opened: {error.message}", hint="use dense gradients in the recipe"
            ) from error
        entries.append(
            TensorEntry(
                name=GRADIENT + name, kind="gradient", dtype=dtype, shape=tuple(tensor.shape), content=content
            )
        )
    return tuple(entries)


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
