"""polcommit.planning: costs against every draw counted out, and the figures that the project set itself."""

from __future__ import annotations

import math
from fractions import Fraction
from hashlib import sha256
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit import planning, prf, sampling
from polcommit.errors import UsageError

law = settings(deadline=None)


def walked(steps: int, keep: int, drawn: tuple[int, ...]) -> tuple[int, int]:
    """Steps that a prover executes who goes on, in rising order, from where it is or from a later kept state.

    To the states before the drawn steps; and to the states after them, by executing the drawn steps themselves.
    """
    kept = sampling.kept_steps(keep, (steps,))
    counts = []
    for beyond in (0, 1):
        at, executed = 0, 0
        for step in sorted(drawn):
            at = max(at, *(state for state in kept if state < step))
            executed += max(0, step - 1 + beyond - at)
            at = max(at, step - 1 + beyond)
        counts.append(executed)
    return counts[0], counts[1]


def counted_out(steps: int, keep: int, drawn: int) -> planning.Regeneration:
    """By all draws there are."""
    costs = [walked(steps, keep, draw) for draw in combinations(range(1, steps + 1), drawn)]
    before, beyond = ([cost[i] for cost in costs] for i in (0, 1))
    return planning.Regeneration(
        keep=keep,
        kept=len(sampling.kept_steps(keep, (steps,))),
        expected=float(Fraction(sum(before), len(costs))),
        worst=max(before),
        beyond_expected=float(Fraction(sum(beyond), len(costs))),
        beyond_worst=max(beyond),
        looking=0,
    )


@pytest.mark.parametrize("steps", [1, 2, 6, 9])
def test_regeneration_is_what_all_draws_cost(steps: int) -> None:
    for keep in range(1, steps + 1):
        for drawn in range(1, steps + 1):
            found = planning.regeneration(steps, keep, drawn)
            known = counted_out(steps, keep, drawn)
            assert (found.kept, found.worst, found.beyond_worst) == (known.kept, known.worst, known.beyond_worst)
            assert found.expected == pytest.approx(known.expected, rel=1e-15, abs=1e-15)
            assert found.beyond_expected == pytest.approx(known.beyond_expected, rel=1e-15)


@pytest.mark.parametrize(("keep", "drawn"), [(25, 90), (100, 90), (7, 300)])
def test_regeneration_is_what_real_draws_cost(keep: int, drawn: int) -> None:
    """400 draws of 2,000 steps by the protocol's generator: their mean is within five standard errors."""
    found = planning.regeneration(2003, keep, drawn)
    seeds = [sha256(f"walk {keep} {number}".encode()).digest() for number in range(400)]
    draws = [prf.sample_without_replacement(seed, 2003, drawn) for seed in seeds]
    costs = [walked(2003, keep, tuple(index + 1 for index in draw)) for draw in draws]
    for i, (expected, worst) in enumerate(
        ((found.expected, found.worst), (found.beyond_expected, found.beyond_worst))
    ):
        mean = sum(cost[i] for cost in costs) / len(costs)
        error = math.sqrt(sum((cost[i] - mean) ** 2 for cost in costs) / (len(costs) - 1) / len(costs))
        assert abs(mean - expected) <= 5 * error
        assert max(cost[i] for cost in costs) <= worst


@law
@given(st.integers(1, 5000), st.data())
def test_bounds_of_regeneration(steps: int, data: st.DataObject) -> None:
    keep, drawn = data.draw(st.integers(1, steps)), data.draw(st.integers(1, steps))
    found = planning.regeneration(steps, keep, drawn)
    assert 0 <= found.expected <= found.worst + 1e-9 * steps
    assert found.expected <= found.beyond_expected <= found.beyond_worst * (1 + 1e-12) <= steps * (1 + 1e-12)
    # never more than each drawn step walked by itself: (keep - 1)/2 and (keep + 1)/2 steps on average
    assert found.expected <= drawn * (keep - 1) / 2 + 1e-9
    assert found.beyond_expected <= drawn * (keep + 1) / 2 + 1e-9


def test_large_runs_keep_their_digits() -> None:
    """Where large terms cancel: with every state kept nothing is regenerated, and beyond it the drawn steps are."""
    found = planning.regeneration(planning.MAX_KEPT, 1, 3)
    assert found.expected == pytest.approx(0, abs=1e-9) and found.beyond_expected == pytest.approx(3, rel=1e-12)
    # one interval, one draw: uniform over 1 to T
    one = planning.regeneration(planning.MAX_STEPS, planning.MAX_STEPS, 1)
    assert one.beyond_expected == pytest.approx((planning.MAX_STEPS + 1) / 2, rel=1e-15)


# --- the figures that polcommit set itself --------------------------------------------------------------------


def test_costs_of_five_per_cent_at_99_per_cent() -> None:
    """T = 78,000: the verifier re-executes below 0.13 % of training, the prover below 2 % at 25, below 5.8 % at 100."""
    found = planning.plan(78_000, detect=0.99, fraction=0.05, keeps=(25, 100))
    assert found.forged == 3900 and found.drawn == 90
    assert found.probability >= 0.99 > sampling.detection(78_000, 3900, 89)
    assert found.share(found.same.executed + found.same.counted) < 0.0013
    often, seldom = found.prover
    assert found.share(often.beyond_expected) < 0.02 and found.share(seldom.beyond_expected) < 0.058
    assert (often.kept, seldom.kept) == (3121, 781)
    assert found.single == pytest.approx(90 / 78_000)


