"""polcommit.prf: the specification's test vectors, a second path to each value, and laws."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit import prf
from polcommit.errors import UsageError

law = settings(deadline=None)

SEED = bytes(range(32))
seeds = st.binary(min_size=32, max_size=32)


def stream_bytes(seed: bytes, text: bytes, length: int) -> bytes:
    """The definition again, fed piece by piece and read from the front."""
    state = blake3(key=seed)
    state.update(b"polcommit/v1/prf/")
    state.update(text)
    return state.digest(length)


def stream_words(seed: bytes, text: bytes, count: int) -> list[int]:
    return list(struct.unpack(f"<{count}Q", stream_bytes(seed, text, 8 * count)))


def numbers_below(seed: bytes, bound: int, blocks: int) -> list[int]:
    """The draw again: what the first blocks hold, rejected words left out."""
    found: list[int] = []
    for i in range(blocks):
        found += struct.unpack(">4Q", sha256(b"polcommit/v1/draw\0" + seed + struct.pack(">Q", i)).digest())
    return [word % bound for word in found if word < 2**64 - 2**64 % bound]


# Test vectors: these values never change


def test_vector_stream() -> None:
    expected = "7dc6a189e6b4dc0b93c55e17575a580383fa7261bd7b1b7ff2072763fbca2ef2"
    assert prf.stream(SEED, "step", 1, 0).digest().hex() == expected


def test_vector_words() -> None:
    expected = [0x665F32B4738B15D2, 0xE40C3261D7204CE, 0x4F99AC77CCB77210, 0xD6AE2BB9713FEDF8]
    assert list(prf.words(SEED, "order", 0, count=4)) == expected
    assert list(prf.words(SEED, "order", 0, count=2, start=2)) == expected[2:]


def test_vector_name_words() -> None:
    expected = [0x5E3C9D29C884687C, 0x939522F27D23D13D, 0xB6B4846C73D735A7]
    assert list(prf.name_words(SEED, "weights", "conv1.weight", count=3)) == expected
    assert list(prf.name_words(SEED, "weights", "größe", count=1)) == [0xD079DF2C79851485]


def test_vector_order() -> None:
    assert list(prf.order(SEED, 0, 10)) == [8, 1, 7, 2, 0, 6, 9, 3, 4, 5]
    assert list(prf.order(SEED, 1, 10)) == [3, 5, 1, 8, 4, 0, 9, 2, 7, 6]
    assert list(prf.order(bytes(32), 0, 10)) == [0, 6, 1, 4, 5, 8, 7, 3, 2, 9]


def test_vector_batch_indices() -> None:
    """Ten samples in threes: three steps an epoch, the order's tenth sample dropped, then the next epoch."""
    drawn = [prf.batch_indices(SEED, step, 10, 3) for step in (1, 2, 3, 4)]
    assert drawn == [(8, 1, 7), (2, 0, 6), (9, 3, 4), (3, 5, 1)]


def test_vector_seeds() -> None:
    assert prf.sample_seed(SEED, 1, 0) == 0x553FCFAA5A321925
    assert prf.sample_seed(SEED, 300, 63) == 0xF23AEA99F9D3D05
    assert prf.step_seed(SEED, 1, 0) == 0xBDCB4E689A1C67D
    assert prf.step_seed(SEED, 300, 3) == 0xCB0D3D5F6047DDCE


def test_vector_uniform() -> None:
    assert list(islice(prf.uniform(SEED, 300), 10)) == [135, 143, 274, 248, 120, 298, 77, 159, 233, 169]
    assert list(islice(prf.uniform(SEED, 2**64), 2)) == [13571242176125775735, 10669122604425858443]


def test_vector_uniform_with_rejection() -> None:
    """Just above half of the words' range, about every other word is skipped, the first two among them."""
    expected = [2033769209320800848, 7352847672369371398, 5945968152314154833]
    assert list(islice(prf.uniform(SEED, 2**63 + 1), 3)) == expected


