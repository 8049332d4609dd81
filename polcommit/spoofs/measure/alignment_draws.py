"""How often honest provers fail the alignment test (V10, test 3): independent runs, a draw of fresh steps from each.

Each draw is of a run of its own, from a seed of its own: it is trained with oneDNN, and the gradients of its drawn
steps are computed once more without. Nothing of one draw occurs in another. What is kept are the cosines, so that any
profile's thresholds can be tried on them.

The runs are short, and the first steps of a training: of later ones this says nothing.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from polcommit import prf
from polcommit.errors import Refuted
from polcommit.profiles import Profile
from polcommit.replaying import Measured
from polcommit.spoofs.measure.lanes import Side
from polcommit.spoofs.measure.steered import SteeredDigits
from polcommit.tolerance import check_alignment
from polcommit.training.optimizers import preconditioner

STEPS, DRAWN = 16, 8
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw's residuals, step by step, and of every two steps the cosine."""

    distances: tuple[float, ...]            # ‖ĝ − g′‖ / min(‖ĝ‖, ‖g′‖)
    preconditioned: tuple[float, ...]       # ‖D(ĝ − g′)‖ / ‖Dĝ‖; none of SGD
    towards: tuple[float, ...]              # cosines with W_t − W_T
    pairs: tuple[float, ...]

    def steps(self) -> list[Measured]:
        """As a verifier has them, as far as test 3 looks."""
        own = self.preconditioned or (None,) * len(self.distances)
        return [measured(*values) for values in zip(self.towards, self.distances, own, strict=True)]


class Honest:
    """Honest runs of one recipe; the arithmetic is the recipe's, less what the engine does around it."""

    def __init__(self, optimizer: str, rate: float) -> None:
        self.recipe = SteeredDigits(optimizer=optimizer, peak=rate, steps=STEPS)
        self._name = optimizer
        self._side = Side(self.recipe, ["clean"])
        self._size = len(self.recipe.source())

    def draw(self, number: int) -> Draw:
        """The draw of run `number`."""
        seed = sha256(f"polcommit alignment {self._name} {number}".encode()).digest()
        drawn = set(random.Random(f"alignment {self._name} {number}").sample(range(1, STEPS + 1), DRAWN))  # noqa: S311
        state = self.recipe.build()
        self.recipe.initialize(state, seed)
        parameters = dict(state.model.named_parameters())
        before: list[torch.Tensor] = []
        residuals: list[torch.Tensor] = []
        distances: list[float] = []
        preconditioned: list[float] = []
        for step in range(1, STEPS + 1):
            batch = self._side.batch(prf.batch_indices(seed, step, self._size, self.recipe.batch))
            if step in drawn:
                before.append(_flat({name: p.detach() for name, p in parameters.items()}))
                with without_onednn():
                    here = self._gradient(state, parameters, batch)
            there = self._gradient(state, parameters, batch)
            self.recipe.apply(state, step)
            if step in drawn:
                residuals.append(there - here)
                distances.append(_ratio(residuals[-1], min(there, here, key=torch.linalg.vector_norm)))
                scale = _scale(state.optimizer, parameters)
                if scale is not None:
                    preconditioned.append(_ratio(residuals[-1] * scale, there * scale))
        last = _flat({name: p.detach() for name, p in parameters.items()})
        return Draw(
            tuple(distances),
            tuple(preconditioned),
            tuple(_cosine(r, w - last) for r, w in zip(residuals, before, strict=True)),
            tuple(_cosine(a, b) for i, a in enumerate(residuals) for b in residuals[i + 1 :]),
        )

    def _gradient(
        self, state: Any, parameters: Mapping[str, torch.nn.Parameter], batch: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        state.model.zero_grad(set_to_none=True)
        self.recipe.loss(state, batch, 0, 1).backward()
        return _flat({name: p.grad for name, p in parameters.items() if p.grad is not None})


@contextmanager
def without_onednn() -> Iterator[None]:
    """torch's other kernels on the CPU, as a process with 'onednn=off' has them."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def draws(optimizer: str, rate: float, count: int, cache: Path | None = None) -> list[Draw]:
    """The first `count` draws; those that `cache` holds are not made again, and new ones are added to it."""
    found = list(_read(cache)) if cache is not None and cache.exists() else []
    honest = Honest(optimizer, rate)
    for number in range(len(found), count):
        found.append(honest.draw(number))
        if cache is not None:
            with cache.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(astuple(found[-1])) + "\n")
    return found[:count]


def _read(cache: Path) -> Iterator[Draw]:
    for line in cache.read_text("utf-8").splitlines():
        yield Draw(*map(tuple, json.loads(line)))


def rejected(draw: Draw, profile: Profile) -> bool:
    """Whether the verifier's own test refutes an honest prover by this draw."""
    try:
        check_alignment(draw.steps(), draw.pairs, profile)
    except Refuted:
        return True
    return False


def measured(towards: float, distance: float, preconditioned: float | None) -> Measured:
    """A step of which only that matters which test 3 looks at; distances are relative."""
    return Measured(
        finite=(True, True), missing=(), distance=distance, opened=1.0, here=1.0,
        preconditioned=None if preconditioned is None else (preconditioned, 1.0), tensors=(), buffers=(),
        update=("", 0.0), exact=None, exact_only=None, towards=towards, stride=0.0, rounding=0.0, loss=0.0,
        learning_rate=0.0, clipped=False, skipped=False,
    )  # fmt: skip


def upper_bound(rejects: int, count: int, level: float = LEVEL) -> float:
    """The largest rate that makes so few rejects no surprise: Clopper and Pearson's one-sided bound (1934)."""
    if rejects >= count:
        return 1.0
    low, high = rejects / count, 1.0
    for _ in range(100):
        rate = (low + high) / 2
        logs = [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log(rate) + (count - k) * math.log1p(-rate)
            for k in range(rejects + 1)
        ]  # fmt: skip
        if math.fsum(map(math.exp, logs)) > 1 - level:
            low = rate
        else:
            high = rate
    return high


def summary(found: Sequence[Draw], profile: Profile) -> dict[str, Any]:
    """Rejects, and what they are counted against."""
    towards = [math.fsum(draw.towards) / len(draw.towards) for draw in found]
    pairs = [math.fsum(draw.pairs) / len(draw.pairs) for draw in found]
    failed = sum(rejected(draw, profile) for draw in found)
    return {
        "draws": len(found), "rejected": failed, "upper": upper_bound(failed, len(found)),
        "largest mean distance": max(math.fsum(draw.distances) / len(draw.distances) for draw in found),
        "largest mean towards": max(towards), "largest mean of pairs": max(pairs),
        "mean towards": math.fsum(towards) / len(towards), "mean of pairs": math.fsum(pairs) / len(pairs),
    }  # fmt: skip


def _flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    product = float(a.norm() * b.norm())
    return float(a @ b) / product if product > 0 else 0.0


def _ratio(vector: torch.Tensor, by: torch.Tensor) -> float:
    return float(vector.norm() / by.norm())


def _scale(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor | None:
    """D, after a step, of all parameters; None of an optimizer that has none."""
    scales = {}
    for name, parameter in parameters.items():
        slots = optimizer.state.get(parameter, {})
        scale = preconditioner(slots, optimizer.param_groups[0]) if slots else None
        if scale is None:
            return None
        scales[name] = scale
    return _flat(scales)
