"""What a run's folder keeps of the run that it starts from: enough to begin, and to show where it began.

    <folder>/head       the other run's last head, encoded RevealedHead
    <folder>/receipt    a signed verdict on that head, encoded Receipt
    <folder>/state      index of the state that the head commits to; its parameters and buffers lie in the store

The verdict may be replaced by another one on the same head, say by a verifier whose word counts for more readers.
Whether anything here is true is not known: whoever uses it compares digests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polcommit.encoding import encode
from polcommit.records import ParentClaim, Receipt, RevealedHead, StateIndex, TensorEntry
from polcommit.storage import stored
from polcommit.storage.files import Buffer
from polcommit.storage.tensors import TensorStore
from polcommit.storage.types import StoredParent

#: Kinds of the tensors that a run takes over: its optimizer begins anew.
CONTINUED = ("parameter", "buffer")


class ParentFolder:
    """The parent of a run, in `folder`. Empty for a run that starts from none."""

    def __init__(self, folder: Path, tensors: TensorStore) -> None:
        self.folder = folder
        self.tensors = tensors

    def write(self, parent: StoredParent, fetch: Callable[[TensorEntry], Buffer]) -> None:
        """Keep the parent durably; `fetch` has the bytes of its parameters and buffers.

        Raises:
            StorageError: the bytes are not those that the index names, or could not be written.
        """
        due = (entry for entry in continued(parent.state) if not self.tensors.has(entry))
        self.tensors.put_many((entry, fetch(entry)) for entry in due)
        stored.write_record(self.folder / "head", parent.claim.head, replace=True)
        stored.write_once(self.folder / "receipt", parent.claim.receipt, replace=True)
        stored.write_record(self.folder / "state", parent.state, replace=True)

    def read(self) -> StoredParent:
        """What was written. Raises StorageError: not there, or damaged."""
        head = stored.read_record(self.folder / "head", RevealedHead)
        receipt = stored.read_record(self.folder / "receipt", Receipt)
        state = stored.read_record(self.folder / "state", StateIndex)
        return StoredParent(claim=ParentClaim(head=head, receipt=encode(receipt)), state=state)


def continued(state: StateIndex) -> tuple[TensorEntry, ...]:
    """The tensors of a final state that a run which continues it begins with."""
    return tuple(entry for entry in state.tensors if entry.kind in CONTINUED)