def test_vector_sample_without_replacement() -> None:
    expected = [32, 41, 58, 73, 77, 120, 135, 143, 148, 159, 169, 201, 215, 229, 233, 234, 247, 248, 274, 298]
    assert prf.sample_without_replacement(SEED, 300, 20) == expected
    assert prf.sample_without_replacement(SEED, 10, 5) == [0, 3, 4, 5, 8]
    assert prf.sample_without_replacement(SEED, 10, 7) == [0, 1, 2, 6, 7, 8, 9]


# The definition by another path


@law
@given(seed=seeds, counters=st.lists(st.integers(0, 2**64 - 1), max_size=3), count=st.integers(0, 40))
def test_words_follow_the_byte_layout(seed: bytes, counters: list[int], count: int) -> None:
    text = b"label\0" + b"".join(struct.pack(">Q", value) for value in counters)
    assert list(prf.words(seed, "label", *counters, count=count)) == stream_words(seed, text, count)


@law
@given(seed=seeds, name=st.text(st.characters(exclude_categories=["Cs"])), count=st.integers(0, 40))
def test_name_words_follow_the_byte_layout(seed: bytes, name: str, count: int) -> None:
    found = list(prf.name_words(seed, "weights", name, count=count))
    assert found == stream_words(seed, b"weights\0" + name.encode(), count)


@law
@given(start=st.integers(0, 300), count=st.integers(0, 50))
def test_reading_from_the_middle_is_reading_on(start: int, count: int) -> None:
    whole = prf.words(SEED, "order", 3, count=350)
    assert prf.words(SEED, "order", 3, count=count, start=start) == whole[start : start + count]


