"""Messages between verifier and prover: on a pipe and in files, the same bytes (spec §5.5).

    u32 length ‖ message                    big-endian, bounded before anything is read
    u32 length ‖ chunk … u32 0              behind a SealedOpening: its payload, ended by an empty chunk

Verifier to prover: a Challenge, perhaps the same one again with gradients wanted, and at the end a Receipt. Prover
to verifier, each time: a SealedOpening with its payload, or a Refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, TypeVar

from polcommit.encoding import Record, decode, encode
from polcommit.errors import EncodingError, ProverUnavailable
from polcommit.records import Challenge, Receipt, Refusal, SealedOpening

MAX_MESSAGE = 64 << 20
MAX_CHUNK = 1 << 20
R = TypeVar("R", bound=Record)


def message(record: Record) -> bytes:
    """A framed record."""
    return framed(encode(record))


def framed(data: bytes) -> bytes:
    """A framed chunk; never empty, for the empty one ends a payload."""
    return len(data).to_bytes(4, "big") + data


def read_message(stream: BinaryIO, kind: type[R], *, max_size: int = MAX_MESSAGE) -> R:
    """The next message, of this kind.

    Raises:
        ProverUnavailable: the stream ends.
        EncodingError: too long, or not such a record.
    """
    return decode(_read(stream, max_size), kind, max_size=max_size)


def read_answer(stream: BinaryIO) -> SealedOpening | Refusal:
    """What a prover answers with. Raises as `read_message`."""
    data = _read(stream, 2 << 20)
    try:
        return decode(data, SealedOpening)
    except EncodingError:
        return decode(data, Refusal)


def read_reply(stream: BinaryIO) -> Receipt | Challenge:
    """What a verifier says to an answer: its verdict, or the follow-up. Raises as `read_message`."""
    data = _read(stream, MAX_MESSAGE)
    try:
        return decode(data, Receipt)
    except EncodingError:
        return decode(data, Challenge)


def read_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The chunks of a payload, up to the empty one."""
    while chunk := _read(stream, MAX_CHUNK):
        yield chunk


def chunked(stream: Iterable[bytes]) -> Iterator[bytes]:
    """Frames for a payload, the empty one last."""
    for data in stream:
        for start in range(0, len(data), MAX_CHUNK):
            yield framed(data[start : start + MAX_CHUNK])
    yield framed(b"")


def _read(stream: BinaryIO, max_size: int) -> bytes:
    length = int.from_bytes(_exactly(stream, 4), "big")
    if length > max_size:
        raise EncodingError(f"a message of {length} bytes, more than {max_size}")
    return _exactly(stream, length)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    parts = []
    while length > 0:
        part = stream.read(min(length, MAX_CHUNK))
        if not part:
            raise ProverUnavailable(
                "the other side's message is cut short",
                hint="have it sent again; 'polcommit challenge --resume ID' goes on with the same draw",
            )
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
