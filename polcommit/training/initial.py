"""W_0 from the run's seed, equal bit for bit on every processor (spec §3.5).

Only operations that IEEE 754 fixes are used: integers, exact scaling by powers of two, and one rounding in a
product. Each tensor has its own stream, "weights" keyed with its name, so adding a layer changes no other.
`torch.randn` and the initialisers of `torch.nn.init` do not have this property.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from polcommit import prf

_BLOCK = 1 << 20        # elements at a time: bounds the memory for words


def uniform(seed: bytes, name: str, shape: tuple[int, ...], bound: float) -> torch.Tensor:
    """Uniform on [-bound, bound), float32.

    Element i: u = top 24 bits of word i, as a number in [0, 1); (2u - 1) is exact; times float32(bound), rounded.
    """
    out = np.empty(math.prod(shape), dtype=np.float32)
    for start in range(0, out.size, _BLOCK):
        words = _words(seed, name, start, min(_BLOCK, out.size - start))
        centred = (words >> np.uint64(40)).astype(np.int32) - np.int32(1 << 23)
        out[start : start + _BLOCK] = centred.astype(np.float32) * np.float32(2.0**-23) * np.float32(bound)
    return torch.from_numpy(out.reshape(shape))


def normal(seed: bytes, name: str, shape: tuple[int, ...], std: float) -> torch.Tensor:
    """Close to normal with mean 0 and this standard deviation, within 6 of them, float32.

    Element i: the sum of the twelve 16-bit integers in words 3i to 3i + 2, over 2**16, less 6, all of it exact;
    times float32(std), rounded. The sum of twelve uniforms has variance 1 (Irwin-Hall).
    """
    out = np.empty(math.prod(shape), dtype=np.float32)
    for start in range(0, out.size, _BLOCK):
        count = min(_BLOCK, out.size - start)
        words = _words(seed, name, 3 * start, 3 * count)
        sums = words.astype("<u8", copy=False).view("<u2").reshape(count, 12).sum(axis=1, dtype=np.int32)
        centred = (sums - np.int32(6 << 16)).astype(np.float32) * np.float32(2.0**-16)
        out[start : start + count] = centred * np.float32(std)
    return torch.from_numpy(out.reshape(shape))


def _words(seed: bytes, name: str, start: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.frombuffer(prf.name_words(seed, "weights", name, count=count, start=start), dtype=np.uint64)


_AFFINE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


@torch.no_grad()
def standard_initialize(model: nn.Module, seed: bytes) -> None:
    """Set every trainable parameter from the run's seed; buffers and frozen parameters stay as built.

    Linear and convolution: weight and bias uniform within 1/sqrt(fan in). Norms: weight 1, bias 0. Anything else
    of two dimensions or more, embeddings included: normal, 0.02. The rest: 0. A tied parameter is set once, by
    the first of its names and by the module that has it there. A recipe whose own modules want other values, say 1
    for a scale, overrides `Recipe.initialize`.
    """
    named: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in sorted(model.named_parameters(remove_duplicate=False)):
        if parameter.requires_grad:
            named.setdefault(id(parameter), (name, parameter))
    for name, parameter in named.values():
        path, _, leaf = name.rpartition(".")
        parameter.copy_(_initial(seed, name, model.get_submodule(path), leaf, parameter))


def _initial(seed: bytes, name: str, module: nn.Module, leaf: str, parameter: nn.Parameter) -> torch.Tensor:
    shape = tuple(parameter.shape)
    if isinstance(module, _NORMS):
        return torch.ones(shape) if leaf == "weight" else torch.zeros(shape)
    if isinstance(module, _AFFINE) and leaf in ("weight", "bias"):
        fan_in = math.prod(module.weight.shape[1:])
        return uniform(seed, name, shape, 1.0 / math.sqrt(fan_in) if fan_in else 0.0)
    return normal(seed, name, shape, 0.02) if len(shape) >= 2 else torch.zeros(shape)
