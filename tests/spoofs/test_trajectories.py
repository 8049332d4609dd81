"""Made-up trajectories against plain Proof-of-Learning: those that its critics say fool it, do."""

from __future__ import annotations

import dataclasses
from hashlib import sha256

import pytest
import torch
from trials import EVERY_STEP, RECIPE, TOP_5, FewDigits

from polcommit.errors import UsageError
from polcommit.screens import Kept, screen
from polcommit.spoofs.attacks.adversarial_data import MatchedGradients
from polcommit.spoofs.attacks.data_states import ChangingSamples, ReorderedBatches, SwappedLabels
from polcommit.spoofs.attacks.inputs import Inputs, buffers_kept, minimised
from polcommit.spoofs.attacks.ramp import OrdinaryRamp
from polcommit.spoofs.attacks.retraining import (
    DirectedRetraining,
    SequenceInversion,
    SmoothedSplice,
    Splice,
    SpliceOffSketch,
    sketch_rows,
)
from polcommit.spoofs.attacks.smuggling_states import ForgedBuffers, ForgedMomentum, OtherRate, RoundedWeights
from polcommit.spoofs.attacks.starting import FineTuned, RankMatchedStart, StartNearTarget
from polcommit.spoofs.attacks.stochastic import DataOrdering, SyntheticData
from polcommit.spoofs.attacks.structural import BlindfoldTopQ, InfinitesimalUpdate, MatchedNorms
from polcommit.spoofs.base import PreconditionNotMet, TrajectorySpoof
from polcommit.spoofs.checkpoint import flat, members
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.plain.stage import open_stage
from polcommit.spoofs.plain.trial import reference_distances, run_honest, run_plain, victim
from polcommit.spoofs.plain.verifier import Terms, verify
from polcommit.spoofs.rates import step_at
from polcommit.training.loading import Loader
from polcommit.training.replay import Engine
from polcommit.training.sketch import sketch

SEEDS = range(2)       # of five, in the measured table


@pytest.mark.parametrize("seed", SEEDS)
def test_infinitesimal_updates_fool_a_verifier_who_checks_every_step(seed: int) -> None:
    result = run_plain(InfinitesimalUpdate(), RECIPE, seed, EVERY_STEP)
    assert len(result.report.checked) == RECIPE.steps and result.fooled
    assert 0 < result.report.largest <= EVERY_STEP.delta and result.reached.l2 == 0.0
    assert result.cost == 1 / (3 * RECIPE.batch), "one operation on each weight a step"


@pytest.mark.parametrize("seed", SEEDS)
def test_blindfold_top_q_fools_a_verifier_who_checks_the_largest(seed: int) -> None:
    result = run_plain(BlindfoldTopQ(), RECIPE, seed, TOP_5)
    assert result.fooled and result.report.largest == 0.0, "what is checked was trained"
    assert result.cost < 0.5 and result.notes["hidden"] == result.notes["forged epochs"]


def test_blindfold_top_q_fails_where_every_step_is_checked() -> None:
    result = run_plain(BlindfoldTopQ(), RECIPE, 0, EVERY_STEP)
    assert not result.accepted and result.reached.l2 == 0.0


def test_blindfold_top_q_over_longer_intervals() -> None:
    result = run_plain(BlindfoldTopQ(), RECIPE, 1, Terms(interval=3, top=5))
    assert result.fooled


def test_blindfold_top_q_needs_more_intervals_than_are_checked() -> None:
    with pytest.raises(PreconditionNotMet, match="no epoch has more than 5 intervals"):
        run_plain(BlindfoldTopQ(), RECIPE, 0, Terms(interval=31, top=5))


def test_infinitesimal_updates_need_enough_checkpoints() -> None:
    """With δ·d_ref less than a tenth of the way, ten checkpoints are too few."""
    result = run_plain(InfinitesimalUpdate(), RECIPE, 0, Terms(interval=16, top=None))
    assert not result.accepted and result.reached.l2 == 0.0


def test_matched_norms_hide_the_line_and_show_in_the_distance() -> None:
    result = run_plain(MatchedNorms(), RECIPE, 0, EVERY_STEP)
    assert result.reached.l2 == 0.0 and result.report.largest > EVERY_STEP.delta
    norms = [interval.update / RECIPE.learning_rate(interval.first) for interval in result.report.checked[1:80]]
    assert max(norms) < 1.5 * min(norms), "as long as the learning rate says"


