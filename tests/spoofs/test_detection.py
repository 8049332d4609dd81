"""The detection experiment: its forgers, top-Q, and intervals against things that can be counted out."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest

from polcommit.recipes.digits import Digits
from polcommit.spoofs.measure import detection, figures
from polcommit.spoofs.measure.detection import Interval


@pytest.fixture
def intervals() -> list[Interval]:
    """Two epochs of 10 steps, a checkpoint every 4 and at the end of the epoch."""
    places = [(0, 1, 4, 5.0), (0, 5, 8, 2.0), (0, 9, 10, 4.0), (1, 11, 14, 1.0), (1, 15, 18, 3.0), (1, 19, 20, 2.0)]
    return [Interval(epoch=epoch, first=first, last=last, size=size) for epoch, first, last, size in places]


def by_name(intervals: list[Interval]) -> dict[str, detection.Forger]:
    return {each.name: each for each in detection.forgers(intervals)}


# --- the honest run -------------------------------------------------------------------------------------------


def test_checkpoints_of_an_honest_run() -> None:
    """Every 4 steps of an epoch and at its end: of 10 steps each, and a half-finished third."""
    found, accuracy = detection.honest_intervals(Digits(steps=25, batch=150, width=2), 4)
    ends = [(each.epoch, each.first, each.last) for each in found]
    assert ends == [
        (0, 1, 4), (0, 5, 8), (0, 9, 10), (1, 11, 14), (1, 15, 18), (1, 19, 20), (2, 21, 24), (2, 25, 25)
    ]  # fmt: skip
    assert all(each.size > 0 for each in found) and 0 <= accuracy <= 1
    assert all(after.first == before.last + 1 for before, after in pairwise(found))


# --- forgers and top-Q ----------------------------------------------------------------------------------------


def test_top_q_takes_the_largest_of_each_epoch(intervals: list[Interval]) -> None:
    assert detection.top_q(intervals, 1) == {1, 2, 3, 4, 15, 16, 17, 18}
    assert detection.top_q(intervals, 2) == {1, 2, 3, 4, 9, 10, 15, 16, 17, 18, 19, 20}
    assert detection.top_q(intervals, 9) == set(range(1, 21))


def test_top_q_passes_over_what_was_made_small(intervals: list[Interval]) -> None:
    assert detection.top_q(intervals, 1, frozenset({2, 16})) == {9, 10, 19, 20}


def test_the_blindfold_forger_takes_the_smallest_first(intervals: list[Interval]) -> None:
    forger = by_name(intervals)["small updates"]
    assert forger.blindfold
    assert forger.forged(8, "any") == {5, 6, 7, 8, 11, 12, 13, 14}
    assert forger.forged(9, "any") == forger.forged(8, "any") | {9}
    for m in range(1, 13):          # 12 steps are not in the largest interval of either epoch
        forged = forger.forged(m, "any")
        assert len(forged) == m and forged.isdisjoint(detection.top_q(intervals, 1, forged))
    assert not forger.forged(13, "any").isdisjoint(detection.top_q(intervals, 1, forger.forged(13, "any")))


def test_other_forgers_lie_anew_in_each_trial(intervals: list[Interval]) -> None:
    who = by_name(intervals)
    for name in ("at random", "ramp"):
        sets = {who[name].forged(3, str(number)) for number in range(50)}
        assert len(sets) > 10 and all(len(each) == 3 and each <= set(range(1, 21)) for each in sets)
    ramps = {who["ramp"].forged(19, str(number)) for number in range(50)}
    assert ramps == {frozenset(range(1, 20)), frozenset(range(2, 21))}
    assert who["ramp"].forged(20, "all") == who["at random"].forged(20, "all") == set(range(1, 21))


def test_every_trial_has_a_draw_of_its_own() -> None:
    draws = [detection.drawn_steps(100, 5, str(number)) for number in range(200)]
    assert draws[0] == detection.drawn_steps(100, 5, "0") and len(set(draws)) > 190
    seen = Counter(step for draw in draws for step in draw)
    assert set(seen) == set(range(1, 101))


# --- rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trials", "probability"), [(20, "0.5"), (50, "0.9"), (200, "0.01"), (7, "0.99")])
def test_interval_of_a_rate_is_the_binomial_one(trials: int, probability: str) -> None:
    low, high = detection.binomial_interval(trials, float(probability), 0.99)
    p = Fraction(probability)
    mass = [math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]
    tail = Fraction("0.005")
    assert sum(mass[:low]) <= tail < sum(mass[: low + 1])
    assert sum(mass[high + 1 :]) <= tail < sum(mass[high:])


def test_interval_of_certainty_is_a_point() -> None:
    assert detection.binomial_interval(10, 0, 0.99) == (0, 0)
    assert detection.binomial_interval(10, 1, 0.99) == (10, 10)


def test_a_small_experiment_from_beginning_to_end(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Measured, written and drawn: 60 steps with a checkpoint every 10, so that top-5 leaves one interval an epoch."""
    (tmp_path / "soundness.md").write_text("<!-- detection:begin -->\n<!-- detection:end -->\n")
    monkeypatch.setattr(figures, "docs_folder", lambda: tmp_path)
    monkeypatch.setattr(detection, "RECIPE", Digits(steps=120, batch=25, width=2))
    monkeypatch.setattr(detection, "TRIALS", 60)
    matplotlib = pytest.importorskip("matplotlib", reason="plots need the 'soundness' extra")
    assert matplotlib
    detection.main()
    found = figures.read_json("detection", tmp_path)
    assert len(found["rates"]) == 15 and len(found["same cost"]) == 18
    for row in found["rates"]:
        assert abs(row["measured"] - row["stated"]) < 0.25 and row["stated"] >= 0.9
    blindfold = [row for row in found["same cost"] if row["forger"] == "small updates"]
    assert [row["top-q"] for row in blindfold if row["forged"] <= 20] == [0, 0, 0, 0, 0]
    assert blindfold[-1]["forged"] == 60 and blindfold[-1]["top-q"] == 1       # no room beside the largest
    text = (tmp_path / "soundness.md").read_text()
    assert text.count("| 1 % |") == 1 and "figures/detection.svg" in text
    assert (tmp_path / "figures" / "detection.svg").stat().st_size > 1000
