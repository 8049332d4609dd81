"""The prover's folder of one run: the one place that knows its files' names.

    manifest                encoded Manifest; written last when the folder is made, so that it marks a run
    secret                  the run secret, 64 hex digits, mode 0600; salts and blindings are derived from it
    settings.json           what the manifest only commits to, and what is local to this machine
    dataset.leaves          leaf hashes of the dataset tree, 32 bytes each
    dataset.contents        of each raw sample, BLAKE3 digest and u64 length of its encoding, 40 bytes each
    place                   of a post hoc run: the chain and contract that it will be anchored on
    parent/                 of a run that starts from another's final state (polcommit.storage.parents)
    registration.pending    signed transaction that registers the run; durable before it is sent
    registration            the Registered event, and the beacon
    journal                 the transcript's leaves (polcommit.storage.journal)
    states/  tensors/       kept states (polcommit.storage.states, tensors)
    anchors/                heads and what became of them (polcommit.storage.anchors)
    receipts/<id>           encoded Receipt of challenge <id>
    disclosed/<id>          what challenge <id> was answered with, and to whom
    checks/                 queue of self-checks (polcommit.storage.checks)
    environments/<n>        environment epoch n: its first step and fingerprint
    lock                    held by the process that records or anchors

Every file is written atomically and checked when read: a damaged one is a `StorageError` that names it.
Nothing here says whether what is stored is true; whoever uses it compares digests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from polcommit.errors import EncodingError, StorageError, UsageError
from polcommit.records import Fingerprint, Manifest, Receipt, TensorEntry
from polcommit.storage import files, stored
from polcommit.storage.anchors import AnchorFolder
from polcommit.storage.checks import CheckQueue
from polcommit.storage.journal import Journal
from polcommit.storage.parents import ParentFolder
from polcommit.storage.settings import Settings
from polcommit.storage.states import StateStore
from polcommit.storage.tensors import TensorStore
from polcommit.storage.types import Disclosed, Epoch, Place, Registration, StoredParent, StoredRegistration

HASH_SIZE = 32
CONTENT_SIZE = 40           # 32 bytes of digest, 8 of length
MAX_TRANSACTION = 1 << 20   # bytes of a signed transaction

_FOLDERS = ("states", "tensors", "anchors", "receipts", "disclosed", "checks", "environments", "parent")
_FILES = ("manifest", "secret", "settings.json", "dataset.leaves", "dataset.contents", "journal", "place", "lock")


class RunFolder:
    """A run's folder that exists and whose manifest is valid; made by `create` or `open`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.tensors = TensorStore(path / "tensors")
        self.states = StateStore(path / "states", self.tensors)
        self.anchors = AnchorFolder(path / "anchors")
        self.checks = CheckQueue(path / "checks")
        self.parent = ParentFolder(path / "parent", self.tensors)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        manifest: Manifest,
        secret: bytes,
        settings: Settings,
        leaves: Iterable[bytes],
        contents: Iterable[tuple[bytes, int]],
        place: Place | None = None,
        parent: tuple[StoredParent, Callable[[TensorEntry], files.Buffer]] | None = None,
    ) -> RunFolder:
        """Make the folder of a run that is about to be registered, durably, before anything is sent.

        `leaves` are the dataset tree's leaf hashes, `contents` digest and length of each sample's encoding. `place`
        is for a post hoc run. `parent` is what a run continues, and who has the bytes of its parameters and buffers.
        A folder that an interrupted `create` left, which has no manifest yet, is begun anew.

        Raises:
            StorageError: `path` holds a run or other files already, or could not be written.
            UsageError: leaves or contents are not those of as many samples as the manifest says.
        """
        check_free(path)
        files.make_folder(path)
        with files.lock(path):
            check_free(path)    # again: another process may have been quicker
            files.sweep(path)
            size = manifest.dataset.size
            files.write_atomic(path / "dataset.leaves", _exactly(leaves, HASH_SIZE, size, "leaf hashes"))
            rows = _exactly(map(_content, contents), CONTENT_SIZE, size, "contents")
            files.write_atomic(path / "dataset.contents", rows)
            for folder in _FOLDERS:
                files.make_folder(path / folder)
            run = cls(path, manifest)
            run._write_secret(secret)
            stored.write_once(path / "settings.json", settings.encode(), replace=True)
            if place is not None:
                stored.write_record(path / "place", place, replace=True)
            if parent is not None:
                run.parent.write(*parent)
            (path / "journal").unlink(missing_ok=True)      # empty: nothing is recorded before there is a manifest
            Journal.create(path / "journal").close()
            stored.write_record(path / "manifest", manifest)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run in `path`. Raises StorageError: there is none, or its manifest is damaged."""
        hint = "make one with 'polcommit register RUN --recipe ...'"
        if not files.is_folder(path):
            raise StorageError(f"no run folder at {path}", hint=hint)
        if not files.exists(path / "manifest"):
            if _names(path) <= {*_FILES, *_FOLDERS}:
                raise StorageError(f"{path} holds no registered run", hint=hint)
            raise StorageError(f"{path} is not a run folder", hint=hint)
        return cls(path, stored.read_record(path / "manifest", Manifest))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one process that records, anchors or answers here; remove what killed ones left half-written."""
        with files.lock(self.path):
            for folder in (self.path, *(self.path / name for name in _FOLDERS)):
                files.sweep(folder)
            self.tensors.sweep()
            yield

    # --- what is fixed at registration --------------------------------------------------------------------------

    @cached_property
    def settings(self) -> Settings:
        """Recipe, configuration, and what is local to this machine."""
        path = self.path / "settings.json"
        try:
            return Settings.parse(files.read(path, 1 << 20))
        except EncodingError as error:
            raise stored.damaged(path, str(error)) from error

    def write_settings(self, settings: Settings) -> None:
        """Replace the settings: paths and addresses may change; recipe and configuration are committed to."""
        stored.write_once(self.path / "settings.json", settings.encode(), replace=True)
        self.__dict__.pop("settings", None)

    @cached_property
    def secret(self) -> bytes:
        """The run secret, 32 bytes."""
        path = self.path / "secret"
        text = files.read(path, 65)
        try:
            secret = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            secret = b""
        if len(secret) != 32 or text != _secret_text(secret):
            raise stored.damaged(path, "not 64 hex digits and a newline")
        return secret

    def _write_secret(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise UsageError(f"a run secret has 32 bytes, not {len(secret)}")
        files.write_atomic(self.path / "secret", _secret_text(secret), mode=0o600)

    def dataset_leaves(self) -> list[bytes]:
        """Leaf hashes of the dataset tree; the caller compares their root with the manifest's."""
        data = self._table("dataset.leaves", HASH_SIZE)
        return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]

    def dataset_contents(self) -> list[tuple[bytes, int]]:
        """Of each raw sample, BLAKE3 digest and length in bytes of its encoding."""
        data = self._table("dataset.contents", CONTENT_SIZE)
        rows = (data[at : at + CONTENT_SIZE] for at in range(0, len(data), CONTENT_SIZE))
        return [(row[:32], int.from_bytes(row[32:], "big")) for row in rows]

    def _table(self, name: str, width: int) -> bytes:
        path = self.path / name
        due = width * self.manifest.dataset.size
        data = files.read(path, due)
        if len(data) != due:
            raise stored.damaged(path, f"{len(data)} bytes instead of {due}")
        return data

    @property
    def place(self) -> Place:
        """The chain and contract of a post hoc run. Raises StorageError: none, or damaged."""
        return stored.read_record(self.path / "place", Place)

    # --- what becomes of it -------------------------------------------------------------------------------------

    @property
    def registration_pending(self) -> bytes | None:
        """The signed transaction that registers this run, or None before there is one."""
        path = self.path / "registration.pending"
        return files.read(path, MAX_TRANSACTION) if files.exists(path) else None

    def write_registration_pending(self, transaction: bytes, *, replace: bool = False) -> None:
        """Keep the signed transaction, before it is sent. `replace` for the same with another fee."""
        stored.write_once(self.path / "registration.pending", transaction, replace=replace)

    @property
    def registration(self) -> Registration | None:
        """The registration on the ledger and its beacon, or None before that is final."""
        path = self.path / "registration"
        if not files.exists(path):
            return None
        return stored.read_record(path, StoredRegistration).plain()

    def write_registration(self, registration: Registration) -> None:
        """Keep the registration; it never changes."""
        stored.write_record(self.path / "registration", StoredRegistration.of(registration))

    def journal(self) -> Journal:
        """The journal, open for appending. Raises StorageError: another process has it, or it is damaged."""
        return Journal.open(self.journal_path)

    @property
    def journal_path(self) -> Path:
        """For readers: `polcommit.storage.journal.read_frames`."""
        return self.path / "journal"

    def receipts(self) -> tuple[Receipt, ...]:
        """The signed verdicts that were received, by rising challenge id."""
        folder = self.path / "receipts"
        return tuple(stored.read_record(folder / str(number), Receipt) for number in stored.numbers(folder))

    def write_receipt(self, number: int, receipt: Receipt, *, replace: bool = False) -> None:
        """Keep the receipt of challenge `number`. Raises UsageError if it is of another."""
        if receipt.verdict.challenge_id not in (None, number):
            raise UsageError(f"a receipt of challenge {receipt.verdict.challenge_id} is not one of {number}")
        stored.write_record(self.path / "receipts" / str(number), receipt, replace=replace)

    def disclosed(self) -> dict[int, Disclosed]:
        """What was opened to whom, by challenge id, rising: what the disclosure budgets are charged with."""
        folder = self.path / "disclosed"
        return {number: stored.read_record(folder / str(number), Disclosed) for number in stored.numbers(folder)}

    def write_disclosed(self, number: int, disclosed: Disclosed) -> None:
        """Charge challenge `number`, durably, before its opening leaves the machine; it never changes."""
        stored.write_record(self.path / "disclosed" / str(number), disclosed)

    # --- environment epochs -------------------------------------------------------------------------------------

    def environments(self) -> tuple[Epoch, ...]:
        """The environment epochs so far, in order."""
        folder = self.path / "environments"
        numbers = stored.numbers(folder)
        if numbers != tuple(range(len(numbers))):
            raise StorageError(f"{folder} is damaged: holds epochs {list(numbers)}", hint="restore it from a copy")
        epochs = tuple(stored.read_record(folder / str(number), Epoch) for number in numbers)
        starts = [epoch.first for epoch in epochs]
        if starts != sorted(set(starts)) or starts[:1] not in ([], [1]):
            raise StorageError(f"{folder} is damaged: epochs begin at steps {starts}", hint="restore it from a copy")
        return epochs

    def add_environment(self, first: int, fingerprint: Fingerprint) -> int:
        """Begin an epoch at step `first`; returns its number, counted from 0.

        Raises:
            UsageError: the first epoch begins at step 1, and each later one behind the one before.
        """
        epochs = self.environments()
        if (first != 1) if not epochs else (first <= epochs[-1].first):
            raise UsageError(f"environment epoch {len(epochs)} cannot begin at step {first}")
        epoch = Epoch(first=first, fingerprint=fingerprint)
        stored.write_record(self.path / "environments" / str(len(epochs)), epoch)
        return len(epochs)

    def drop_environments(self, after: int) -> int:
        """Forget the epochs that begin behind step `after`, when a run is rolled back; returns how many."""
        epochs = self.environments()
        gone = [number for number, epoch in enumerate(epochs) if epoch.first > after]
        for number in reversed(gone):
            files.remove(self.path / "environments" / str(number))
        return len(gone)


