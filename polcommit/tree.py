"""A Merkle tree that grows and proves in logarithmic time.

The same tree as `polcommit.merkle`, whose functions hash every leaf for every proof. `Tree` keeps the hash
of every full subtree (2n hashes of 32 bytes, in one buffer a level), so that whatever a proof needs is looked
up, or folded from at most log2(n) of them.

It holds leaf hashes, not leaves, in memory only; nothing here says whether they were ever written to disk.
Not safe for appending from several threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polcommit import merkle
from polcommit.errors import UsageError
from polcommit.merkle import HASH_SIZE, Hash
from polcommit.subtrees import (
    Subtree,
    batch_subtrees,
    consistency_subtrees,
    inclusion_subtrees,
    require_extension,
    require_index,
    require_indices,
    require_range,
)

__all__ = ["Tree"]


class Tree:
    """An append-only tree over leaf hashes. Proofs are for its present size, or for any earlier one.

    Every method that takes `size` raises UsageError if the tree has not that many leaves.
    """

    __slots__ = ("_levels",)

    def __init__(self, leaf_hashes: Sequence[Hash] = ()) -> None:
        self._levels = [bytearray()]  # _levels[k] holds, end to end, the hashes of the full subtrees of 2**k leaves
        self.extend(leaf_hashes)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self._levels[0]) // HASH_SIZE

    def append(self, leaf_hash: Hash) -> None:
        """Add one leaf; two hashes on average. Raises UsageError if it is not 32 bytes."""
        self.extend((leaf_hash,))

    def extend(self, leaf_hashes: Sequence[Hash]) -> None:
        """Add leaves in order: all of them, or none if one is not 32 bytes (UsageError)."""
        self._levels[0] += merkle.joined(leaf_hashes)
        for k, level in enumerate(self._levels):  # grows while we go
            above = self._levels[k + 1] if k + 1 < len(self._levels) else bytearray()
            grown = merkle.parents(level, 2 * len(above))
            if not grown:
                return
            above += grown
            if k + 1 == len(self._levels):
                self._levels.append(above)

    def leaf_hash(self, index: int) -> Hash:
        """The leaf hash at `index`. Raises UsageError if there is none."""
        require_index(index, self.size)
        return self._full(0, index)

    def root(self, size: int | None = None) -> Hash:
        """The root over the first `size` leaves, by default over all of them."""
        size = self._checked(size)
        return self._hash((0, size)) if size else merkle.EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int | None = None) -> list[Hash]:
        """As `merkle.inclusion_proof`, in the tree over the first `size` leaves."""
        size = self._checked(size)
        require_index(index, size)
        return self._hashes(inclusion_subtrees(index, size))

    def range_proof(self, start: int, stop: int, size: int | None = None) -> list[Hash]:
        """As `merkle.range_proof`, in the tree over the first `size` leaves."""
        size = self._checked(size)
        require_range(start, stop, size)
        return self._hashes(batch_subtrees(range(start, stop), size))

    def batch_proof(self, indices: Iterable[int], size: int | None = None) -> list[Hash]:
        """As `merkle.batch_proof`, in the tree over the first `size` leaves."""
        size = self._checked(size)
        return self._hashes(batch_subtrees(require_indices(indices, size), size))

    def consistency_proof(self, size1: int, size2: int | None = None) -> list[Hash]:
        """As `merkle.consistency_proof`, from the first `size1` leaves to the first `size2`."""
        size2 = self._checked(size2)
        require_extension(size1, size2)
        return self._hashes(consistency_subtrees(size1, size2))

    def _checked(self, size: int | None) -> int:
        if size is None:
            return self.size
        if isinstance(size, bool) or not 0 <= size <= self.size:
            raise UsageError(f"no size {size!r} in the history of a tree of {self.size} leaves")
        return size

    def _hashes(self, subtrees: Iterable[Subtree]) -> list[Hash]:
        return [self._hash(subtree) for subtree in subtrees]

    def _hash(self, subtree: Subtree) -> Hash:
        """The root of a subtree of RFC 9162's tree: full ones from left to right, folded from the right."""
        start, stop = subtree
        full: list[Hash] = []
        while start < stop:
            k = (stop - start).bit_length() - 1
            full.append(self._full(k, start >> k))
            start += 1 << k
        folded = full.pop()
        while full:
            folded = merkle.node_hash(full.pop(), folded)
        return folded

    def _full(self, k: int, position: int) -> Hash:
        return bytes(self._levels[k][position * HASH_SIZE : (position + 1) * HASH_SIZE])
