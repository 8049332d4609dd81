"""Batches, the same whichever process fetches them and whether a step is the first or the thousandth.

The item at position p of step t is read and transformed under a seed of its own, so neither the number of
loader workers nor prefetching matters. A sample is encoded as it is read, and what `transform` sees is decoded
from that: prover and verifier feed it the same types. Kernels run on one thread while fetching, in every
process, as torch does in its loader workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from polcommit import errors, prf
from polcommit.errors import DataChanged, PolcommitError, UsageError
from polcommit.training.randomness import isolated, reseed
from polcommit.training.recipe import Recipe, Source
from polcommit.training.tree import batch_digest, decode_tree, encode_tree, sample_content

T = TypeVar("T")

_CHUNK = 64         # samples that are hashed between two messages of a worker


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedBatch:
    """The data of one step."""

    step: int                                   # from 1
    indices: tuple[int, ...]                    # of the raw samples, in order
    contents: tuple[tuple[bytes, int], ...]     # of each: content digest (32 bytes), length of its encoding
    micro_batches: list[Any]                    # on the CPU, as `collate` made them
    digest: bytes                               # of the micro-batches: the batch as fed


class Loader:
    """The batches of steps `first` to `last`, in order; iterate as often as you like.

    With `workers` processes that fetch ahead, or 0 to fetch in this one; its generators stay as they are.

    Raises, while iterating:
        UsageError: the data set is smaller than a batch.
        EncodingError: a sample or batch has no encoding.
    """

    def __init__(
        self, recipe: Recipe, seed: bytes, first: int, last: int, *, workers: int = 0, prefetch: int = 2,
        source: Source | None = None,
    ) -> None:  # fmt: skip
        self._items = _Steps(recipe, seed, recipe.source() if source is None else source)
        self._steps = range(first, last + 1)
        self._workers = workers
        self._prefetch = prefetch

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[FetchedBatch]:
        return _loaded(self._items, self._steps, self._workers, self._prefetch)


def fetch_batch(recipe: Recipe, source: Source, seed: bytes, step: int) -> FetchedBatch:
    """The batch of one step, fetched in this process.

    Raises:
        UsageError: the data set is smaller than a batch.
        EncodingError: a sample or batch has no encoding.
    """
    indices = prf.batch_indices(seed, step, len(source), recipe.batch)

    def read(position: int) -> bytes:
        return encode_tree(source[indices[position]])

    return _batch(recipe, seed, step, indices, read)


def batch_from_encoded(
    recipe: Recipe, seed: bytes, step: int, encoded: Sequence[bytes], indices: Sequence[int] = ()
) -> FetchedBatch:
    """The verifier's form: the batch of a step from the opened encodings of its raw samples, in order.

    Raises:
        EncodingError: a sample is not an encoding of anything.
        UsageError: their number is not the recipe's batch.
    """
    if len(encoded) != recipe.batch:
        raise UsageError(f"step {step}: {len(encoded)} samples instead of {recipe.batch}")
    return _batch(recipe, seed, step, tuple(indices), encoded.__getitem__)


def encoded_sample(source: Source, index: int) -> bytes:
    """The encoding of raw sample `index`, as it is hashed and opened. The generators stay as they are."""
    with _fetching():
        reseed(0)
        return encode_tree(source[index])


def dataset_contents(
    source: Source, *, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[bytes, int]]:
    """(content digest, length of the encoding) of every raw sample, in order; `progress` is told (done, all).

    Each is read twice under different seeds.

    Raises:
        DataChanged: the two differ.
        EncodingError: a sample has no encoding.
    """
    size = len(source)
    chunks = range(0, size, _CHUNK)
    for start, contents in zip(chunks, _loaded(_Contents(source), chunks, workers, 2), strict=True):
        yield from contents
        if progress is not None:
            progress(min(start + _CHUNK, size), size)


def _batch(
    recipe: Recipe, seed: bytes, step: int, indices: tuple[int, ...], read: Callable[[int], bytes]
) -> FetchedBatch:
    contents: list[tuple[bytes, int]] = []
    samples: list[Any] = []
    micro_batches: list[Any] = []
    share = recipe.batch // recipe.accumulation
    with _fetching():
        for position in range(recipe.batch):
            reseed(prf.sample_seed(seed, step, position))
            data = read(position)
            contents.append((sample_content(data), len(data)))
            # reading may have used the generators (it must not matter for what it returns): start again
            reseed(prf.sample_seed(seed, step, position))
            samples.append(recipe.transform(decode_tree(data)))
        for k in range(recipe.accumulation):
            reseed(prf.sample_seed(seed, step, recipe.batch + k))
            micro_batches.append(recipe.collate(samples[k * share : (k + 1) * share]))
        digest = batch_digest(micro_batches)
    return FetchedBatch(
        step=step, indices=indices, contents=tuple(contents), micro_batches=micro_batches, digest=digest
    )


@contextmanager
def _fetching() -> Iterator[None]:
    """Generators given back afterwards; kernels on one thread meanwhile."""
    threads = torch.get_num_threads()
    with isolated():
        if threads != 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if threads != 1:
                torch.set_num_threads(threads)


# --- torch's loader -------------------------------------------------------------------------------------------


class _Steps(Dataset[Any]):
    """Item t is the batch of step t."""

    def __init__(self, recipe: Recipe, seed: bytes, source: Source) -> None:
        self._recipe, self._seed, self._source = recipe, seed, source

    def __getitem__(self, step: int) -> Any:
        return _caught(lambda: fetch_batch(self._recipe, self._source, self._seed, step))


class _Contents(Dataset[Any]):
    """Item i is the contents of samples i to i + _CHUNK - 1."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, start: int) -> Any:
        stop = min(start + _CHUNK, len(self._source))
        return _caught(lambda: [self._content(index) for index in range(start, stop)])

    def _content(self, index: int) -> tuple[bytes, int]:
        with _fetching():
            reseed(2 * index)
            first = encode_tree(self._source[index])
            reseed(2 * index + 1)
            second = encode_tree(self._source[index])
        if first != second:
            raise DataChanged(
                f"dataset[{index}] is random: split it into source and transform",
                hint="source() returns what is stored, transform() does what is random",
            )
        return sample_content(first), len(first)


