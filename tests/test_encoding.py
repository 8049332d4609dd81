"""polcommit.encoding and polcommit.records: one encoding of everything, and golden vectors of what is hashed.

    python tests/test_encoding.py       writes tests/vectors/core.json again; a change in it is another protocol
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import sys
import time
import tracemalloc
import types
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from fakes import named
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit import records, replaying
from polcommit import transcript as hashes
from polcommit.encoding import (
    MAX_DEPTH,
    TAGS,
    Length,
    Record,
    decode,
    digest,
    encode,
    pack,
    tag,
    tagged_hash,
    u64,
    unpack,
)
from polcommit.errors import EncodingError, VerificationError
from polcommit.records import (
    Fingerprint,
    GenesisRecord,
    Gradient,
    Manifest,
    OpenedLeaf,
    Request,
    RevealedHead,
    ScalarEntry,
    StateIndex,
    Statement,
    StepRecord,
    TensorEntry,
    TreeHead,
    Verdict,
)

VECTORS = Path(__file__).parent / "vectors" / "core.json"
law = settings(deadline=None)

texts = st.text(st.characters(codec="utf-8"), max_size=20).map(lambda text: unicodedata.normalize("NFC", text))
integers = st.integers(-(1 << 63), (1 << 64) - 1)
plain = st.recursive(
    st.none() | st.booleans() | integers | st.binary(max_size=40) | texts,
    lambda items: st.lists(items, max_size=5).map(tuple),
    max_leaves=20,
)


# --- plain values ---------------------------------------------------------------------------------------------


@law
@given(plain)
def test_what_was_packed_unpacks(value: object) -> None:
    assert unpack(pack(value)) == value


@law
@given(plain)
def test_msgpack_itself_agrees(value: object) -> None:
    """A second implementation's path to the same bytes."""
    assert pack(value) == msgpack.packb(value, use_bin_type=True)


@law
@given(st.binary(max_size=40))
def test_whatever_is_accepted_is_its_own_encoding(data: bytes) -> None:
    _accepted_only_if_canonical(data)


@law
@given(plain, st.data())
def test_a_changed_encoding_is_rejected_or_is_anothers(value: object, data: st.DataObject) -> None:
    encoded = bytearray(pack(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    how = data.draw(st.sampled_from(["flip", "insert", "delete"]))
    byte = data.draw(st.integers(0, 255))
    if how == "flip":
        encoded[position] = byte
    elif how == "insert":
        encoded.insert(position, byte)
    else:
        del encoded[position]
    _accepted_only_if_canonical(bytes(encoded))


#: Heads of every kind that MessagePack has, for bytes that are nearly right.
HEADS = st.sampled_from([bytes([byte]) for byte in range(0x80, 0xE0)])


@law
@given(st.lists(HEADS | st.binary(min_size=1, max_size=3), max_size=12).map(b"".join))
def test_whatever_is_accepted_of_random_heads_is_its_own_encoding(data: bytes) -> None:
    _accepted_only_if_canonical(data)


def _accepted_only_if_canonical(data: bytes) -> None:
    try:
        value = unpack(data)
    except EncodingError:
        return
    assert pack(value) == data


BOUNDARIES = [0, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1]
BELOW_ZERO = [-1, -32, -33, -128, -129, -32768, -32769, -(1 << 31), -(1 << 31) - 1, -(1 << 63)]


@pytest.mark.parametrize("value", BOUNDARIES + BELOW_ZERO)
def test_integers_at_the_boundaries(value: int) -> None:
    assert unpack(pack(value)) == value


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536])
@pytest.mark.parametrize("make", [lambda size: b"x" * size, lambda size: "x" * size, lambda size: (None,) * size])
def test_lengths_at_the_boundaries(make: Callable[[int], object], size: int) -> None:
    value = make(size)
    assert unpack(pack(value)) == value


