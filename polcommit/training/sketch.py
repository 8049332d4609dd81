"""64 sums of a model's parameters under random signs (spec §5.5).

The signs come from the challenge, so nobody knew them when the states were committed. With w the floating
parameters in the order of their names, each flattened in C order, as one float64 vector, and word i that of
the stream "sketch": value j is the sum of w_i with sign + where bit j of word i is set, and - where it is not.

The order of summation is fixed, so the values are equal bit for bit everywhere: w is cut into blocks of 2**20
elements; each is padded with zeros to a power of two and folded, x[:h] + x[h:], until one element is left;
the blocks' sums are added in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from polcommit import prf
from polcommit.errors import EncodingError
from polcommit.records import StateIndex, TensorEntry
from polcommit.training.tree import TORCH_DTYPES, tensor_from_bytes

SIZE = 64
BLOCK = 1 << 20

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
Fetch = Callable[[TensorEntry], bytes | bytearray | memoryview]


def sketch(parameters: Iterable[torch.Tensor], seed: bytes) -> tuple[float, ...]:
    """The 64 values, float64, of parameters given in the order of their names; `seed` is 32 bytes.

    Sums that are not a number are the one NaN of Python's `math.nan`, whatever the processor made of them.
    """
    totals: Vector | None = None
    start = 0
    for block in _blocks(parameters):
        sums = _block_sums(block, seed, start)
        totals = sums if totals is None else totals + sums
        start += block.size
    if totals is None:
        return (0.0,) * SIZE
    return tuple(math.nan if math.isnan(value) else value for value in totals.tolist())


def sketch_state(index: StateIndex, fetch: Fetch, seed: bytes) -> tuple[float, ...]:
    """The sketch of a full state: of its parameters that are floating, in the order of their names.

    Raises:
        EncodingError: the bytes that `fetch` returns do not fill a tensor's dtype and shape.
    """
    return sketch((_tensor(entry, fetch) for entry in index.tensors if _counts(entry)), seed)


def _counts(entry: TensorEntry) -> bool:
    return entry.kind == "parameter" and entry.dtype in TORCH_DTYPES and TORCH_DTYPES[entry.dtype].is_floating_point


def _tensor(entry: TensorEntry, fetch: Fetch) -> torch.Tensor:
    try:
        return tensor_from_bytes(entry.dtype, entry.shape, fetch(entry))
    except EncodingError as error:
        raise EncodingError(f"{entry.name}: {error}") from error


def _blocks(parameters: Iterable[torch.Tensor]) -> Iterator[Vector]:
    """The concatenated float64 vector, cut into blocks of BLOCK elements; only the last may be shorter."""
    held: list[Vector] = []
    size = 0
    for parameter in parameters:
        flat = parameter.detach().to("cpu").contiguous().reshape(-1)
        while flat.numel():
            part = flat[: BLOCK - size]
            flat = flat[part.numel() :]
            held.append(part.to(torch.float64).numpy())
            size += part.numel()
            if size == BLOCK:
                yield np.concatenate(held)
                held, size = [], 0
    if held:
        yield np.concatenate(held)


def _block_sums(block: Vector, seed: bytes, start: int) -> Vector:
    words = np.frombuffer(prf.words(seed, "sketch", count=block.size, start=start), dtype=np.uint64)
    bits = block.view(np.uint64)
    sign = np.uint64(1 << 63)
    sums = np.empty(SIZE, dtype=np.float64)
    for j in range(SIZE):
        # bit j clear flips the sign bit, which is exact for every value
        flipped = bits ^ (~(words << np.uint64(63 - j)) & sign)
        sums[j] = _fold(flipped.view(np.float64))
    return sums


@np.errstate(all="ignore")
def _fold(values: Vector) -> float:
    half = (1 << max(values.size - 1, 0).bit_length()) // 2
    if half and values.size < 2 * half:
        # the elements beyond `values.size - half` meet a padding zero; x + 0.0 is x, but for -0.0
        folded = values[:half] + 0.0
        folded[: values.size - half] = values[: values.size - half] + values[half:]
        values, half = folded, half // 2
    while half:
        values = values[:half] + values[half:]
        half //= 2
    return float(values[0])
