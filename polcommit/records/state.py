"""The full training state, less the tensors' bytes (spec §3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polcommit.encoding import Bytes32, Record
from polcommit.records.trees import require


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry(Record):
    """One tensor of a full training state; a leaf of the state tree (spec §3.3)."""

    TAG: ClassVar[str] = "tensor"
    name: str               # unique in the state, e.g. 'parameter/conv1.weight', 'optimizer/conv1.weight/exp_avg'
    kind: str               # 'parameter', 'buffer', 'optimizer', 'gradient' or 'other'
    dtype: str              # torch's name without 'torch.', e.g. 'float32'
    shape: tuple[int, ...]
    content: Bytes32        # BLAKE3 of the raw little-endian bytes in C order

    KINDS: ClassVar[frozenset[str]] = frozenset({"parameter", "buffer", "optimizer", "gradient", "other"})

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        require(self.kind in self.KINDS, f"{self.name}: kind {self.kind!r}")
        require(all(0 <= extent < 1 << 48 for extent in self.shape), f"{self.name}: shape {self.shape}")
        require(len(self.shape) <= 16, f"{self.name}: {len(self.shape)} dimensions")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarEntry(Record):
    """The one leaf that holds everything of a state that is not a tensor, and which names share storage."""

    TAG: ClassVar[str] = "scalars"
    values: bytes                               # canonical encoding of the tree of scalars
    aliases: tuple[tuple[str, str], ...]        # (alias, name of the entry that holds the data), sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class StateIndex(Record):
    """Everything of a full training state but the tensors' bytes. Its digest is what a step commits to."""

    TAG: ClassVar[str] = "state"
    tensors: tuple[TensorEntry, ...]            # sorted by name, names unique
    scalars: ScalarEntry

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        names = [entry.name for entry in self.tensors]
        require(names == sorted(set(names)), "tensors of a state are sorted by name, and unique")
