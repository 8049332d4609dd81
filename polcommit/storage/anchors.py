"""The heads of a run and what became of them, so that none is ever anchored twice.

    <folder>/<sequence>.head        encoded RevealedHead: durable before anything is signed for the ledger or sent
    <folder>/<sequence>.pending     the signed transaction: durable before it is sent, so that after a crash the
                                    same one is sent again, never a second
    <folder>/<sequence>.anchored    where it stands on the ledger
"""

from __future__ import annotations

from pathlib import Path

from polcommit.errors import StorageError, UsageError
from polcommit.events import Position
from polcommit.records import RevealedHead
from polcommit.storage import files, stored
from polcommit.storage.types import StoredPosition

MAX_TRANSACTION = 16 << 20      # bytes; the envelope is part of it


class AnchorFolder:
    """The heads in `folder`, by sequence number from 1. Writers hold the run's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sequences(self) -> tuple[int, ...]:
        """Sequence numbers of all heads, rising from 1.

        Raises:
            StorageError: one is missing, or a transaction or position has no head.
        """
        heads = stored.numbers(self.folder, ".head")
        stray = {*stored.numbers(self.folder, ".pending"), *stored.numbers(self.folder, ".anchored")} - {*heads}
        if heads != tuple(range(1, len(heads) + 1)) or stray:
            raise StorageError(
                f"{self.folder} is damaged: has heads {list(heads)}, and anchors without a head {sorted(stray)}",
                hint="restore it from a copy",
            )
        return heads

    def head(self, sequence: int) -> RevealedHead:
        """A head. Raises StorageError: none, or damaged."""
        path = self._path(sequence, "head")
        head = stored.read_record(path, RevealedHead)
        if head.statement.sequence != sequence:
            raise stored.damaged(path, f"holds head {head.statement.sequence}")
        return head

    def heads(self) -> tuple[RevealedHead, ...]:
        """All heads, in order."""
        return tuple(self.head(sequence) for sequence in self.sequences())

    def write_head(self, head: RevealedHead) -> None:
        """Keep the next head; writing the same again is nothing to do.

        Raises:
            UsageError: the head before it is missing.
            StorageError: another head has this number, or it could not be written.
        """
        sequence = head.statement.sequence
        if sequence > len(self.sequences()) + 1:
            raise UsageError(f"head {sequence} cannot follow head {len(self.sequences())}")
        stored.write_record(self._path(sequence, "head"), head)

    def pending(self, sequence: int) -> bytes | None:
        """The signed transaction that anchors a head, or None before there is one."""
        path = self._path(sequence, "pending")
        return files.read(path, MAX_TRANSACTION) if files.exists(path) else None

    def write_pending(self, sequence: int, transaction: bytes, *, replace: bool = False) -> None:
        """Keep the signed transaction before it is sent. `replace` only for the same account nonce.

        Raises:
            StorageError: there is another one, or the head is anchored already.
        """
        self._require_head(sequence)
        if self.anchored(sequence) is not None:
            raise StorageError(f"head {sequence} is anchored already", hint="nothing was sent")
        if not 0 < len(transaction) <= MAX_TRANSACTION:
            raise UsageError(f"a transaction of {len(transaction)} bytes")
        stored.write_once(self._path(sequence, "pending"), transaction, replace=replace)

    def anchored(self, sequence: int) -> Position | None:
        """Where a head stands on the ledger, or None before that is final."""
        path = self._path(sequence, "anchored")
        return stored.read_record(path, StoredPosition).plain() if files.exists(path) else None

    def write_anchored(self, sequence: int, position: Position) -> None:
        """Keep where a head stands on the ledger; it never changes."""
        self._require_head(sequence)
        stored.write_record(self._path(sequence, "anchored"), StoredPosition.of(position))

    def discard(self, sequence: int) -> None:
        """Forget the last head, for which no transaction was ever signed.

        Raises:
            UsageError: it is not the last one, or may have been sent.
        """
        if not self.sequences() or sequence != self.sequences()[-1]:
            raise UsageError(f"head {sequence} is not the last one")
        if self.pending(sequence) is not None or self.anchored(sequence) is not None:
            raise UsageError(f"head {sequence} was sent, or may have been", hint="anchor the run again to find out")
        files.remove(self._path(sequence, "head"))

    def _require_head(self, sequence: int) -> None:
        if not files.exists(self._path(sequence, "head")):
            raise UsageError(f"there is no head {sequence}")

    def _path(self, sequence: int, suffix: str) -> Path:
        return self.folder / f"{sequence}.{suffix}"
