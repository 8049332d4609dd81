"""The verifier of plain Proof-of-Learning does what its paper says, and no more."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats, integers
from trials import EVERY_STEP, RECIPE, TOP_5, FewDigits

from polcommit.errors import UsageError
from polcommit.spoofs.checkpoint import Checkpoint
from polcommit.spoofs.cost import Meter, honest_forwards
from polcommit.spoofs.plain.distances import Distances, distances, mean_distances
from polcommit.spoofs.plain.log import Log, by_epoch, intervals
from polcommit.spoofs.plain.prover import Honest
from polcommit.spoofs.plain.stage import open_stage
from polcommit.spoofs.plain.start import check_start
from polcommit.spoofs.plain.trial import reference_distances, run_honest, victim
from polcommit.spoofs.plain.verifier import Terms, choose, narrowed, verify
from polcommit.training.loading import Loader
from polcommit.training.replay import Engine

SHORT = dataclasses.replace(RECIPE, steps=12)
TERMS = Terms(interval=5, top=None)
ONE = Distances(l1=1.0, l2=1.0, linf=1.0, cosine=1.0)


@cache
def honest_log() -> Log:
    stage = open_stage(SHORT, bytes(32), victim(SHORT, 0)[0], TERMS, 0)
    Honest().forge(stage)
    return stage.log()


def with_checkpoint(log: Log, step: int, checkpoint: Checkpoint) -> Log:
    return dataclasses.replace(log, checkpoints={**log.checkpoints, step: checkpoint})


def moved(checkpoint: Checkpoint, name: str, by: float) -> Checkpoint:
    tensors = dict(checkpoint.tensors)
    tensors[name] = tensors[name] + by
    return dataclasses.replace(checkpoint, tensors=tensors)


# the verifier


def test_an_honest_log_re_executes_to_the_bit() -> None:
    report = verify(honest_log(), SHORT, TERMS, ONE)
    assert report.accepted and report.largest == 0.0
    assert [(i.first, i.last) for i in report.checked] == [(1, 5), (6, 10), (11, 12)] and report.steps == 12
    assert all(i.update > 0 for i in report.checked)


@pytest.mark.parametrize("step", [5, 12])
def test_a_checkpoint_that_no_step_leads_to_is_found(step: int) -> None:
    log = honest_log()
    forged = with_checkpoint(log, step, moved(log.checkpoints[step], "parameter/out.weight", 0.1))
    report = verify(forged, SHORT, TERMS, ONE)
    assert not report.accepted
    assert f"to {step}: weights differ" in report.findings[0]


def test_weights_that_are_not_numbers_are_found() -> None:
    log = honest_log()
    forged = with_checkpoint(log, 12, moved(log.checkpoints[12], "parameter/out.bias", math.nan))
    report = verify(forged, SHORT, Terms(interval=5, top=1), ONE)
    assert not report.accepted and math.isnan(report.largest)


def test_data_other_than_logged_is_found() -> None:
    log = honest_log()
    steps = list(log.steps)
    steps[2] = dataclasses.replace(steps[2], digest=bytes(32))
    report = verify(dataclasses.replace(log, steps=tuple(steps)), SHORT, TERMS, ONE)
    assert report.findings == ("steps 1 to 5: the data of step 3 has another hash than the log says",)


def test_samples_named_by_index_are_fetched_in_any_order() -> None:
    log = honest_log()
    steps = list(log.steps)
    steps[2] = dataclasses.replace(steps[2], indices=steps[2].indices[::-1])
    report = verify(dataclasses.replace(log, steps=tuple(steps)), SHORT, TERMS, ONE)
    assert "the data of step 3" in report.findings[0]


def test_the_learning_rate_is_taken_from_the_log() -> None:
    log = honest_log()
    steps = tuple(dataclasses.replace(step, learning_rate=2 * step.learning_rate) for step in log.steps)
    report = verify(dataclasses.replace(log, steps=steps), SHORT, TERMS, ONE)
    assert all("weights differ" in finding for finding in report.findings) and len(report.findings) == 3


def test_a_forged_optimizer_state_is_not_compared_with_anything() -> None:
    """The hole that forged momentum goes through."""
    log = honest_log()
    last = log.checkpoints[12]
    emptied = dataclasses.replace(last, optimizer={**last.optimizer, "state": {}})
    assert verify(with_checkpoint(log, 12, emptied), SHORT, TERMS, ONE).accepted


def test_trained_weights_do_not_pass_for_a_start() -> None:
    log = honest_log()
    trained = Checkpoint.take(Engine(SHORT, bytes(32)).state)
    tensors = {name: 3 * tensor for name, tensor in trained.tensors.items()}
    report = verify(with_checkpoint(log, 0, dataclasses.replace(trained, tensors=tensors)), SHORT, TERMS, ONE)
    assert report.findings[0].startswith("W_0: parameter/")


def test_the_largest_updates_of_each_epoch_are_chosen() -> None:
    updates = {(step, step): length for step, length in enumerate([3.0, 1.0, 2.0, 9.0, 5.0, 4.0], 1)}
    assert choose(updates, 6, Terms(interval=1, top=2), 3) == [(1, 1), (3, 3), (4, 4), (5, 5)]
    longer = {(1, 2): 4.0, (3, 4): 11.0, (5, 6): 9.0}
    assert choose(longer, 6, Terms(interval=2, top=1), 4) == [(3, 4), (5, 6)]
    assert len(choose({}, 6, Terms(interval=1, top=None), 3)) == 6


def test_a_report_on_every_interval_holds_the_one_on_the_largest() -> None:
    log = honest_log()
    log = with_checkpoint(log, 10, moved(log.checkpoints[10], "parameter/out.bias", 0.5))
    less = Terms(interval=5, top=1)
    assert narrowed(verify(log, SHORT, TERMS, ONE), log, SHORT, less) == verify(log, SHORT, less, ONE)


@given(steps=integers(1, 60), interval=integers(1, 20), epoch=integers(1, 30))
def test_intervals_cover_every_step_once(steps: int, interval: int, epoch: int) -> None:
    covered = [step for first, last in intervals(steps, interval) for step in range(first, last + 1)]
    assert covered == list(range(1, steps + 1))
    epochs = by_epoch(steps, interval, epoch)
    assert [stretch for stretches in epochs for stretch in stretches] == list(intervals(steps, interval))
    assert all(len({(first - 1) // epoch for first, _ in stretches}) == 1 for stretches in epochs)


def test_a_log_with_other_checkpoints_than_asked_for_cannot_be_checked() -> None:
    with pytest.raises(UsageError, match="every 5 steps, the terms ask for 1"):
        verify(honest_log(), SHORT, EVERY_STEP, ONE)
    with pytest.raises(UsageError, match="no checkpoint after step 5"):
        log = honest_log()
        dataclasses.replace(log, checkpoints={0: log.checkpoints[0], 10: log.checkpoints[10]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval 0"),
        ({"top": 0}, "top 0"),
        ({"delta": math.nan}, "delta nan"),
        ({"metrics": ("3",)}, "metrics"),
        ({"metrics": ()}, "metrics"),
    ],
)
def test_terms_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Terms(**options)  # type: ignore[arg-type]


def test_steps_are_committed_in_order_and_all_of_them() -> None:
    stage = open_stage(SHORT, bytes(32), victim(SHORT, 0)[0], TERMS, 0)
    first, second = Loader(SHORT, bytes(32), 1, 2)
    result = stage.engine.step(first)
    with pytest.raises(UsageError, match="W_0 is not known"):
        stage.commit(first, result)
    next(stage.batches())
    with pytest.raises(UsageError, match="step 1 is due"):
        stage.commit(second, result)
    stage.commit(first, result)
    with pytest.raises(UsageError, match="1 of 12 steps"):
        stage.log()


# cost and reference


def test_honest_training_costs_itself() -> None:
    result = run_honest(FewDigits(), 0, TOP_5)
    assert result.accepted and result.cost == 1.0 and result.seconds > 0
    assert result.reached.l2 > 0.5, "an independent training ends about as far away as d_ref"
    assert honest_forwards(FewDigits()) == 3 * 8 * 10


def test_what_is_counted() -> None:
    meter = Meter()
    meter.forward(10)
    meter.step(10)
    meter.second_order(1)
    meter.weights(2)
    assert meter.forwards == 10 + 30 + 9 + 2


def test_the_reference_is_the_mean_over_pairs() -> None:
    a, b, c = (torch.tensor([value, 0.0], dtype=torch.float64) for value in (1.0, 2.0, 4.0))
    assert mean_distances([a, b, c]) == Distances(l1=2.0, l2=2.0, linf=2.0, cosine=0.0)
    with pytest.raises(UsageError, match="two independent trainings"):
        mean_distances([a])


# distances


@given(
    a=arrays(np.float64, 5, elements=floats(-10, 10, allow_subnormal=False)),
    b=arrays(np.float64, 5, elements=floats(-10, 10, allow_subnormal=False)),
    scale=floats(0.1, 10),
)
def test_distances_are_the_textbooks(a: np.ndarray, b: np.ndarray, scale: float) -> None:
    found = distances(torch.from_numpy(a), torch.from_numpy(b))
    assert found.l1 == pytest.approx(np.linalg.norm(a - b, 1))
    assert found.l2 == pytest.approx(np.linalg.norm(a - b))
    assert found.linf == np.abs(a - b).max()
    if np.linalg.norm(a) > 1e-3 and np.linalg.norm(b) > 1e-3:
        assert found.cosine == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
        longer = distances(torch.from_numpy(scale * a), torch.from_numpy(b))
        assert longer.cosine == pytest.approx(found.cosine, abs=1e-12), "a direction has no length"


def test_nan_is_above_every_bound() -> None:
    found = distances(torch.tensor([math.nan, 1.0]).double(), torch.tensor([0.0, 1.0]).double())
    assert found.above(math.inf) == ["1", "2", "inf", "cos"]


# W_0


def test_honest_starts_pass_and_others_do_not() -> None:
    honest = [check_start(SHORT, Engine(SHORT, bytes([i] * 32)).initial().tensors, 0.01) for i in range(20)]
    assert sum(test.accepted for test in honest) >= 19
    start = dict(Engine(SHORT, bytes(32)).initial().tensors)
    start["parameter/norm1.weight"] = start["parameter/norm1.weight"] + 1e-3
    assert check_start(SHORT, start, 0.01).tensor == "parameter/norm1.weight"
    assert not check_start(SHORT, victim(RECIPE, 0)[0], 0.01).accepted


def test_the_reference_is_measured_once() -> None:
    assert reference_distances(RECIPE) is reference_distances(RECIPE)
