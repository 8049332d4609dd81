"""A step at another learning rate than the recipe's: plain Proof-of-Learning takes the rate from the prover's log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from polcommit.training.loading import FetchedBatch
from polcommit.training.replay import Engine
from polcommit.training.step import StepResult


def step_at(engine: Engine, batch: FetchedBatch, rate: float | None) -> StepResult:
    """Run the batch's step with the first group's rate at `rate`, the others in proportion; None: as the recipe says.

    The result's `learning_rate` is the one that was used.
    """
    if rate is None or rate == engine.recipe.learning_rate(batch.step):
        return engine.step(batch, check_schedule=False)
    with _at(engine.state.optimizer, rate):
        return engine.step(batch, check_schedule=False)


@contextmanager
def _at(optimizer: torch.optim.Optimizer, rate: float) -> Iterator[None]:
    due: list[float] = []

    def before(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
        due[:] = [float(group["lr"]) for group in optimizer.param_groups]
        for group, lr in zip(optimizer.param_groups, due, strict=True):
            group["lr"] = rate * lr / due[0] if due[0] else rate

    def after(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
        for group, lr in zip(optimizer.param_groups, due, strict=True):
            group["lr"] = lr        # a schedule that multiplies goes on from what was due

    handles = (optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
