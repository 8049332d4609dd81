"""What a run of the papers' size has too much of for memory: in files of a temporary folder, read one at a time.

Values are trees of tensors and numbers, in the encoding that samples have (`training.tree`), and never pickled. The
files go with the shelf; one that is killed leaves them to whoever cleans up temporary folders.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Generic, TypeVar

from polcommit.errors import StorageError
from polcommit.storage import files
from polcommit.training.schema import Schema
from polcommit.training.tree import MAX_BYTES, TORCH_DTYPES, decode_tree, encode_tree

T = TypeVar("T")


class Shelf(Mapping[int, T], Generic[T]):
    """Values by number. What is put here is written; what is asked for is read anew each time, and held by nobody.

    `tree` and `back` turn a value into what `encode_tree` takes, and back.

    Raises, when written to:
        StorageError: the disk is full.
        EncodingError: the value has no encoding.
    """

    def __init__(self, tree: Callable[[T], object], back: Callable[[Any], T]) -> None:
        self._tree, self._back = tree, back
        self._there: dict[int, None] = {}       # the numbers, in the order in which they came
        self._made: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the files are; made when it is first asked for."""
        if self._made is None:
            self._made = Path(tempfile.mkdtemp(prefix="polcommit-shelf-"))
            weakref.finalize(self, shutil.rmtree, self._made, ignore_errors=True)
        return self._made

    def __setitem__(self, number: int, value: T) -> None:
        files.write_atomic(self.folder / str(number), encode_tree(self._tree(value)), sync="none")
        self._there[number] = None

    def __getitem__(self, number: int) -> T:
        if number not in self._there:
            raise KeyError(number)
        return self._back(decode_tree(files.read(self.folder / str(number), MAX_BYTES)))

    def __contains__(self, number: object) -> bool:
        return number in self._there

    def __iter__(self) -> Iterator[int]:
        return iter(self._there)

    def __len__(self) -> int:
        return len(self._there)


def plain_shelf() -> Shelf[Any]:
    """Of values that have an encoding as they are."""
    return Shelf(_same, _same)


def _same(value: Any) -> Any:
    return value


# --- room ---------------------------------------------------------------------------------------------------------


def state_sizes(schema: Schema) -> list[int]:
    """Bytes of each tensor in a state of this schema, the optimizer's among them."""
    forms = [*schema.tensors.values(), *(form for slots in schema.slots.values() for form in slots.values())]
    return [TORCH_DTYPES[form.dtype].itemsize * prod(form.shape) for form in forms]


def room_for(count: int, sizes: Sequence[int], folder: Path) -> tuple[int, int]:
    """Bytes that `count` times files of these sizes take on the disk of `folder`, and bytes that are free there.

    A file takes whole blocks. Where files run out before bytes do, the second figure is what the last of them holds.
    """
    with files.reported("reading", folder):
        disk = os.statvfs(folder)
    each = sum(-(-size // disk.f_frsize) * disk.f_frsize for size in sizes)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_files and disk.f_favail < count * len(sizes):     # 0: this file system does not count them
        free = min(free, each * (disk.f_favail // max(len(sizes), 1)))
    return count * each, free


def require_room(count: int, sizes: Sequence[int], folder: Path, what: str) -> None:
    """Before anything is written. Raises StorageError that says how much it takes, and what to do."""
    needed, free = room_for(count, sizes, folder)
    if needed > free:
        raise StorageError(
            f"{what} take {_gib(needed)}, and {_gib(free)} are free in {folder}",
            hint="set TMPDIR to a folder with that much room, or take fewer steps or a smaller model (--set)",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
