"""Heads of Merkle trees, and leaves of the salted ones (spec §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polcommit.encoding import Bytes32, Record, tagged_hash, u64
from polcommit.errors import EncodingError


def require(condition: bool, message: str) -> None:
    """Raise EncodingError unless a record's own invariant holds."""
    if not condition:
        raise EncodingError(message)

@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead(Record):
    """Size and root of a Merkle tree. A root does not bind its size, so the two are committed to together."""

    size: int
    root: Bytes32

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        require(self.size >= 0, f"a tree of {self.size} leaves")

    def digest(self, tree: str) -> bytes:
        """H(tag ‖ u64 size ‖ root); `tree` is 'dataset', 'state', 'transcript' or 'schedule'."""
        return tagged_hash(f"digest/{tree}", u64(self.size), self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedLeaf(Record):
    """A leaf of a salted tree: its data is tag ‖ salt ‖ record, so the leaf hash is always computed, never taken."""

    index: int
    salt: Bytes32
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLeaf(Record):
    """What the dataset tree holds of raw sample `index` (spec §3.2)."""

    TAG: ClassVar[str] = "sample"
    index: int
    length: int             # bytes of the sample's encoding
    content: Bytes32        # BLAKE3 of the tag 'sample' and the sample's encoding

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        require(self.index >= 0 and self.length >= 0, f"sample {self.index} of length {self.length}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate(Record):
    """A leaf of the schedule tree: the learning rate of step t, at leaf t - 1."""

    TAG: ClassVar[str] = "rate"
    step: int
    learning_rate: float