def test_words_are_little_endian_on_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A big-endian host reads the same bytes the other way round and has to swap them."""
    native = prf.words(SEED, "order", 0, count=2)
    monkeypatch.setattr(prf.sys, "byteorder", "big")
    swapped = prf.words(SEED, "order", 0, count=2)
    swapped.byteswap()
    assert swapped == native


@law
@given(seed=seeds, bound=st.integers(1, 2**64))
def test_uniform_follows_the_definition(seed: bytes, bound: int) -> None:
    expected = numbers_below(seed, bound, 5)
    assert list(islice(prf.uniform(seed, bound), len(expected))) == expected


# The order of an epoch


@law
@given(seed=seeds, epoch=st.integers(0, 2**64 - 1), size=st.integers(0, 500))
def test_an_order_is_a_permutation_by_its_keys(seed: bytes, epoch: int, size: int) -> None:
    order = prf.order(seed, epoch, size)
    keys = stream_words(seed, b"order\0" + struct.pack(">Q", epoch), size)
    assert list(order) == [i for _, i in sorted(zip(keys, range(size), strict=True))]
    assert sorted(order) == list(range(size))


def test_equal_keys_keep_the_order_of_the_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = prf.array("Q", [7, 1, 7, 1, 7])
    monkeypatch.setattr(prf, "words", lambda *_, count: keys)
    assert list(prf.order(b"seed of this test only".ljust(32), 0, 5)) == [1, 3, 0, 2, 4]


def test_changing_an_order_changes_no_other() -> None:
    """Orders are cached; what callers get is their own."""
    first = prf.order(SEED, 0, 10)
    first[0], first[1] = first[1], first[0]
    assert list(prf.order(SEED, 0, 10)) == [8, 1, 7, 2, 0, 6, 9, 3, 4, 5]
    assert prf.batch_indices(SEED, 1, 10, 3) == (8, 1, 7)


def test_orders_of_other_epochs_and_seeds_differ() -> None:
    orders = [prf.order(SEED, 0, 50), prf.order(SEED, 1, 50), prf.order(bytes(32), 0, 50)]
    assert len({tuple(order) for order in orders}) == 3


def test_every_place_in_the_order_is_as_likely() -> None:
    """Where sample 0 of 6 comes, over 6,000 epochs: 1,000 each, within six standard deviations."""
    places = Counter(list(prf.order(SEED, epoch, 6)).index(0) for epoch in range(6_000))
    assert all(abs(places[place] - 1_000) < 6 * 29 for place in range(6))


@law
@given(size=st.integers(1, 60), data=st.data())
def test_an_epoch_visits_no_sample_twice(size: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, size))
    epoch = data.draw(st.integers(0, 3))
    per = size // batch
    steps = [prf.batch_indices(SEED, epoch * per + 1 + j, size, batch) for j in range(per)]
    seen = [index for step in steps for index in step]
    assert seen == list(prf.order(SEED, epoch, size))[: per * batch]
    assert all(len(step) == batch for step in steps)


# Seeds of samples and steps


def test_seeds_do_not_collide() -> None:
    """Swapped, adjacent and differently labelled counters lead to different seeds."""
    found = [prf.sample_seed(SEED, step, position) for step in range(50) for position in range(50)]
    found += [prf.step_seed(SEED, step, k) for step in range(50) for k in range(50)]
    assert len(set(found)) == len(found)


# Draws


@law
@given(seed=seeds, population=st.integers(0, 200), data=st.data())
def test_a_sample_is_distinct_ascending_and_within(seed: bytes, population: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, population))
    drawn = prf.sample_without_replacement(seed, population, count)
    assert len(drawn) == count
    assert drawn == sorted(set(drawn))
    assert all(0 <= value < population for value in drawn)


@law
@given(seed=seeds, population=st.integers(1, 200), data=st.data())
def test_a_sample_is_the_first_distinct_values_or_their_complement(
    seed: bytes, population: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, population))
    wanted = count if 2 * count <= population else population - count
    first: list[int] = []
    for value in prf.uniform(seed, population):
        if len(first) == wanted:
            break
        if value not in first:
            first.append(value)
    expected = first if wanted == count else set(range(population)) - set(first)
    assert prf.sample_without_replacement(seed, population, count) == sorted(expected)


def test_a_small_sample_of_a_large_population_is_quick() -> None:
    assert len(prf.sample_without_replacement(SEED, 2**64, 1_000)) == 1_000


def test_every_set_is_as_likely() -> None:
    """Pairs out of five, and the triples that are drawn as the pairs left out: 600 of each of ten, six sd."""
    for count in (2, 3):
        sets = Counter(
            tuple(prf.sample_without_replacement(sha256(b"%d" % i).digest(), 5, count)) for i in range(6_000)
        )
        assert len(sets) == 10
        assert all(abs(times - 600) < 6 * 23.3 for times in sets.values())


# What cannot be asked for


REFUSED: dict[str, Callable[[], Any]] = {
    "short seed": lambda: prf.stream(SEED[:31], "order", 0),
    "long seed": lambda: prf.name_words(SEED + b"\0", "weights", "w", count=1),
    "short seed of a draw": lambda: prf.uniform(SEED[:31], 10),
    "no label": lambda: prf.stream(SEED, ""),
    "label with NUL": lambda: prf.stream(SEED, "order\0", 0),
    "label beyond ASCII": lambda: prf.stream(SEED, "größe", 0),
    "negative counter": lambda: prf.stream(SEED, "order", -1),
    "counter beyond 64 bits": lambda: prf.stream(SEED, "order", 2**64),
    "bool for a counter": lambda: prf.stream(SEED, "order", True),
    "negative count": lambda: prf.words(SEED, "order", 0, count=-1),
    "negative start": lambda: prf.words(SEED, "order", 0, count=1, start=-1),
    "beyond the stream's end": lambda: prf.words(SEED, "order", 0, count=1, start=2**61),
    "lone surrogate": lambda: prf.name_words(SEED, "weights", "\ud800", count=1),
    "negative size": lambda: prf.order(SEED, 0, -1),
    "step 0": lambda: prf.batch_indices(SEED, 0, 10, 3),
    "batch 0": lambda: prf.batch_indices(SEED, 1, 10, 0),
    "batch above the size": lambda: prf.batch_indices(SEED, 1, 10, 11),
    "bound 0": lambda: prf.uniform(SEED, 0),
    "bound beyond 64 bits": lambda: prf.uniform(SEED, 2**64 + 1),
    "more than there are": lambda: prf.sample_without_replacement(SEED, 10, 11),
    "fewer than none": lambda: prf.sample_without_replacement(SEED, 10, -1),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
def test_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(UsageError):
        call()
