"""The counter-based generator: everything random in a run, as a pure function of its seed.

Two generators, both normative, both with test vectors in `tests/test_prf.py`:

*Keyed streams*, for what a run derives from its seed. A stream is the output of BLAKE3 in keyed mode,
extended as far as needed, read as little-endian 64-bit words:

    key      the run's seed, 32 bytes
    input    "polcommit/v1/prf/" ‖ label ‖ 0x00 ‖ counters      each counter 8 bytes, big-endian
         or  "polcommit/v1/prf/" ‖ label ‖ 0x00 ‖ name          UTF-8
    word i   bytes 8i to 8i + 7 of the output, little-endian

A label goes with counters or with names, never with both, and always with the same number of counters. In use:

    label      counters                 words
    "order"    epoch                    word i is the sort key of sample i
    "sample"   step, position           word 0 seeds whatever is random about fetching that item
    "step"     step, micro-batch        word 0 seeds whatever is random about that forward pass
    "dropout"  step, micro-batch, call  as 32-bit words: which elements that call drops (`training.randomness`)
    "sketch"   none; another seed       bit j of word i is the sign of element i in sketch j (`training.sketch`)
    "weights"  (name) of a tensor       as many as its initialiser takes

*Draws*, for which steps are challenged: whole numbers below a bound, by rejection from a SHA-256 counter
stream (`uniform`), so that anyone can check a draw with a calculator and SHA-256.

No state is kept, so any step can be derived without the steps before it, on any processor. What this does
*not* guarantee: a seed that its user could choose, or try out, makes none of it fair; where the seed comes
from is the registration's business, not this module's.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from itertools import count as count_from
from itertools import islice

from blake3 import blake3

from polcommit.errors import UsageError

__all__ = [
    "batch_indices",
    "name_words",
    "order",
    "sample_seed",
    "sample_without_replacement",
    "step_seed",
    "stream",
    "uniform",
    "words",
]

SEED_SIZE = 32
WORDS = 2**64                           # how many values a word has
MAX_WORDS = 2**61                       # how many words a stream has: BLAKE3's output ends at 2**64 bytes

_STREAM_TAG = b"polcommit/v1/prf/"
_DRAW_TAG = b"polcommit/v1/draw\x00"


# Keyed streams


def stream(seed: bytes, label: str, *counters: int) -> blake3:
    """The stream for these counters, as a BLAKE3 state: read it with `.digest(length=…, seek=…)`.

    Raises:
        UsageError: the seed is not 32 bytes, the label not ASCII without NUL, or a counter not a u64.
    """
    return _keyed(seed, label, b"".join(_u64(value) for value in counters))


def words(seed: bytes, label: str, *counters: int, count: int, start: int = 0) -> array[int]:
    """Words start..start+count of the stream for these counters, as array('Q').

    Raises:
        UsageError: as `stream`, or the stream has no such words.
    """
    return _words(stream(seed, label, *counters), count, start)


def name_words(seed: bytes, label: str, name: str, *, count: int, start: int = 0) -> array[int]:
    """Words start..start+count of the stream for a name, such as a tensor's, as array('Q').

    Raises:
        UsageError: as `words`, or the name has no UTF-8 form (a lone surrogate).
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"name {name!r} is not valid Unicode") from error
    return _words(_keyed(seed, label, encoded), count, start)


def _keyed(seed: bytes, label: str, suffix: bytes) -> blake3:
    if len(seed) != SEED_SIZE:
        raise UsageError(f"a seed is {SEED_SIZE} bytes, not {len(seed)}")
    if not label.isascii() or not label or "\0" in label:
        raise UsageError(f"label {label!r} is not ASCII without NUL")
    return blake3(_STREAM_TAG + label.encode("ascii") + b"\0" + suffix, key=seed)


def _words(source: blake3, count: int, start: int) -> array[int]:
    if count < 0 or start < 0 or start + count > MAX_WORDS:
        raise UsageError(f"a stream has no {count} words from word {start} on")
    result = array("Q", source.digest(length=8 * count, seek=8 * start))
    if sys.byteorder == "big":
        result.byteswap()
    return result


