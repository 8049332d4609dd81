"""A recipe for tests, with a switch for everything that a run may have; and states on disk, between processes."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from polcommit.encoding import decode, encode
from polcommit.records import StateIndex, TensorEntry
from polcommit.training.randomness import exact_dropout
from polcommit.training.recipe import Applied, Recipe, Source
from polcommit.training.state import Captured, TrainingState

SEED = bytes(range(32))
SAMPLES = 96


class MixedNet(nn.Module):
    """(N, 1, 8, 8) to (N, 4), with batch norm, both kinds of dropout, tied weights, and a non-persistent buffer."""

    def __init__(self, native_dropout: bool) -> None:
        super().__init__()
        self.native_dropout = native_dropout
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(128, 128)
        self.second = nn.Linear(128, 128, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(128), requires_grad=False)
        self.out = nn.Linear(128, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.get_buffer("calls").add_(1)
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2).flatten(1)
        x = functional.relu(self.second(functional.relu(self.first(x)))) * self.frozen
        x = exact_dropout(x, 0.2, self.training)
        if self.native_dropout:
            x = functional.dropout(x, 0.2, self.training)
        return self.out(x)


@dataclass(frozen=True, kw_only=True)
class Mixed(Recipe):
    steps: int = 24
    batch: int = 16
    accumulation: int = 2
    optimizer: str = "adamw"
    schedule: str = "step"          # 'step', 'epoch' or 'pure'
    autocast: bool = False
    scaler: bool = False
    channels_last: bool = False
    native_dropout: bool = True
    clip: float | None = 0.5

    def source(self) -> Source:
        generator = np.random.Generator(np.random.PCG64(7))
        images = generator.integers(0, 255, (SAMPLES, 8, 8), dtype=np.uint8)
        return [(image, int(image.mean()) % 4) for image in images]

    def transform(self, sample: Any) -> tuple[torch.Tensor, int]:
        image, label = sample
        shifts = random.randint(-1, 1), int(np.random.randint(-1, 2))  # seeded, no secret
        x = torch.roll(torch.from_numpy(image).float() / 255, shifts, (0, 1))
        return (x + 0.05 * torch.randn(8, 8))[None], label

    def build(self) -> TrainingState:
        model = MixedNet(self.native_dropout).to(self.device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        rate = 1e-2
        if self.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=rate, amsgrad=True)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True)
        scheduler = {
            "step": lambda: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done)),
            "epoch": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
            "pure": lambda: None,
        }[self.schedule]()
        scaler = torch.amp.GradScaler(torch.device(self.device).type, init_scale=1024.0) if self.scaler else None
        return TrainingState(
            model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, counters={"applied": 0}
        )

    def loss(self, state: TrainingState, micro_batch: Any, k: int, n: int) -> torch.Tensor:
        images, labels = micro_batch
        if self.channels_last:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.autocast):
            logits = state.model(images)
        return functional.cross_entropy(logits.float(), labels) / n

    def apply(self, state: TrainingState, t: int) -> Applied:
        clipped = False
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        if self.clip is not None:
            clipped = bool(nn.utils.clip_grad_norm_(state.model.parameters(), self.clip) > self.clip)
        if self.schedule == "pure":
            state.optimizer.param_groups[0]["lr"] = self.learning_rate(t)
        if state.scaler is not None:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            state.optimizer.step()
        if state.scheduler is not None and (self.schedule == "step" or t % (SAMPLES // self.batch) == 0):
            state.scheduler.step()
        state.counters["applied"] += 1
        return Applied(clipped=clipped)

    def learning_rate(self, t: int) -> float:
        if self.schedule == "epoch":
            return 1e-2 * 0.5 ** ((t - 1) // (SAMPLES // self.batch))
        return 1e-2 * (1 / t)


def write_state(folder: Path, captured: Captured) -> None:
    """The index, and each tensor's bytes under the hash of its content."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index").write_bytes(encode(captured.index))
    for entry in captured.index.tensors:
        (folder / entry.content.hex()).write_bytes(captured.content(entry))


def read_state(folder: Path) -> tuple[StateIndex, Any]:
    index = decode((folder / "index").read_bytes(), StateIndex)

    def fetch(entry: TensorEntry) -> bytes:
        return (folder / entry.content.hex()).read_bytes()

    return index, fetch


def result_line(result: Any, digest: bytes, index: StateIndex) -> str:
    return json.dumps([asdict(result), digest.hex(), encode(index).hex()])
