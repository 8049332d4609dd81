"""The margin of the gradient test: implied gradients, against steps whose distance is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from polcommit.recipes.digits import Digits
from polcommit.spoofs.attacks.retraining import DirectedRetraining, Splice
from polcommit.spoofs.attacks.stochastic import SyntheticData
from polcommit.spoofs.base import Stage, TrajectorySpoof
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.measure import figures, margin

SMALL = Digits(steps=10, batch=16, width=4)


class Honest(TrajectorySpoof):
    """Trains, and says so."""

    name: ClassVar[str] = "honest"
    family: ClassVar[str] = "structurally correct"
    title: ClassVar[str] = "trains"
    source: ClassVar[str] = "a test"

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        for batch in stage.batches():
            forger.commit(batch, forger.step(batch))


class Doubled(Honest):
    """Takes step 4 twice as far as the gradient says."""

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        for batch in stage.batches():
            before = forger.weights()
            result = forger.step(batch)
            if batch.step == 4:
                self.far = float((forger.weights() - before).norm())
                forger.put(before + 2 * (forger.weights() - before))
            forger.commit(batch, result)


def test_an_honest_run_has_no_forged_step() -> None:
    found = margin.forged_distances(Honest(), SMALL, 0)
    assert (found["forged"], found["exact"]) == (0, 0)


def test_a_step_that_went_twice_as_far_is_the_one_that_is_found() -> None:
    """The steps after it start from where it went, and are honest."""
    spoof = Doubled()
    found = margin.forged_distances(spoof, SMALL, 0)
    assert found["forged"] == 1 and found["exact"] == 0
    assert found["distances"][0] > 0.5


def test_a_splice_is_forged_in_its_last_step_only() -> None:
    found = margin.forged_distances(Splice(), SMALL, 0)
    assert found["forged"] == 1 and found["distances"][0] > 10


def test_a_pull_is_forged_in_every_step() -> None:
    found = margin.forged_distances(DirectedRetraining(), SMALL, 0)
    assert found["forged"] == SMALL.steps and min(found["distances"]) > 0.05


def test_data_of_ones_own_is_found_by_digests() -> None:
    found = margin.forged_distances(SyntheticData(), SMALL, 0)
    assert found["exact"] >= 1


def test_honest_distances_are_those_of_other_kernels() -> None:
    found = margin.honest_distances(SMALL, 0)
    assert 0 < max(found["oneDNN off"]) < 1e-3
    assert max(found["two threads instead of one"]) < 1e-3


def test_a_result_becomes_a_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margin, "SPOOFS", (Splice, DirectedRetraining))
    result = margin.measure(SMALL, 1)
    assert result["margin"] == result["smallest forged"] / result["largest honest"] > 50
    assert result["margin with steering"] < result["margin"], "directed retraining is listed apart"
    text = margin.section(result)
    assert "`directed-retraining`" in text and f"{result['margin']:.3g}" in text


def _cells(text: str) -> Iterator[str]:
    yield from (cell for line in text.splitlines() for cell in line.split("|"))


def test_a_spoof_that_cannot_be_tried_is_listed_as_such() -> None:
    result: dict[str, Any] = {
        "recipe": {"steps": "3"}, "seeds": 1, "goal": 50.0, "spoofs": [{"spoof": "x", "not tried": "no scheduler"}],
        "honest": {}, "calibrated": {}, "largest honest": 1e-6, "smallest forged": 0.1, "margin": 1e5,
        "margin with steering": 1e4, "alphas": {}, "steering": [],
    }  # fmt: skip
    assert " not tried: no scheduler " in _cells(margin.section(result))
    assert figures.share(0.5) == "50 %"
