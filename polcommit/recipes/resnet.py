"""Residual nets on CIFAR: what the papers on Proof-of-Learning train, `resnet20-cifar10` and `resnet50-cifar100`.

Jia et al. (IEEE S&P 2021) and Fang et al. (EuroS&P 2023) evaluate on ResNet-20 with CIFAR-10 and ResNet-50 with
CIFAR-100: batches of 128, SGD with momentum 0.9, 200 epochs of 390 steps (T = 78,000). Where their text leaves
something open, the defaults are those of the code that Jia et al. published (milestones, weight decay, normalisation,
shortcuts, augmentation) and of He et al., CVPR 2016, §4.2 (learning rate 0.1). Three things differ. A rate drops at a
share of the steps, not at an epoch, so that a shorter run has the same schedule; over 78,000 steps that is the epoch
of theirs. W_0 of both is PyTorch's default, uniform within 1/sqrt(fan in), by exact operations, also where their
ResNet-20 takes normals. A rotation is uniform in the tangent of half the angle (see `cifar.tilted`).

Nothing here was trained at the papers' scale by us: no accuracy is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from polcommit.errors import UsageError
from polcommit.recipes.cifar import CIFAR10, CIFAR100, Format, Images, cropped, flipped, tilted
from polcommit.training.recipe import LOCAL, Applied, Recipe, Source
from polcommit.training.state import TrainingState

_WIDEST = 1 << 10           # channels of the first stage
_DEEPEST = 200              # blocks of a stage: as many as in the 1,202 layers of He et al., §4.2
_STAGES = 5                 # each halves an image of 32 pixels, after the first
_EVALUATED = 256            # images at a time


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class Basic(nn.Module):
    """Two 3x3 convolutions beside the identity; where shapes differ, every other pixel and channels of zeros.

    He et al., §4.2, with their option A: a shortcut without parameters.
    """

    EXPANSION = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added = width - inputs
        self.conv1 = _convolution(inputs, width, 3, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        out = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if self.stride != 1 or self.added:
            before = self.added // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return functional.relu(out + x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; where shapes differ, a projection in the shortcut (He et al., §4.1, option B)."""

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.EXPANSION * width
        self.conv1 = _convolution(inputs, width, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, outputs, 1)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, 4 * width, H / stride, W / stride)."""
        out = functional.relu(self.norm1(self.conv1(x)))
        out = functional.relu(self.norm2(self.conv2(out)))
        return functional.relu(self.norm3(self.conv3(out)) + self.shortcut(x))


Block = type[Basic] | type[Bottleneck]


class ResNet(nn.Module):
    """(N, 3, 32, 32) float32 to (N, classes) logits.

    A 3x3 convolution, then stages of `blocks[i]` blocks with width * 2**i channels, each but the first begun with a
    stride of 2. The average at the end is a plain mean: adaptive pooling has no deterministic gradient on CUDA.
    """

    def __init__(self, block: Block, blocks: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.conv = _convolution(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        channels, stages = width, []
        for stage, count in enumerate(blocks):
            layers = []
            for number in range(count):
                layers.append(block(channels, width << stage, 2 if stage and not number else 1))
                channels = block.EXPANSION * (width << stage)
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.out = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.stages(functional.relu(self.norm(self.conv(x))))
        logits: torch.Tensor = self.out(x.mean((2, 3)))
        return logits


@dataclass(frozen=True, kw_only=True)
class OnCifar(Recipe):
    """What the two have in common; `data` says in which folder the files lie on this machine."""

    SOURCES: ClassVar[tuple[str, ...]] = ("polcommit.recipes.cifar",)
    FORMAT: ClassVar[Format]
    BLOCK: ClassVar[Block]
    MEAN: ClassVar[tuple[float, float, float]]          # of the planes, in 0 to 1: what is subtracted,
    DEVIATION: ClassVar[tuple[float, float, float]]     # and what is divided by

    steps: int = 78_000
    batch: int = 128
    blocks: str                     # of each stage, between spaces
    width: int                      # channels of the first stage
    shift: int = 4                  # pixels, at most, in each direction
    tilt: float = 0.0               # tangent of half the largest angle by which an image is turned
    peak: float = 0.1               # learning rate of the first step
    drops: str                      # percentages of the steps, rising, after which the rate is multiplied by
    factor: float
    momentum: float = 0.9
    weight_decay: float             # of all parameters
    data: str | Path | None = field(default=None, metadata=LOCAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks = _numbers("blocks", self.blocks)
        if not 1 <= len(blocks) <= _STAGES or not all(1 <= count <= _DEEPEST for count in blocks):
            raise UsageError(f"blocks {self.blocks!r}: 1 to {_STAGES} stages of 1 to {_DEEPEST} blocks")
        if not 1 <= self.width <= _WIDEST:
            raise UsageError(f"width {self.width}: from 1 to {_WIDEST}")
        if not 0 <= self.shift <= 32:
            raise UsageError(f"shift {self.shift}: from 0 to 32 pixels")
        if not 0 <= self.tilt <= 1:
            raise UsageError(f"tilt {self.tilt}: from 0 to 1, for angles of up to 90 degrees")
        edges = (0, *_numbers("drops", self.drops), 100)
        if not all(earlier < later for earlier, later in pairwise(edges)):
            raise UsageError(f"drops {self.drops!r}: percentages between 0 and 100, rising")

    def source(self) -> Source:
        """The training images: ((3, 32, 32) uint8, label)."""
        return Images(self._folder(), self.FORMAT, self.FORMAT.train)

    def transform(self, sample: tuple[Any, int]) -> tuple[torch.Tensor, int]:
        """(3, 32, 32) float32, cropped from a border, mirrored, turned and normalised; and the label."""
        image, label = sample
        return self._normalised(tilted(flipped(cropped(image, self.shift)), self.tilt)), label

    def build(self) -> TrainingState:
        """Net and SGD; the schedule is `learning_rate`, set in `apply`."""
        model = self.net().to(self.device)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.peak, momentum=self.momentum, weight_decay=self.weight_decay
        )
        return TrainingState(model=model, optimizer=optimizer)

    def net(self) -> ResNet:
        """The net, on the CPU, with values that mean nothing yet."""
        return ResNet(self.BLOCK, _numbers("blocks", self.blocks), self.width, self.FORMAT.classes)

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
        """`peak`, multiplied by `factor` once for each of `drops` that lies behind step t."""
        rate = self.peak
        for percent in _numbers("drops", self.drops):
            if 100 * (t - 1) >= percent * self.steps:
                rate *= self.factor     # step by step: the C library's power may differ in the last bit
        return rate

    @torch.no_grad()
    def evaluate(self, state: TrainingState) -> float:
        """Share of the test images that are classified correctly."""
        images = Images(self._folder(), self.FORMAT, self.FORMAT.test)
        training, right = state.model.training, 0
        state.model.eval()
        for start in range(0, len(images), _EVALUATED):
            samples = [images[index] for index in range(start, min(start + _EVALUATED, len(images)))]
            x = torch.stack([self._normalised(image) for image, _ in samples]).to(self.device)
            found = state.model(x).argmax(1).tolist()
            right += sum(label == due for label, (_, due) in zip(found, samples, strict=True))
        state.model.train(training)
        return right / len(images)

    def _normalised(self, image: np.ndarray[Any, Any]) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(image)).float() / 255
        return (x - torch.tensor(self.MEAN)[:, None, None]) / torch.tensor(self.DEVIATION)[:, None, None]

    def _folder(self) -> Path:
        if self.data is None:
            name = self.FORMAT.name
            raise UsageError(f"the recipe needs {name}", hint="give the folder of its binary version as 'data'")
        return Path(self.data)


@dataclass(frozen=True, kw_only=True)
class ResNet20Cifar10(OnCifar):
    """0.27 million parameters; as in the published code, colours are normalised as for ImageNet."""

    FORMAT: ClassVar[Format] = CIFAR10
    BLOCK: ClassVar[Block] = Basic
    MEAN: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    DEVIATION: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)

    blocks: str = "3 3 3"
    width: int = 16
    drops: str = "50 75"
    factor: float = 0.1
    weight_decay: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class ResNet50Cifar100(OnCifar):
    """23.7 million parameters, the first convolution 3x3 and unpooled, for images of 32 pixels."""

    FORMAT: ClassVar[Format] = CIFAR100
    BLOCK: ClassVar[Block] = Bottleneck
    MEAN: ClassVar[tuple[float, float, float]] = (0.5071, 0.4865, 0.4409)
    DEVIATION: ClassVar[tuple[float, float, float]] = (0.2673, 0.2564, 0.2762)

    blocks: str = "3 4 6 3"
    width: int = 64
    tilt: float = 0.13165           # 15 degrees
    drops: str = "30 60 80"
    factor: float = 0.2
    weight_decay: float = 5e-4


@lru_cache(maxsize=64)          # registration asks for the rate of every step
def _numbers(name: str, text: str) -> tuple[int, ...]:
    """The whole numbers in a text, between single spaces: one way to write them. Raises UsageError."""
    words = text.split()
    if text != " ".join(words) or not all(word.isascii() and word.isdigit() and len(word) < 5 for word in words):
        raise UsageError(f"{name} {text[:40]!r}: whole numbers, each one space from the next", hint="such as '50 75'")
    numbers = tuple(int(word) for word in words)
    if text != " ".join(map(str, numbers)):
        raise UsageError(f"{name} {text[:40]!r}: a number begins with zero")
    return numbers
