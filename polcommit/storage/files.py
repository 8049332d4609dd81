"""Files that are there whole or not at all, one writer at a time, and errors that name the file.

Everything durable in `polcommit.storage` goes through here: written to a temporary file in the same folder,
fsynced, renamed, and the folder fsynced. What it does *not* guarantee: that a disk which reports an fsync
as done has done it, or that nobody else changes the files; readers check what they read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from polcommit.errors import StorageError

Buffer: TypeAlias = bytes | bytearray | memoryview
Sync: TypeAlias = Literal["all", "file", "none"]

CHUNK = 1 << 20         # bytes read or written at a time
LOCK_NAME = "lock"
TEMPORARY = ".tmp-"     # temporary files are '.tmp-<process>-<random>'; listings skip them, `sweep` removes them

_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


def storage_error(error: OSError, doing: str, path: Path) -> StorageError:
    """The one line that a user gets for an operating-system error, with what to do about it."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return StorageError(
            f"disk full while {doing} {path} ({reason})",
            hint="free space and run the same command again; what was recorded before is untouched",
        )
    hints = {
        errno.EACCES: "check who owns it and its permissions",
        errno.EPERM: "check who owns it and its permissions",
        errno.EROFS: "the file system is mounted read-only",
    }
    return StorageError(f"{doing} {path} failed ({reason})", hint=hints.get(error.errno or 0))


@contextlib.contextmanager
def reported(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names `path`; `doing` as in 'writing'."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, doing, path) from error


# --- writing ----------------------------------------------------------------------------------------------------


def write_atomic(
    path: Path, data: Buffer | Iterable[Buffer], *, mode: int = 0o644, exist_ok: bool = True, sync: Sync = "all"
) -> None:
    """Write a file durably: after a crash at any moment `path` holds all of `data`, or what it held before.

    `mode` is subject to the umask. With `sync="file"` the folder is not fsynced: the caller writes several files
    and calls `sync_folder` once. With "none" nothing is: for what can be had again.

    Raises:
        StorageError: it could not be written (disk full, permissions), or exists and `exist_ok` is false.
            No temporary file stays behind, and an existing file is untouched.
    """
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"
    with reported("writing", path):
        try:
            _write_new(temporary, data, mode, sync != "none")
            _move(temporary, path, exist_ok)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if sync == "all":
            sync_folder(path.parent)


def _write_new(path: Path, data: Buffer | Iterable[Buffer], mode: int, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        chunks: Iterable[Buffer] = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
        for chunk in chunks:
            write_all(descriptor, chunk)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: Buffer) -> None:
    """`os.write` until nothing is left: it may write less than it is given, notably as a disk fills up."""
    left = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while left:
        left = left[os.write(descriptor, left) :]


def _move(temporary: Path, path: Path, exist_ok: bool) -> None:
    if exist_ok:
        temporary.rename(path)
        return
    try:
        os.link(temporary, path)    # unlike rename, fails if `path` exists
    except FileExistsError:
        raise StorageError(f"{path} exists already", hint="it is never overwritten") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if os.path.lexists(path):   # a file system without hard links: callers hold a lock, so nobody is in between
            raise StorageError(f"{path} exists already", hint="it is never overwritten") from None
        temporary.rename(path)
        return
    temporary.unlink()


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that renames and removals in it survive a power failure."""
    with reported("syncing", folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and those above it, durably; nothing to do if it is there."""
    if is_folder(folder):
        return
    with reported("making", folder):
        if not is_folder(folder.parent):
            make_folder(folder.parent)
        folder.mkdir(mode=mode, exist_ok=True)
        sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Remove a file durably; nothing to do if it is gone."""
    with reported("removing", path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def sweep(folder: Path) -> int:
    """Remove the temporary files that killed processes left in `folder`; returns how many."""
    count = 0
    with reported("cleaning up", folder):
        for path in folder.glob(f"{TEMPORARY}*"):
            writer = path.name.removeprefix(TEMPORARY).partition("-")[0]
            if not (writer.isdigit() and _is_alive(int(writer))):
                path.unlink(missing_ok=True)
                count += 1
    return count


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


# --- reading ----------------------------------------------------------------------------------------------------


def exists(path: Path) -> bool:
    """Whether something of this name is there. Raises StorageError if that cannot be found out."""
    with reported("reading", path):
        return path.exists()


def size(path: Path) -> int | None:
    """Bytes of a file, None if it is not there. Raises StorageError if that cannot be found out."""
    with reported("reading", path):
        try:
            return path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None


def is_folder(path: Path) -> bool:
    """Whether this is a folder. Raises StorageError if that cannot be found out."""
    with reported("reading", path):
        return path.is_dir()


def read(path: Path, max_size: int) -> bytes:
    """The content of a regular file of at most `max_size` bytes.

    Raises:
        StorageError: missing, unreadable, not a regular file, or larger.
    """
    with reported("reading", path):
        # O_NONBLOCK: opening a pipe in place of a file must not hang
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path} is not a regular file")
            if status.st_size > max_size:
                raise StorageError(f"{path} has {status.st_size} bytes, more than the {max_size} allowed")
            data = file.read(status.st_size + 1)
    if len(data) > max_size:
        raise StorageError(f"{path} has more than the {max_size} bytes allowed")
    return data


# --- one writer -------------------------------------------------------------------------------------------------


class Exclusive:
    """An open file that no other process has open this way (flock); the kernel lets go when the process dies.

    A forked child, such as a data loader's worker, would inherit the lock and keep it beyond its parent's
    death: so a fork closes the file in the child, where `descriptor` becomes -1.

    Raises:
        StorageError: it cannot be opened, or another process holds it.
    """

    def __init__(self, path: Path, flags: int, *, mode: int = 0o644, what: str = "") -> None:
        self.path = path
        with reported("opening", path):
            self.descriptor = os.open(path, flags, mode)
        try:
            with reported("locking", path):
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StorageError as error:
            holder = _holder(self.descriptor) if path.name == LOCK_NAME else ""
            os.close(self.descriptor)
            self.descriptor = -1
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise StorageError(
                f"another process{holder} is recording in {what or path.parent}",
                hint="wait until it ends, or stop it",
            ) from None
        _EXCLUSIVE.add(self)

    def close(self) -> None:
        """Let go; nothing to do the second time."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


_EXCLUSIVE: weakref.WeakSet[Exclusive] = weakref.WeakSet()


def _close_in_child() -> None:
    for held in list(_EXCLUSIVE):
        held.close()


os.register_at_fork(after_in_child=_close_in_child)


def _holder(descriptor: int) -> str:
    """' (process 123)' if the lock file says who holds it: a help for the reader, relied on by nobody."""
    with contextlib.suppress(OSError):
        text = os.pread(descriptor, 20, 0)
        if text.strip().isdigit():
            return f" (process {int(text)})"
    return ""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the only process that writes in `folder`; a second one gets a StorageError at once."""
    held = Exclusive(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, what=str(folder))
    try:
        with contextlib.suppress(OSError):      # a full disk must not keep anybody from the lock
            os.ftruncate(held.descriptor, 0)
            os.pwrite(held.descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        held.close()
