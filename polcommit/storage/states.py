"""The full training states that a run keeps: an index for each, over a shared store of tensors.

    <folder>/<step>.state       canonical encoding of the StateIndex, written after all its tensors

An index that is there is whole, and so are its tensors unless the disk damaged them. Whether it is the state
that the run committed to is not known here: the caller compares its digest with the step's record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from polcommit.encoding import encode
from polcommit.errors import StorageError
from polcommit.records import StateIndex, TensorEntry
from polcommit.storage import files, stored
from polcommit.storage.files import Buffer
from polcommit.storage.tensors import TensorStore, address


class StateStore:
    """The kept states in `folder`. Writers hold the run's lock; readers need none."""

    def __init__(self, folder: Path, tensors: TensorStore) -> None:
        self.folder = folder
        self.tensors = tensors

    def path(self, step: int) -> Path:
        """The index file of the state after `step` (0 for W_0)."""
        return self.folder / f"{step}.state"

    def put(self, step: int, index: StateIndex, fetch: Callable[[TensorEntry], Buffer]) -> None:
        """Keep the state after `step` durably. `fetch` is asked only for tensors that are not stored yet.

        Raises:
            StorageError: another state is kept for this step, or it could not be written: then no index is
                left behind, and putting it again takes up where this stopped.
        """
        path = self.path(step)
        data = encode(index)
        if files.exists(path) and files.read(path, stored.MAX_RECORD) != data:
            raise StorageError(f"{path} holds another state", hint="roll the run back before recording it differently")
        self.tensors.put_many(self._missing(index, fetch))
        files.make_folder(self.folder)
        files.write_atomic(path, data)

    def _missing(
        self, index: StateIndex, fetch: Callable[[TensorEntry], Buffer]
    ) -> Iterator[tuple[TensorEntry, Buffer]]:
        for entry in index.tensors:
            if not self.tensors.has(entry):
                yield entry, fetch(entry)

    def get(self, step: int) -> StateIndex:
        """The index of the state after `step`. Raises StorageError: not kept, or damaged."""
        path = self.path(step)
        if not files.exists(path):
            raise StorageError(f"no state is kept for step {step}: no {path}")
        return stored.read_record(path, StateIndex)

    def check(self, step: int) -> None:
        """Read the index and every tensor of a kept state. Raises StorageError at the first that is damaged."""
        for entry in self.get(step).tensors:
            self.tensors.get(entry)

    def steps(self) -> tuple[int, ...]:
        """The steps whose state is kept, rising."""
        return stored.numbers(self.folder, ".state")

    def latest(self, at_most: int) -> int | None:
        """The last step up to `at_most` whose state is kept."""
        return max((step for step in self.steps() if step <= at_most), default=None)

    def remove(self, step: int) -> None:
        """Forget a state; its tensors stay until `collect`. Nothing to do if it is not kept."""
        files.remove(self.path(step))

    def collect(self) -> int:
        """Remove tensors that no kept state refers to; returns how many. Only under the run's lock.

        Raises:
            StorageError: an index is damaged, so what it refers to is not known; nothing was removed.
        """
        used = {address(entry) for step in self.steps() for entry in self.get(step).tensors}
        unused = [found for found in self.tensors.addresses() if found not in used]
        for found in unused:
            self.tensors.discard(found)
        self.tensors.sweep()
        return len(unused)