def _u64(value: int) -> bytes:
    if isinstance(value, bool) or not 0 <= value < WORDS:
        raise UsageError(f"counter {value!r} is not a 64-bit unsigned integer")
    return value.to_bytes(8, "big")


# What a run derives from its seed


def order(seed: bytes, epoch: int, size: int) -> array[int]:
    """The order of `size` samples in an epoch, a permutation of range(size), as array('Q').

    Sample indices sorted by (word i of the stream "order" for this epoch, i). Epochs count from 0.
    """
    return array("Q", _order(bytes(seed), epoch, size))


@lru_cache(maxsize=4)  # a loader and a replay of the epoch before, with room; 8 bytes a sample each
def _order(seed: bytes, epoch: int, size: int) -> array[int]:
    keys = words(seed, "order", epoch, count=size)
    return array("Q", sorted(range(size), key=keys.__getitem__))  # sorted() is stable: ties by index


def batch_indices(seed: bytes, step: int, size: int, batch: int) -> tuple[int, ...]:
    """The samples of one step, in order: `batch` indices into a dataset of `size` samples.

    Steps count from 1. Every epoch has size // batch steps; what remains of its order is dropped.

    Raises:
        UsageError: there is no such step, or the dataset is smaller than one batch.
    """
    if step < 1:
        raise UsageError(f"step {step}: steps count from 1")
    if not 1 <= batch <= size:
        raise UsageError(f"no batches of {batch} from {size} samples")
    epoch, position = divmod(step - 1, size // batch)
    return tuple(_order(bytes(seed), epoch, size)[position * batch : (position + 1) * batch])


def sample_seed(seed: bytes, step: int, position: int) -> int:
    """The 64-bit seed under which the item at `position` of the batch of `step` is fetched, in any process."""
    return words(seed, "sample", step, position, count=1)[0]


def step_seed(seed: bytes, step: int, micro_batch: int) -> int:
    """The 64-bit seed that is set before `micro_batch` (from 0) of `step` (from 1)."""
    return words(seed, "step", step, micro_batch, count=1)[0]


# Draws


def uniform(seed: bytes, bound: int) -> Iterator[int]:
    """Whole numbers 0 <= x < bound, uniform and independent, without end.

    Block i, from 0, is SHA-256("polcommit/v1/draw" ‖ 0x00 ‖ seed ‖ u64 i, big-endian), read as four big-endian
    64-bit words. A word w counts if w < 2^64 - (2^64 mod bound), as w mod bound; otherwise it is skipped,
    because the low values would come up more often than the high ones.

    Raises:
        UsageError: at once, if the seed is not 32 bytes or the bound not within 1 to 2^64.
    """
    if len(seed) != SEED_SIZE:
        raise UsageError(f"a seed is {SEED_SIZE} bytes, not {len(seed)}")
    if not 1 <= bound <= WORDS:
        raise UsageError(f"cannot draw below {bound}: the bound is from 1 to 2**64")
    return _uniform(_DRAW_TAG + seed, bound)


def _uniform(prefix: bytes, bound: int) -> Iterator[int]:
    limit = WORDS - WORDS % bound
    for i in count_from():
        block = sha256(prefix + i.to_bytes(8, "big")).digest()
        for offset in range(0, 32, 8):
            word = int.from_bytes(block[offset : offset + 8], "big")
            if word < limit:
                yield word % bound


def sample_without_replacement(seed: bytes, population: int, count: int) -> list[int]:
    """`count` distinct numbers from 0 <= x < population, every set equally likely, in ascending order.

    Values of uniform(seed, population) are taken, those already taken skipped, until there are `count`. If
    2 * count > population, the population - count numbers that are left *out* are drawn in that way instead.

    Raises:
        UsageError: the population has not that many numbers, or as `uniform`.
    """
    if not 0 <= count <= population:
        raise UsageError(f"cannot draw {count} distinct numbers from {population}")
    if count == 0:
        return []
    values = uniform(seed, population)
    if 2 * count > population:
        left_out = _distinct(values, population - count)
        return [value for value in range(population) if value not in left_out]
    return sorted(_distinct(values, count))


def _distinct(values: Iterator[int], count: int) -> set[int]:
    taken: set[int] = set()
    while len(taken) < count:
        taken.update(islice(values, count - len(taken)))
    return taken
