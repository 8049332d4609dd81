"""The shape of RFC 9162's tree: which subtrees a proof consists of. Plain arithmetic, nothing is hashed.

A subtree is named by the leaves that it spans. Provers hash the subtrees listed here, verifiers count them
before they hash anything. `polcommit.merkle` is where to start reading.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from polcommit.errors import UsageError

__all__ = [
    "Subtree",
    "batch_subtrees",
    "consistency_subtrees",
    "inclusion_subtrees",
    "is_int",
    "require_extension",
    "require_index",
    "require_indices",
    "require_range",
    "split",
]

Subtree: TypeAlias = tuple[int, int]    # the leaves start <= i < stop


def split(size: int) -> int:
    """The largest power of two below `size` >= 2: how many leaves go to the left."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_subtrees(index: int, size: int) -> list[Subtree]:
    """The subtrees whose roots are the inclusion proof of leaf `index`, in the order of the proof.

    RFC 9162 §2.1.3.1. Requires 0 <= index < size.
    """
    start, stop = 0, size
    path: list[Subtree] = []
    while stop - start > 1:
        middle = start + split(stop - start)
        if index < middle:
            path.append((middle, stop))
            stop = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def consistency_subtrees(size1: int, size2: int) -> list[Subtree]:
    """The subtrees whose roots are the consistency proof from `size1` to `size2`, in the order of the proof.

    RFC 9162 §2.1.4.1. Requires 1 <= size1 <= size2.
    """
    start, stop = 0, size2
    path: list[Subtree] = []
    while stop != size1:
        middle = start + split(stop - start)
        if size1 <= middle:
            path.append((middle, stop))
            stop = middle
        else:
            path.append((start, middle))
            start = middle
    if start > 0:  # otherwise this subtree is the whole old tree, whose root the verifier has
        path.append((start, stop))
    return path[::-1]


def batch_subtrees(indices: Sequence[int], size: int) -> list[Subtree]:
    """The largest subtrees that hold none of `indices`, from left to right: the order of a batch proof.

    Requires distinct indices in ascending order, all within 0 <= index < size. At most
    len(indices) * size.bit_length() of them.
    """
    found: list[Subtree] = []
    todo = [(0, size, 0, len(indices))]  # indices[first:last] are those within start..stop
    while todo:
        start, stop, first, last = todo.pop()
        if first == last:
            found.append((start, stop))
        elif last - first < stop - start:
            middle = start + split(stop - start)
            cut = bisect_left(indices, middle, first, last)
            todo.append((middle, stop, cut, last))
            todo.append((start, middle, first, cut))
    return found


# Preconditions of provers: the caller's mistake, hence UsageError


def require_index(index: int, size: int) -> None:
    """Raise UsageError unless `index` is a leaf of a tree of `size` leaves."""
    if not is_int(index) or not 0 <= index < size:
        raise UsageError(f"no leaf {index!r} in a tree of {size} leaves")


def require_indices(indices: Iterable[int], size: int) -> list[int]:
    """`indices` as an ascending list without repetition; UsageError if it is empty or leaves the tree."""
    given = list(indices)
    for index in given:
        require_index(index, size)
    if not given:
        raise UsageError("a proof for no leaves proves nothing")
    return sorted(set(given))


def require_range(start: int, stop: int, size: int) -> None:
    """Raise UsageError unless start..stop is a range of at least one leaf of a tree of `size` leaves."""
    if not is_int(start) or not is_int(stop) or not 0 <= start < stop <= size:
        raise UsageError(f"no leaves from {start!r} to {stop!r} in a tree of {size} leaves")


def require_extension(size1: int, size2: int) -> None:
    """Raise UsageError unless 1 <= size1 <= size2."""
    if not is_int(size1) or not 1 <= size1 <= size2:
        raise UsageError(f"no consistency proof leads from size {size1!r} to size {size2}")


def is_int(value: object) -> bool:
    """Whether `value` is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
