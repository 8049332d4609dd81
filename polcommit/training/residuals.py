"""Residuals of several steps' gradients, and whether they point the same way (spec §6, V10, test 3).

What is rounding has no direction; what bends every step a little towards a goal has. The cosines are reported, and
nothing is decided here.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from typing import IO, Any, Self

import numpy as np
import torch
from torch import nn

from polcommit.training.step import named_parameters

Tensors = Mapping[str, torch.Tensor]


def norm(tensor: torch.Tensor) -> float:
    """Euclidean norm; one that is not a number is infinite."""
    return number(float(torch.linalg.vector_norm(tensor)))


def root(norms: Iterable[float]) -> float:
    """The norm of a vector from those of its parts."""
    return number(math.sqrt(sum(part * part for part in norms)))


def number(value: float) -> float:
    """The value; infinity in place of what is not a number, so that no bound holds."""
    return math.inf if math.isnan(value) else value


class Residuals:
    """The residuals of a challenge's steps, and the cosine of every two of them; use as a context.

    Each is kept as a float32 unit vector: in memory, or in a temporary file where they are more than `IN_MEMORY`
    bytes. Of more than `MOST` steps the first are kept.
    """

    MOST = 64
    IN_MEMORY = 1 << 30
    _COLUMNS = 1 << 20

    def __init__(self, steps: int) -> None:
        self._steps = min(steps, self.MOST)
        self._rows: np.ndarray[Any, np.dtype[np.float32]] | None = None
        self._file: IO[bytes] | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows = None
        if self._file is not None:
            self._file.close()

    def add(self, model: nn.Module, residual: Tensors) -> None:
        """The next step's residual; an empty one, of a step that was not finite, counts as zero."""
        sizes = {name: parameter.numel() for name, parameter in sorted(named_parameters(model).items())}
        if self._count < self._steps:
            if self._rows is None:
                self._rows = self._room(sum(sizes.values()))
            length = root(norm(part) for part in residual.values())
            at = 0
            for name, size in sizes.items():
                if name in residual and length > 0:
                    self._rows[self._count, at : at + size] = (residual[name] / length).reshape(-1).numpy()
                at += size
        self._count += 1

    def cosines(self) -> tuple[float, ...]:
        """Of (0, 1), (0, 2), …, (1, 2), …; 0 where one of the two is zero."""
        count = min(self._count, self._steps)
        products = np.zeros((count, count))
        if self._rows is not None:
            for start in range(0, self._rows.shape[1], self._COLUMNS):
                part = self._rows[:count, start : start + self._COLUMNS].astype(np.float64)
                products += part @ part.T
        return tuple(number(float(products[a, b])) for a in range(count) for b in range(a + 1, count))

    def _room(self, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        shape = (self._steps, size)
        if 4 * math.prod(shape) <= self.IN_MEMORY:
            return np.zeros(shape, dtype=np.float32)
        self._file = tempfile.TemporaryFile(prefix="polcommit-")      # noqa: SIM115  (until the context ends)
        return np.memmap(self._file, dtype=np.float32, mode="w+", shape=shape)
