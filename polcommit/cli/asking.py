"""The prover's command: started, spoken to on its pipes, and what it says on standard error passed on.

What it prints is the other side's: it is shown as such, line by line, without control characters.
"""

from __future__ import annotations

import subprocess
import threading
from types import TracebackType
from typing import IO

from polcommit.cli import common
from polcommit.errors import ProverUnavailable

MAX_LINE = 1000         # bytes of a line that are shown
PATIENCE = 5            # seconds for the rest of what it says, once it has ended


class ProverCommand:
    """A running command that answers a challenge. Killed where the `with` block ends in an error."""

    def __init__(self, command: list[str]) -> None:
        """Raises ProverUnavailable: it cannot be started."""
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except (OSError, ValueError) as error:
            why = common.reason(error) if isinstance(error, OSError) else str(error)
            raise ProverUnavailable(f"cannot start {command[0]!r} ({why})") from error
        assert self._process.stdout is not None
        self.answers: IO[bytes] = self._process.stdout
        self._complaint: str | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def send(self, data: bytes) -> None:
        """Write a message to it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            common.say("warning: the prover's command has ended before it was told everything")

    def complaint(self) -> str | None:
        """The last error that it reported in polcommit's manner, once it has ended."""
        self._listener.join(PATIENCE)
        found, self._complaint = self._complaint, None
        return found

    def _listen(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(MAX_LINE):
            text = "".join(c if c.isprintable() else " " for c in line.decode("utf-8", "replace")).rstrip()
            if text.startswith("polcommit: "):
                self._complaint = text.removeprefix("polcommit: ")
            elif text:
                common.say(f"prover: {text}")

    def __enter__(self) -> ProverCommand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if kind is not None:
            process.kill()
        assert process.stdin is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        self.answers.close()
        process.wait()
        complaint = self.complaint()
        if complaint is not None:
            common.say(f"prover: {complaint}")
        assert process.stderr is not None
        if not self._listener.is_alive():
            process.stderr.close()
