"""What an attack costs, in the currency of the papers: forward passes of one sample (Fang et al. 2023, appendix B).

    forward pass                                   1 a sample
    backward pass                                  2 a sample, so a training step of batch b is 3b
    gradient of a gradient                         9 a sample: 3 for what is differentiated, and twice that again
    one operation on every weight                  1 in all: a forward pass uses each weight at least once

The last is an upper bound, as in the paper: a convolution uses each weight many times over, so what a forger spends
on interpolation is overstated. Fetching and hashing data is not counted here; it is in the seconds. Seconds are wall
time of this process on this machine, comparable only with others of the same run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polcommit.training.recipe import Recipe

FORWARD = 1
BACKWARD = 2
STEP = FORWARD + BACKWARD
SECOND_ORDER = STEP + 2 * STEP


@dataclass(slots=True)
class Meter:
    """Adds up what is spent. `forwards` are forward passes of one sample, or their equivalent."""

    forwards: float = 0.0
    seconds: float = 0.0

    def forward(self, samples: int) -> None:
        """The loss, and nothing else, of this many samples."""
        self.forwards += FORWARD * samples

    def step(self, samples: int) -> None:
        """A training step, or a gradient of any kind, on this many samples."""
        self.forwards += STEP * samples

    def second_order(self, samples: int) -> None:
        """A gradient of a function of the gradient."""
        self.forwards += SECOND_ORDER * samples

    def weights(self, operations: float = 1.0) -> None:
        """Operations that touch every weight once."""
        self.forwards += operations

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds spent inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def share(self, recipe: Recipe) -> float:
        """What was spent, as a share of one honest training run of the recipe."""
        return self.forwards / honest_forwards(recipe)


def honest_forwards(recipe: Recipe) -> int:
    """Forward-pass equivalents of one honest training run."""
    return STEP * recipe.batch * recipe.steps
