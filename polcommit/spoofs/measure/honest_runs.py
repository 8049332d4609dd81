"""Honest runs for measuring screens: the shipped recipes, small, with optimizers and schedules of their own.

Each is trained for real by `Engine`, under one seed, and sketched after every step; looked at as if it had kept every
k-th state. A resumed run has the same states, so it is not measured apart. The text that `gpt` reads is the package's
own source; the images of the residual net are the digits, enlarged, for CIFAR-10 itself does not come along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import polcommit
from polcommit.recipes.cifar import write_cifar10
from polcommit.recipes.digits import Digits
from polcommit.recipes.gpt import Gpt
from polcommit.recipes.resnet import ResNet20Cifar10
from polcommit.screens import Kept
from polcommit.training.loading import Loader
from polcommit.training.recipe import Applied, Recipe
from polcommit.training.replay import Engine
from polcommit.training.schedule import half_cosine, warm_up_cosine
from polcommit.training.sketch import sketch
from polcommit.training.state import TrainingState, survey

RATES = {"sgd": 0.2, "momentum": 0.05, "adamw": 3e-3, "rmsprop": 1e-3}      # peak learning rates
SCHEDULES = ("constant", "cosine", "steps", "warm-up")
TEXT_BYTES = 60_000

if TYPE_CHECKING:
    _Mixed = Recipe
else:
    _Mixed = object         # a base that is a Recipe would bring its fields along, and undo the defaults of others

Sketches = np.ndarray[Any, np.dtype[np.float64]]


def scheduled(schedule: str, t: int, steps: int) -> float:
    """Learning rate of step t, from 1, as a share of the peak."""
    if schedule == "cosine":
        return half_cosine((t - 1) / steps)
    if schedule == "steps":
        return 1.0 if 2 * t <= steps else 0.1 if 4 * t <= 3 * steps else 0.01
    if schedule == "warm-up":
        return warm_up_cosine(t, steps, max(1, steps // 10), 0.1)
    return 1.0


def _optimizer(name: str, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """One of RATES, at its peak learning rate."""
    rate = RATES[name]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate)
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=rate)
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.1)


class _Varied(_Mixed):
    """A recipe with a choice of optimizer and schedule: the fields stand in the classes that mix this in."""

    optimizer: str
    schedule: str

    def build(self) -> TrainingState:
        model = super().build().model
        return TrainingState(model=model, optimizer=_optimizer(self.optimizer, model.parameters()))

    def apply(self, state: TrainingState, t: int) -> Applied:
        for group in state.optimizer.param_groups:
            group["lr"] = self.learning_rate(t)
        return super().apply(state, t)

    def learning_rate(self, t: int) -> float:
        return RATES[self.optimizer] * scheduled(self.schedule, t, self.steps)


@dataclass(frozen=True, kw_only=True)
class VariedDigits(_Varied, Digits):
    """`digits`."""

    optimizer: str = "momentum"
    schedule: str = "cosine"


@dataclass(frozen=True, kw_only=True)
class VariedGpt(_Varied, Gpt):
    """`gpt`: gradients are clipped, whatever the optimizer."""

    optimizer: str = "momentum"
    schedule: str = "cosine"


@dataclass(frozen=True, kw_only=True)
class VariedResNet(_Varied, ResNet20Cifar10):
    """`resnet20-cifar10`."""

    optimizer: str = "momentum"
    schedule: str = "cosine"


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A run in its sketches: what is committed and sketched of states 0 to T."""

    name: str
    sketches: Sketches                  # (T + 1, 64)
    losses: tuple[float, ...]           # of steps 1 to T
    rates: tuple[float, ...]            # learning rates, likewise
    batch: int
    samples: int

    @property
    def steps(self) -> int:
        """T."""
        return len(self.losses)

    @property
    def updates(self) -> Sketches:
        """(T,): norms of the updates of steps 1 to T, estimated."""
        return np.sqrt((np.diff(self.sketches, axis=0) ** 2).mean(axis=1))

    def kept(self, every: int) -> list[Kept]:
        """The states that a run with `keep` = every has: W_0, every so many, and the last one."""
        steps = sorted({*range(0, self.steps + 1, every), self.steps})
        return [
            Kept(
                step=step,
                sketch=tuple(self.sketches[step].tolist()),
                loss=self.losses[step - 1] if step else None,
                learning_rate=self.rates[step - 1] if step else None,
            )
            for step in steps
        ]


def recipes(folder: Path, steps: int) -> Iterator[tuple[str, Recipe]]:
    """(name, recipe) of everything that is measured; data is written into `folder`."""
    text = folder / "text"
    sources = sorted(Path(polcommit.__file__).parent.glob("*.py"))
    text.write_bytes(b"".join(path.read_bytes() for path in sources)[:TEXT_BYTES])
    _write_images(folder / "images")
    for name in RATES:
        for schedule in SCHEDULES:
            chosen: dict[str, Any] = {"optimizer": name, "schedule": schedule, "steps": steps}
            yield f"digits {name} {schedule}", VariedDigits(**chosen)
            yield f"gpt {name} {schedule}", VariedGpt(layers=2, width=32, heads=2, context=32, text=text, **chosen)
            if name in ("momentum", "adamw"):
                yield (
                    f"resnet {name} {schedule}",
                    VariedResNet(blocks="1 1 1", width=8, batch=32, data=folder / "images", **chosen),
                )


def _write_images(folder: Path) -> None:
    samples = Digits().source()
    small = np.stack([samples[i][0] for i in range(len(samples))]) * np.uint8(15)
    large = np.repeat(np.repeat(np.repeat(small[:, None], 3, axis=1), 4, axis=2), 4, axis=3)
    write_cifar10(folder, large, [samples[i][1] for i in range(len(samples))])


def train(name: str, recipe: Recipe, seed: bytes, sketch_seeds: Sequence[bytes]) -> list[Trajectory]:
    """Train from W_0 to the end, sketching every state under each of these seeds: a trajectory for each."""
    engine, source = Engine(recipe, seed), recipe.source()
    engine.initial()
    parameters = [
        tensor
        for kind, tensor in survey(engine.state).tensors.values()
        if kind == "parameter" and tensor.is_floating_point()
    ]
    sketches = [[sketch(parameters, own)] for own in sketch_seeds]
    losses, rates = [], []
    for batch in Loader(recipe, seed, 1, recipe.steps, source=source):
        result = engine.step(batch)
        for each, own in zip(sketches, sketch_seeds, strict=True):
            each.append(sketch(parameters, own))
        losses.append(result.loss)
        rates.append(result.learning_rate)
    return [
        Trajectory(name, np.array(each), tuple(losses), tuple(rates), recipe.batch, len(source)) for each in sketches
    ]
