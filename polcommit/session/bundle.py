"""Evidence bundles as files (spec §6.2): magic, one record, and the blobs of openings in clear, if there are any.

    "polcommit evidence 1\\n" ‖ u64 length ‖ Evidence ‖ blob ‖ blob ‖ …
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polcommit.encoding import decode, encode, u64
from polcommit.errors import EncodingError, Refuted, StorageError
from polcommit.opening import MAX_RECORD, opening_blobs
from polcommit.records import Evidence
from polcommit.storage import files
from polcommit.storage.blobs import BlobFolder

MAGIC = b"polcommit evidence 1\n"
MAX_EVIDENCE = 3 * MAX_RECORD       # bytes: a disclosure, an openings, and a verdict


def write(path: Path, evidence: Evidence, blobs: Path | None) -> None:
    """Write a bundle; `blobs` is the folder that holds the openings' contents, where there are openings."""

    def parts() -> Iterator[bytes]:
        record = encode(evidence)
        yield MAGIC + u64(len(record))
        yield record
        if evidence.openings is not None and blobs is not None:
            yield from BlobFolder(blobs).stream(blob.content for blob in opening_blobs(evidence.openings))

    files.write_atomic(path, parts())


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read: its record, and where its blobs begin."""

    path: Path
    evidence: Evidence
    blobs_at: int

    def extract(self, folder: Path) -> None:
        """Write the blobs into `folder`, each compared with its digest. Raises Refuted (V1) where one is not it."""
        openings = self.evidence.openings
        expected = opening_blobs(openings) if openings is not None else []
        try:
            with self.path.open("rb") as file:
                file.seek(self.blobs_at)
                BlobFolder(folder).receive(file, expected)
        except EncodingError as error:
            raise Refuted("V1", "contents of the bundle", expected="what its records name", found=error) from error
        except OSError as error:
            raise files.storage_error(error, "reading", self.path) from error


def read(path: Path) -> Bundle:
    """Read a bundle's record.

    Raises:
        StorageError: no such file, or not a bundle of ours at all.
        Refuted: it begins as one, and is truncated or not canonical (V1).
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC) + 8)
            length = int.from_bytes(head[len(MAGIC) :], "big")
            data = file.read(min(length, MAX_EVIDENCE) + 1)
    except OSError as error:
        raise files.storage_error(error, "reading", path) from error
    if head[: len(MAGIC)] != MAGIC:
        raise StorageError(f"{path} is not an evidence bundle", hint="give a file that 'polcommit challenge' wrote")
    try:
        if len(head) != len(MAGIC) + 8 or not length <= min(len(data), MAX_EVIDENCE):
            raise EncodingError(f"truncated: {len(data)} of {length} bytes")
        evidence = decode(data[:length], Evidence, max_size=MAX_EVIDENCE)
        if evidence.openings is not None:
            opening_blobs(evidence.openings)
        elif len(data) != length:
            raise EncodingError("bytes after the record")
    except EncodingError as error:
        raise Refuted("V1", "evidence bundle", expected="a canonical record", found=error) from error
    return Bundle(path, evidence, len(head) + length)
