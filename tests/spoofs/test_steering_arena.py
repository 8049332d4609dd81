"""Steering through the whole protocol: registered, anchored, challenged, gradients opened, judged by what ships."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polcommit.recipes.digits import Digits
from polcommit.spoofs.attacks.adaptive import OptimizerSlack, QuietSteering, SteeringAdam, SteeringSgd
from polcommit.spoofs.base import PreconditionNotMet
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.setting import Setting


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    """Of `digits` as the profile that ships has it, but short."""
    with Arena.open(Setting(recipe=Digits(steps=12))) as opened:
        yield opened


def test_steering_as_far_as_single_steps_let_it_is_refuted_by_the_draw(arena: Arena) -> None:
    attempt = arena.try_out(SteeringSgd())
    assert (attempt.outcome, attempt.findings[0].check) == ("rejected", "V10"), attempt.why
    assert attempt.findings[0].what in ("distances of the gradients",) or "cosines" in attempt.findings[0].what


@pytest.mark.parametrize("kind", [QuietSteering, OptimizerSlack])
def test_who_stays_below_the_draws_bounds_is_accepted_and_gains_nothing(
    arena: Arena, kind: type[QuietSteering | OptimizerSlack]
) -> None:
    spoof = kind()
    attempt = arena.try_out(spoof)
    assert (attempt.outcome, attempt.basis) == ("missed", "within-tolerance"), attempt.why
    assert spoof.notes["distance"] > 0.95
    assert 0 < spoof.notes["reach"] < 1


def test_a_spoof_of_adaptive_optimizers_is_not_tried_on_sgd(arena: Arena) -> None:
    with pytest.raises(PreconditionNotMet, match="an adaptive optimizer"):
        arena.try_out(SteeringAdam())
