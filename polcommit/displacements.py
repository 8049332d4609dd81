"""Geometry of a run in its sketches: norms and directions of the displacements between kept states.

Prover and verifier compute the same numbers from these, so they come from IEEE 754's + - * / and square root in a fixed
order; `sum` is not among them, for its rounding differs between versions of Python.

Terms: an *interval* lies between two kept states that follow one another; a *window* is some intervals in a row. The
norm of a displacement is estimated from 64 random signs, with a relative standard deviation of 9 % (half of
sqrt(2 / 64), which is that of its square). Displacements that point the same way share their error. Nothing here says
what happened between two kept states, or that a sketch is that of the state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

from polcommit.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One kept state, as committed and sketched."""

    step: int                       # the state after it; 0 is W_0
    sketch: tuple[float, ...]       # 64 values
    loss: float | None              # of the step's record; None for step 0
    learning_rate: float | None     # likewise


@dataclass(frozen=True, slots=True)
class Window:
    """Intervals `first` to `last`, from 0, as one."""

    first: int
    last: int
    steps: int
    norm: float                     # of the net displacement; infinite or NaN where a sketch is
    rate: float                     # mean over the steps, each interval's being the larger one of its two ends


class Path:
    """Norms, lengths and learning rates of the intervals between kept states.

    Raises:
        UsageError: the steps do not rise, or sketches are empty or differ in size.
    """

    def __init__(self, kept: Sequence[Kept]) -> None:
        if any(after.step <= before.step for before, after in pairwise(kept)):
            raise UsageError("the steps of kept states do not rise")
        if any(len(state.sketch) != (len(kept[0].sketch) or 1) for state in kept):
            raise UsageError("sketches are empty, or of different sizes")
        self.kept = kept
        self.size = len(kept) - 1
        self.steps = [after.step - before.step for before, after in pairwise(kept)]
        self.norms = [norm(before.sketch, after.sketch) for before, after in pairwise(kept)]
        self.rates = [
            max(rate_of(after), rate_of(before) if before.learning_rate is not None else rate_of(after))
            for before, after in pairwise(kept)
        ]

    def windows(self, size: int) -> list[Window]:
        """Windows of `size` intervals, each beginning in the middle of the one before; the last ends with the path."""
        starts = list(range(0, self.size - size + 1, max(1, size // 2)))
        if starts[-1] != self.size - size:
            starts.append(self.size - size)
        return [self._window(start, start + size - 1) for start in starts]

    def norm_without(self, window: Window, left_out: AbstractSet[int]) -> float:
        """Norm of a window's net displacement without that of some intervals."""
        inside = range(window.first, window.last + 1)
        if not any(i in left_out for i in inside):
            return window.norm
        net = [0.0] * len(self.kept[0].sketch)
        for i in inside:
            if i not in left_out:
                before, after = self.kept[i].sketch, self.kept[i + 1].sketch
                net = [total + (y - x) for total, x, y in zip(net, before, after, strict=True)]
        return norm([0.0] * len(net), net)

    def _window(self, first: int, last: int) -> Window:
        steps, mass = 0, 0.0
        for i in range(first, last + 1):
            steps += self.steps[i]
            mass += self.steps[i] * self.rates[i]
        net = self.norms[first] if first == last else norm(self.kept[first].sketch, self.kept[last + 1].sketch)
        return Window(first=first, last=last, steps=steps, norm=net, rate=mass / steps)


def norm(before: Sequence[float], after: Sequence[float]) -> float:
    """Estimate of ‖W_after − W_before‖ from two sketches: root mean square of the differences of their values."""
    total = 0.0
    for x, y in zip(before, after, strict=True):
        total += (y - x) * (y - x)
    return math.sqrt(total / len(before))


def cosine(path: Path, i: int) -> float:
    """Between displacements i and i + 1; NaN where one of them is zero or not finite."""
    before, middle, after = (state.sketch for state in path.kept[i : i + 3])
    scale = path.norms[i] * path.norms[i + 1] * len(middle)
    if not 0.0 < scale < math.inf:
        return math.nan
    product = 0.0
    for x, y, z in zip(before, middle, after, strict=True):
        product += (y - x) * (z - y)
    return product / scale


def rate_of(state: Kept) -> float:
    """The learning rate of the step that led to a state; 0 where there is none, or it is not a number."""
    rate = state.learning_rate
    return rate if rate is not None and rate == rate else 0.0


def median(values: Sequence[float]) -> float:
    """Of finite or infinite numbers, one at least; the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def variation(values: Sequence[float]) -> float:
    """Standard deviation over mean, of numbers that are not negative; 0 where all are 0."""
    total, squares = 0.0, 0.0
    for value in values:
        total += value
    mean = total / len(values)
    if not 0.0 < mean < math.inf:
        return 0.0
    for value in values:
        squares += (value / mean - 1.0) * (value / mean - 1.0)
    return math.sqrt(squares / len(values))