NOT_CANONICAL = {
    # integers that are longer than they need be
    "uint8 for 127": b"\xcc\x7f",
    "uint16 for 255": b"\xcd\x00\xff",
    "uint32 for 65535": b"\xce\x00\x00\xff\xff",
    "uint64 for 2**32 - 1": b"\xcf\x00\x00\x00\x00\xff\xff\xff\xff",
    "int8 for -32": b"\xd0\xe0",
    "int8 for 5": b"\xd0\x05",
    "int16 for -128": b"\xd1\xff\x80",
    "int16 for 5": b"\xd1\x00\x05",
    "int32 for -32768": b"\xd2\xff\xff\x80\x00",
    "int64 for -2**31": b"\xd3\xff\xff\xff\xff\x80\x00\x00\x00",
    "int64 for 5": b"\xd3" + bytes(7) + b"\x05",
    # lengths that are longer than they need be
    "str8 for 31 bytes": b"\xd9\x1f" + b"x" * 31,
    "str16 for 255 bytes": b"\xda\x00\xff" + b"x" * 255,
    "str32 for 65535 bytes": b"\xdb\x00\x00\xff\xff" + b"x" * 65535,
    "bin16 for 255 bytes": b"\xc5\x00\xff" + b"x" * 255,
    "bin32 for 65535 bytes": b"\xc6\x00\x00\xff\xff" + b"x" * 65535,
    "array16 for 15 items": b"\xdc\x00\x0f" + b"\xc0" * 15,
    "array32 for 65535 items": b"\xdd\x00\x00\xff\xff" + b"\xc0" * 65535,
}


@pytest.mark.parametrize("data", NOT_CANONICAL.values(), ids=NOT_CANONICAL)
def test_longer_than_the_shortest_form(data: bytes) -> None:
    msgpack.unpackb(data)       # which takes it
    with pytest.raises(EncodingError, match="not in its shortest form"):
        unpack(data)


NOT_ALLOWED = {
    "empty map": b"\x80",
    "map": b"\x81\xa1a\x01",
    "map16": b"\xde\x00\x01\xa1a\x01",
    "map32": b"\xdf\x00\x00\x00\x01\xa1a\x01",
    "fixext": b"\xd4\x01\x00",
    "fixext 16": b"\xd8\x01" + bytes(16),
    "ext8": b"\xc7\x01\x05\x00",
    "ext16": b"\xc8\x00\x01\x05\x00",
    "ext32": b"\xc9\x00\x00\x00\x01\x05\x00",
    "timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "float32": b"\xca\x3f\x80\x00\x00",
    "float64": b"\xcb\x3f\xf0" + bytes(6),
    "never used": b"\xc1",
}


@pytest.mark.parametrize("data", NOT_ALLOWED.values(), ids=NOT_ALLOWED)
@pytest.mark.parametrize("inside", [False, True])
def test_types_that_are_not_allowed(data: bytes, inside: bool) -> None:
    data = b"\x92\x05" + data if inside else data
    with pytest.raises(EncodingError, match="begins no allowed type"):
        unpack(data)


NOT_TEXT = {
    "not NFC": ("e\u0301".encode(), "not in Unicode form NFC"),
    "a sign of its own in NFC": ("\u212b".encode(), "not in Unicode form NFC"),
    "lone surrogate": (b"\xed\xa0\x80", "not UTF-8"),
    "continuation byte alone": (b"\x80", "not UTF-8"),
    "overlong": (b"\xc0\xaf", "not UTF-8"),
    "beyond Unicode": (b"\xf4\x90\x80\x80", "not UTF-8"),
    "cut off": (b"\xe2\x82", "not UTF-8"),
}


@pytest.mark.parametrize(("raw", "said"), NOT_TEXT.values(), ids=NOT_TEXT)
def test_text_that_is_not(raw: bytes, said: str) -> None:
    with pytest.raises(EncodingError, match=said):
        unpack(bytes([0xA0 | len(raw)]) + raw)


@pytest.mark.parametrize("text", ["e\u0301", "\u212b", "\ud800"])
def test_text_that_has_no_encoding(text: str) -> None:
    with pytest.raises(EncodingError):
        pack(text)


@pytest.mark.parametrize(
    "value", [1.5, {}, {1}, bytearray(b"x"), memoryview(b"x"), object(), (1, (2.0,)), 1 << 64, -(1 << 63) - 1]
)
def test_values_that_have_no_encoding(value: object) -> None:
    with pytest.raises(EncodingError):
        pack(value)


@pytest.mark.parametrize("value", [None, True, 7, b"x", "x", (1, (b"", ""))])
def test_trailing_bytes(value: object) -> None:
    with pytest.raises(EncodingError, match="1 trailing bytes"):
        unpack(pack(value) + b"\xc0")