def test_contributions_cost_the_verifier_the_same_whatever_the_draw() -> None:
    """Eight steps, four forward passes each: 0.014 % of 78,000 steps, and 0.133 % with all the rest."""
    for detect in (0.9, 0.99, 0.9999):
        found = planning.plan(78_000, detect=detect, fraction=0.05, keeps=())
        assert (found.same.scored, found.same.passes) == (8, 32)
        assert found.share(found.same.scoring) == pytest.approx(32 / 3 / 78_000)
    found = planning.plan(78_000, detect=0.99, fraction=0.05, keeps=())
    assert found.same.total == pytest.approx(92 + 1 + 32 / 3) and found.share(found.same.total) < 0.00134


def test_few_steps_are_all_scored_and_one_alone_is_not() -> None:
    assert [planning.effort(challenged, 1).scored for challenged in (1, 2, 7, 8, 9)] == [0, 2, 7, 8, 8]


def test_a_follow_up_adds_to_what_the_first_answer_took() -> None:
    found = planning.plan(300, detect=0.9, fraction=0.1, keeps=())
    challenged = found.drawn + found.added
    first = planning.effort(challenged, planning.UNEQUAL)
    assert found.same.executed == challenged and found.elsewhere.executed == 3 * challenged
    assert found.follow_up.total == pytest.approx(first.total + found.elsewhere.total)


def test_top_q_beside_it() -> None:
    """Q = 5, k = 10 in 200 epochs of 390 steps: 12.8 % of training, and blind to small updates."""
    found = planning.plan(78_000, detect=0.99, fraction=0.05, keeps=(100,)).top_q
    assert found.executed == 200 * 5 * 10 and found.epoch_steps == 390
    assert found.blindfold == 0 and found.uniform == pytest.approx(1)


def test_top_q_finds_steps_at_random_as_often_as_a_draw_of_the_same_size() -> None:
    """Which intervals are the largest does not depend on where steps lie that are forged at random."""
    found = planning.top_q(steps=40, forged=3, q=1, interval=2, epoch_steps=10)
    assert found.executed == 8
    assert found.uniform == pytest.approx(1 - math.comb(40 - 8, 3) / math.comb(40, 3))


@pytest.mark.parametrize(
    ("steps", "forged", "executed", "blindfold"),
    [(40, 32, 8, 0), (40, 33, 8, 1), (45, 3, 10, 0), (41, 3, 9, 0), (10, 8, 2, 0), (10, 9, 2, 1)],
)
def test_blindfolded_steps_need_room_beside_the_largest(
    steps: int, forged: int, executed: int, blindfold: float
) -> None:
    """Also in an epoch that the run's end cuts short."""
    found = planning.top_q(steps, forged, q=1, interval=2, epoch_steps=10)
    assert (found.executed, found.blindfold) == (executed, blindfold)


@law
@given(st.integers(1, 400), st.data())
def test_top_q_detects_what_a_draw_of_its_size_does(steps: int, data: st.DataObject) -> None:
    forged, epoch = data.draw(st.integers(1, steps)), data.draw(st.integers(1, steps))
    found = planning.top_q(steps, forged, q=data.draw(st.integers(1, 9)), interval=1, epoch_steps=epoch)
    assert found.uniform == pytest.approx(sampling.detection(steps, forged, found.executed), rel=1e-12)


def test_the_longest_run_is_planned_without_going_through_its_steps() -> None:
    found = planning.plan(planning.MAX_STEPS, detect=0.99, fraction=0.05, keeps=(5000,)).top_q
    assert found.uniform == 1 and found.executed > planning.MAX_STEPS // 8


def test_top_q_of_every_interval_is_everything() -> None:
    found = planning.top_q(steps=45, forged=1, q=99, interval=5, epoch_steps=10)
    assert (found.executed, found.uniform, found.blindfold) == (45, 1, 1)


def test_an_epoch_is_390_steps_or_the_run() -> None:
    for steps, epoch in ((300, 300), (390, 390), (4000, 390)):
        assert planning.plan(steps, detect=0.5, fraction=0.5, keeps=()).top_q.epoch_steps == epoch


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named_in_it"),
    [
        ({"steps": 0}, "0 steps"),
        ({"steps": planning.MAX_STEPS + 1}, "4294967297 steps"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": math.nan}, "fraction"),
        ({"detect": 0.0}, "detect with probability 0"),
        ({"detect": 1.0}, "detect with probability 1"),
        ({"detect": math.nan}, "detect with probability nan"),
        ({"keeps": (25, 0)}, "keep 0"),
        ({"keeps": (301,)}, "keep 301 of 300"),
        ({"steps": 1 << 30, "keeps": (100,)}, "keep 100"),
        ({"q": 0}, "top-q 0"),
        ({"interval": 0}, "interval 0"),
        ({"interval": 301}, "interval 301"),
        ({"epoch_steps": 0}, "epoch of 0"),
        ({"epoch_steps": 301}, "epoch of 301"),
        ({"steps": 1 << 30, "fraction": 1e-8}, "detect that little"),
    ],
)
def test_what_cannot_be_planned_is_named(change: dict[str, object], named_in_it: str) -> None:
    asked: dict[str, object] = {"steps": 300, "detect": 0.9, "fraction": 0.05, "keeps": (25,)}
    with pytest.raises(UsageError, match=named_in_it):
        planning.plan(**(asked | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("drawn", [0, 11])
def test_a_draw_has_steps_to_be_drawn_from(drawn: int) -> None:
    with pytest.raises(UsageError, match="draw"):
        planning.regeneration(10, 5, drawn)
