"""Blobs of known digest and length, received as a stream: what a verifier gets behind an opening.

    <folder>/<64 hex digits of the digest>

Every length and digest is known before the first byte comes, from records that were checked. Memory stays
bounded by one chunk of the stream, disk by the lengths expected. The prefix is what was hashed before the
content: nothing for a tensor, the tag 'sample' for a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from polcommit.errors import EncodingError, StorageError
from polcommit.opening import Blob
from polcommit.storage import files


class BlobFolder:
    """The blobs in `folder`, made when first written to; they can be had again, so nothing is fsynced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: bytes) -> Path:
        """The file that holds, or would hold, the blob."""
        return self.folder / digest.hex()

    def receive(self, stream: BinaryIO | Iterable[bytes], expected: Sequence[Blob]) -> int:
        """Write the blobs that `stream` holds end to end, in the expected order; returns the bytes received.

        A blob is in the folder only if its digest matched, also when a later one fails.

        Raises:
            EncodingError: a blob does not match its digest, or the stream is shorter or longer than expected.
            StorageError: a blob could not be written.
        """
        files.make_folder(self.folder)
        source = _Source(stream)
        total = 0
        for position, blob in enumerate(expected):
            if len(blob.content) != 32 or blob.length < 0:
                raise EncodingError(f"blob {position}: {blob.length} bytes under a digest of {len(blob.content)}")
            chunks = _checked(source.take(blob.length), position, blob)
            files.write_atomic(self.path(blob.content), chunks, sync="none")
            total += blob.length
        if any(True for _ in source.take(1)):
            raise EncodingError(f"more than the {total} bytes expected follow")
        return total

    def get(self, digest: bytes, length: int, *, prefix: bytes = b"") -> bytes:
        """A blob's content, checked again. Raises StorageError: missing, or damaged since."""
        path = self.path(digest)
        if not files.exists(path):
            raise StorageError(f"blob {digest.hex()} is missing: no {path}")
        data = files.read(path, length)
        if len(data) != length or blake3(prefix).update(data).digest() != digest:
            raise StorageError(f"{path} is damaged: content does not match its digest", hint="receive it again")
        return data

    def stream(self, digests: Iterable[bytes]) -> Iterator[bytes]:
        """The content of blobs end to end, in chunks, as they go behind a bundle; unchecked."""
        for digest in digests:
            path = self.path(digest)
            with files.reported("reading", path), path.open("rb") as file:
                yield from iter(lambda: file.read(files.CHUNK), b"")


def _checked(chunks: Iterable[memoryview], position: int, blob: Blob) -> Iterator[memoryview]:
    """The chunks as they come; raises at the end, before the file gets its name, if they are not the blob."""
    hasher = blake3(blob.prefix)
    size = 0
    for chunk in chunks:
        hasher.update(chunk)
        size += len(chunk)
        yield chunk
    if size != blob.length:
        raise EncodingError(f"blob {position} is truncated: {size} bytes of {blob.length}")
    if hasher.digest() != blob.content:
        raise EncodingError(f"blob {position} has digest {hasher.hexdigest()}, expected {blob.content.hex()}")


class _Source:
    """Takes exactly so many bytes from a file or from an iterator of chunks."""

    def __init__(self, stream: BinaryIO | Iterable[bytes]) -> None:
        read = getattr(stream, "read", None)
        chunks: Iterable[bytes] = stream if read is None else iter(lambda: read(files.CHUNK), b"")
        self._chunks: Iterator[memoryview] = (memoryview(chunk) for chunk in chunks if chunk)
        self._rest = memoryview(b"")

    def take(self, length: int) -> Iterator[memoryview]:
        """Chunks of `length` bytes in all, or fewer if the stream ends."""
        while length > 0:
            rest = self._rest if self._rest else next(self._chunks, None)
            if rest is None:
                return
            chunk, self._rest = rest[:length], rest[length:]
            length -= len(chunk)
            yield chunk
