"""Content-addressed store of tensors: one safetensors file for each distinct (dtype, shape, content).

    <folder>/<first 2 hex digits of address>/<address>.safetensors      one tensor, named 'tensor'
    address     H('tensor' ‖ canonical encoding of (dtype, shape, content))

A tensor that does not change between kept states is stored once. Content is checked on the way in and on the
way out; a file that was damaged in between is found when it is read, not before.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from blake3 import blake3

from polcommit.encoding import pack, tagged_hash
from polcommit.errors import MissingExtra, StorageError
from polcommit.opening import DTYPES
from polcommit.records import TensorEntry
from polcommit.storage import files
from polcommit.storage.files import Buffer

_MAX_HEADER = 4096      # bytes of a safetensors header; one tensor of 16 dimensions needs some 400
_NAME = "tensor"
_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")


def tensor_size(entry: TensorEntry) -> int:
    """Bytes of the tensor that `entry` describes. Raises StorageError for a dtype that cannot be stored."""
    if entry.dtype not in DTYPES:
        raise StorageError(f"{entry.name}: safetensors cannot hold dtype {entry.dtype}")
    return math.prod(entry.shape) * DTYPES[entry.dtype][1]


def address(entry: TensorEntry) -> str:
    """Where a tensor is stored, as 64 hex digits: its name and kind do not matter."""
    return tagged_hash("tensor", pack((entry.dtype, entry.shape, entry.content))).hex()


class TensorStore:
    """The store in `folder`, made when first written to. Writers hold the run's lock; readers need none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, entry: TensorEntry) -> Path:
        """The file that holds, or would hold, the tensor."""
        return self._path(address(entry))

    def has(self, entry: TensorEntry) -> bool:
        """Whether a file of the right size is there; its content is checked by `get`."""
        size = tensor_size(entry)
        return files.size(self.path(entry)) == len(_header(entry)) + size

    def put(self, entry: TensorEntry, data: Buffer) -> bool:
        """Store a tensor durably, given its raw little-endian bytes in C order; False if it was there already.

        Raises:
            StorageError: the bytes are not those of `entry`, or could not be written.
        """
        return self.put_many([(entry, data)]) == 1

    def put_many(self, items: Iterable[tuple[TensorEntry, Buffer]]) -> int:
        """Store tensors durably, each file fsynced once and each folder once; returns how many were new."""
        touched: set[Path] = set()
        new = 0
        for entry, data in items:
            if self.has(entry):
                continue
            path = self.path(entry)
            content = _checked(entry, data)
            files.make_folder(path.parent)
            files.write_atomic(path, (_header(entry), content), sync="file")
            touched.add(path.parent)
            new += 1
        for folder in sorted(touched):
            files.sync_folder(folder)
        return new

    def get(self, entry: TensorEntry) -> bytes:
        """The tensor's raw little-endian bytes in C order.

        Raises:
            StorageError: missing, or not of the dtype, shape, size and content that `entry` says.
        """
        path = self.path(entry)
        size = tensor_size(entry)
        if not files.exists(path):
            raise StorageError(f"tensor {entry.name} is missing: no {path}")
        return _parsed(path, entry, size)

    def addresses(self) -> Iterator[str]:
        """Every address that is in the store, in no order; files that are not the store's are skipped."""
        with files.reported("reading", self.folder):
            for path in self.folder.glob("??/*.safetensors"):
                if _FILE.fullmatch(path.name) and path.name.startswith(path.parent.name):
                    yield path.stem

    def discard(self, address: str) -> None:
        """Remove one tensor; nothing to do if it is gone."""
        files.remove(self._path(address))

    def sweep(self) -> int:
        """Remove the temporary files that killed processes left behind; returns how many."""
        return sum(files.sweep(folder) for folder in self.folder.glob("??") if files.is_folder(folder))

    def _path(self, address: str) -> Path:
        return self.folder / address[:2] / f"{address}.safetensors"


def _header(entry: TensorEntry) -> bytes:
    """What stands before the data in a safetensors file: u64 little-endian length ‖ JSON, padded to 8 bytes.

    The library's `serialize` gives the same bytes (a test says so), but wants raw addresses, and copies the data.
    """
    size = tensor_size(entry)
    described = {"dtype": DTYPES[entry.dtype][0], "shape": list(entry.shape), "data_offsets": [0, size]}
    text = json.dumps({_NAME: described}, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _checked(entry: TensorEntry, data: Buffer) -> memoryview:
    """The bytes of `data`, which are not copied, once they are found to be those of `entry`."""
    view = memoryview(data)
    flat = view.cast("B") if view.nbytes else memoryview(b"")
    if flat.nbytes != tensor_size(entry) or blake3(flat).digest() != entry.content:
        raise StorageError(
            f"tensor {entry.name} is not the one that was hashed ({flat.nbytes} bytes of {entry.dtype} {entry.shape})",
            hint="it must not change while it is being stored",
        )
    return flat


def _parsed(path: Path, entry: TensorEntry, size: int) -> bytes:
    safetensors = _library()
    raw = files.read(path, size + 8 + _MAX_HEADER)
    try:
        found: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(raw)
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error).lower()) from error
    del raw     # a copy of every tensor is enough
    if len(found) != 1 or found[0][0] != _NAME:
        raise _damaged(path, f"does not hold one tensor named '{_NAME}'")
    tensor = found[0][1]
    code, _ = DTYPES[entry.dtype]
    if tensor["dtype"] != code or tensor["shape"] != list(entry.shape) or len(tensor["data"]) != size:
        raise _damaged(path, f"holds {tensor['dtype']} {tensor['shape']} instead of {code} {list(entry.shape)}")
    if blake3(tensor["data"]).digest() != entry.content:
        raise _damaged(path, "content does not match its digest")
    return bytes(tensor["data"])


def _library() -> ModuleType:
    try:
        import safetensors  # here, because a run folder can be looked at without the extra
    except ImportError as error:
        raise MissingExtra("torch", "reading kept states") from error
    return safetensors


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(
        f"{path} is damaged: {what}", hint="restore it from a copy, or remove it and have the state kept again"
    )
