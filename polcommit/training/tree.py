"""One encoding for raw samples and batches, and the hashes over it (spec §3.2).

A tree of None, bool, int, float, str, bytes, list, tuple, dict with str keys, numpy arrays and scalars, and
torch tensors becomes canonical MessagePack, and comes back as equal values of the same types:

    None, bool, int, str, bytes     as they are
    float                           ("f", 8 big-endian bytes)
    list, tuple                     ("l", item, ...)    ("u", item, ...)
    dict                            ("d", key, value, ...), keys sorted
    numpy array, numpy scalar       ("n", dtype, shape, raw)    ("s", dtype, raw)
    torch tensor                    ("t", dtype, shape, raw)

`raw` is little-endian and in C order, whatever the memory layout was. Memory layout, device and whether
gradients are tracked are *not* encoded; a dict comes back sorted. Anything else is refused by name and place:
hashing the printed form of an object, or a pickle of it, commits to nothing.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from polcommit.encoding import MAX_DEPTH, pack, tag, unpack
from polcommit.errors import EncodingError, Unavailable

MAX_BYTES = 1 << 30         # of one encoded sample or batch
MAX_ELEMENTS = 1 << 48
PARALLEL = 1 << 20          # bytes from which one BLAKE3 is worth several threads

#: torch's dtypes that have an encoding, by torch's name without 'torch.'.
TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16",
        "float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
    )
}  # fmt: skip
_TORCH_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_NUMPY_NAMES = frozenset(
    ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
     "complex64", "complex128")
)  # fmt: skip

if sys.byteorder != "little":  # tensors are hashed as they lie in memory
    raise Unavailable(f"training on a {sys.byteorder}-endian machine is not supported")


def encode_tree(value: object) -> bytes:
    """The one encoding of a sample or batch.

    Raises:
        EncodingError: a type, dtype or depth that has no encoding; the message says where in the value.
    """
    data = pack(_node(value, "sample", 0))
    if len(data) > MAX_BYTES:
        raise EncodingError(f"a sample of {len(data)} bytes: at most {MAX_BYTES} are supported")
    return data


def decode_tree(data: bytes) -> Any:
    """The value that `encode_tree` encoded; arrays and tensors are fresh, writable and on the CPU.

    Raises:
        EncodingError: not the one encoding of anything. Raw lengths are compared with dtype and shape first.
    """
    return _value(unpack(data, max_size=MAX_BYTES), "sample")


def sample_content(data: bytes) -> bytes:
    """What is committed about a raw sample: BLAKE3 (32 bytes) of the tag 'sample' and its encoding."""
    return _blake3(tag("sample"), data)


def batch_digest(micro_batches: Sequence[object]) -> bytes:
    """What is committed about a batch as fed: BLAKE3 (32 bytes) of the tag 'batch' and the list of micro-batches."""
    return _blake3(tag("batch"), encode_tree(list(micro_batches)))


def tensor_content(tensor: torch.Tensor) -> bytes:
    """BLAKE3 (32 bytes) of a tensor's raw little-endian bytes in C order, without any tag.

    Tensors on an accelerator are copied to the host first.
    """
    return content(raw_bytes(tensor))


def content(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 (32 bytes) of raw bytes, as `b3sum` prints it."""
    return _blake3(data)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's raw little-endian bytes in C order; shares memory with the tensor where it can.

    Raises:
        EncodingError: a sparse, quantized or otherwise unusual tensor.
    """
    dtype_name(tensor)
    host = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    return host.reshape(-1).view(torch.uint8).numpy().data


def dtype_name(tensor: torch.Tensor) -> str:
    """torch's name of the dtype without 'torch.'; raises EncodingError where the tensor has no encoding."""
    if tensor.layout is not torch.strided or tensor.dtype not in _TORCH_NAMES:
        raise EncodingError(f"a tensor of layout {tensor.layout} and dtype {tensor.dtype} has no encoding")
    return _TORCH_NAMES[tensor.dtype]


