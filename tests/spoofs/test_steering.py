"""Steering: bends stay inside test 1 as the verifier computes it, and what the other tests make of them."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import by_hand

from polcommit.errors import Refuted
from polcommit.profiles import Bound, Profile, Spread, to_json
from polcommit.records import Fingerprint
from polcommit.replaying import ReplayedStep
from polcommit.session.reexecution import rates_of
from polcommit.spoofs.attacks.adaptive import (
    DecoySteering,
    OptimizerSlack,
    QuietSteering,
    Steering,
    SteeringAdam,
    SteeringSgd,
    StructuralZeros,
    other_environment,
)
from polcommit.spoofs.base import PreconditionNotMet
from polcommit.spoofs.bending import Bender, Limits, at_alpha, lemma, within
from polcommit.spoofs.checkpoint import flat, members
from polcommit.spoofs.measure import steering, steering_runs
from polcommit.spoofs.measure.lanes import Optimizer, Side
from polcommit.spoofs.measure.opened import MemoryStage, OpenedRun, memory_stage
from polcommit.spoofs.measure.steered import SteeredDigits
from polcommit.spoofs.measure.steering_page import everyone, section
from polcommit.spoofs.measure.steering_runs import Forger, run_forgers, trained
from polcommit.spoofs.measure.zeros import Untied, moved_embeddings
from polcommit.spoofs.plain.trial import victim
from polcommit.tolerance import check_alignment, judge, reach
from polcommit.training.loading import Loader
from polcommit.training.measure import opened_parameters, span
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.residuals import Residuals
from polcommit.training.step import gradients

SEED = sha256(b"steering").digest()
STEPS = 12


def recipe(optimizer: str, **more: Any) -> SteeredDigits:
    return SteeredDigits(optimizer=optimizer, peak=steering.RATES[optimizer], steps=STEPS, **more)


def profile(of: Recipe, *, adaptive: bool, alpha: float = 0.1, loose: bool = False, **more: Any) -> Profile:
    """Bounds as wide for every tensor; test 3 binds unless `loose`."""
    aligned = Spread(mean=1.0, sd=0.0, bound=1.0) if loose else Spread(mean=0.01, sd=0.02, bound=0.2)
    sizes = Spread(mean=0.005, sd=0.01, bound=alpha)
    if not loose:
        more = {"distances": sizes, "distances_preconditioned": sizes if adaptive else None} | more
    return by_hand(of, adaptive=adaptive, alpha=alpha, aligned=aligned, **more)


def forged(spoof: Steering, of: Recipe, stolen: Any = None) -> OpenedRun:
    stage: MemoryStage = memory_stage(of, SEED, stolen if stolen is not None else victim(of, 0)[0])
    spoof.forge(stage)
    return stage.run(spoof.opened)


def judged(run: OpenedRun, by: Profile) -> float:
    """Tests 1 and 2 of every step, then 3; the reach. Raises Refuted."""
    engine = Engine(run.recipe, run.seed)
    found = []
    with Residuals(len(run.openings)) as residuals:
        for opening in run.openings:
            measured, residual = run.compare(engine, opening)
            residuals.add(engine.state.model, residual)
            judge(opening.record, _replayed(opening, measured), by)
            found.append(measured)
        check_alignment(found, residuals.cosines(), by)
    return reach(found, by, rates_of(run.recipe, (1,), run.recipe.steps), 1.0)


def _replayed(opening: Any, measured: Any) -> Any:
    record = opening.record
    return ReplayedStep(
        step=record.step, batch=record.batch, state=bytes(32), again=None, loss=measured.loss,
        learning_rate=measured.learning_rate, clipped=measured.clipped, skipped=measured.skipped, measured=measured,
        contribution=None,
    )  # fmt: skip


# --- how far a bend goes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_a_bend_stays_inside_every_bound_and_uses_one_up(scaled: bool) -> None:
    chance = torch.Generator().manual_seed(3)
    sizes, lanes = [40, 10, 25], 50
    gradient = torch.randn(lanes, 75, generator=chance)
    gradient[:, ::9] = 0.0
    away = torch.randn(lanes, 75, generator=chance) - gradient
    scale = torch.rand(lanes, 75, generator=chance) * 100 + 1 if scaled else None
    alpha = torch.rand(lanes, generator=chance)
    own = torch.full((lanes,), 0.1 if scaled else torch.inf)
    relative, floor = torch.tensor([[0.3, 0.01, 0.0]] * lanes), torch.tensor([[0.0, 1e-6, 0.02]] * lanes)
    zeros = torch.ones(lanes, dtype=torch.bool)
    bend = Bender(sizes, Limits(alpha, own, relative, floor, zeros)).bend(gradient, away, scale)
    opened = gradient + bend
    least = torch.minimum(gradient.norm(dim=1), opened.norm(dim=1))
    used = [bend.norm(dim=1) / (alpha * least)]
    for part, true, made, share, share_of_all in zip(
        bend.split(sizes, 1), gradient.split(sizes, 1), opened.split(sizes, 1), relative.T, floor.T, strict=True
    ):
        own_least = torch.minimum(true.norm(dim=1), made.norm(dim=1))
        used.append(part.norm(dim=1) / torch.maximum(share * own_least, share_of_all * least))
    if scale is not None:
        used.append((bend * scale).norm(dim=1) / (own * (opened * scale).norm(dim=1)))
    most = torch.stack(used).amax(0)
    assert float(most.max()) <= 1.0, "no bound is exceeded"
    assert float(most.median()) > 0.9, "and one of them is nearly reached"
    assert not bool(bend[:, ::9].any()), "zeros stay zeros"
    assert bool((((bend if scale is None else bend * scale) * away).sum(1) > 0).all()), "it leads to the goal"


def test_with_the_whole_gradient_for_a_tolerance_any_update_can_be_had() -> None:
    """α = 1, which Fang et al. propose: the bend cancels the gradient, and there is room left."""
    gradient = torch.randn(1, 30, generator=torch.Generator().manual_seed(1))
    bend = Bender([30], lemma([1.0], 1)).bend(gradient, -gradient)
    assert float((gradient + bend).norm()) >= float(bend.norm()) * 0.999
    small = Bender([30], lemma([0.01], 1)).bend(gradient, -gradient)
    assert float(small.norm() / (gradient + small).norm()) == pytest.approx(0.01, rel=1e-3)


def test_lanes_have_the_gradient_of_the_recipe() -> None:
    engine = Engine(recipe("sgd", labels="noisy"), SEED)
    engine.initial()
    weights = flat(members(engine.state)).float()[None]
    batch = next(iter(Loader(engine.recipe, SEED, 1, 1)))
    side = Side(recipe("sgd"), ["clean", "noisy"])
    here, losses = side.gradient(weights.expand(2, -1), batch.indices)
    true: dict[str, torch.Tensor] = {}
    def take() -> None:
        true.update({name: gradient.clone() for name, gradient in gradients(engine.state.model).items()})

    result = engine.step(batch, between=take)
    expected = torch.cat([true[name].flatten() for name in side.names])
    torch.testing.assert_close(here[1], expected, rtol=1e-4, atol=1e-6)
    assert float(losses[1]) == pytest.approx(result.loss, rel=1e-5) and float(losses[0]) != float(losses[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_lanes_train_as_the_recipe_does(optimizer: str) -> None:
    of = recipe(optimizer)
    engine = Engine(of, SEED)
    engine.initial()
    side = Side(of, ["clean"])
    start = flat(members(engine.state)).float()
    for batch in Loader(of, SEED, 1, of.steps):
        engine.step(batch)
    lane = Forger(labels="clean", optimizer=optimizer, alpha=0.0, rate=of.peak)
    run = run_forgers([lane], of, lemma([0.0], len(side.sizes)), SEED, start[None] + 1, frozenset())
    end = flat(members(engine.state)).float()
    assert run.end is not None
    assert float((run.end[0] - end).norm()) < 1e-3 * float((end - start).norm())


def test_what_an_optimizer_of_lanes_will_do_is_known_beforehand() -> None:
    gradient = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
    optimizer = Optimizer(["sgd", "adamw"], gradient)
    scale = optimizer.scale(gradient)
    torch.testing.assert_close(optimizer.update(gradient), gradient * scale)


# --- against the verifier's own tests -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "optimizer"), [(SteeringSgd, "sgd"), (SteeringAdam, "adamw")])
def test_steering_passes_tests_1_and_2_at_every_step(kind: type[Steering], optimizer: str) -> None:
    of = recipe(optimizer)
    by = profile(of, adaptive=optimizer == "adamw", loose=True)
    spoof = kind(by)
    assert judged(forged(spoof, of), by) > 0
    assert spoof.notes["distance"] < 1.0


@pytest.mark.parametrize(("kind", "optimizer"), [(SteeringSgd, "sgd"), (SteeringAdam, "adamw")])
def test_steering_fails_test_3(kind: type[Steering], optimizer: str) -> None:
    of = recipe(optimizer)
    by = profile(of, adaptive=optimizer == "adamw")
    with pytest.raises(Refuted, match=r"cosines of the residuals|distances of the"):
        judged(forged(kind(by), of), by)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_quiet_steering_passes_test_3_and_gets_less_far(optimizer: str) -> None:
    of = recipe(optimizer)
    by = profile(of, adaptive=optimizer == "adamw")
    loud, quiet = Steering(by), QuietSteering(by)
    forged(loud, of)
    assert judged(forged(quiet, of), by) > 0
    assert quiet.notes["distance"] > loud.notes["distance"]


def test_decoys_hide_cosines_and_not_distances() -> None:
    of = recipe("sgd")
    by = profile(of, adaptive=False, distances=Spread(mean=0.0001, sd=0.0001, bound=0.1))
    spoof = DecoySteering(by)
    run = forged(spoof, of)
    engine = Engine(of, SEED)
    signs = {run.compare(engine, opening)[0].towards > 0 for opening in run.openings}
    assert signs == {True, False}


def test_slack_of_the_optimizer_is_inside_test_2_and_goes_nowhere() -> None:
    of = recipe("sgd")
    by = profile(of, adaptive=False)
    spoof = OptimizerSlack(by)
    run = forged(spoof, of)
    engine = Engine(of, SEED)
    ratios = [run.compare(engine, opening)[0].update[1] for opening in run.openings]
    assert 0.4 < max(ratios) <= 1.0
    judged(run, by)


def test_at_a_rate_of_nothing_slack_goes_all_the_way_and_the_reach_has_it() -> None:
    """No test of a step or of the draw sees it: without the roundings in it, the reach would be nothing too."""
    of = replace(recipe("sgd"), peak=steering_runs.NOTHING * steering.RATES["sgd"], steps=60)
    by = profile(of, adaptive=False)
    spoof = OptimizerSlack(by)
    run = forged(spoof, of)
    fetch = run.memory.fetch
    way = span(opened_parameters(run.last, fetch), opened_parameters(run.first, fetch))
    engine = Engine(of, SEED)
    found = [run.compare(engine, opening)[0] for opening in run.openings]
    rates = rates_of(of, (1,), of.steps)
    assert judged(run, by) > 0
    assert 1.0 <= reach(found, by, rates, way) < 2.0      # the spoof keeps a margin
    assert reach([replace(step, rounding=0.0) for step in found], by, rates, way) < 0.01


def test_gradients_where_they_are_zero_by_structure_are_refuted(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(32 + byte % 20 for byte in sha256(b"zeros").digest() * 60))
    of = Untied(steps=4, text=text)
    spoof = StructuralZeros(profile(of, adaptive=True))
    run = forged(spoof, of)
    engine = Engine(of, SEED)
    opening = run.openings[2]
    measured, _ = run.compare(engine, opening)
    assert measured.distance / measured.here < 1e-3, "nothing, as a share of the gradient"
    wide = tuple(Bound(name=t.name, relative=1.0, floor=1.0, zeros=0) for t in measured.tensors)
    by = profile(of, adaptive=True, alpha=0.5, tensors=wide, buffers=())
    with pytest.raises(Refuted, match=r"zeros in the gradient of embedding\.weight"):
        judge(opening.record, _replayed(opening, measured), by)


# --- who can be tried, and claims -----------------------------------------------------------------------------


def test_a_spoof_of_adaptive_optimizers_is_not_tried_on_sgd() -> None:
    of = recipe("sgd")
    with pytest.raises(PreconditionNotMet, match="an adaptive optimizer"):
        forged(SteeringAdam(profile(of, adaptive=False)), of)


def test_without_a_profile_there_is_no_tolerance_to_steer_in() -> None:
    with pytest.raises(PreconditionNotMet, match="no noise profile ships"):
        forged(Steering(), recipe("sgd"))


def test_the_environment_that_is_claimed_is_the_other_one_of_the_pair() -> None:
    differs = (("a", "1", "2"), ("b", "", "x"), ("c", "*", "*"), ("processor", "*", "*"))
    pair = profile(recipe("sgd"), adaptive=False, differs=differs)
    here = Fingerprint(items=(("a", "2"), ("b", "x"), ("c", "here"), ("d", "same"), ("processor", "mine")))
    found = dict(other_environment(pair, here).items)
    assert found == {"a": "1", "c": "here", "d": "same", "processor": "another one"}


# --- the experiment -------------------------------------------------------------------------------------------


def test_the_experiment_finds_what_the_tests_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small: at α = 1 the forger arrives, at α = 0 it does not; test 3 sees it, and the quiet one passes."""
    of = SteeredDigits()
    profiles = {name: profile(of, adaptive=name == "adamw", alpha=0.1) for name in steering.OPTIMIZERS}
    monkeypatch.setattr(steering, "TRAINING", 100)
    monkeypatch.setattr(steering, "DRAWN", 20)
    rows = steering.results(steering.steer(150, profiles), profiles)
    by = {(row["optimizer"], row["variant"], row["labels"], row["alpha"]): row for row in rows}
    assert by["sgd", "plain", "clean", 1.0]["least"] < 0.05 < by["sgd", "plain", "clean", 0.0]["least"]
    for optimizer in steering.OPTIMIZERS:
        assert by[optimizer, "plain", "random", None]["caught"] == steering.CHALLENGES
        assert by[optimizer, "quiet", "random", None]["caught"] == 0
        plain, quiet = by[optimizer, "plain", "random", None], by[optimizer, "quiet", "random", None]
        assert plain["least"] < quiet["least"] <= 1.0
        assert by[optimizer, "slack", "random", None]["towards"] == 0.0


