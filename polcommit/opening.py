"""The payload of an opening: two records and the bulk bytes behind them (spec §5.4).

    u64 length ‖ Disclosure ‖ u64 length ‖ Openings ‖ blob ‖ blob ‖ …

Each distinct content stands once, in the order of first mention: states, states after, gradients, samples. Lengths
follow from what was mentioned, so there is no table that could disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from polcommit.encoding import tag, u64
from polcommit.errors import EncodingError
from polcommit.records import Gradient, OpenedSample, OpenedState, Openings, TensorEntry

MAX_RECORD = 16 << 20           # bytes of a Disclosure or of an Openings; decoded they take up to 32 times that

#: Dtypes that states may have: torch's name -> name in safetensors, bytes of one element.
DTYPES = {
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
    "int8": ("I8", 1),
    "uint16": ("U16", 2),
    "int16": ("I16", 2),
    "uint32": ("U32", 4),
    "int32": ("I32", 4),
    "uint64": ("U64", 8),
    "int64": ("I64", 8),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float32": ("F32", 4),
    "float64": ("F64", 8),
    "complex64": ("C64", 8),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
}


@dataclass(frozen=True, slots=True)
class Blob:
    """Bulk bytes that something mentions: `content` is BLAKE3 of `prefix` and the bytes."""

    content: bytes
    length: int
    prefix: bytes = b""


def tensor_bytes(entry: TensorEntry) -> int:
    """Length of a tensor's raw bytes.

    Raises:
        EncodingError: a dtype that has no raw form here.
    """
    if entry.dtype not in DTYPES:
        raise EncodingError(f"{entry.name}: dtype {entry.dtype!r}")
    return DTYPES[entry.dtype][1] * math.prod(entry.shape)


def blobs_of(
    states: Iterable[OpenedState], samples: Iterable[OpenedSample], gradients: Iterable[Gradient] = ()
) -> list[Blob]:
    """Every distinct content that these mention, in order.

    Raises:
        EncodingError: an unknown dtype, or one content with two lengths.
    """
    blobs: dict[tuple[bytes, bytes], Blob] = {}

    def mention(blob: Blob) -> None:
        if blobs.setdefault((blob.prefix, blob.content), blob) != blob:
            raise EncodingError(f"content {blob.content.hex()} is mentioned with two lengths")

    for state in states:
        for entry in state.index.tensors:
            mention(Blob(entry.content, tensor_bytes(entry)))
    for gradient in gradients:
        for entry in gradient.tensors:
            mention(Blob(entry.content, tensor_bytes(entry)))
    for sample in samples:
        mention(Blob(sample.leaf.content, sample.leaf.length, tag("sample")))
    return list(blobs.values())


def frame(disclosure: bytes, openings: bytes) -> Iterator[bytes]:
    """The framed records that stand before the blobs."""
    for record in (disclosure, openings):
        yield u64(len(record))
        yield record


def opening_blobs(openings: Openings) -> list[Blob]:
    """The blobs that follow an opening, in order."""
    return blobs_of((*openings.states, *(openings.next_states or ())), openings.samples, openings.gradients or ())