def check_free(path: Path) -> None:
    """Return if a run could be made in `path`: nothing is there, an empty folder, or an interrupted `create`.

    Raises:
        StorageError: it holds a run, or something else.
    """
    if not files.exists(path):
        return
    if not files.is_folder(path):
        raise StorageError(f"{path} is not a folder", hint="choose another one for the run")
    if files.exists(path / "manifest"):
        raise StorageError(f"{path} already holds a run", hint="choose another folder; a run is never overwritten")
    if _names(path) - {*_FILES, *_FOLDERS} or files.size(path / "journal"):
        raise StorageError(f"{path} holds other files", hint="choose a new or empty folder for the run")


def _names(folder: Path) -> set[str]:
    with files.reported("reading", folder):
        return {path.name for path in folder.iterdir() if not path.name.startswith(files.TEMPORARY)}


def _secret_text(secret: bytes) -> bytes:
    return secret.hex().encode("ascii") + b"\n"


def _content(content: tuple[bytes, int]) -> bytes:
    digest, length = content
    if len(digest) != HASH_SIZE:
        raise UsageError(f"a sample's digest has 32 bytes, not {len(digest)}")
    return digest + length.to_bytes(8, "big")


def _exactly(rows: Iterable[bytes], width: int, count: int, what: str) -> Iterator[bytes]:
    """The rows, some thousand at a time; raises UsageError unless there are `count` of this width in bytes."""
    batch = bytearray()
    seen = 0
    for seen, row in enumerate(rows, 1):
        if len(row) != width:
            raise UsageError(f"{what}: number {seen - 1} has {len(row)} bytes instead of {width}")
        batch += row
        if len(batch) >= files.CHUNK:
            yield bytes(batch)
            batch.clear()
    if seen != count:
        raise UsageError(f"{seen} {what} for a data set of {count} samples")
    yield bytes(batch)