def tensor_from_bytes(dtype: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> torch.Tensor:
    """A fresh contiguous CPU tensor from its raw bytes.

    Raises:
        EncodingError: unknown dtype, a shape that the bytes do not fill exactly, or booleans other than 0 and 1.
    """
    if dtype not in TORCH_DTYPES:
        raise EncodingError(f"no torch dtype {str(dtype)[:40]!r} is supported")
    kind = TORCH_DTYPES[dtype]
    _check_length(data, kind.itemsize, shape, "tensor")
    flat = torch.empty(len(data), dtype=torch.uint8)
    flat.numpy()[:] = np.frombuffer(data, dtype=np.uint8)
    if kind is torch.bool:
        _check_booleans(flat.numpy())
    return flat.view(kind).reshape(tuple(shape))


# --- encoding -------------------------------------------------------------------------------------------------


def _node(value: object, where: str, depth: int) -> object:
    """The plain value that stands for `value`; `where` is the path that an error names."""
    if depth > MAX_DEPTH:
        raise EncodingError(f"{where[:100]}: nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind in (bool, int, str, bytes):
        return _checked(value, where)
    if isinstance(value, float) and kind is float:
        return "f", struct.pack(">d", value)
    if isinstance(value, list | tuple) and kind in (list, tuple):
        items = (_node(item, f"{where}[{position}]", depth + 1) for position, item in enumerate(value))
        return ("l" if kind is list else "u", *items)
    if isinstance(value, dict) and kind is dict:
        return _dict_node(value, where, depth)
    return _array_node(value, where)


def _checked(value: object, where: str) -> object:
    try:
        pack(value)
    except EncodingError as error:
        raise EncodingError(f"{where}: {error}") from error
    return value


def _dict_node(value: dict[Any, Any], where: str, depth: int) -> object:
    flat: list[object] = ["d"]
    for key in value:
        if type(key) is not str:
            raise EncodingError(f"{where}: key {key!r} is a {type(key).__name__}; only str keys have an encoding")
    for key in sorted(value):
        flat += (_checked(key, where), _node(value[key], f"{where}[{key!r}]", depth + 1))
    return tuple(flat)


def _array_node(value: object, where: str) -> object:
    if isinstance(value, torch.Tensor):
        try:
            return "t", dtype_name(value), tuple(value.shape), bytes(raw_bytes(value))
        except EncodingError as error:
            raise EncodingError(f"{where}: {error}") from error
    # a memmap is an array that happens to lie in a file; other subclasses (masked, matrix) hold more than they show
    if isinstance(value, np.ndarray) and type(value) in (np.ndarray, np.memmap):
        return "n", _numpy_name(value.dtype, where), value.shape, _numpy_raw(value)
    if isinstance(value, np.generic):
        return "s", _numpy_name(value.dtype, where), _numpy_raw(np.asarray(value))
    raise EncodingError(
        f"{where}: {type(value).__module__}.{type(value).__qualname__} has no encoding",
        hint="let source() return numbers, text, bytes, arrays, tensors, lists, tuples or dicts of them",
    )


def _numpy_name(dtype: np.dtype[Any], where: str) -> str:
    if dtype.name not in _NUMPY_NAMES:
        raise EncodingError(f"{where}: an array of dtype {dtype} has no encoding")
    return dtype.name


def _numpy_raw(value: np.ndarray[Any, Any]) -> bytes:
    return value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes(order="C")


# --- decoding -------------------------------------------------------------------------------------------------


def _value(node: object, where: str) -> Any:
    if not isinstance(node, tuple):
        return node
    head = node[0] if node else None
    if not isinstance(head, str):
        raise EncodingError(f"{where}: no type is given")
    rest = node[1:]
    if head in ("l", "u"):
        items = [_value(item, f"{where}[{position}]") for position, item in enumerate(rest)]
        return items if head == "l" else tuple(items)
    if head == "d":
        return _dict(rest, where)
    if head in _DECODERS and len(rest) == _DECODERS[head][0]:
        return _DECODERS[head][1](*rest, where)
    raise EncodingError(f"{where}: {head[:20]!r} with {len(rest)} fields is not a type")


def _dict(rest: tuple[Any, ...], where: str) -> dict[str, Any]:
    keys = rest[::2]
    if len(rest) % 2 or not all(type(key) is str for key in keys):
        raise EncodingError(f"{where}: a dict is pairs of str and value")
    if any(a >= b for a, b in pairwise(keys)):
        raise EncodingError(f"{where}: keys are sorted, and unique")
    return {key: _value(value, f"{where}[{key!r}]") for key, value in zip(keys, rest[1::2], strict=True)}


def _float(raw: object, where: str) -> float:
    if not isinstance(raw, bytes) or len(raw) != 8:
        raise EncodingError(f"{where}: a float is 8 bytes")
    return float(struct.unpack(">d", raw)[0])


def _numpy_array(dtype: object, shape: object, raw: object, where: str) -> np.ndarray[Any, Any]:
    if dtype not in _NUMPY_NAMES or not isinstance(shape, tuple) or not isinstance(raw, bytes):
        raise EncodingError(f"{where}: not an array")
    kind = np.dtype(str(dtype)).newbyteorder("<")
    _check_length(raw, kind.itemsize, shape, where)
    if kind.name == "bool":
        _check_booleans(np.frombuffer(raw, dtype=np.uint8))
    # a copy: what frombuffer returns is read-only, and torch would warn about that
    return np.frombuffer(raw, dtype=kind).astype(kind.newbyteorder("="), copy=True).reshape(shape)


def _numpy_scalar(dtype: object, raw: object, where: str) -> Any:
    return _numpy_array(dtype, (), raw, where)[()]


def _torch_tensor(dtype: object, shape: object, raw: object, where: str) -> torch.Tensor:
    if not isinstance(dtype, str) or not isinstance(shape, tuple) or not isinstance(raw, bytes):
        raise EncodingError(f"{where}: not a tensor")
    return tensor_from_bytes(dtype, shape, raw)


_DECODERS: dict[str, tuple[int, Any]] = {
    "f": (1, _float),
    "n": (3, _numpy_array),
    "s": (2, _numpy_scalar),
    "t": (3, _torch_tensor),
}


def _check_length(data: bytes | bytearray | memoryview, itemsize: int, shape: Sequence[object], where: str) -> None:
    """That the bytes are exactly dtype × shape, in integers without overflow, before anything is allocated."""
    if len(shape) > 16:
        raise EncodingError(f"{where}: {len(shape)} dimensions")
    extents = [extent for extent in shape if isinstance(extent, int) and not isinstance(extent, bool) and extent >= 0]
    if len(extents) != len(shape) or math.prod(max(extent, 1) for extent in extents) > MAX_ELEMENTS:
        raise EncodingError(f"{where}: impossible shape")
    if len(data) != itemsize * math.prod(extents):
        raise EncodingError(f"{where}: {len(data)} bytes for a shape of {tuple(extents)} with {itemsize} bytes each")


def _check_booleans(raw: np.ndarray[Any, Any]) -> None:
    if raw.size and int(raw.max()) > 1:
        raise EncodingError("a boolean is 0 or 1")


def _blake3(*parts: bytes | bytearray | memoryview) -> bytes:
    threads = blake3.AUTO if sum(map(len, parts)) >= PARALLEL else 1
    hasher = blake3(max_threads=threads)
    for part in parts:
        hasher.update(part)
    return hasher.digest()
