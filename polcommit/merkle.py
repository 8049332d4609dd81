"""The Merkle tree of RFC 9162 §2.1 with SHA-256: hash, prove, verify.

    leaf hash   SHA-256(0x00 ‖ data)
    node hash   SHA-256(0x01 ‖ left ‖ right)
    root        of no leaves, SHA-256 of nothing; of one, its leaf hash; of n, the node over the roots of
                the first k and the last n - k, with k the largest power of two below n

A proof is a list of 32-byte hashes, each the root of a subtree, and says nothing about itself: which
subtrees they are follows from the arguments alone. Three kinds:

    inclusion     one leaf             RFC 9162 §2.1.3: from the leaf's sibling up to the root's child
    consistency   one tree starts      RFC 9162 §2.1.4: from the deepest subtree up
                  with another
    batch         any leaves at once   not in the RFC: the largest subtrees that hold none of them, from left
                                       to right; a range proof is the batch proof of neighbours

Functions that verify return None or raise `ProofError`; the length of the proof and of every hash in it is
checked before anything is hashed. Functions that prove raise `UsageError` where there is nothing to prove;
they hash all leaves each time, for a tree that grows see `polcommit.tree`.

What this does *not* guarantee: **a root does not bind the size of its tree.** One root and one proof can
verify under several sizes, and the hash of an inner node passes for a leaf hash of a smaller tree. So the
caller takes size and root from one committed digest, and computes leaf hashes from the opened bytes with
`leaf_hash`; it never takes them from whoever made the proof.
"""

from __future__ import annotations

import hmac
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import TypeAlias

from polcommit.errors import ProofError, RootMismatch, UsageError
from polcommit.subtrees import (
    Subtree,
    batch_subtrees,
    consistency_subtrees,
    inclusion_subtrees,
    is_int,
    require_extension,
    require_index,
    require_indices,
    require_range,
    split,
)

__all__ = [
    "EMPTY_ROOT",
    "HASH_SIZE",
    "MAX_SIZE",
    "Hash",
    "batch_proof",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "range_proof",
    "root",
    "root_from_batch_proof",
    "root_from_inclusion_proof",
    "roots_from_consistency_proof",
    "verify_batch",
    "verify_consistency",
    "verify_inclusion",
    "verify_range",
]

Hash: TypeAlias = bytes                 # 32 bytes

HASH_SIZE = 32
MAX_SIZE = 2**64 - 1                    # sizes are committed as u64
EMPTY_ROOT: Hash = sha256().digest()

_LEAF = b"\x00"
_NODE = b"\x01"


# Hashes


def leaf_hash(data: bytes) -> Hash:
    """The hash of a leaf that holds `data`."""
    return sha256(_LEAF + data).digest()


def node_hash(left: Hash, right: Hash) -> Hash:
    """The hash of an inner node. Requires two hashes of 32 bytes: other lengths would be ambiguous.

    Raises:
        ProofError: a child is not 32 bytes.
    """
    _require_hashes((left, right), "child")
    return _node(left, right)


def root(leaf_hashes: Sequence[Hash]) -> Hash:
    """The root over these leaf hashes (not over their data); `EMPTY_ROOT` where there are none.

    Raises:
        UsageError: a leaf hash is not 32 bytes.
    """
    # Level by level, an odd last node moving up as it is, gives the tree of the definition.
    level: bytes = joined(leaf_hashes)
    if not level:
        return EMPTY_ROOT
    while len(level) > HASH_SIZE:
        odd = level[-HASH_SIZE:] if len(level) % (2 * HASH_SIZE) else b""
        level = parents(level) + odd
    return level


def joined(leaf_hashes: Sequence[Hash]) -> bytes:
    """The leaf hashes end to end: one level of a tree. Raises UsageError where one is not 32 bytes."""
    if not set(map(len, leaf_hashes)) <= {HASH_SIZE}:
        raise UsageError(f"leaf hashes are {HASH_SIZE} bytes each")
    return b"".join(leaf_hashes)


def parents(level: bytes | bytearray, start: int = 0) -> bytes:
    """The next level over hashes that stand end to end, from byte `start` on; an odd last hash is left out."""
    pair = 2 * HASH_SIZE
    return b"".join(
        [sha256(_NODE + level[i : i + pair]).digest() for i in range(start, len(level) - HASH_SIZE, pair)]
    )


# Inclusion


