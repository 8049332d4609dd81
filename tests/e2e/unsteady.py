"""A recipe that reproduces itself unless a file says otherwise: its forward pass then asks the operating system for
random bytes, which no seed covers. The file is read anew for each step, so one process can be steady and another not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polcommit.training.recipe import LOCAL, Applied, Recipe, Source
from polcommit.training.state import TrainingState


class Noisy(nn.Module):
    """(N, 4) to (N, 2), with noise that is nobody's to repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 2)
        self.unsteady = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x)) + 0.1
        if self.unsteady:
            hidden = hidden * (1 + int.from_bytes(os.urandom(2), "big") / 65536)
        logits: torch.Tensor = self.second(hidden)
        return logits


@dataclass(frozen=True, kw_only=True)
class Unsteady(Recipe):
    """Rows of four numbers and a label, from a file with one row a line."""

    steps: int = 8
    batch: int = 4
    rate: float = 0.1
    rows: str | Path = field(default="", metadata=LOCAL)

    def source(self) -> Source:
        lines = Path(self.rows).read_text().splitlines()
        return [tuple(int(word) for word in line.split()) for line in lines]

    def transform(self, sample: Any) -> tuple[torch.Tensor, int]:
        return torch.tensor(sample[:4], dtype=torch.float32) / 16, sample[4]

    def build(self) -> TrainingState:
        model = Noisy()
        return TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=self.rate, momentum=0.9))

    def loss(self, state: TrainingState, micro_batch: Any, k: int, n: int) -> torch.Tensor:
        numbers, labels = micro_batch
        state.model.unsteady = Path(self.rows).with_suffix(".unsteady").exists()  # type: ignore[assignment]
        return torch.nn.functional.cross_entropy(state.model(numbers), labels) / n

    def apply(self, state: TrainingState, t: int) -> Applied:
        state.optimizer.step()
        return Applied()

    def learning_rate(self, t: int) -> float:
        return self.rate