def test_a_start_sorted_to_be_near_shortens_the_way_and_passes_the_test_of_its_distribution() -> None:
    result = run_plain(RankMatchedStart(), RECIPE, 0, EVERY_STEP)
    assert result.fooled and result.report.start.p > 0.1
    assert float(result.notes["way left"]) < 0.8


def test_a_pull_is_all_that_is_wrong_with_directed_retraining() -> None:
    spoof = DirectedRetraining()
    result = run_plain(spoof, FewDigits(), 0, EVERY_STEP)
    assert result.reached.l2 == 0.0
    furthest = max(interval.distances.l2 for interval in result.report.checked)
    assert furthest == pytest.approx(float(spoof.notes["largest pull"]), rel=1e-3)


def test_forged_momentum_makes_a_real_step_land_on_the_stolen_model() -> None:
    """The last step is what the logged checkpoint leads to, to the bit: no tolerance is used up."""
    result = run_plain(ForgedMomentum(), FewDigits(), 0, EVERY_STEP)
    assert result.report.largest == 0.0 and result.reached.l2 < 1e-5
    assert result.report.checked[-1].update > 10 * result.report.checked[-2].update


def test_forged_momentum_over_an_interval_of_several_steps() -> None:
    result = run_plain(ForgedMomentum(), FewDigits(), 0, Terms(interval=4, top=None))
    assert result.report.largest == 0.0 and result.reached.l2 < 1e-5
    with pytest.raises(PreconditionNotMet, match="all steps lie in one interval"):
        run_plain(ForgedMomentum(), FewDigits(), 0, Terms(interval=10))


def test_a_splice_shows_in_its_last_step() -> None:
    result = run_plain(Splice(), FewDigits(), 0, EVERY_STEP)
    assert [finding[:14] for finding in result.report.findings] == ["steps 10 to 10"]


def test_a_splice_is_hidden_from_the_sketch_that_was_guessed_and_from_no_other() -> None:
    recipe = FewDigits(width=4)
    spoof = SpliceOffSketch()
    run_plain(spoof, recipe, 0, EVERY_STEP)
    assert isinstance(spoof.notes["after"], float) and spoof.notes["after"] < 1e-9
    stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
    SpliceOffSketch().forge(stage)
    before, after = (stage.log().checkpoints[step].weights() for step in (9, 10))
    other = sketch_rows(bytes(32), before.numel()) @ (after - before)
    assert float(other.norm()) > 1.0


def test_the_rows_of_the_matrix_are_those_of_sketches() -> None:
    values = torch.linspace(-1, 1, 300, dtype=torch.float64)
    rows = sketch_rows(bytes(range(32)), 300)
    assert torch.allclose(rows @ values, torch.tensor(sketch([values], bytes(range(32))), dtype=torch.float64))


@pytest.mark.parametrize("spoof", [StartNearTarget, FineTuned, SequenceInversion], ids=lambda s: s.name)
def test_a_start_that_nobody_would_draw_is_all_that_shows(spoof: type[TrajectorySpoof]) -> None:
    result = run_plain(spoof(), FewDigits(steps=20), 0, Terms(interval=1, top=None, delta=0.05))
    assert not result.accepted
    assert all(finding.startswith("W_0: ") for finding in result.report.findings)


def test_matched_gradients_do_not_converge() -> None:
    result = run_plain(MatchedGradients(), FewDigits(width=2), 0, EVERY_STEP)
    assert result.notes["converged"] is False and not result.fooled


def test_ordered_data_is_the_data_of_the_epoch() -> None:
    recipe = FewDigits(steps=14)
    stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
    DataOrdering().forge(stage)
    log = stage.log()
    due = [batch.indices for batch in Loader(recipe, bytes(32), 1, 14)]
    taken = [step.indices for step in log.steps]
    assert taken != due
    assert sorted(taken[:7]) == sorted(due[:7]) and sorted(taken[7:]) == sorted(due[7:])
    report = verify(log, recipe, EVERY_STEP, reference_distances(recipe))
    assert [i.last for i in report.checked if i.distances.l2 > 0] == [14], "every step but the jump is valid"


