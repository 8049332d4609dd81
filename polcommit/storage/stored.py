"""Records in files, numbered files in folders: what the parts of a run folder have in common."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from polcommit.encoding import MAX_SIZE, Record, decode, encode
from polcommit.errors import EncodingError, StorageError
from polcommit.storage import files

MAX_RECORD = MAX_SIZE       # bytes of an encoded record in a file

R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """The record in a file. Raises StorageError: missing, or not the encoding of a valid one."""
    data = files.read(path, MAX_RECORD)
    try:
        return decode(data, kind)
    except EncodingError as error:
        raise damaged(path, str(error)) from error


def write_record(path: Path, record: Record, *, replace: bool = False) -> None:
    """Write a record durably, as `write_once` does."""
    write_once(path, encode(record), replace=replace)


def write_once(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = False) -> None:
    """Write a file durably. Writing the same again is nothing to do; something else is refused.

    Raises:
        StorageError: the file holds something else and `replace` is false, or could not be written.
    """
    files.make_folder(path.parent)
    found = None if replace else files.size(path)
    if found is not None:
        if found != len(data) or files.read(path, len(data)) != data:
            raise StorageError(f"{path} holds something else", hint="it is never overwritten")
        return
    files.write_atomic(path, data, mode=mode, exist_ok=replace)


def numbers(folder: Path, suffix: str = "") -> tuple[int, ...]:
    """The n of all files '<n><suffix>' in a folder, rising; other names are skipped. No folder: none."""
    pattern = re.compile(r"(0|[1-9][0-9]{0,18})" + re.escape(suffix))
    with files.reported("reading", folder):
        if not files.is_folder(folder):
            return ()
        matches = (pattern.fullmatch(path.name) for path in folder.iterdir())
        return tuple(sorted(int(match[1]) for match in matches if match))


def damaged(path: Path, what: str) -> StorageError:
    """The error for a file that does not hold what it should."""
    return StorageError(f"{path} is damaged: {what}", hint="restore it from a copy")
