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
    """A dump's JSON text, with one genesis block, and the number of its latest block.

    Raises:
        StorageError: it is damaged.
    """
    text = unzip(packed, name)
    try:
        state: Any = json.loads(text)
        best = state["best_block_number"]
        number = quantity(best, "block number") if isinstance(best, str) else int(best)
        if len(state["blocks"]) <= number:
            raise ValueError("blocks are missing")
        return _with_one_genesis(state, text), number
    except (ValueError, KeyError, TypeError, RecursionError, Malformed) as error:
        raise _damaged(name, error) from error


def _with_one_genesis(state: dict[str, Any], text: bytes) -> bytes:
    """Every anvil begins with a genesis block of its own and dumps it beside the one that it was given. The next one
    would take any of them, in no order, and be another chain: all but the first are left out."""
    found = [block for block in state["blocks"] if _number(block, "number") == 0]
    if len(found) == 1:
        return text
    first = min(found, key=lambda block: _number(block, "timestamp"))
    state["blocks"] = [first, *(block for block in state["blocks"] if _number(block, "number") != 0)]
    return json.dumps(state).encode()


def _number(block: dict[str, Any], name: str) -> int:
    value = block["header"][name]
    return quantity(value, name) if isinstance(value, str) else int(value)


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