def test_what_rounding_alone_moves_is_what_the_reach_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """At rates of next to nothing every step gets nearer, and by no more than test 4 counts."""
    of = SteeredDigits()
    profiles = {name: profile(of, adaptive=name == "adamw", alpha=0.1) for name in steering.OPTIMIZERS}
    monkeypatch.setattr(steering, "TRAINING", 100)
    rows = steering.results(steering.steer_these(steering.still(profiles), 150, profiles), profiles)
    assert [row["optimizer"] for row in rows] == list(steering.OPTIMIZERS)
    for row in rows:
        distances = [distance for _, distance in row["trace"]]
        assert distances == sorted(distances, reverse=True) and row["least"] == row["end"] < 1.0
        assert row["caught"] == 0 and 0.95 < row["reach"] < 1.5


def test_fewer_steps_count_where_strides_come_in_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "TRAINING", 100)
    of = SteeredDigits()
    by = profile(of, adaptive=False)
    run = steering.steer_these(steering.rare_bursts({"sgd": by}), 300, {"sgd": by})
    even = steering.steer_these(steering.still({"sgd": by}), 300, {"sgd": by})
    assert steering._counted(run, 0) == 1 < steering._counted(even, 0) <= steering.DRAWN
    run.forgers = [replace(run.forgers[0], variant="plain")]        # as if its rates said nothing
    assert steering._counted(run, 0) < 5


