"""RFC 9162 §2.1 word for word: recursive, slow, and obviously right. The oracle for polcommit.merkle.

Everything here takes the data of the leaves, not their hashes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256


def split(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(leaves: Sequence[bytes]) -> bytes:
    """MTH(D_n), the Merkle Tree Hash: §2.1.1."""
    n = len(leaves)
    if n == 0:
        return sha256(b"").digest()
    if n == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = split(n)
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D_n), the inclusion proof of leaf m: §2.1.3.1."""
    n = len(leaves)
    if n == 1:
        return []
    k = split(n)
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def proof(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PROOF(m, D_n), the consistency proof from m leaves: §2.1.4.1."""
    return subproof(m, leaves, True)


def subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF(m, D_n, b): §2.1.4.1."""
    n = len(leaves)
    if m == n:
        return [] if whole else [mth(leaves)]
    k = split(n)
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def batch(wanted: Collection[int], leaves: Sequence[bytes]) -> list[bytes]:
    """The largest subtrees without any wanted leaf, from left to right. Not in the RFC; its splits."""
    n = len(leaves)
    if not wanted:
        return [mth(leaves)]
    if n == 1:
        return []
    k = split(n)
    left = {i for i in wanted if i < k}
    right = {i - k for i in wanted if i >= k}
    return [*batch(left, leaves[:k]), *batch(right, leaves[k:])]
