"""The append-only journal of a run: one frame a leaf, never rewritten.

    frame       u32 big-endian length ‖ payload ‖ check
    check       first 8 bytes of SHA-256("polcommit/v1/journal\\0" ‖ u64 big-endian frame number ‖ payload)

The check finds damage; it is no protection against somebody who edits the file on purpose (that is what
anchored roots are for), and whole frames missing at the end are not noticed here: the caller compares the
number of frames with the heads that it kept.

After a crash the last frame may be incomplete. That, and only that, is cut off when the journal is opened
for appending. An incomplete frame is told from a complete one with a damaged length by looking for its check:
if some prefix of what is left is a whole payload, then the length is wrong, not the file short.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from polcommit.errors import StorageError, UsageError
from polcommit.storage import files

MAX_PAYLOAD = 1 << 20       # bytes
CHECK_SIZE = 8              # bytes
HEAD_SIZE = 4               # bytes

_TAG = b"polcommit/v1/journal\0"     # not in encoding.TAGS: local to this file, nothing of the protocol


def frame(number: int, payload: bytes) -> bytes:
    """The bytes of frame `number` (counted from 0)."""
    if len(payload) > MAX_PAYLOAD:
        raise UsageError(f"{len(payload)} bytes do not fit in a journal frame of {MAX_PAYLOAD}")
    return len(payload).to_bytes(HEAD_SIZE, "big") + payload + _check(number, payload)


def _check(number: int, payload: bytes) -> bytes:
    return hashlib.sha256(b"%b%b%b" % (_TAG, number.to_bytes(8, "big"), payload)).digest()[:CHECK_SIZE]


@dataclass(frozen=True, slots=True)
class Scan:
    """What a journal file holds: offset of each whole frame, offset after the last, and bytes after that."""

    offsets: array[int]
    end: int
    torn: int           # bytes of an incomplete last frame


def scan(path: Path, *, most: int | None = None) -> Scan:
    """Check every frame of a journal, or the first `most`, without changing it.

    Raises:
        StorageError: missing, or damaged other than by an incomplete last frame.
    """
    offsets = array("Q")
    end = 0
    with files.reported("reading", path), path.open("rb") as file:
        while most is None or len(offsets) < most:
            payload, size = _next(file, len(offsets), path)
            if payload is None:
                return Scan(offsets, end, size)
            offsets.append(end)
            end += size
    return Scan(offsets, end, 0)


def _next(file: BinaryIO, number: int, path: Path) -> tuple[bytes | None, int]:
    """The payload of frame `number` and the frame's size; (None, bytes left) if it is incomplete or absent."""
    head = file.read(HEAD_SIZE)
    if len(head) < HEAD_SIZE:
        return None, len(head)
    length = int.from_bytes(head, "big")
    if length > MAX_PAYLOAD:
        raise _damaged(path, number, f"announces {length} bytes")
    body = file.read(length + CHECK_SIZE)
    if len(body) < length + CHECK_SIZE:
        if _holds_a_frame(number, body):
            raise _damaged(path, number, f"announces {length} bytes, but is shorter")
        return None, HEAD_SIZE + len(body)
    payload = body[:length]
    if _check(number, payload) != body[length:]:
        raise _damaged(path, number, "does not match its check")
    return payload, HEAD_SIZE + len(body)


def _holds_a_frame(number: int, body: bytes) -> bool:
    """Whether `body` begins with a payload of any length and its check. At most 1 MiB, so about a second."""
    state = hashlib.sha256(_TAG + number.to_bytes(8, "big"))
    for length in range(len(body) - CHECK_SIZE + 1):
        if state.copy().digest()[:CHECK_SIZE] == body[length : length + CHECK_SIZE]:
            return True
        state.update(body[length : length + 1])
    return False


def _damaged(path: Path, number: int, what: str) -> StorageError:
    return StorageError(
        f"{path} is damaged: frame {number} {what}",
        hint=f"nothing was changed; restore the file from a copy, or roll back to the {number} frames before it",
    )