@pytest.mark.parametrize(
    "value", [300, -300, b"xyz", "xyz", (1, 2, 3), ((1, 2), b"xyz"), "x" * 40, (None,) * 20, 1 << 40]
)
def test_every_truncation(value: object) -> None:
    data = pack(value)
    for size in range(len(data)):
        with pytest.raises(EncodingError, match=r"truncated|announced"):
            unpack(data[:size])


def test_depth() -> None:
    """16 arrays within each other are allowed; the 17th may hold nothing."""
    assert MAX_DEPTH == 16
    assert pack(unpack(b"\x91" * 16 + b"\xc0")) == b"\x91" * 16 + b"\xc0"
    value: object = None
    for _ in range(17):
        value = (value,)
    with pytest.raises(EncodingError, match="nested deeper than 16"):
        pack(value)
    for depth in (17, 18, 1000, 1_000_000):
        with pytest.raises(EncodingError, match="nested deeper than 16"):
            unpack(b"\x91" * depth + b"\xc0")


def test_siblings_do_not_add_to_the_depth() -> None:
    data = b"\x93" + (b"\x91" * 15 + b"\xc0") * 3
    assert pack(unpack(data)) == data


HUGE = {
    "array": b"\xdd\xff\xff\xff\xff",
    "text": b"\xdb\xff\xff\xff\xff",
    "bytes": b"\xc6\xff\xff\xff\xff",
    "array in an array": b"\x91\xdd\xff\xff\xff\xff",
    "arrays in arrays": b"\xdd\xff\xff\xff\xff" * 16,
    "one more than there is": b"\xdc\x00\x11" + b"\xc0" * 16,
}


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE)
def test_an_announced_length_beyond_what_is_left_allocates_nothing(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(EncodingError, match="announced"):
        unpack(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_nested_claims_on_the_same_bytes_build_nothing() -> None:
    """Each array claims all that is left, within what is there; they cannot all be right, and none is built."""
    data = b"".join(b"\xdd" + (100_000 - 5 * level).to_bytes(4, "big") for level in range(1, 16))
    data += b"\xc0" * (100_000 - len(data))
    tracemalloc.start()
    with pytest.raises(EncodingError, match="truncated"):
        unpack(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_a_maximal_size() -> None:
    assert unpack(pack(b"12345"), max_size=7) == b"12345"
    with pytest.raises(EncodingError, match="7 bytes, more than the 6 allowed here"):
        unpack(pack(b"12345"), max_size=6)


def test_scanning_takes_linear_time() -> None:
    start = time.process_time()
    unpack(b"\xdd\x00\x01\x00\x00" + b"\x90" * 65536)
    assert time.process_time() - start < 2


# --- tags -----------------------------------------------------------------------------------------------------


def test_no_tag_is_a_prefix_of_another() -> None:
    tags = [tag(name) for name in sorted(TAGS)]
    for one in tags:
        assert [other for other in tags if other.startswith(one)] == [one]


def test_a_tag_is_versioned_and_ended() -> None:
    assert tag("run") == b"polcommit/v1/run\0"
    assert all(name.isascii() and "\0" not in name for name in TAGS)


def test_an_unknown_tag_raises() -> None:
    with pytest.raises(KeyError, match="no domain tag 'rnu'"):
        tag("rnu")
    with pytest.raises(KeyError):
        tagged_hash("", b"")


@pytest.mark.parametrize("value", [-1, 1 << 64, True])
def test_a_u64_is_one(value: int) -> None:
    with pytest.raises(EncodingError, match="unsigned 64-bit"):
        u64(value)


# --- records: strategies from their type hints ------------------------------------------------------------------


def every_record() -> list[type[Record]]:
    """All record types of the core."""
    found = [getattr(records, name) for name in records.__all__]
    found += [kind for kind in vars(replaying).values() if isinstance(kind, type) and issubclass(kind, Record)]
    kinds = {kind for kind in found if isinstance(kind, type) and issubclass(kind, Record) and kind is not Record}
    return sorted(kinds, key=lambda kind: kind.__name__)


KINDS = every_record()
TAGGED = [kind for kind in KINDS if kind.TAG is not None]
by_name = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)

counts = st.integers(0, 1 << 32)
#: Fields whose values are fewer than their type allows.
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "TreeHead.size": st.integers(0, (1 << 64) - 1),
    "SampleLeaf.index": counts,
    "SampleLeaf.length": counts,
    "TensorEntry.kind": st.sampled_from(sorted(TensorEntry.KINDS)),
    "TensorEntry.shape": st.lists(st.integers(0, (1 << 48) - 1), max_size=16).map(tuple),
    "Eligible.steps": counts,
    "Eligible.samples": counts,
    "StepRecord.step": st.integers(1, (1 << 64) - 1),
    "StepRecord.environment": counts,
    "Statement.size": st.integers(2, (1 << 32) + 1),
    "Refusal.reason": st.sampled_from(["budget", "irreproducible", "invalid"]),
    "Verdict.verdict": st.sampled_from(["accepted", "rejected", "inconclusive"]),
    "Sketch.values": st.lists(st.floats(allow_nan=False), min_size=64, max_size=64).map(tuple),
}


def _sorted_unique(pairs: tuple[tuple[Any, ...], ...]) -> tuple[tuple[Any, ...], ...]:
    return tuple(sorted({pair[0]: pair for pair in pairs}.values()))


def _manifest(given: dict[str, Any]) -> dict[str, Any]:
    steps, batch = 1 + given["steps"] % 1000, 1 + given["batch"] % 64
    divisors = [number for number in range(1, batch + 1) if batch % number == 0]
    verifiers = {entry.key: entry for entry in given["verifiers"]}
    return given | {
        "steps": steps,
        "batch": batch,
        "accumulation": divisors[given["accumulation"] % len(divisors)],
        "keep": 1 + given["keep"] % 1000,
        "digest_every": 1,
        "generator": 1,
        "order": 1,
        "confirmations": abs(given["confirmations"]),
        "dataset": dataclasses.replace(given["dataset"], size=batch + given["dataset"].size % 1000),
        "schedule": dataclasses.replace(given["schedule"], size=steps),
        "verifiers": tuple(verifiers[key] for key in sorted(verifiers)),
    }


def _statement(given: dict[str, Any]) -> dict[str, Any]:
    firsts = sorted({1, *(first for first, _ in given["environments"] if first > 1)})
    return given | {
        "sequence": 1 if given["previous"] is None else 2 + abs(given["sequence"]) % 1000,
        "environments": tuple((first, named(first)) for first in firsts),
        "recipients": tuple(sorted(set(given["recipients"]))),
    }


def _request(given: dict[str, Any]) -> dict[str, Any]:
    steps = tuple(sorted({1 + abs(step) % 1000 for step in given["steps"]}))
    count = len(steps) or 1 + abs(given["count"]) % 1000
    return given | {"strategy": "list" if steps else "random", "count": count, "steps": steps}


def _state(given: dict[str, Any], **fields: Any) -> dict[str, Any]:
    tensors = {entry.name: dataclasses.replace(entry, **fields) for entry in given["tensors"]}
    return given | {"tensors": tuple(tensors[name] for name in sorted(tensors))}


#: Records whose fields depend on one another: a random set of fields made into a possible one.
REPAIR: dict[type[Record], Callable[[dict[str, Any]], dict[str, Any]]] = {
    Manifest: _manifest,
    Statement: _statement,
    Request: _request,
    StateIndex: _state,
    Gradient: partial(_state, kind="gradient"),
    Fingerprint: lambda given: given | {"items": _sorted_unique(given["items"])},
    Verdict: lambda given: given | ({"findings": ()} if given["verdict"] == "accepted" else {}),
}


@cache
def instances(kind: type[Record]) -> st.SearchStrategy[Any]:
    """Valid instances of a record type."""
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    special = {name: SPECIAL.get(f"{kind.__name__}.{name}") for name in names}
    fields = {name: values(hints[name]) if given is None else given for name, given in special.items()}
    repair = REPAIR.get(kind, lambda given: given)
    return st.fixed_dictionaries(fields).map(lambda given: kind(**repair(given)))


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if isinstance(hint, type) and issubclass(hint, Record):
        return instances(hint)
    if get_origin(hint) is Annotated:
        (length,) = (note for note in get_args(hint)[1:] if isinstance(note, Length))
        return st.binary(min_size=length.size, max_size=length.size)
    if get_origin(hint) is tuple:
        arguments = get_args(hint)
        if arguments[1:] == (Ellipsis,):
            return st.lists(values(arguments[0]), max_size=3).map(tuple)
        return st.tuples(*map(values, arguments))
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(values(argument) for argument in get_args(hint))
    simple = {bytes: st.binary(max_size=20), int: integers, bool: st.booleans(), str: texts, type(None): st.none()}
    return st.floats(allow_nan=False) if hint is float else simple[hint]


# a deep record takes long to draw at random: fewer of those that hold most others
def laws(kind: type[Record]) -> settings:
    deep = {"Challenge", "Disclosure", "Evidence", "Openings", "Receipt", "ReplayJob", "ReplayReport", "Verdict"}
    large = kind.__name__ in deep
    return settings(deadline=None, max_examples=5 if large else 15)


@by_name
def test_a_record_decodes_from_its_encoding(kind: type[Record]) -> None:
    @laws(kind)
    @given(instances(kind))
    def holds(record: Record) -> None:
        data = encode(record)
        assert decode(data, kind) == record
        assert encode(decode(data, kind)) == data
        with pytest.raises(EncodingError):
            decode(data + b"\xc0", kind)
        with pytest.raises(EncodingError):
            decode(data[:-1], kind)

    holds()


@cache
def example(kind: type[Record]) -> Record:
    """One fixed instance: fields filled with what their types start from."""
    hints = get_type_hints(kind, include_extras=True)
    given = {field.name: _plainest(hints[field.name]) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    special = {
        "SampleLeaf": {"index": 3, "length": 4},
        "TensorEntry": {"kind": "parameter", "shape": (2, 3), "dtype": "float32"},
        "StepRecord": {"step": 6},
        "Statement": {"size": 13, "sequence": 2, "environments": ((1, bytes(32)),), "recipients": (bytes(32),)},
        "Request": {"strategy": "random", "count": 4, "steps": ()},
        "Refusal": {"reason": "budget"},
        "Verdict": {"verdict": "rejected"},
        "Sketch": {"values": (0.5,) * 64},
        "Gradient": {"tensors": ()},
        "Manifest": {"digest_every": 1, "generator": 1, "order": 1, "dataset": TreeHead(size=9, root=bytes(32))},
    }
    return kind(**given | special.get(kind.__name__, {}))


def _plainest(hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Record):
        return example(hint)
    if get_origin(hint) is Annotated:
        return bytes(get_args(hint)[1].size)
    if get_origin(hint) is tuple:
        arguments = get_args(hint)
        return (_plainest(arguments[0]),) if arguments[1:] == (Ellipsis,) else tuple(map(_plainest, arguments))
    if get_origin(hint) in (Union, types.UnionType):
        return _plainest(next(argument for argument in get_args(hint) if argument is not type(None)))
    return {bytes: b"x", int: 1, bool: False, str: "x", float: 0.5}[hint]


def body(record: Record) -> list[Any]:
    """The plain values of a record, tag and version included."""
    return list(unpack(encode(record)))


@by_name
def test_examples_are_valid(kind: type[Record]) -> None:
    assert decode(encode(example(kind)), kind) == example(kind)


@by_name
def test_a_field_too_many_or_too_few(kind: type[Record]) -> None:
    plain_values = body(example(kind))
    fields = len(dataclasses.fields(kind))  # type: ignore[arg-type]
    for found, wrong in ((fields - 1, plain_values[:-1]), (fields + 1, [*plain_values, None])):
        with pytest.raises(EncodingError, match=f"{kind.__name__}: {found} fields instead of {fields}"):
            decode(pack(wrong), kind)


@pytest.mark.parametrize("kind", TAGGED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "head", [("polcommit/other", 1), (None, 2), (None, 0), (None, True), (None, "1"), (b"x", 1), ()]
)
def test_another_tag_or_version(kind: type[Record], head: tuple[Any, ...]) -> None:
    genuine, version, *fields = body(example(kind))
    assert (genuine, version) == (f"polcommit/{kind.TAG}", 1)
    wrong = [genuine if head[0] is None else head[0], head[1]] if head else []
    with pytest.raises(EncodingError, match=f"{kind.__name__}: not a {kind.TAG} record of version 1"):
        decode(pack([*wrong, *fields]), kind)


def test_no_two_records_share_a_tag() -> None:
    """What is signed or hashed as the one never decodes as the other."""
    assert len({kind.TAG for kind in TAGGED}) == len(TAGGED)


@pytest.mark.parametrize("value", [None, 1, b"x", "x", True, ()])
@by_name
def test_no_record_at_all(kind: type[Record], value: object) -> None:
    with pytest.raises(EncodingError):
        decode(pack(value), kind)


def wrong_for(hint: Any) -> list[Any]:
    """Plain values that are not of a field's type, near misses among them."""
    if isinstance(hint, type) and issubclass(hint, Record):
        return [None, b"", (), (1,) * 40]
    if get_origin(hint) is Annotated:
        size = get_args(hint)[1].size
        return [None, "x" * size, bytes(size - 1), bytes(size + 1), 1]
    if get_origin(hint) is tuple:
        fixed = get_args(hint)[1:] != (Ellipsis,)
        return [None, b"", 1, "x", *([(), (1,) * 9] if fixed else [(None,)])]
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(argument for argument in get_args(hint) if argument is not type(None))
        return [value for value in wrong_for(inner) if value is not None]
    return {
        bytes: [None, "x", 1, ()],
        int: [None, True, False, "1", b"\x01", ()],
        bool: [None, 0, 1, "true", b"\x01"],
        str: [None, b"x", 1, ()],
        float: [None, 1, "0.5", bytes(4), bytes(9), True],
    }[hint]


@by_name
def test_every_field_of_another_type_is_rejected_by_name(kind: type[Record]) -> None:
    hints = get_type_hints(kind, include_extras=True)
    plain_values = body(example(kind))
    offset = 0 if kind.TAG is None else 2
    for position, field in enumerate(dataclasses.fields(kind)):  # type: ignore[arg-type]
        for wrong in wrong_for(hints[field.name]):
            changed_values = list(plain_values)
            changed_values[offset + position] = wrong
            with pytest.raises(EncodingError, match=rf"{kind.__name__}\.{field.name}"):
                decode(pack(changed_values), kind)


@by_name
def test_a_record_of_wrong_types_cannot_exist(kind: type[Record]) -> None:
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        for wrong in (object(), [1], bytearray(32), 1 << 64, math.pi + 0j):
            with pytest.raises(EncodingError):
                dataclasses.replace(example(kind), **{field.name: wrong})  # type: ignore[type-var]


@by_name
def test_a_record_is_frozen(kind: type[Record]) -> None:
    name = dataclasses.fields(kind)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(example(kind), name, None)


@pytest.mark.parametrize("bits", ["7ff8000000000000", "fff8000000000000", "7ff0000000000001", "7ff8dead0000beef"])
def test_every_nan_has_one_encoding(bits: str) -> None:
    """NaN is not equal to itself, its bytes are; none is turned into another."""
    (nan,) = struct.unpack(">d", bytes.fromhex(bits))
    data = encode(dataclasses.replace(STEP, loss=nan))
    assert bytes.fromhex(bits) in data
    again = decode(data, StepRecord)
    assert math.isnan(again.loss) and encode(again) == data


def test_zero_has_two() -> None:
    assert encode(dataclasses.replace(STEP, loss=0.0)) != encode(dataclasses.replace(STEP, loss=-0.0))


def test_only_records_that_stand_alone_have_a_digest() -> None:
    with pytest.raises(TypeError, match="part of a record"):
        digest(TreeHead(size=1, root=bytes(32)))


def test_an_encoding_error_is_a_no_only_where_it_becomes_a_finding() -> None:
    assert issubclass(EncodingError, VerificationError) and EncodingError.exit_status == 3


# --- records: what cannot exist ---------------------------------------------------------------------------------

IMPOSSIBLE: dict[str, tuple[type[Record], dict[str, Any]]] = {
    "a tree of -1 leaves": (TreeHead, {"size": -1}),
    "step 0": (StepRecord, {"step": 0}),
    "environment epoch -1": (StepRecord, {"environment": -1}),
    "kind 'weights'": (TensorEntry, {"kind": "weights"}),
    "17 dimensions": (TensorEntry, {"shape": (1,) * 17}),
    r"shape \(-1,\)": (TensorEntry, {"shape": (-1,)}),
    f"shape \\({1 << 48},\\)": (TensorEntry, {"shape": (1 << 48,)}),
    "batch 0": (Manifest, {"batch": 0}),
    "2 micro-batches do not divide 1": (Manifest, {"accumulation": 2}),
    "digest_every 2": (Manifest, {"digest_every": 2}),
    "unknown version of the generator": (Manifest, {"generator": 2}),
    "or of the order": (Manifest, {"order": 2}),
    "do not fill a batch of 10": (Manifest, {"batch": 10}),
    "a schedule of 2 for 1 steps": (Manifest, {"schedule": TreeHead(size=2, root=bytes(32))}),
    "67108865 samples, more than": (Manifest, {"dataset": TreeHead(size=(1 << 26) + 1, root=bytes(32))}),
    "confirmations are not negative": (Manifest, {"confirmations": -1}),
    "covers at least one step": (Statement, {"size": 1}),
    "only the first head has no previous": (Statement, {"previous": None}),
    "the first environment epoch begins at step 1": (Statement, {"environments": ()}),
    "in rising order": (Statement, {"environments": ((1, bytes(32)), (1, bytes(32)))}),
    "recipients are sorted": (Statement, {"recipients": (bytes(32), bytes(32))}),
    "unknown strategy 'best'": (Request, {"strategy": "best"}),
    "a challenge of 0 steps": (Request, {"count": 0}),
    "a challenge of 1048577 steps": (Request, {"count": (1 << 20) + 1}),
    "of length -1": (records.SampleLeaf, {"length": -1}),
    "sample -1 of": (records.SampleLeaf, {"index": -1}),
    "a disclosure budget is not negative": (records.Eligible, {"steps": -1}),
    "a sketch has 64 values, not 63": (records.Sketch, {"values": (0.0,) * 63}),
    "unknown reason 'mood'": (records.Refusal, {"reason": "mood"}),
    "at most 1,000 characters": (records.Refusal, {"detail": "x" * 1001}),
    "listed steps rise from 1": (Request, {"strategy": "list", "count": 2, "steps": (2, 2)}),
    "listed steps disagree": (Request, {"strategy": "list", "count": 1, "steps": ()}),
    "an accepted run has no findings": (Verdict, {"verdict": "accepted"}),
    "verdict 'fine'": (Verdict, {"verdict": "fine"}),
}


@pytest.mark.parametrize("said", IMPOSSIBLE, ids=lambda said: said.replace("\\", ""))
def test_a_record_that_contradicts_itself_cannot_exist(said: str) -> None:
    kind, lie = IMPOSSIBLE[said]
    with pytest.raises(EncodingError, match=said):
        dataclasses.replace(example(kind), **lie)  # type: ignore[type-var]


# --- golden vectors -------------------------------------------------------------------------------------------

DIGESTS = {name: named("vector", name) for name in ("samples", "batch", "state", "manifest", "beacon", "root", "code")}
STEP = StepRecord(
    step=300,
    samples=DIGESTS["samples"],
    batch=DIGESTS["batch"],
    state=DIGESTS["state"],
    loss=0.6931471805599453,
    learning_rate=0.1,
    clipped=True,
    skipped=False,
    environment=1,
)


def test_a_step_record_by_hand() -> None:
    """Layout, without any encoder: an array of 11, tag, version, and the fields in order."""
    digests = b"".join(b"\xc4\x20" + DIGESTS[name] for name in ("samples", "batch", "state"))
    floats = b"\xc4\x08\x3f\xe6\x2e\x42\xfe\xfa\x39\xef" + b"\xc4\x08\x3f\xb9\x99\x99\x99\x99\x99\x9a"
    assert encode(STEP) == b"\x9b\xaepolcommit/step\x01\xcd\x01\x2c" + digests + floats + b"\xc3\xc2\x01"


def golden_records() -> dict[str, Record]:
    """One fixed instance of each record that is hashed or signed."""
    tensor = TensorEntry(
        name="parameter/conv1.weight", kind="parameter", dtype="float32", shape=(8, 1, 3, 3), content=named("bytes")
    )
    scalars = ScalarEntry(values=pack((("step", 300),)), aliases=(("parameter/tied", "parameter/conv1.weight"),))
    environment = Fingerprint(items=(("threads", "2"), ("torch", "2.13.0")))
    manifest = Manifest(
        recipe="digits",
        recipe_source=named("source"),
        configuration=named("configuration"),
        preprocessing=None,
        dataset=TreeHead(size=1797, root=named("dataset")),
        schedule=TreeHead(size=300, root=named("schedule")),
        steps=300,
        batch=64,
        accumulation=2,
        digest_every=1,
        keep=50,
        generator=1,
        order=1,
        environment=environment,
        prover=named("prover"),
        account=named("account")[:20],
        verifiers=(records.Eligible(key=named("key"), recipient=named("recipient"), steps=50, samples=1000),),
        clear_openings=True,
        parent=None,
        seed=None,
        confirmations=1,
    )
    genesis = GenesisRecord(
        run=named("run"),
        manifest=digest(manifest),
        beacon_block=12,
        beacon=DIGESTS["beacon"],
        state=DIGESTS["state"],
        chain_id=31337,
        contract=named("contract")[:20],
        account=named("account")[:20],
        prover=named("prover"),
    )
    statement = Statement(
        run=named("run"),
        sequence=2,
        size=301,
        root=DIGESTS["root"],
        genesis=digest(genesis),
        previous=named("previous"),
        final=True,
        state=DIGESTS["state"],
        environments=((1, digest(environment)), (101, named("another environment"))),
        recipients=(named("key id"),),
    )
    request = Request(
        run=named("run"),
        commitment=named("C"),
        verifier=named("key"),
        strategy="list",
        count=3,
        steps=(1, 150, 300),
        clear_openings=False,
    )
    verdict = dataclasses.replace(example(Verdict), request=request, probability=0.65, fraction=0.05)  # type: ignore[type-var]
    return {
        "fingerprint": environment,
        "genesis": genesis,
        "manifest": manifest,
        "request": request,
        "scalars": scalars,
        "state": StateIndex(tensors=(tensor,), scalars=scalars),
        "statement": statement,
        "step": STEP,
        "tensor": tensor,
        "verdict": verdict,
    }


def golden() -> dict[str, dict[str, str]]:
    """Everything in tests/vectors/core.json."""
    made: dict[str, Any] = golden_records()
    statement, manifest, state = made["statement"], made["manifest"], made["state"]
    contract, account, run = named("contract")[:20], named("account")[:20], named("run")
    commitment = hashes.manifest_commitment(named("blinding"), manifest)
    beacon = hashes.beacon(31337, contract, run, commitment, named("prevrandao"))
    draw = hashes.draw_seed(
        chain_id=31337,
        contract=contract,
        run=run,
        commitment=named("C"),
        challenge_id=3,
        request=digest(made["request"]),
        nonce=named("nonce"),
        prevrandao=named("prevrandao"),
    )
    head = RevealedHead(statement=statement, signature=bytes(64), blinding=named("blinding"))
    derived = {
        "run_id": hashes.run_id(31337, contract, account, 7),
        "chained_head": hashes.chained_head(run, 2, named("previous")[:24], named("C"), b"envelope"),
        "manifest_commitment": commitment,
        "beacon": beacon,
        "run_seed": hashes.run_seed(beacon),
        "nonce_commitment": hashes.nonce_commitment(named("nonce")),
        "draw_seed": draw,
        "sketch_seed": hashes.sketch_seed(draw),
        "record_salt": hashes.record_salt(named("secret"), 300),
        "sample_salt": hashes.sample_salt(named("secret"), 1796),
        "step_leaf": hashes.salted_leaf("transcript", named("salt"), encode(STEP)),
        "schedule_leaf": hashes.schedule_leaf(300, 0.1),
        "state_digest": hashes.state_digest(state),
        "head_digest": statement.head,
        "head_commitment": head.commitment,
    }
    return {
        "encodings": {name: encode(record).hex() for name, record in made.items()},
        "digests": {name: digest(record).hex() for name, record in made.items()},
        "derived": {name: value.hex() for name, value in derived.items()},
    }


def write_golden() -> None:
    """Make the file again, after a change that is meant."""
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(golden(), indent=1) + "\n")


def test_golden_vectors() -> None:
    """These values never change within version 1: what was anchored must verify for ever."""
    assert golden() == json.loads(VECTORS.read_text())


@pytest.mark.parametrize("name", sorted(golden_records()))
def test_golden_records_decode(name: str) -> None:
    data = bytes.fromhex(json.loads(VECTORS.read_text())["encodings"][name])
    record = golden_records()[name]
    assert decode(data, type(record)) == record


def test_a_record_without_a_tag_is_known_by_its_fields() -> None:
    """Records without a tag are parts of others; as such they must have the right number of fields."""
    with pytest.raises(EncodingError, match="3 fields instead of 2"):
        decode(encode(OpenedLeaf(index=1, salt=bytes(32), record=b"")), TreeHead)


if __name__ == "__main__":
    write_golden()
    sys.stdout.write(f"{VECTORS}\n")
