"""Handwritten digits: a small convolutional net with batch norm, dropout and random shifts, by SGD.

The data is scikit-learn's bundled copy of the test set of UCI's "Optical Recognition of Handwritten Digits":
1,797 images of 8x8 with 17 grey levels. The last 297 are held out and never trained on.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from polcommit.errors import MissingExtra
from polcommit.training.randomness import Dropout
from polcommit.training.recipe import Applied, Recipe, Source
from polcommit.training.schedule import half_cosine
from polcommit.training.state import TrainingState

HELD_OUT = 297


class Net(nn.Module):
    """(N, 1, 8, 8) float32 images to (N, 10) logits."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(2 * width * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits; two convolutions, each halved by pooling."""
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)
        logits: torch.Tensor = self.out(self.dropout(x.flatten(1)))
        return logits


@dataclass(frozen=True, kw_only=True)
class Digits(Recipe):
    """300 steps of 64 reach more than 90 % on held-out digits in seconds."""

    steps: int = 300
    batch: int = 64
    width: int = 16
    dropout: float = 0.2
    shift: int = 1                  # pixels, at most, in each direction
    peak: float = 0.05              # learning rate of the first step; a cosine takes it to nothing
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def source(self) -> Source:
        """1,500 samples (8x8 uint8 image with values 0 to 16, label)."""
        images, labels = _digits()
        return [(image, int(label)) for image, label in zip(images[:-HELD_OUT], labels[:-HELD_OUT], strict=True)]

    def transform(self, sample: tuple[Any, int]) -> tuple[torch.Tensor, int]:
        """(1, 8, 8) float32 in 0 to 1, shifted by a few pixels, and the label."""
        image, label = sample
        down, right = (random.randint(-self.shift, self.shift) for _ in range(2))  # noqa: S311  # seeded, no secret
        x = functional.pad(torch.from_numpy(image).float() / 16, [self.shift] * 4)
        top, left = self.shift - down, self.shift - right
        return x[None, top : top + 8, left : left + 8].contiguous(), label

    def build(self) -> TrainingState:
        """Net and SGD; the schedule is `learning_rate`, set in `apply`."""
        model = Net(self.width, self.dropout).to(self.device)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.peak, momentum=self.momentum, weight_decay=self.weight_decay
        )
        return TrainingState(model=model, optimizer=optimizer)

    def loss(self, state: TrainingState, micro_batch: Any, k: int, n: int) -> torch.Tensor:
        """Cross-entropy over the micro-batch, divided by the number of micro-batches."""
        images, labels = micro_batch
        return functional.cross_entropy(state.model(images), labels) / n

    def apply(self, state: TrainingState, t: int) -> Applied:
        """Set the learning rate and step."""
        for group in state.optimizer.param_groups:
            group["lr"] = self.learning_rate(t)
        state.optimizer.step()
        return Applied()

    def learning_rate(self, t: int) -> float:
        """Half a cosine from `peak` at step 1 towards 0 after the last."""
        return self.peak * half_cosine((t - 1) / self.steps)

    @torch.no_grad()
    def evaluate(self, state: TrainingState) -> float:
        """Share of the held-out digits that are classified correctly."""
        images, labels = _digits()
        x = torch.from_numpy(images[-HELD_OUT:]).float().div(16)[:, None].to(self.device)
        training = state.model.training
        state.model.eval()
        found = state.model(x).argmax(1).cpu()
        state.model.train(training)
        return float((found == torch.from_numpy(labels[-HELD_OUT:])).double().mean())


@functools.cache
def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    try:
        from sklearn.datasets import load_digits  # an optional dependency
    except ImportError as error:
        raise MissingExtra("recipes", "the recipe 'digits'") from error
    data = load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.int64)
