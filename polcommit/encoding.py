"""Canonical MessagePack, the record codec, and the one table of domain tags (spec §2).

A value has one encoding: arrays of known length, shortest integers, byte strings, NFC UTF-8, nil and
booleans. There are no maps, extension types or native floats; a float64 is 8 big-endian bytes. What is
decoded is scanned first, so that no length or depth that a message claims is believed before it has been
compared with the bytes that are there.

This module does not know what a record means: range checks live in the records' `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
import types
import typing
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import msgpack

from polcommit.errors import EncodingError

MAX_DEPTH = 16
MAX_SIZE = 64 << 20     # bytes of one encoded record; bulk data travels beside records, never in them

#: Every domain tag. What is hashed, signed or derived begins with `tag(name)`; no tag is a prefix of another.
TAGS = frozenset(
    {
        # computed by the contract as well
        "run", "chain",
        # randomness
        "beacon", "seed", "post-hoc-seed", "draw-seed", "kept-seed", "added-seed", "origin-seed", "sketch-seed",
        "nonce",
        # trees: leaves, and the digests that bind size and root
        "leaf/dataset", "leaf/state", "leaf/transcript", "leaf/schedule",
        "digest/dataset", "digest/state", "digest/transcript", "digest/schedule",
        # derived from the run secret (HKDF-Expand info)
        "salt/dataset", "salt/transcript", "blinding/manifest", "blinding/head",
        # hashes of records and of content
        "record", "manifest", "commitment", "samples", "batch", "sample", "configuration", "source", "tensor",
        "payload", "envelope", "profile",
        # signatures
        "sign/statement", "sign/envelope", "sign/challenge", "sign/opening", "sign/refusal", "sign/verdict",
        # HPKE info and payload context
        "hpke", "stream",
    }
)

T = TypeVar("T")


def tag(name: str) -> bytes:
    """The bytes that go before whatever is hashed, signed or derived for this purpose."""
    if name not in TAGS:
        raise KeyError(f"no domain tag {name!r}")
    return b"polcommit/v1/" + name.encode("ascii") + b"\0"


def tagged_hash(name: str, *parts: bytes) -> bytes:
    """SHA-256 of the tag and the parts. Parts are of fixed width, or at most the last one is not."""
    digest = hashlib.sha256(tag(name))
    for part in parts:
        digest.update(part)
    return digest.digest()


def u64(value: int) -> bytes:
    """Eight big-endian bytes."""
    if isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise EncodingError(f"{value!r} is not an unsigned 64-bit integer")
    return value.to_bytes(8, "big")


# --- plain values ---------------------------------------------------------------------------------------------


def pack(value: object) -> bytes:
    """Encode None, bool, int, str, bytes and (nested) tuples or lists of them.

    Raises:
        EncodingError: another type, an integer beyond 64 bits, text that is not NFC, or nesting too deep.
    """
    _check_packable(value, 0)
    return typing.cast(bytes, msgpack.packb(value, use_bin_type=True))


def unpack(data: bytes, *, max_size: int = MAX_SIZE) -> Any:
    """Decode what `pack` made; arrays come back as tuples.

    Raises:
        EncodingError: not the canonical encoding of anything, or larger than `max_size` bytes.
    """
    if len(data) > max_size:
        raise EncodingError(f"{len(data)} bytes, more than the {max_size} allowed here")
    end = _scan(data)
    if end != len(data):
        raise EncodingError(f"{len(data) - end} trailing bytes")
    try:
        return msgpack.unpackb(data, raw=False, use_list=False)
    except (ValueError, msgpack.exceptions.UnpackException, UnicodeDecodeError) as error:
        raise EncodingError(f"not MessagePack: {error}") from error


def _check_packable(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise EncodingError(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool | bytes):
        return
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise EncodingError(f"{value} does not fit in 64 bits")
    elif isinstance(value, str):
        _check_text(value)
    elif isinstance(value, tuple | list):
        for item in value:
            _check_packable(item, depth + 1)
    else:
        raise EncodingError(f"{type(value).__name__} has no encoding")


def _check_text(text: str) -> None:
    if not unicodedata.is_normalized("NFC", text):
        raise EncodingError(f"text is not in Unicode form NFC: {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EncodingError(f"text holds a lone surrogate: {text!r}") from error


# first byte -> (bytes of the length or integer that follow, smallest value that may use this form)
_UNSIGNED = {0xCC: (1, 1 << 7), 0xCD: (2, 1 << 8), 0xCE: (4, 1 << 16), 0xCF: (8, 1 << 32)}
_SIGNED = {0xD0: (1, -(1 << 5)), 0xD1: (2, -(1 << 7)), 0xD2: (4, -(1 << 15)), 0xD3: (8, -(1 << 31))}
_TEXT = {0xD9: (1, 1 << 5), 0xDA: (2, 1 << 8), 0xDB: (4, 1 << 16)}
_BYTES = {0xC4: (1, 0), 0xC5: (2, 1 << 8), 0xC6: (4, 1 << 16)}
_ARRAY = {0xDC: (2, 1 << 4), 0xDD: (4, 1 << 16)}


def _scan(data: bytes) -> int:
    """Walk one value without building it; return the offset after it. Rejects all but the canonical forms."""
    at = 0
    open_arrays: list[int] = [1]        # items still due at each level
    while open_arrays:
        if open_arrays[-1] == 0:
            open_arrays.pop()
            continue
        open_arrays[-1] -= 1
        if at >= len(data):
            raise EncodingError("truncated")
        at, items = _scan_head(data, at)
        if items:
            if len(open_arrays) > MAX_DEPTH:
                raise EncodingError(f"nested deeper than {MAX_DEPTH}")
            open_arrays.append(items)
    return at


def _scan_head(data: bytes, at: int) -> tuple[int, int]:
    """One head at `at` with its string or byte content: (offset after it, number of array items that follow)."""
    head = data[at]
    at += 1
    if head <= 0x7F or head >= 0xE0 or head in (0xC0, 0xC2, 0xC3):
        return at, 0
    if 0x90 <= head <= 0x9F:
        return at, _bounded(head & 0x0F, data, at)
    if 0xA0 <= head <= 0xBF:
        return _scan_text(data, at, head & 0x1F), 0
    for forms in (_UNSIGNED, _SIGNED, _TEXT, _BYTES, _ARRAY):
        if head in forms:
            width, least = forms[head]
            break
    else:
        raise EncodingError(f"byte 0x{head:02x} at offset {at - 1} begins no allowed type")
    raw = data[at : at + width]
    if len(raw) != width:
        raise EncodingError("truncated")
    value = int.from_bytes(raw, "big", signed=head in _SIGNED)
    if (value >= least) if head in _SIGNED else (value < least):
        raise EncodingError(f"integer or length at offset {at - 1} is not in its shortest form")
    at += width
    if head in _ARRAY:
        return at, _bounded(value, data, at)
    if head in _TEXT:
        return _scan_text(data, at, value), 0
    return (at + _bounded(value, data, at), 0) if head in _BYTES else (at, 0)


def _bounded(count: int, data: bytes, at: int) -> int:
    """An announced count of items or bytes, each of which takes at least one byte of what is left."""
    if count > len(data) - at:
        raise EncodingError(f"{count} announced at offset {at}, {len(data) - at} bytes left")
    return count


def _scan_text(data: bytes, at: int, length: int) -> int:
    end = at + _bounded(length, data, at)
    try:
        _check_text(data[at:end].decode("utf-8"))
    except UnicodeDecodeError as error:
        raise EncodingError(f"text at offset {at} is not UTF-8") from error
    return end


# --- records --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Length:
    """`Annotated[bytes, Length(32)]`: exactly that many bytes."""

    size: int


Bytes8 = Annotated[bytes, Length(8)]
Bytes20 = Annotated[bytes, Length(20)]
Bytes32 = Annotated[bytes, Length(32)]
Bytes64 = Annotated[bytes, Length(64)]


class Record:
    """Base of the types that have one encoding: an array of the fields in order.

    A class with a `TAG` stands on its own: its array begins with that tag and `VERSION`. One without is part
    of another. Subclasses are frozen dataclasses, valid if they exist.
    """

    __slots__ = ()
    TAG: ClassVar[str | None] = None
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check types and lengths; subclasses that check more call `Record.__post_init__(self)` first."""
        for field, check in _codec(typing.cast(Any, type(self))).checks:
            check(getattr(self, field), f"{type(self).__name__}.{field}")