def test_the_whole_experiment_becomes_a_section_and_what_is_cached_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "TRAINING", 60)
    monkeypatch.setattr(steering, "DRAWN", 20)
    monkeypatch.setattr(steering, "moved_embeddings", lambda: moved_embeddings(20))
    for name in steering.OPTIMIZERS:
        own = profile(recipe(name), adaptive=name == "adamw")
        (tmp_path / f"profile-{name}.json").write_text(to_json(own), "utf-8")
    result = steering.measure(tmp_path, lengths=(100,), honest=2)
    assert json.loads(json.dumps(result)) == result
    text = section(result)
    assert {row["width"] for row in result["by alpha"]["forgers"]} == set(steering.WIDTHS)
    assert "α = 0.5" in text and "100 steps:" in text and "bends one step in 100" in text
    best = min(row["least"] for row in everyone(result) if row["profile"] == "sgd" and row["alpha"] is None)
    assert f"**{best:.3f}**" in text
    monkeypatch.setattr(steering, "run_forgers", None)
    assert steering.measure(tmp_path, lengths=(100,), honest=2) == result


def test_everyone_bends_within_the_profile() -> None:
    of = recipe("sgd")
    by = profile(of, adaptive=False)
    names = Side(of, ["clean"]).names
    assert float(within(by, names, drawn=90).alpha) < float(within(by, names).alpha) == pytest.approx(0.1)
    assert {each.every for each in steering.rare_bursts({"sgd": by})} == {steering.RARE}
    found = [*steering.forgers("sgd", by), *steering.odd_rates({"sgd": by})]
    assert set(steering_runs.VARIANTS) == {each.variant for each in found}


