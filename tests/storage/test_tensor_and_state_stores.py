"""Tensors are stored once and never come back changed; a state is there whole or not at all."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from stored_samples import entry, state

from polcommit.encoding import encode, pack, tagged_hash
from polcommit.errors import StorageError
from polcommit.opening import DTYPES
from polcommit.records import TensorEntry
from polcommit.storage.states import StateStore
from polcommit.storage.tensors import TensorStore, address, tensor_size

SHAPES = [(), (1,), (3, 2), (0,), (2, 0, 3), (1,) * 16]


@pytest.fixture
def store(tmp_path) -> TensorStore:
    return TensorStore(tmp_path / "tensors")


@pytest.fixture
def states(tmp_path, store) -> StateStore:
    return StateStore(tmp_path / "states", store)


def of_shape(dtype: str, shape: tuple[int, ...]) -> tuple[TensorEntry, bytes]:
    data = os.urandom(math.prod(shape) * DTYPES[dtype][1])
    return entry("weight", data, dtype, shape), data


# --- tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back(store, dtype, shape):
    wanted, data = of_shape(dtype, shape)
    assert store.put(wanted, data) is True
    assert store.get(wanted) == data
    assert store.has(wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_and_safetensors_agree_with_what_is_written(store, dtype):
    """The file is what the library would write, and torch loads it as the dtype that it was named after."""
    wanted, data = of_shape(dtype, (3, 2))
    store.put(wanted, data)
    buffer = (ctypes.c_char * len(data)).from_buffer_copy(data)
    spec = safetensors.TensorSpec(
        dtype=dtype, shape=[3, 2], data_ptr=ctypes.addressof(buffer), data_len=len(data)
    )
    assert store.path(wanted).read_bytes() == bytes(safetensors.serialize({"tensor": spec}))
    loaded = load_file(store.path(wanted))["tensor"]
    assert (loaded.dtype, loaded.shape) == (getattr(torch, dtype), (3, 2))
    assert bytes(loaded.view(torch.uint8).flatten().tolist()) == data


def test_the_address_is_the_documented_one(store):
    wanted, data = of_shape("float32", (3, 2))
    expected = tagged_hash("tensor", pack(("float32", (3, 2), wanted.content))).hex()
    assert address(wanted) == expected
    store.put(wanted, data)
    assert store.path(wanted) == store.folder / expected[:2] / f"{expected}.safetensors"
    assert list(store.addresses()) == [expected]


@settings(deadline=None)     # it writes files
@given(data=st.binary(max_size=200))
def test_whatever_is_put_is_got(tmp_path_factory, data):
    store = TensorStore(tmp_path_factory.mktemp("store"))
    wanted = entry("bytes", data)
    assert store.put(wanted, memoryview(bytearray(data)))
    assert store.get(wanted) == data


def test_equal_tensors_are_stored_once_whatever_their_name(store):
    first, data = of_shape("float32", (4,))
    second = dataclasses.replace(first, name="another", kind="optimizer")
    other = dataclasses.replace(first, shape=(2, 2))
    assert store.put_many([(first, data), (second, data), (other, data)]) == 2
    assert store.put(second, data) is False
    assert len(list(store.addresses())) == 2


def test_bytes_that_are_not_the_entrys_are_refused(store):
    """A tensor that training changed between hashing and storing must not get the old one's address."""
    wanted, data = of_shape("float32", (4,))
    for wrong in (bytes(16), data[:-1], data + b"\0"):
        with pytest.raises(StorageError, match="not the one that was hashed"):
            store.put(wanted, wrong)
    assert not store.has(wanted)


@pytest.mark.parametrize("dtype", ["complex128", "complex32", "qint8", "float4_e2m1fn_x2", "F32", ""])
def test_a_dtype_without_a_form_is_refused_by_name(store, dtype):
    with pytest.raises(StorageError, match=f"weight: safetensors cannot hold dtype {dtype}"):
        store.put(entry("weight", b"", dtype, (0,)), b"")


def test_no_flipped_bit_of_a_file_passes_unnoticed(store):
    wanted, data = of_shape("float32", (3,))
    store.put(wanted, data)
    path = store.path(wanted)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(StorageError, match=f"{path} is damaged"):
                store.get(wanted)


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_a_truncated_file_is_noticed_and_put_again(store, keep):
    wanted, data = of_shape("float32", (3,))
    store.put(wanted, data)
    path = store.path(wanted)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match="is damaged"):
        store.get(wanted)
    assert store.put(wanted, data)
    assert store.get(wanted) == data


