"""The devnet's dumps: what anvil writes of itself, checked before it is used, and files that are whole or not there."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polcommit.errors import StorageError
from polcommit.ledger.rpc import Malformed, quantity


def read_dump(packed: bytes, name: str) -> tuple[bytes, int]:
    """A dump's JSON text, and the number of its latest block. Raises StorageError where it is damaged."""
    text = unzip(packed, name)
    try:
        state: Any = json.loads(text)
        best = state["best_block_number"]
        number = quantity(best, "block number") if isinstance(best, str) else int(best)
        if len(state["blocks"]) <= number:
            raise ValueError("blocks are missing")
        return text, number
    except (ValueError, KeyError, TypeError, RecursionError, Malformed) as error:
        raise _damaged(name, error) from error


def unzip(packed: bytes, name: str) -> bytes:
    """The text of a dump, whose checksum is right."""
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> StorageError:
    return StorageError(
        f"{name} is damaged ({type(error).__name__})",
        hint="restore it from a backup, or move it away for a new chain, without what was anchored on this one",
    )


def write_durably(path: Path, content: bytes) -> None:
    """All of it or nothing, on the disk when this returns: temporary file, fsync, rename, fsync of the folder."""
    with storage(path):
        handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o644)    # none of it is secret, and a verifier may be another user
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Operating system errors as StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot use {path} ({(error.strerror or str(error)).lower()})",
            hint="see that the disk has room and the folder is yours",
        ) from error
