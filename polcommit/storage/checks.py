"""The queue of steps that a second process re-executes while training runs.

    <folder>/pending/<step>     due
    <folder>/done/<step>        re-executed, with the same digest

Losing an entry in a power failure costs a check and nothing else, so nothing here is fsynced.
"""

from __future__ import annotations

from pathlib import Path

from polcommit.errors import UsageError
from polcommit.storage import files, stored


class CheckQueue:
    """The queue in `folder`: the recording process adds, one checking process finishes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending = folder / "pending"
        self._done = folder / "done"

    def add(self, step: int) -> bool:
        """Have a step checked; False if it is due or was checked already."""
        if step < 1:
            raise UsageError(f"step {step}: steps count from 1")
        if files.exists(self._pending / str(step)) or files.exists(self._done / str(step)):
            return False
        files.make_folder(self._pending)
        files.write_atomic(self._pending / str(step), b"", sync="none")
        return True

    def pending(self) -> tuple[int, ...]:
        """Steps that are due, rising."""
        return stored.numbers(self._pending)

    def done(self) -> tuple[int, ...]:
        """Steps that were checked, rising."""
        return stored.numbers(self._done)

    def finish(self, step: int) -> None:
        """Note that a step was re-executed with the same digest; it need not have been due."""
        files.make_folder(self._done)
        files.write_atomic(self._done / str(step), b"", sync="none")
        with files.reported("removing", self._pending / str(step)):
            (self._pending / str(step)).unlink(missing_ok=True)

    def drop(self, after: int) -> None:
        """Forget the steps behind `after`, when a run is rolled back: they will be other steps."""
        for folder in (self._pending, self._done):
            for step in stored.numbers(folder):
                if step > after:
                    with files.reported("removing", folder / str(step)):
                        (folder / str(step)).unlink(missing_ok=True)