def inclusion_proof(leaf_hashes: Sequence[Hash], index: int) -> list[Hash]:
    """The proof that leaf `index` is in the tree over `leaf_hashes` (RFC 9162 §2.1.3.1).

    Raises:
        UsageError: there is no such leaf.
    """
    require_index(index, len(leaf_hashes))
    return _roots(leaf_hashes, inclusion_subtrees(index, len(leaf_hashes)))


def root_from_inclusion_proof(leaf_hash: Hash, index: int, size: int, proof: Sequence[Hash]) -> Hash:
    """The root that `proof` claims for a tree of `size` leaves with `leaf_hash` at `index`.

    RFC 9162 §2.1.3.2. Requires 0 <= index < size; the length of the proof is fixed by (index, size) and
    checked before anything is hashed.

    Raises:
        ProofError: the proof cannot belong to a tree of this size.
    """
    _require_size(size)
    _require_position(index, size)
    _require_hashes((leaf_hash,), "leaf hash")
    # Up to the node that leaf and last leaf share there is a sibling at every level; above it, where the
    # path runs along the ragged right edge, only where the index has a bit, and then on the left.
    shared = (index ^ (size - 1)).bit_length()
    _require_length(proof, shared + (index >> shared).bit_count())
    computed = leaf_hash
    for level, sibling in enumerate(proof):
        if level >= shared or index >> level & 1:
            computed = _node(sibling, computed)
        else:
            computed = _node(computed, sibling)
    return computed


def verify_inclusion(leaf_hash: Hash, index: int, size: int, proof: Sequence[Hash], root: Hash) -> None:
    """Return if `leaf_hash` is at `index` in the tree with this size and root; raise `ProofError` if not.

    A root does not bind its size: the caller takes (size, root) from one committed digest.
    """
    _require_same(root, root_from_inclusion_proof(leaf_hash, index, size, proof))


# Consistency


def consistency_proof(leaf_hashes: Sequence[Hash], size1: int) -> list[Hash]:
    """The proof that the tree over `leaf_hashes` starts with its first `size1` leaves (RFC 9162 §2.1.4.1).

    Raises:
        UsageError: size1 is 0 (every tree extends the empty one: nothing to prove) or above the size.
    """
    require_extension(size1, len(leaf_hashes))
    return _roots(leaf_hashes, consistency_subtrees(size1, len(leaf_hashes)))


def roots_from_consistency_proof(
    size1: int, size2: int, proof: Sequence[Hash], root1: Hash
) -> tuple[Hash, Hash]:
    """The roots that `proof` claims for the trees of `size1` and `size2` leaves (RFC 9162 §2.1.4.2).

    Requires 1 <= size1 < size2. `root1` is used only where the old tree is a full subtree of the new one
    (size1 a power of two): the proof then leaves its root out.

    Raises:
        ProofError: the proof cannot lead from a tree of the one size to a tree of the other.
    """
    _require_size(size2)
    if not is_int(size1) or not 1 <= size1 < size2:
        raise ProofError(f"no consistency proof leads from size {size1} to size {size2}")
    subtrees = consistency_subtrees(size1, size2)
    _require_length(proof, len(subtrees))
    if subtrees[0][1] == size1:  # the deepest subtree ends where the old tree does: both start from it
        old, above = proof[0], list(zip(subtrees, proof, strict=True))[1:]
    else:
        _require_hashes((root1,), "root")
        old, above = root1, list(zip(subtrees, proof, strict=True))
    new = old
    for (_, stop), sibling in above:
        if stop <= size1:  # on the left of what is built so far: part of both trees
            old, new = _node(sibling, old), _node(sibling, new)
        else:
            new = _node(new, sibling)
    return old, new


def verify_consistency(size1: int, size2: int, proof: Sequence[Hash], root1: Hash, root2: Hash) -> None:
    """Return if the tree (size2, root2) starts with the tree (size1, root1); raise `ProofError` if not.

    Requires 1 <= size1 <= size2. For equal sizes the proof is empty and the roots are compared. A root does
    not bind its size: the caller takes each (size, root) from one committed digest.
    """
    if is_int(size1) and size1 == size2 and size1 > 0:
        _require_size(size2)
        _require_length(proof, 0)
        _require_same(root2, root1)
        return
    old, new = roots_from_consistency_proof(size1, size2, proof, root1)
    _require_same(root1, old)
    _require_same(root2, new)


# Many leaves at once


