"""Batches: the same from any process, hashed as raw samples; data sets that are random or hold strange things."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from mixed import SAMPLES, SEED, Mixed

from polcommit import prf
from polcommit.errors import DataChanged, EncodingError, UsageError
from polcommit.training.loading import Loader, batch_from_encoded, dataset_contents, encoded_sample, fetch_batch
from polcommit.training.recipe import Source
from polcommit.training.tree import batch_digest, encode_tree, sample_content


def seen(batches: Iterator[Any]) -> list[Any]:
    return [(batch.step, batch.indices, batch.contents, batch.digest) for batch in batches]


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    return seen(iter(Loader(Mixed(), SEED, 4, 9)))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_matter(alone: list[Any], workers: int) -> None:
    assert seen(iter(Loader(Mixed(), SEED, 4, 9, workers=workers))) == alone


def test_nor_where_it_starts_nor_how_it_is_fetched(alone: list[Any]) -> None:
    """Steps 6 and 7 lie on both sides of the end of the first epoch."""
    recipe = Mixed()
    assert seen(iter(Loader(recipe, SEED, 6, 7))) == alone[2:4]
    source = recipe.source()
    assert seen(iter([fetch_batch(recipe, source, SEED, 6)])) == alone[2:3]
    opened = [encoded_sample(source, index) for index in alone[2][1]]
    assert seen(iter([batch_from_encoded(recipe, SEED, 6, opened, alone[2][1])])) == alone[2:3]


def test_what_a_batch_says_of_itself(alone: list[Any]) -> None:
    recipe, source = Mixed(), Mixed().source()
    (batch,) = Loader(recipe, SEED, 5, 5)
    assert batch.indices == prf.batch_indices(SEED, 5, SAMPLES, recipe.batch)
    encoded = [encode_tree(source[index]) for index in batch.indices]
    assert batch.contents == tuple((sample_content(data), len(data)) for data in encoded)
    assert len(batch.micro_batches) == 2 and batch.micro_batches[0][0].shape == (8, 1, 8, 8)
    assert batch.digest == batch_digest(batch.micro_batches)
    assert len(Loader(recipe, SEED, 4, 9)) == len(alone) == 6


def generators() -> tuple[Any, ...]:
    numpys = np.random.get_state()
    return random.getstate(), numpys[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_generators_and_threads_of_the_process_stay_as_they_are(workers: int) -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = generators()
    for _ in Loader(Mixed(), SEED, 1, 2, workers=workers):
        pass
    list(dataset_contents(Mixed().source(), workers=workers))
    encoded_sample(Mixed().source(), 0)
    assert generators() == before


@dataclass
class Odd:
    """A source that gives something of its own for sample 70."""

    kind: str
    size: int = 100

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if index != 70:
            return (np.full(4, index), index)
        return {
            "random": lambda: (np.random.rand(4), index),
            "torch": lambda: torch.rand(4),
            "clock": lambda: time.perf_counter_ns(),
            "object": lambda: (np.full(4, index), object()),
        }[self.kind]()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["random", "torch", "clock"])
def test_a_random_data_set_is_told(kind: str, workers: int) -> None:
    with pytest.raises(DataChanged, match=r"(?m)^dataset\[70\] is random: split it into source and transform$"):
        list(dataset_contents(Odd(kind), workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_without_encoding_is_named_without_a_traceback(workers: int) -> None:
    with pytest.raises(EncodingError, match=r"(?m)^sample\[1\]: builtins.object has no encoding$") as caught:
        list(dataset_contents(Odd("object"), workers=workers))
    assert caught.value.hint is not None


def test_workers_end_at_once_when_it_stops_early() -> None:
    """After an error, and when nobody asks for more; left to the garbage collector it took five seconds for each."""
    start = time.monotonic()
    with pytest.raises(DataChanged):
        list(dataset_contents(Odd("random"), workers=2))
    batches = iter(Loader(Mixed(), SEED, 1, 24, workers=2))
    next(batches)
    del batches
    assert time.monotonic() - start < 4 and not multiprocessing.active_children()


def test_contents_are_those_of_the_samples_in_order() -> None:
    source, told = Odd("random", size=70), []
    found = list(dataset_contents(source, workers=2, progress=lambda done, size: told.append((done, size))))
    assert found == [(sample_content(data), len(data)) for data in (encode_tree(source[i]) for i in range(70))]
    assert told == [(64, 70), (70, 70)] and list(dataset_contents([])) == []


class Changed(Mixed):
    """One pixel of every image differs."""

    def source(self) -> Source:
        samples = super().source()
        return [(image ^ np.uint8(np.arange(64).reshape(8, 8) == 9), label) for image, label in samples]  # type: ignore[attr-defined]


def test_changed_data_have_other_contents_and_batches(alone: list[Any]) -> None:
    changed = seen(iter(Loader(Changed(), SEED, 4, 9)))
    assert all(a[1] == b[1] and a[3] != b[3] for a, b in zip(changed, alone, strict=True))
    assert all(x != y for a, b in zip(changed, alone, strict=True) for x, y in zip(a[2], b[2], strict=True))


def test_numbers_of_samples_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="15 samples instead of 16"):
        batch_from_encoded(Mixed(), SEED, 1, [b""] * 15)
    with pytest.raises(UsageError, match="no batches of 200 from 96"):
        list(Loader(Mixed(batch=200), SEED, 1, 1))
    with pytest.raises(EncodingError):
        batch_from_encoded(Mixed(), SEED, 1, [b"\xc1"] * 16)