def test_synthetic_data_leads_through_valid_steps() -> None:
    recipe = FewDigits(width=2)
    stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
    SyntheticData().forge(stage)
    assert list(stage.log().supplied) == list(range(1, recipe.steps + 1))
    report = verify(stage.log(), recipe, EVERY_STEP, reference_distances(recipe))
    assert [i.last for i in report.checked if i.distances.l2 > 0] == [10]


OTHERWISE = [SwappedLabels, ReorderedBatches, ChangingSamples, OtherRate]


@pytest.mark.parametrize("spoof", OTHERWISE, ids=lambda spoof: spoof.name)
def test_plain_proofs_take_data_and_rates_from_who_hands_them_in(spoof: type[TrajectorySpoof]) -> None:
    """There is nothing to hide: it says what it trained on, and that is what is re-executed, to the bit."""
    result = run_plain(spoof(), FewDigits(), 0, EVERY_STEP)
    assert result.fooled and result.report.largest == 0.0


@pytest.mark.parametrize("spoof", [*OTHERWISE, RoundedWeights], ids=lambda spoof: spoof.name)
def test_training_on_something_else_than_is_committed_shows_in_the_steps_where_it_was_done(
    spoof: type[TrajectorySpoof],
) -> None:
    recipe = FewDigits()
    stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
    stage.free = frozenset()
    spoof().forge(stage)
    report = verify(stage.log(), recipe, EVERY_STEP, reference_distances(recipe))
    first = 8 if spoof is ChangingSamples else 1
    assert [i.first for i in report.checked if i.distances.l2 > 0] == list(range(first, 11))


def test_reordered_batches_are_named_by_their_samples_and_others_are_handed_in() -> None:
    recipe = FewDigits()
    logs = {}
    for spoof in (ReorderedBatches, ChangingSamples):
        stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
        spoof().forge(stage)
        logs[spoof] = stage.log()
    due = [batch.indices for batch in Loader(recipe, bytes(32), 1, 10)]
    named = [step.indices for step in logs[ReorderedBatches].steps]
    assert named == [due[place ^ 1] for place in range(10)] and not logs[ReorderedBatches].supplied
    assert list(logs[ChangingSamples].supplied) == [8, 9, 10], "from the second epoch on"


def test_forged_buffers_are_not_looked_at() -> None:
    recipe = FewDigits()
    stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
    ForgedBuffers().forge(stage)
    log = stage.log()
    assert verify(log, recipe, EVERY_STEP, reference_distances(recipe)).largest == 0.0
    name = "buffer/norm1.running_var"
    assert torch.equal(log.checkpoints[10].tensors[name], stage.stolen[name])


def test_an_ordinary_ramp_is_as_long_as_honest_updates_and_arrives() -> None:
    spoof = OrdinaryRamp()
    result = run_plain(spoof, RECIPE, 0, EVERY_STEP)
    lengths = [i.update / RECIPE.learning_rate(i.first) for i in result.report.checked[5:150]]
    honest = [i.update / RECIPE.learning_rate(i.first) for i in run_honest(RECIPE, 0, EVERY_STEP).report.checked[5:150]]
    assert max(lengths) < 1.5 * max(honest)
    left = spoof.notes["left for the last step"]
    assert isinstance(left, float) and left < 1e-3 and result.reached.l2 == 0.0


def flagged(spoof: TrajectorySpoof, seed: int, keep: int, first: int) -> set[str]:
    """Screens that find something odd from step `first` on, in sketches of every `keep`-th state.

    They are told no losses: a forger writes down what it likes.
    """
    stage = open_stage(RECIPE, bytes(32), victim(RECIPE, seed)[0], EVERY_STEP, seed)
    stage.free = frozenset()
    spoof.forge(stage)
    log = stage.log()
    kept = [
        Kept(
            step=step,
            sketch=tuple(sketch([log.checkpoints[step].weights()], sha256(bytes([seed])).digest())),
            loss=None,
            learning_rate=log.steps[step - 1].learning_rate if step else None,
        )
        for step in range(0, RECIPE.steps + 1, keep)
    ]
    flags = screen(kept, steps=RECIPE.steps, batch=RECIPE.batch, samples=RECIPE.samples)
    return {flag.screen for flag in flags if flag.last >= first}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep", [4, 16])