@dataclass(frozen=True, slots=True)
class _Failure:
    """One of our own errors, on its way out of a worker: torch would bury it in a traceback."""

    kind: str
    message: str
    hint: str | None


def _caught(fetch: Callable[[], T]) -> T | _Failure:
    try:
        return fetch()
    except PolcommitError as error:
        return _Failure(type(error).__name__, error.message, error.hint)


def _error(failure: _Failure) -> PolcommitError:
    kind = getattr(errors, failure.kind, UsageError)
    try:
        error: PolcommitError = kind(failure.message, hint=failure.hint)
    except TypeError:  # one with arguments of its own
        error = UsageError(failure.message, hint=failure.hint)
    return error


def _same(item: T) -> T:
    return item


def _loaded(items: Dataset[Any], keys: Sequence[int], workers: int, prefetch: int) -> Iterator[Any]:
    """items[key] for each key in order, from torch's loader."""
    with warnings.catch_warnings():
        # that there are fewer processors than workers, and that forking with threads may lock up (our workers
        # use one thread each): neither is news to who asked for workers
        warnings.simplefilter("ignore")
        loader = DataLoader(
            items,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            collate_fn=_same,
            generator=torch.Generator(),        # else the loader draws from the process's generator
        )
        iterator = iter(loader)
    try:
        for item in iterator:
            if isinstance(item, _Failure):
                raise _error(item)
            yield item
    finally:
        # ends the workers at once; left to the garbage collector it takes seconds for each
        del iterator
