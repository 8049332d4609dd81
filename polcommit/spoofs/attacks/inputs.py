"""Made-up data: batches whose inputs are variables, and gradients as a function of them.

Works on any recipe whose batches hold floating-point tensors: what is varied are those, as `collate` made them, kept
within the range of values that the batch had. Labels and anything else stay. Running statistics and the process's
generators are as they were afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from polcommit.spoofs.base import PreconditionNotMet
from polcommit.spoofs.checkpoint import cut, members, parameters
from polcommit.spoofs.forging import Forger
from polcommit.training.loading import FetchedBatch
from polcommit.training.randomness import isolated, step_context
from polcommit.training.step import named_parameters
from polcommit.training.tree import batch_digest

Tensors = list[torch.Tensor]


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a tree of lists, tuples and dictionaries, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same tree with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [mapped(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def made_up(batch: FetchedBatch, micro_batches: list[Any]) -> FetchedBatch:
    """A batch of the same step with other contents: no samples of the data set lead to it."""
    return replace(batch, contents=(), micro_batches=micro_batches, digest=batch_digest(micro_batches))


class Inputs:
    """The floating-point tensors of a batch, to be varied.

    Raises:
        PreconditionNotMet: it has none.
    """

    def __init__(self, forger: Forger, batch: FetchedBatch) -> None:
        self._forger = forger
        self._batch = batch
        self._device = torch.device(forger.recipe.device)
        self.original = [t.to(self._device) for t in tensors_of(batch.micro_batches) if t.is_floating_point()]
        if not self.original:
            raise PreconditionNotMet("the recipe's batches hold no floating-point tensor that could be varied")
        self._ranges = [(float(t.min()), float(t.max())) for t in self.original]

    def within(self, noise: Sequence[torch.Tensor]) -> Tensors:
        """Inputs with this noise on them, in the range that they had."""
        triples = zip(self.original, noise, self._ranges, strict=True)
        return [(tensor + extra).clamp(*bounds) for tensor, extra, bounds in triples]

    def batch(self, noise: Sequence[torch.Tensor]) -> FetchedBatch:
        """The batch with this noise, to be submitted."""
        return made_up(self._batch, self._filled([tensor.detach().cpu() for tensor in self.within(noise)], "cpu"))

    def gradients(self, noise: Sequence[torch.Tensor]) -> Tensors:
        """The step's gradient of each trained parameter, as a function of the noise (it can be differentiated)."""
        recipe, state, batch = self._forger.recipe, self._forger.engine.state, self._batch
        trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        sums = [torch.zeros_like(parameter) for parameter in trained]
        filled = self._filled(self.within(noise), self._device)
        for k, micro_batch in enumerate(filled):
            with isolated(), step_context(self._forger.engine.seed, batch.step, k):
                loss = recipe.loss(state, micro_batch, k, len(filled))
                found = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
            sums = [total if part is None else total + part for total, part in zip(sums, found, strict=True)]
        return sums

    def _filled(self, inputs: Tensors, device: torch.device | str) -> list[Any]:
        rest = iter(inputs)
        return [
            mapped(micro_batch, lambda t: next(rest) if t.is_floating_point() else t.to(device))
            for micro_batch in self._batch.micro_batches
        ]


class _Enough(Exception):
    """The search has found what it was for."""


def minimised(
    forger: Forger, inputs: Inputs, objective: Callable[[Tensors], torch.Tensor], start: Tensors | None,
    evaluations: int, enough: float = 0.0,
) -> tuple[Tensors, float]:  # fmt: skip
    """Noise that makes `objective(gradients)` small, by L-BFGS, and the value reached.

    At most so many evaluations, and none beyond a value of `enough`.

    Each evaluation is a gradient of a function of the gradient. What is found need not be small.
    """
    noise = [torch.zeros_like(t) if start is None else start[i].clone() for i, t in enumerate(inputs.original)]
    best: tuple[Tensors, float] = ([tensor.clone() for tensor in noise], float("inf"))
    for tensor in noise:
        tensor.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        noise, max_iter=evaluations, max_eval=evaluations, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        nonlocal best
        forger.meter.second_order(forger.recipe.batch)
        value = objective(inputs.gradients(noise))
        found = torch.autograd.grad(value, noise, allow_unused=True)
        for tensor, part in zip(noise, found, strict=True):
            tensor.grad = torch.zeros_like(tensor) if part is None else part
        reached = float(value.detach())
        if reached < best[1]:
            best = ([tensor.detach().clone() for tensor in noise], reached)
        if reached <= enough:
            raise _Enough
        return value.detach()

    with buffers_kept(forger), suppress(_Enough):
        optimizer.step(closure)
    return best


def per_weight(forger: Forger, vector: torch.Tensor) -> Tensors:
    """A vector over all weights, cut into tensors like the trained parameters, in the model's order of them."""
    state = forger.engine.state
    pieces = cut(vector, parameters(members(state)))
    return [
        pieces[f"parameter/{name}"].to(parameter.device, parameter.dtype)
        for name, parameter in named_parameters(state.model).items()
        if parameter.requires_grad
    ]


@contextmanager
def buffers_kept(forger: Forger) -> Iterator[None]:
    """Forward passes inside leave no trace in running statistics."""
    live = {name: t for name, t in members(forger.engine.state).items() if name.startswith("buffer/")}
    saved = {name: tensor.clone() for name, tensor in live.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(saved[name])