R = TypeVar("R", bound=Record)


def encode(record: Record) -> bytes:
    """The one encoding of a record."""
    return pack(_codec(typing.cast(Any, type(record))).dump(record))


def decode(data: bytes, kind: type[R], *, max_size: int = MAX_SIZE) -> R:
    """The record that `data` encodes.

    Raises:
        EncodingError: not canonical, another tag or version, missing or extra fields, or a value out of range.
    """
    return typing.cast(R, _codec(typing.cast(Any, kind)).load(unpack(data, max_size=max_size), kind.__name__))


def digest(record: Record) -> bytes:
    """SHA-256 of a record's encoding; the record's own tag and version are its first bytes."""
    if record.TAG is None:
        raise TypeError(f"{type(record).__name__} is a part of a record and has no digest of its own")
    return tagged_hash("record", encode(record))


@dataclasses.dataclass(frozen=True, slots=True)
class _Codec:
    """How one type is checked, turned into plain values, and back."""

    check: Callable[[Any, str], None]
    dump: Callable[[Any], Any]
    load: Callable[[Any, str], Any]
    checks: tuple[tuple[str, Callable[[Any, str], None]], ...] = ()


def _expect(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise EncodingError(f"{where}: {what}")


@functools.cache
def _codec(kind: Any) -> _Codec:
    if isinstance(kind, type) and issubclass(kind, Record):
        return _record_codec(kind)
    if get_origin(kind) is Annotated:
        base, length = get_args(kind)
        return _bytes_codec(base, length.size)
    if kind is bytes:
        return _bytes_codec(bytes, None)
    if kind is float:
        return _float_codec()
    if kind in (int, bool, str):
        return _scalar_codec(kind)
    if get_origin(kind) is tuple:
        return _tuple_codec(get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return _optional_codec(get_args(kind))
    raise TypeError(f"no codec for {kind!r}")


def _scalar_codec(kind: type) -> _Codec:
    def check(value: Any, where: str) -> None:
        _expect(type(value) is kind, where, f"{value!r} is not of type {kind.__name__}")
        if kind is int:
            _expect(-(1 << 63) <= value < 1 << 64, where, f"{value} does not fit in 64 bits")
        if kind is str:
            _check_text(value)

    def load(value: Any, where: str) -> Any:
        check(value, where)
        return value

    return _Codec(check, lambda value: value, load)


def _bytes_codec(kind: type, size: int | None) -> _Codec:
    def check(value: Any, where: str) -> None:
        _expect(type(value) is kind, where, f"{type(value).__name__} instead of {kind.__name__}")
        _expect(size is None or len(value) == size, where, f"{len(value)} bytes instead of {size}")

    def load(value: Any, where: str) -> Any:
        check(value, where)
        return value

    return _Codec(check, lambda value: value, load)


def _float_codec() -> _Codec:
    def check(value: Any, where: str) -> None:
        _expect(type(value) is float, where, f"{value!r} is not a float")

    def load(value: Any, where: str) -> float:
        _expect(type(value) is bytes and len(value) == 8, where, "a float64 is 8 bytes")
        return typing.cast(float, struct.unpack(">d", value)[0])

    return _Codec(check, lambda value: struct.pack(">d", value), load)


def _tuple_codec(arguments: tuple[Any, ...]) -> _Codec:
    repeated = len(arguments) == 2 and arguments[1] is Ellipsis
    items = (_codec(arguments[0]),) if repeated else tuple(_codec(argument) for argument in arguments)

    def codecs(value: Any, where: str) -> tuple[_Codec, ...]:
        _expect(type(value) is tuple, where, f"{type(value).__name__} instead of an array")
        if repeated:
            return items * len(value)
        _expect(len(value) == len(items), where, f"{len(value)} items instead of {len(items)}")
        return items

    def check(value: Any, where: str) -> None:
        for position, (item, codec) in enumerate(zip(value, codecs(value, where), strict=True)):
            codec.check(item, f"{where}[{position}]")

    def dump(value: Any) -> Any:
        return tuple(codec.dump(item) for item, codec in zip(value, codecs(value, "tuple"), strict=True))

    def load(value: Any, where: str) -> Any:
        loaded = zip(value, codecs(value, where), strict=True)
        return tuple(codec.load(item, f"{where}[{position}]") for position, (item, codec) in enumerate(loaded))

    return _Codec(check, dump, load)


def _optional_codec(arguments: tuple[Any, ...]) -> _Codec:
    (kind,) = (argument for argument in arguments if argument is not type(None))
    inner = _codec(kind)
    return _Codec(
        lambda value, where: None if value is None else inner.check(value, where),
        lambda value: None if value is None else inner.dump(value),
        lambda value, where: None if value is None else inner.load(value, where),
    )


def _record_codec(kind: type[Record]) -> _Codec:
    hints = typing.get_type_hints(kind, include_extras=True)
    names = tuple(field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]  # a dataclass by contract
    codecs = tuple(_codec(hints[name]) for name in names)
    head = () if kind.TAG is None else (f"polcommit/{kind.TAG}", kind.VERSION)

    def check(value: Any, where: str) -> None:
        _expect(type(value) is kind, where, f"{type(value).__name__} instead of {kind.__name__}")

    def dump(value: Any) -> Any:
        fields = (codec.dump(getattr(value, name)) for name, codec in zip(names, codecs, strict=True))
        return (*head, *fields)

    def load(value: Any, where: str) -> Any:
        _expect(type(value) is tuple, where, f"{type(value).__name__} instead of an array")
        found = value[: len(head)]
        _expect(
            found == head and all(type(a) is type(b) for a, b in zip(found, head, strict=True)),
            where,
            f"not a {kind.TAG} record of version {kind.VERSION}: begins with {found!r}",
        )
        fields = value[len(head) :]
        _expect(len(fields) == len(names), where, f"{len(fields)} fields instead of {len(names)}")
        loaded = {
            name: codec.load(field, f"{where}.{name}") for name, codec, field in zip(names, codecs, fields, strict=True)
        }
        return kind(**loaded)

    return _Codec(check, dump, load, tuple((name, codec.check) for name, codec in zip(names, codecs, strict=True)))