def batch_proof(leaf_hashes: Sequence[Hash], indices: Iterable[int]) -> list[Hash]:
    """The proof that the leaves at `indices` (a set, not empty) are in the tree over `leaf_hashes`.

    The roots of the largest subtrees that hold none of them, from left to right.

    Raises:
        UsageError: there are no indices, or one lies outside the tree.
    """
    return _roots(leaf_hashes, batch_subtrees(require_indices(indices, len(leaf_hashes)), len(leaf_hashes)))


def range_proof(leaf_hashes: Sequence[Hash], start: int, stop: int) -> list[Hash]:
    """The proof that the leaves start <= i < stop are in the tree over `leaf_hashes`: their batch proof.

    Raises:
        UsageError: the range is empty, or reaches outside the tree.
    """
    require_range(start, stop, len(leaf_hashes))
    return _roots(leaf_hashes, batch_subtrees(range(start, stop), len(leaf_hashes)))


def root_from_batch_proof(leaf_hashes: Mapping[int, Hash], size: int, proof: Sequence[Hash]) -> Hash:
    """The root that `proof` claims for a tree of `size` leaves with these leaf hashes at these indices.

    Requires at least one leaf, and 0 <= index < size for each; the length of the proof is fixed by the
    indices and the size and checked before anything is hashed.

    Raises:
        ProofError: the proof cannot belong to a tree of this size.
    """
    _require_size(size)
    if not leaf_hashes:
        raise ProofError("a proof for no leaves proves nothing")
    for index in leaf_hashes:
        _require_position(index, size)
    _require_hashes(leaf_hashes.values(), "leaf hash")
    indices = sorted(leaf_hashes)
    _require_length(proof, len(batch_subtrees(indices, size)))
    remaining = iter(proof)

    def fold(start: int, stop: int, first: int, last: int) -> Hash:  # at most 64 calls deep: size < 2**64
        if first == last:
            return next(remaining)
        if last - first == stop - start:
            return root([leaf_hashes[i] for i in indices[first:last]])
        middle = start + split(stop - start)
        cut = bisect_left(indices, middle, first, last)
        left = fold(start, middle, first, cut)
        return _node(left, fold(middle, stop, cut, last))

    return fold(0, size, 0, len(indices))


def verify_batch(leaf_hashes: Mapping[int, Hash], size: int, proof: Sequence[Hash], root: Hash) -> None:
    """Return if the tree with this size and root has each of `leaf_hashes` at its index; raise `ProofError` if not.

    A root does not bind its size: the caller takes (size, root) from one committed digest.
    """
    _require_same(root, root_from_batch_proof(leaf_hashes, size, proof))


def verify_range(leaf_hashes: Sequence[Hash], start: int, size: int, proof: Sequence[Hash], root: Hash) -> None:
    """Return if `leaf_hashes`, at least one, stand from `start` on in the tree with this size and root.

    A root does not bind its size: the caller takes (size, root) from one committed digest.

    Raises:
        ProofError: they do not.
    """
    if not is_int(start):
        raise ProofError(f"start {start!r} is not an integer")
    verify_batch(dict(enumerate(leaf_hashes, start)), size, proof, root)


# Preconditions


def _require_size(size: int) -> None:
    if not is_int(size) or not 1 <= size <= MAX_SIZE:
        raise ProofError(f"size {size!r}: a tree with something to prove has 1 to 2**64 - 1 leaves")


def _require_position(index: int, size: int) -> None:
    if not is_int(index) or not 0 <= index < size:
        raise ProofError(f"no leaf {index!r} in a tree of {size} leaves")


def _require_length(proof: Sequence[Hash], length: int) -> None:
    if len(proof) != length:
        raise ProofError(f"proof has {len(proof)} hashes, expected {length}")
    _require_hashes(proof, "hash in the proof")


def _require_hashes(hashes: Iterable[Hash], what: str) -> None:
    for value in hashes:
        if not isinstance(value, bytes) or len(value) != HASH_SIZE:
            raise ProofError(f"{what} is not {HASH_SIZE} bytes")


def _require_same(expected: Hash, computed: Hash) -> None:
    if not isinstance(expected, bytes) or not isinstance(computed, bytes):
        raise ProofError("root is not bytes")
    if not hmac.compare_digest(expected, computed):
        raise RootMismatch(expected=expected, computed=computed)


# Hashing


def _node(left: Hash, right: Hash) -> Hash:
    return sha256(_NODE + left + right).digest()


def _roots(leaf_hashes: Sequence[Hash], subtrees: Iterable[Subtree]) -> list[Hash]:
    # The subtrees of one proof do not overlap: all of this hashes, and copies, each leaf at most once.
    return [root(leaf_hashes[start:stop]) for start, stop in subtrees]