def test_a_wider_profile_is_wider_in_all_that_is_a_distance() -> None:
    of = recipe("adamw")
    by = profile(of, adaptive=True, alpha=0.1)
    wide = at_alpha(by, 0.2)
    assert (wide.alpha, wide.alpha_preconditioned) == (0.2, pytest.approx(2 * (by.alpha_preconditioned or 0)))
    assert [bound.relative for bound in wide.tensors] == [pytest.approx(2 * bound.relative) for bound in by.tensors]
    assert wide.distances.mean == pytest.approx(2 * by.distances.mean)
    assert (wide.towards, wide.pairs) == (by.towards, by.pairs)


def test_of_another_nets_profile_the_bounds_on_the_whole_gradient_are_kept() -> None:
    of = recipe("sgd")
    by = profile(of, adaptive=False)
    limits = within(by, [Side(of, ["clean"]).names[0], "another"], drawn=90)
    assert torch.equal(limits.alpha, within(by, Side(of, ["clean"]).names, drawn=90).alpha)
    assert torch.isinf(limits.relative).all() and torch.isinf(limits.floor).all()


def test_the_stolen_model_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    of = SteeredDigits(steps=400)
    goals = trained(of, SEED, steering.RATES)
    side = Side(of, ["clean", "clean"])
    assert float(side.accuracy(torch.stack([goals["sgd"], goals["adamw"]])).min()) > 0.6