def read_frames(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Payloads of frames `start` to `stop`, for readers that do not append; an incomplete last frame is skipped.

    Raises:
        StorageError: missing, or damaged before `stop`.
    """
    with files.reported("reading", path), path.open("rb") as file:
        number = 0
        while stop is None or number < stop:
            payload, _ = _next(file, number, path)
            if payload is None:
                return
            if number >= start:
                yield payload
            number += 1


class Journal:
    """A journal that is open for appending, by one process at a time; made by `create` or `open`."""

    def __init__(self, file: files.Exclusive, scanned: Scan) -> None:
        self.path = file.path
        self.torn = scanned.torn        # bytes of an incomplete last frame that `open` cut off
        self._file = file
        self._offsets = scanned.offsets
        self._end = scanned.end
        self._excess = False            # bytes of a failed append may lie behind `_end`
        self._failed = False            # an fsync failed: what the disk holds is unknown

    @classmethod
    def create(cls, path: Path) -> Journal:
        """A new, empty journal. Raises StorageError if the file exists."""
        file = files.Exclusive(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            files.sync_folder(path.parent)
        except BaseException:
            file.close()
            raise
        return cls(file, Scan(array("Q"), 0, 0))

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open a journal for appending; an incomplete last frame is cut off, `torn` says how many bytes.

        Raises:
            StorageError: missing, another process has it open, or damaged: the file is then untouched.
        """
        file = files.Exclusive(path, os.O_RDWR)
        try:
            scanned = scan(path)
            journal = cls(file, scanned)
            if scanned.torn:
                journal._cut_back()
                journal.sync()
        except BaseException:
            file.close()
            raise
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """The number of frames."""
        return len(self._offsets)

    def append(self, payload: bytes) -> int:
        """Write one frame (not yet durable: see `sync`); returns its number, counted from 0.

        Raises:
            StorageError: disk full or the like. The file is cut back to its last whole frame, and the same
                append works once there is space.
        """
        descriptor = self._descriptor()
        data = frame(len(self), payload)
        if self._excess:
            self._cut_back()
        try:
            with files.reported("writing", self.path):
                os.lseek(descriptor, self._end, os.SEEK_SET)
                files.write_all(descriptor, data)
        except StorageError as error:
            self._excess = True
            try:
                self._cut_back()
            except StorageError as second:
                raise error from second     # the next append tries again; so does the next `open`
            raise
        self._offsets.append(self._end)
        self._end += len(data)
        return len(self) - 1

    def sync(self) -> None:
        """Return once everything appended is durable.

        Raises:
            StorageError: the disk refused. Linux forgets what it could not write, so that a second fsync
                would wrongly succeed: nothing more is appended until the journal is opened again.
        """
        descriptor = self._descriptor()
        try:
            with files.reported("syncing", self.path):
                os.fsync(descriptor)
        except StorageError:
            self._failed = True
            raise

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Payloads of frames `start` to `stop` (default: all), each checked again.

        Raises:
            StorageError: the file was changed since it was opened.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        if not 0 <= start < stop:
            return
        with files.reported("reading", self.path), self.path.open("rb") as file:
            file.seek(self._offsets[start])
            for number in range(start, stop):
                payload, _ = _next(file, number, self.path)
                if payload is None:
                    raise _damaged(self.path, number, "is no longer there")
                yield payload

    def __iter__(self) -> Iterator[bytes]:
        return self.read()

    def truncate(self, frames: int) -> Path | None:
        """Keep the first `frames` frames. What is removed is kept beside the journal, in the returned file.

        The caller has made sure that no anchored head covers them.
        """
        if not 0 <= frames <= len(self):
            raise UsageError(f"{frames} frames: the journal has {len(self)}")
        self._descriptor()
        if frames == len(self):
            return None
        kept = _keep_tail(self.path, self._offsets[frames])
        self._end = self._offsets[frames]
        del self._offsets[frames:]
        self._excess = True
        self._cut_back()
        self.sync()
        return kept

    @classmethod
    def rescue(cls, path: Path, frames: int) -> Path | None:
        """`truncate` for a journal that is too damaged behind its first `frames` frames to be opened."""
        file = files.Exclusive(path, os.O_RDWR)
        try:
            scanned = scan(path, most=frames)
            if len(scanned.offsets) < frames:
                raise StorageError(f"{path} has {len(scanned.offsets)} frames, not {frames}")
            if os.fstat(file.descriptor).st_size == scanned.end:
                return None
            kept = _keep_tail(path, scanned.end)
            journal = cls(file, scanned)
            journal._cut_back()
            journal.sync()
            return kept
        finally:
            file.close()

    def close(self) -> None:
        """Close the file and let go of it; what was not synced is left to the operating system."""
        self._file.close()

    def _descriptor(self) -> int:
        if self._file.descriptor < 0:
            raise StorageError(f"{self.path} is not open for appending in this process")
        if self._failed:
            raise StorageError(
                f"{self.path}: an earlier write did not reach the disk", hint="run the same command again"
            )
        return self._file.descriptor

    def _cut_back(self) -> None:
        with files.reported("truncating", self.path):
            os.ftruncate(self._descriptor(), self._end)
        self._excess = False


def _keep_tail(path: Path, start: int) -> Path:
    """Copy what lies behind `start` to the first free 'journal.removed-<n>'."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.removed-{number}")):
        number += 1
    with files.reported("reading", path), path.open("rb") as file:
        file.seek(start)
        files.write_atomic(kept, iter(lambda: file.read(files.CHUNK), b""), exist_ok=False)
    return kept
