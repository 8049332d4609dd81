"""polcommit.sampling: draws against their rules, and detection against exact binomials."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from fakes import named
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit import sampling
from polcommit.errors import UsageError
from polcommit.records import Request

law = settings(deadline=None)
seeds = st.binary(min_size=32, max_size=32)


def request(count: int = 1, steps: tuple[int, ...] = ()) -> Request:
    return Request(
        run=bytes(32),
        commitment=bytes(32),
        verifier=bytes(32),
        strategy="list" if steps else "random",
        count=len(steps) or count,
        steps=steps,
        clear_openings=False,
    )


def exact(population: int, forged: int, drawn: int) -> Fraction:
    """1 - C(N - m, n) / C(N, n)."""
    return 1 - Fraction(math.comb(population - forged, drawn), math.comb(population, drawn))


# --- detection ------------------------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, int]:
    population = draw(st.integers(1, 400))
    return population, draw(st.integers(0, population)), draw(st.integers(0, population))


@law
@given(runs())
def test_detection_is_the_hypergeometric_one(run: tuple[int, int, int]) -> None:
    assert sampling.detection(*run) == pytest.approx(float(exact(*run)), rel=0, abs=1e-12)


def test_detection_by_counting_every_draw() -> None:
    """Of all draws of 3 of 7 steps, how many meet a forged one."""
    draws = list(combinations(range(7), 3))
    for forged in range(8):
        met = sum(1 for steps in draws if any(step < forged for step in steps))
        assert sampling.detection(7, forged, 3) == pytest.approx(met / len(draws))


@pytest.mark.parametrize(
    ("population", "forged", "drawn", "known"), [(300, 15, 20, 0.652), (300, 150, 20, 0.9999995), (10**9, 1, 1, 1e-9)]
)
def test_known_figures(population: int, forged: int, drawn: int, known: float) -> None:
    assert sampling.detection(population, forged, drawn) == pytest.approx(known, rel=1e-2)


def test_nothing_forged_or_nothing_drawn_is_plain_zero() -> None:
    """And not -0.0, which would print as such and have other bytes in a signed verdict."""
    for run in ((10, 0, 5), (10, 5, 0), (10, 10, 0), (0, 0, 0)):
        assert math.copysign(1, sampling.detection(*run)) == 1 and sampling.detection(*run) == 0


@pytest.mark.parametrize("run", [(10, 11, 1), (10, 1, 11), (10, -1, 1), (10, 1, -1)])
def test_detection_of_impossible_draws_is_refused(run: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError):
        sampling.detection(*run)


@pytest.mark.parametrize(
    ("population", "fraction", "forged"),
    [
        (300, 0.05, 15),
        (12, 0.05, 1),
        (100, 0.29, 29),
        (7, 1.0, 7),
        (10, 0.1, 1),
        (10, 0.11, 2),
        (5, 1e-12, 1),
        (0, 0.5, 0),
    ],
)
def test_forged_steps_are_the_least_that_make_up_the_fraction(population: int, fraction: float, forged: int) -> None:
    assert sampling.forged_steps(population, fraction) == forged


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(UsageError, match="fraction"):
        sampling.forged_steps(100, fraction)


@law
@given(st.integers(1, 300), st.integers(1, 100), st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.99, 0.999999]))
def test_draws_needed_are_the_fewest(population: int, percent: int, probability: float) -> None:
    forged = sampling.forged_steps(population, percent / 100)
    needed = sampling.draws_needed(population, percent / 100, probability)
    wanted = Fraction(str(probability)) * (1 - Fraction(1, 10**12))      # floats are a hair off
    assert exact(population, forged, needed) >= wanted
    more = Fraction(str(probability)) * (1 + Fraction(1, 10**12))
    assert needed == 1 or exact(population, forged, needed - 1) < more


def test_known_draws_needed() -> None:
    assert sampling.draws_needed(300, 0.05, 0.99) == 78
    assert exact(300, 15, 78) >= Fraction(99, 100) > exact(300, 15, 77)


@pytest.mark.parametrize("probability", [0.0, 1.0, -1.0, 2.0, math.nan])
def test_certainty_cannot_be_asked_for(probability: float) -> None:
    with pytest.raises(UsageError, match="probability"):
        sampling.draws_needed(100, 0.05, probability)


# --- draws ----------------------------------------------------------------------------------------------------


@law
@given(seeds, st.integers(1, 200), st.data())
def test_a_random_draw_rises_and_is_within_the_head(seed: bytes, steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    drawn = sampling.draw(seed, request(count), steps)
    assert list(drawn) == sorted(set(drawn)) and len(drawn) == count
    assert drawn[0] >= 1 and drawn[-1] <= steps
    assert drawn == sampling.draw(seed, request(count), steps)


def test_vector_draw() -> None:
    """These values never change."""
    assert sampling.draw(bytes(range(32)), request(5), 300) == (121, 136, 144, 249, 275)


def test_all_steps_are_all_steps() -> None:
    assert sampling.draw(bytes(32), request(9), 9) == tuple(range(1, 10))


def test_a_list_is_taken_as_it_is() -> None:
    assert sampling.draw(bytes(32), request(steps=(2, 3, 9)), 9) == (2, 3, 9)


@pytest.mark.parametrize("asked", [request(10), request(steps=(1, 10))])
def test_more_than_the_head_has_is_refused(asked: Request) -> None:
    with pytest.raises(UsageError):
        sampling.draw(bytes(32), asked, 9)


def chi_square(observed: Counter[object], cells: int) -> float:
    expected = observed.total() / cells
    return sum((observed[cell] - expected) ** 2 / expected for cell in observed) + expected * (cells - len(observed))


def test_every_step_is_drawn_equally_often() -> None:
    """Fixed seeds: 4,000 draws of 3 of 20. The statistic has mean 17 or so; 43.8 is the 0.1 % quantile at 19."""
    seen: Counter[object] = Counter()
    for number in range(4000):
        seen.update(sampling.draw(named("uniform", number), request(3), 20))
    assert chi_square(seen, 20) < 43.8


@pytest.mark.parametrize("count", [2, 5])
def test_every_set_of_steps_is_drawn_equally_often(count: int) -> None:
    """Of 7: C(7, 2) = C(7, 5) = 21 sets, the second by what is left out. 45.3 is the 0.1 % quantile at 20."""
    seen: Counter[object] = Counter(sampling.draw(named(count, number), request(count), 7) for number in range(4200))
    assert chi_square(seen, math.comb(7, count)) < 45.3


# --- kept states ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "anchored", "kept"),
    [
        (4, (12,), (0, 4, 8, 12)),
        (5, (5, 12), (0, 5, 10, 12)),
        (5, (3, 12), (0, 3, 5, 10, 12)),
        (100, (7,), (0, 7)),
        (1, (3,), (0, 1, 2, 3)),
    ],
)
def test_kept_steps(keep: int, anchored: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert sampling.kept_steps(keep, anchored) == kept


@law
@given(seeds, st.lists(st.integers(0, 500), min_size=1, max_size=20, unique=True))
def test_the_last_state_and_up_to_three_more_are_opened(seed: bytes, steps: list[int]) -> None:
    kept = tuple(sorted(steps))
    opened = sampling.opened_kept(seed, kept, kept[-1])
    assert kept[-1] in opened and set(opened) <= set(kept)
    assert len(opened) == min(4, len(kept)) and list(opened) == sorted(opened)


def test_opened_states_are_drawn_from_a_stream_of_their_own() -> None:
    """Otherwise which steps are drawn would tell which states are opened."""
    kept = tuple(range(101))
    differ = 0
    for number in range(50):
        seed = named("own stream", number)
        steps = sampling.draw(seed, request(3), 100)
        differ += set(steps) != {step + 1 for step in sampling.opened_kept(seed, kept, 100) if step != 100}
    assert differ == 50


def test_every_kept_state_is_opened_equally_often() -> None:
    seen: Counter[object] = Counter()
    for number in range(3000):
        seen.update(step for step in sampling.opened_kept(named("kept", number), tuple(range(13)), 12) if step != 12)
    assert chi_square(seen, 12) < 31.3      # the 0.1 % quantile at 11