def test_a_header_that_promises_terabytes_is_not_believed(store):
    wanted, data = of_shape("float32", (3,))
    store.put(wanted, data)
    path = store.path(wanted)
    for length in (1 << 62, 100_000_001, len(data) + 1000):
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
        with pytest.raises(StorageError, match="is damaged"):
            store.get(wanted)


def test_another_tensors_file_under_this_name(store):
    """Same bytes, another dtype: content alone would match."""
    wanted, data = of_shape("float32", (2,))
    other = dataclasses.replace(wanted, dtype="int32")
    store.put_many([(wanted, data), (other, data)])
    store.path(other).replace(store.path(wanted))
    with pytest.raises(StorageError, match=r"holds I32 \[2\] instead of F32 \[2\]"):
        store.get(wanted)


def test_a_missing_tensor_names_itself_and_its_file(store):
    wanted, _ = of_shape("float32", (2,))
    with pytest.raises(StorageError, match=f"tensor weight is missing: no {store.path(wanted)}"):
        store.get(wanted)


# --- states -----------------------------------------------------------------------------------------------------


def test_a_state_comes_back(states):
    index, fetch = state(a=b"one", b=b"two", c=b"one")
    states.put(50, index, fetch)
    assert states.get(50) == index
    assert [states.tensors.get(wanted) for wanted in index.tensors] == [b"one", b"two", b"one"]
    states.check(50)


def test_only_missing_tensors_are_fetched(states):
    first, fetch = state(a=b"one", b=b"two")
    states.put(0, first, fetch)
    second, fetch = state(a=b"one", b=b"three", c=b"three")
    asked = []

    def noting(wanted: TensorEntry) -> bytes:
        asked.append(wanted.name)
        return fetch(wanted)

    states.put(50, second, noting)
    assert asked == ["b"]


def test_steps_in_order_and_foreign_files_skipped(states):
    index, fetch = state(a=b"one")
    assert states.steps() == ()
    for step in (100, 0, 50, 9):
        states.put(step, index, fetch)
    for name in ("007.state", "x.state", "8.state.bak", ".tmp-12", "-1.state"):
        (states.folder / name).write_bytes(b"foreign")
    assert states.steps() == (0, 9, 50, 100)
    assert [states.latest(step) for step in (0, 8, 49, 50, 1000)] == [0, 0, 9, 50, 100]
    states.remove(0)
    assert states.latest(8) is None


def test_a_kept_state_is_not_overwritten_by_another(states):
    first, fetch = state(a=b"one")
    states.put(50, first, fetch)
    states.put(50, first, fetch)
    second, fetch = state(a=b"two")
    with pytest.raises(StorageError, match="holds another state"):
        states.put(50, second, fetch)
    assert states.get(50) == first


def test_without_all_its_tensors_there_is_no_state(states):
    index, fetch = state(a=b"one", b=b"two")

    def breaks(wanted: TensorEntry) -> bytes:
        if wanted.name == "b":
            raise StorageError("disk full")
        return fetch(wanted)

    with pytest.raises(StorageError, match="disk full"):
        states.put(50, index, breaks)
    assert states.steps() == ()
    states.put(50, index, fetch)
    states.check(50)


def test_damage_to_index_or_tensor_is_named(states):
    index, fetch = state(a=b"one")
    states.put(50, index, fetch)
    tensor = states.tensors.path(index.tensors[0])
    tensor.write_bytes(tensor.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageError, match=f"{tensor} is damaged"):
        states.check(50)
    states.path(50).write_bytes(encode(index)[:-1])
    with pytest.raises(StorageError, match=f"{states.path(50)} is damaged"):
        states.get(50)
    with pytest.raises(StorageError, match="no state is kept for step 51"):
        states.get(51)


def test_collect_removes_what_no_state_refers_to(states):
    first, fetch = state(a=b"shared", b=b"only in 0")
    states.put(0, first, fetch)
    second, fetch = state(a=b"shared", b=b"only in 50")
    states.put(50, second, fetch)
    stray = states.tensors.path(first.tensors[0]).with_name(".tmp-killed")
    stray.write_bytes(b"half a tensor")
    assert states.collect() == 0
    assert not stray.exists()
    states.remove(0)
    assert states.collect() == 1
    states.check(50)


def test_collect_removes_nothing_while_an_index_is_damaged(states):
    index, fetch = state(a=b"one")
    states.put(0, index, fetch)
    states.path(0).write_bytes(b"\xc1")
    with pytest.raises(StorageError, match="is damaged"):
        states.collect()
    assert len(list(states.tensors.addresses())) == 1


def test_tensor_size():
    assert tensor_size(of_shape("bfloat16", (3, 2))[0]) == 12
