"""What a verifier keeps of its challenges, so that each can be finished with the same draw.

    <home>/challenges/<run>/<n>/request     encoded Request
                                nonce       64 hex digits, mode 0600
                                head        encoded RevealedHead: what the envelope held
                                pending     the signed transaction
                                event       '<id> <block>'
                                gradients   empty; there where gradients are asked for
                                receipt     encoded Receipt
"""

from __future__ import annotations

from pathlib import Path

from polcommit.errors import StorageError, UsageError
from polcommit.records import Receipt, Request, RevealedHead
from polcommit.storage import files, stored


class ChallengeFolder:
    """One challenge of this verifier."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, request: Request, nonce: bytes, head: RevealedHead) -> None:
        """Store what the challenge is about, durably; the request last."""
        files.make_folder(self.path, mode=0o700)
        files.write_atomic(self.path / "nonce", nonce.hex().encode(), mode=0o600)
        stored.write_record(self.path / "head", head)
        stored.write_record(self.path / "request", request)

    @property
    def request(self) -> Request:
        """What was asked for."""
        return stored.read_record(self.path / "request", Request)

    @property
    def head(self) -> RevealedHead:
        """What the envelope of the challenged head held."""
        return stored.read_record(self.path / "head", RevealedHead)

    @property
    def nonce(self) -> bytes:
        """The nonce, 32 bytes. Raises StorageError where it is damaged: there is no draw without it."""
        path = self.path / "nonce"
        try:
            nonce = bytes.fromhex(files.read(path, 64).decode("ascii"))
        except ValueError:
            nonce = b""
        if len(nonce) != 32:
            raise stored.damaged(path, "not 64 hex digits")
        return nonce

    @property
    def pending(self) -> bytes | None:
        """The signed transaction, or None before there is one."""
        path = self.path / "pending"
        return files.read(path, 1 << 20) if path.exists() else None

    def write_pending(self, transaction: bytes, *, replace: bool = False) -> None:
        """Keep the signed transaction before it is sent; `replace` one that can never be mined."""
        stored.write_once(self.path / "pending", transaction, replace=replace)

    @property
    def id(self) -> int | None:
        """The id that the contract gave, or None before that is known."""
        return self._event()[0]

    @property
    def block(self) -> int | None:
        """The block of the event."""
        return self._event()[1]

    def _event(self) -> tuple[int | None, int | None]:
        path = self.path / "event"
        if not path.exists():
            return None, None
        words = files.read(path, 100).split()
        if len(words) != 2 or not all(word.isdigit() for word in words):
            raise stored.damaged(path, "not '<id> <block>'")
        return int(words[0]), int(words[1])

    @property
    def gradients(self) -> bool:
        """Whether the challenge is to be answered with gradients."""
        return (self.path / "gradients").exists()

    def want_gradients(self) -> None:
        """Ask for gradients from now on: the same steps, so nothing about the draw changes."""
        if not self.gradients:
            files.write_atomic(self.path / "gradients", b"")

    def write_event(self, number: int, block: int) -> None:
        """Keep id and block of the event."""
        stored.write_once(self.path / "event", f"{number} {block}".encode())

    def forget_event(self) -> None:
        """Forget where the event stood: it is not there any more."""
        files.remove(self.path / "event")

    @property
    def receipt(self) -> Receipt | None:
        """The signed verdict, or None while the challenge is unfinished."""
        path = self.path / "receipt"
        return stored.read_record(path, Receipt) if path.exists() else None

    def write_receipt(self, receipt: Receipt) -> None:
        """Keep the signed verdict; a challenge has one."""
        stored.write_record(self.path / "receipt", receipt, replace=True)


class Challenges:
    """All challenges of this verifier's home folder."""

    def __init__(self, home: Path) -> None:
        self._root = home / "challenges"

    def of_run(self, run: bytes) -> list[ChallengeFolder]:
        """The challenges of a run, in the order in which they were begun."""
        folder = self._root / run.hex()
        paths = [folder / str(number) for number in stored.numbers(folder)]
        return [ChallengeFolder(path) for path in paths if (path / "request").exists()]

    def new(self, run: bytes) -> ChallengeFolder:
        """A folder for the next challenge of a run."""
        folder = self._root / run.hex()
        files.make_folder(folder)
        return ChallengeFolder(folder / str(max(stored.numbers(folder), default=0) + 1))

    def unfinished(self, run: bytes) -> list[ChallengeFolder]:
        """Challenges of a run that have no verdict yet."""
        return [challenge for challenge in self.of_run(run) if challenge.receipt is None]

    def waiting(self, run: bytes) -> list[int]:
        """Numbers to `resume` the unfinished ones with. What was never signed was never sent, and does not count."""
        known = [challenge.id for challenge in self.of_run(run)]
        unused = 1 + max((number for number in known if number is not None), default=0)
        unfinished = self.unfinished(run)
        unnamed = [unused for challenge in unfinished if challenge.id is None and challenge.pending is not None]
        return [challenge.id for challenge in unfinished if challenge.id is not None] + unnamed[:1]

    def find(self, run: bytes, number: int) -> ChallengeFolder:
        """The challenge with this id. Raises StorageError: this verifier has none such."""
        for challenge in self.of_run(run):
            if challenge.id == number:
                return challenge
        raise StorageError(
            f"no challenge {number} of run {run.hex()} in {self._root}",
            hint="resume it where it was begun: request and nonce are there",
        )

    def resume(self, run: bytes, number: int) -> ChallengeFolder:
        """The unfinished challenge with this id, or, where there is none, the first that was sent but has no id yet."""
        try:
            found = self.find(run, number)
        except StorageError:
            unnamed = [challenge for challenge in self.unfinished(run) if challenge.id is None and challenge.pending]
            if not unnamed:
                raise
            return unnamed[0]
        if found.receipt is not None:
            raise UsageError(f"challenge {number} has its verdict: {found.receipt.verdict.verdict}")
        return found
