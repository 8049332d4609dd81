"""Many forgers at once: the net of `SteeredDigits`, L times side by side, each in a lane of its own.

A hundred thousand steps of one forger by the training code take a quarter of an hour, and most of that is not
arithmetic. Here the lanes are groups of one convolution. The gradient is the recipe's up to rounding, which a test
holds. That what a lane opens passes the bounds of a step is arithmetic of its own (`bending`): no verifier sees it.

A lane has its weights, (n,) float32 in the order of the parameters' names, its data, and an optimizer: SGD without
momentum, or AdamW as torch has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from polcommit.recipes.digits import Net
from polcommit.spoofs.bending import Lanes
from polcommit.spoofs.measure.steered import LABELS, SteeredDigits

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8      # torch's own for AdamW


class Side:
    """The nets of L lanes, their data and their gradients."""

    def __init__(self, recipe: SteeredDigits, labels: Sequence[str]) -> None:
        shapes = {name: tuple(p.shape) for name, p in sorted(Net(recipe.width, 0.0).named_parameters())}
        self.names = tuple(shapes)
        self.sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self._shapes = list(shapes.values())
        self._width, self._lanes = recipe.width, len(labels)
        found = [_tensors(SteeredDigits(labels=kind)) for kind in LABELS]
        self._images, self._labels = torch.stack([x for x, _ in found]), torch.stack([y for _, y in found])
        self._kind = torch.tensor([LABELS.index(kind) for kind in labels])

    def gradient(self, weights: Lanes, indices: Sequence[int]) -> tuple[Lanes, torch.Tensor]:
        """(gradient (L, n), loss (L,)) of each lane on these samples of its data."""
        chosen = torch.tensor(indices)
        images = self._images[:, chosen][self._kind].transpose(0, 1)        # (B, L, 8, 8)
        labels = self._labels[:, chosen][self._kind]                        # (L, B)
        leaf = weights.detach().requires_grad_()
        logits = self.logits(leaf, images)
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view(labels.shape).mean(1)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return gradient, losses.detach()

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The first lane's samples as the recipe's `loss` takes them: (B, 1, 8, 8) images, (B,) labels."""
        chosen, kind = torch.tensor(indices), int(self._kind[0])
        return self._images[kind][chosen][:, None], self._labels[kind][chosen]

    def logits(self, weights: Lanes, images: torch.Tensor) -> torch.Tensor:
        """(L, B, 10) of (B, L, 8, 8) images; batch norm by the batch, as in training."""
        lanes, width = self._lanes, self._width
        parts = weights.split(self.sizes, 1)
        conv1, conv2, bias1, scale1, bias2, scale2, bias, out = (
            part.reshape(lanes, *shape) for part, shape in zip(parts, self._shapes, strict=True)
        )
        x = functional.conv2d(images, conv1.flatten(0, 1), padding=1, groups=lanes)
        x = _normed(x, scale1, bias1)
        x = functional.conv2d(x, conv2.flatten(0, 1), padding=1, groups=lanes)
        x = _normed(x, scale2, bias2)
        flat = x.reshape(len(images), lanes, 2 * width * 4).transpose(0, 1)
        return torch.baddbmm(bias[:, None], flat, out.transpose(1, 2))

    @torch.no_grad()
    def accuracy(self, weights: Lanes) -> torch.Tensor:
        """(L,): share of clean training digits that are classified correctly, batch norm by that batch."""
        images, labels = self._images[0], self._labels[0]
        logits = self.logits(weights, images[:, None].expand(-1, self._lanes, -1, -1))
        return (logits.argmax(2) == labels).float().mean(1)


def _normed(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    x = functional.batch_norm(x, None, None, scale.flatten(), bias.flatten(), training=True)
    return functional.max_pool2d(functional.relu(x), 2)


def _tensors(recipe: SteeredDigits) -> tuple[torch.Tensor, torch.Tensor]:
    """((N, 8, 8) float32 images, (N,) labels) as the recipe feeds them."""
    source = recipe.source()
    samples = [recipe.transform(source[index]) for index in range(len(source))]
    return torch.stack([image[0] for image, _ in samples]), torch.tensor([label for _, label in samples])


class Optimizer:
    """SGD, or AdamW (Loshchilov and Hutter), lane by lane; without weight decay."""

    def __init__(self, names: Sequence[str], like: Lanes) -> None:
        self._adaptive = torch.tensor([name == "adamw" for name in names])[:, None]
        self._first, self._second = torch.zeros_like(like), torch.zeros_like(like)
        self._steps = 0

    def scale(self, gradient: Lanes) -> Lanes:
        """D, as the next update will use it if its gradient is about this one; 1 of SGD."""
        second = torch.addcmul(BETA2 * self._second, gradient, gradient, value=1 - BETA2)
        root = second.div_(1 - BETA2 ** (self._steps + 1)).sqrt_().add_(EPS)
        return torch.where(self._adaptive, root.reciprocal_(), 1.0)

    def update(self, gradient: Lanes) -> Lanes:
        """What is subtracted from the weights, per unit of the learning rate."""
        self._steps += 1
        self._first.lerp_(gradient, 1 - BETA1)
        self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = (self._second / (1 - BETA2**self._steps)).sqrt_().add_(EPS)
        return torch.where(self._adaptive, self._first / (1 - BETA1**self._steps) / root, gradient)
