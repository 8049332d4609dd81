"""The encoding of raw samples and batches: exact round trips, one encoding, and hostile bytes."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from polcommit.encoding import pack, tag
from polcommit.errors import EncodingError
from polcommit.training.tree import (
    TORCH_DTYPES,
    batch_digest,
    decode_tree,
    encode_tree,
    sample_content,
    tensor_content,
    tensor_from_bytes,
)

NUMPY = ["bool", "uint8", "uint16", "int8", "int32", "int64", "uint64", "float16", "float32", "float64", "complex64"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype = np.dtype(draw(st.sampled_from(NUMPY)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    raw = draw(st.binary(min_size=dtype.itemsize * math.prod(shape), max_size=dtype.itemsize * math.prod(shape)))
    values = np.frombuffer(raw, dtype=np.uint8) % 2 if dtype.kind == "b" else np.frombuffer(raw, dtype=dtype)
    array = values.astype(dtype).reshape(shape)
    return array.T if draw(st.booleans()) else array


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    name = draw(st.sampled_from(sorted(TORCH_DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = TORCH_DTYPES[name].itemsize * math.prod(shape)
    raw = draw(st.binary(min_size=size, max_size=size))
    if name == "bool":
        raw = bytes(byte % 2 for byte in raw)
    tensor = tensor_from_bytes(name, shape, raw)
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=8)
text = st.text(st.characters(codec="ascii"), max_size=5)
trees = st.recursive(
    plain | text | arrays() | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text, inner, max_size=3)
    ),
    max_leaves=6,
)


def same(a: Any, b: Any) -> bool:
    """Equal in type, dtype, shape and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and tensor_content(a) == tensor_content(b)
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return repr(a) == repr(b)


@given(tree=trees)
def test_a_sample_comes_back_as_it_was(tree: Any) -> None:
    assert same(decode_tree(encode_tree(tree)), tree)


@given(tree=trees)
def test_there_is_one_encoding(tree: Any) -> None:
    assert encode_tree(decode_tree(encode_tree(tree))) == encode_tree(tree)


@given(data=st.binary(max_size=64))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    """Whatever decodes encodes to the same bytes; whatever does not is an EncodingError."""
    try:
        value = decode_tree(data)
    except EncodingError:
        return
    assert encode_tree(value) == data


def test_flipped_bytes_decode_or_are_refused() -> None:
    data = encode_tree({"image": np.arange(6, dtype=np.int16).reshape(2, 3), "more": [torch.ones(2), 1.5, (True, "x")]})
    generator = random.Random(0)  # not for secrets
    for position in range(len(data)):
        for _ in range(4):
            flipped = bytearray(data)
            flipped[position] ^= generator.randrange(1, 256)
            try:
                value = decode_tree(bytes(flipped))
            except EncodingError:
                continue
            assert encode_tree(value) == bytes(flipped)


def test_memory_layout_and_byte_order_do_not_count() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert encode_tree(np.asfortranarray(array)) == encode_tree(array) == encode_tree(array.astype(">i4"))
    tensor = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert encode_tree(tensor.to(memory_format=torch.channels_last)) == encode_tree(tensor)


@pytest.mark.parametrize("pair", [(1, True), (0.0, -0.0), ([1], (1,)), (b"1", "1"), (1, 1.0), (np.int64(1), 1)])
def test_what_compares_equal_in_python_is_told_apart(pair: tuple[Any, Any]) -> None:
    assert encode_tree(pair[0]) != encode_tree(pair[1])


def test_every_byte_and_the_label_count() -> None:
    """The original code hashed `str(array)`: the same for most images, and without labels."""
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    other = image.copy()
    other[16, 16, 1] = 1
    digests = {sample_content(encode_tree(sample)) for sample in [(image, 0), (other, 0), (image, 1)]}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, object()]}, r"sample\['a'\]\[1\]: builtins.object has no encoding"),
        ((1, np.array([None])), r"sample\[1\]: an array of dtype object has no encoding"),
        (np.array(["a"]), "an array of dtype <U1 has no encoding"),
        ({1: 2}, "key 1 is a int; only str keys"),
        ("e\u0301", "not in Unicode form NFC"),
        (2**64, "does not fit in 64 bits"),
        (np.ma.masked_array([1], [True]), "MaskedArray has no encoding"),
        ([torch.eye(2).to_sparse()], r"sample\[0\]: a tensor of layout torch.sparse_coo"),
    ],
)
def test_what_has_no_encoding_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        encode_tree(value)


def test_nesting_is_bounded_even_if_endless() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodingError, match="nested deeper than 16"):
        encode_tree(endless)


@pytest.mark.parametrize(
    "node",
    [
        ("n", "float32", (1 << 40, 1 << 40), b"1234"),
        ("n", "float32", (1 << 63, 0), b""),
        ("n", "float32", (-1,), b"1234"),
        ("n", "float32", (True,), b"1234"),
        ("n", "object", (1,), b"12345678"),
        ("n", "float32", (1,), b"12345"),
        ("t", "bool", (1,), b"\x02"),
        ("n", "bool", (1,), b"\x02"),
        ("t", "qint8", (1,), b"1"),
        ("s", "float32", b"123"),
        ("f", b"1234567"),
        ("d", "b", 1, "a", 2),
        ("d", "a", 1, "a", 2),
        ("d", "a"),
        ("x", 1),
        (),
        (1, 2),
        (("l",), 1),
    ],
)
def test_hostile_nodes_are_refused(node: Any) -> None:
    with pytest.raises(EncodingError):
        decode_tree(pack(node))


def test_decoded_arrays_are_writable_and_own_their_memory() -> None:
    array, tensor = decode_tree(encode_tree([np.zeros(3), torch.zeros(3)]))
    array += 1
    tensor += 1
    assert torch.from_numpy(array).equal(tensor)


def test_a_tensors_content_is_plain_blake3_of_its_bytes() -> None:
    """So that `b3sum` of the bytes agrees, also beyond the size from which several threads hash."""
    for tensor in (torch.arange(7, dtype=torch.bfloat16), torch.tensor(1.5), torch.empty(0), torch.ones(1 << 19)):
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert tensor_content(tensor) == blake3(raw).digest()
    assert tensor_content(torch.tensor([1 + 2j]).conj()) == tensor_content(torch.tensor([1 - 2j]))


def test_the_digests_are_what_the_specification_says() -> None:
    batch = [torch.zeros(2), [torch.ones(1), 3]]
    assert batch_digest(batch) == blake3(tag("batch") + encode_tree(batch)).digest()
    assert sample_content(b"data") == blake3(tag("sample") + b"data").digest()
    assert encode_tree([1.5, None]).hex() == "93a16c92a166c4083ff8000000000000c0"
