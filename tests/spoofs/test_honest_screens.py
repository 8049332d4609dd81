"""What is measured of the screens: the forgeries are what they say, and a small measurement has every figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polcommit.spoofs.measure import honest_screens
from polcommit.spoofs.measure.honest_runs import Trajectory, recipes, train
from polcommit.spoofs.measure.sketched_forgeries import even, line, ramp, splice

STEPS = 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trajectory, Trajectory]:
    folder = tmp_path_factory.mktemp("data")
    recipe = next(recipe for name, recipe in recipes(folder, STEPS) if name == "digits momentum cosine")
    own, other = (train("digits momentum cosine", recipe, bytes([n]) * 32, [bytes(32)])[0] for n in (1, 2))
    return own, other


def test_kept_states_are_those_of_a_run_that_keeps_every_so_many(pair: tuple[Trajectory, Trajectory]) -> None:
    kept = pair[0].kept(15)
    assert [state.step for state in kept] == [0, 15, 30, 40]
    assert (kept[0].loss, kept[0].learning_rate) == (None, None)
    assert (kept[1].loss, kept[1].learning_rate) == (pair[0].losses[14], pair[0].rates[14])


def test_forgeries_begin_and_end_where_they_say(pair: tuple[Trajectory, Trajectory]) -> None:
    own, other = pair
    stolen, generator = other.sketches[-1], np.random.default_rng(1)
    made = (line(own, stolen, own.updates), even(own, stolen, 0.5, generator), ramp(own, other, 10, 20))
    for each in made:
        assert np.allclose(each.sketches[0], own.sketches[0]) and np.allclose(each.sketches[-1], stolen)
    assert np.array_equal(made[2].sketches[:11], own.sketches[:11])
    assert np.allclose(made[2].sketches[30:], other.sketches[30:])


def test_steps_of_one_size_are_of_one_size(pair: tuple[Trajectory, Trajectory]) -> None:
    """Up to what 64 values tell: 9 % each."""
    updates = even(pair[0], pair[1].sketches[-1], 0.5, np.random.default_rng(1)).updates
    assert updates.std() / updates.mean() < 0.15
    assert updates.mean() * STEPS == pytest.approx(
        2 * np.sqrt(((pair[1].sketches[-1] - pair[0].sketches[0]) ** 2).mean()), rel=0.1
    )


def test_a_splice_is_one_update_that_is_longer(pair: tuple[Trajectory, Trajectory]) -> None:
    own = pair[0]
    forged = splice(own, 20, 10.0, np.random.default_rng(1)).updates
    assert np.allclose(np.delete(forged, 19), np.delete(own.updates, 19))
    assert 7 * np.median(own.updates[9:30]) < forged[19] < 13 * np.median(own.updates[9:30])


def test_a_small_measurement(tmp_path: Path) -> None:
    result = honest_screens.measure(tmp_path, STEPS, lambda name: name == "digits adamw cosine")
    assert [row["steps"] for row in result["false flags"]] == [2 * STEPS] * len(honest_screens.KEEPS)
    straight = [row for row in result["interpolation"] if row["forgery"] == "equal steps, cosine 1.0"]
    assert [row["flagged"] for row in straight[:2]] == [1.0, 1.0]
    assert [row["flagged"] for row in result["splices"] if (row["size"], row["keep"]) == (100, 1)] == [1.0]
    assert {row["keep"] for row in result["ramps"]} == set(honest_screens.KEEPS)
    assert result["contribution"]["runs"][0]["own > 0"] >= 0.8
    page = honest_screens.section(result)
    assert all(len(line) <= 120 or line.startswith("|") for line in page.splitlines())