def test_no_screen_sees_an_ordinary_ramp(seed: int, keep: int) -> None:
    spoof = OrdinaryRamp()
    assert flagged(spoof, seed, keep, 1) == set()
    assert int(spoof.notes["forged"]) > RECIPE.steps // 2, "what detects it is how many steps that takes"


@pytest.mark.parametrize("spoof", [Splice, SmoothedSplice, InfinitesimalUpdate], ids=lambda spoof: spoof.name)
def test_the_same_screens_see_who_does_not_know_them(spoof: type[TrajectorySpoof]) -> None:
    assert flagged(spoof(), 0, 16, RECIPE.steps - 15)


@pytest.mark.parametrize("spoof", [OrdinaryRamp, SmoothedSplice], ids=lambda spoof: spoof.name)
@pytest.mark.parametrize("m", [1, 3])
def test_a_jump_or_ramp_takes_as_many_steps_as_it_is_told(spoof: type[OrdinaryRamp | SmoothedSplice], m: int) -> None:
    """The others are honest, and it arrives all the same."""
    recipe = FewDigits()
    stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
    stage.free = frozenset()
    spoof(m).forge(stage)
    report = verify(stage.log(), recipe, EVERY_STEP, reference_distances(recipe))
    assert [i.first for i in report.checked if i.distances.l2 > 0] == list(range(11 - m, 11))
    assert torch.equal(stage.log().checkpoints[10].weights(), flat(stage.stolen))
    with pytest.raises(UsageError, match="0 steps"):
        spoof(0)


# the tools


def test_a_step_at_another_rate_is_the_optimizers_own() -> None:
    recipe = FewDigits()
    (batch,) = Loader(recipe, bytes(32), 1, 1)
    ours, plain = Engine(recipe, bytes(32)), Engine(recipe, bytes(32))
    start = flat(ours.initial().tensors)
    plain.initial()
    assert step_at(ours, batch, 0.01).learning_rate == 0.01
    assert plain.step(batch).learning_rate == recipe.peak
    moved, ordinary = (flat(members(engine.state)) - start for engine in (ours, plain))
    assert torch.allclose(moved, ordinary * (0.01 / recipe.peak), atol=1e-6)
    assert ours.state.optimizer.param_groups[0]["lr"] == recipe.peak, "a scheduler goes on from what was due"


def test_gradients_of_unchanged_inputs_are_the_steps() -> None:
    recipe = FewDigits(accumulation=2)
    stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
    forger = Forger(stage)
    batch = next(forger.due())
    inputs = Inputs(forger, batch)
    with buffers_kept(forger):
        found = inputs.gradients([torch.zeros_like(tensor) for tensor in inputs.original])
    forger.step(batch)
    expected = [parameter.grad for parameter in stage.engine.state.model.parameters()]
    assert all(torch.equal(a.detach(), b) for a, b in zip(found, expected, strict=True) if b is not None)


def test_a_search_stops_when_it_has_found_enough() -> None:
    recipe = FewDigits()
    stage = open_stage(recipe, bytes(32), victim(recipe, 0)[0], EVERY_STEP, 0)
    forger = Forger(stage)
    inputs = Inputs(forger, next(forger.due()))
    running = {name: tensor.clone() for name, tensor in members(stage.engine.state).items()}

    def size(gradients: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([gradient.square().sum() for gradient in gradients]).sum()

    _, first = minimised(forger, inputs, size, None, 1)
    noise, best = minimised(forger, inputs, size, None, 12)
    assert best < 0.8 * first
    spent = stage.meter.forwards
    _, enough = minimised(forger, inputs, size, noise, 12, enough=best * 1.001)
    assert enough <= best * 1.001 and stage.meter.forwards == spent + 9 * recipe.batch
    assert all(torch.equal(tensor, running[name]) for name, tensor in members(stage.engine.state).items())


def test_a_stolen_model_of_another_recipe_is_no_use() -> None:
    stolen, _ = victim(RECIPE, 0)
    stage = open_stage(dataclasses.replace(RECIPE, width=5), bytes(32), stolen, TOP_5, 0)
    with pytest.raises(PreconditionNotMet, match=r"the stolen model has no buffer/norm1\.running_mean of this recipe"):
        InfinitesimalUpdate().forge(stage)
