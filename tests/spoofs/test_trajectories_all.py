"""Every trajectory spoof of the catalogue: on any recipe, and whatever it may choose."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from trials import FewDigits

from polcommit.errors import Unavailable, UsageError
from polcommit.recipes.gpt import Gpt
from polcommit.spoofs import catalogue
from polcommit.spoofs.attacks.smuggling_states import ForgedScheduler
from polcommit.spoofs.base import FAMILIES, KNOWLEDGE, PreconditionNotMet, TrajectorySpoof
from polcommit.spoofs.catalogue import SPOOFS, find_spoof
from polcommit.spoofs.checkpoint import flat
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.setting import Setting
from polcommit.spoofs.plain.log import Log
from polcommit.spoofs.plain.stage import PlainStage, open_stage
from polcommit.spoofs.plain.trial import run_plain, victim
from polcommit.spoofs.plain.verifier import Terms

SMALL = FewDigits()
TERMS = Terms(interval=1, top=2)
TRAJECTORIES = [spoof for spoof in SPOOFS if issubclass(spoof, TrajectorySpoof)]
NEEDS_A_START = {"rank-matched-start", "start-near-target"}


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Gpt:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and runs away. " * 4)
    return Gpt(steps=8, batch=4, layers=1, heads=1, width=8, context=8, warm_up=2, text=Path(text))


def check(spoof: type[TrajectorySpoof], stage: PlainStage) -> Log:
    """Forge, and check what holds for every submission."""
    made = spoof()
    made.forge(stage)
    log = stage.log()
    assert [step.step for step in log.steps] == list(range(1, stage.steps + 1)) and stage.meter.forwards > 0
    final, target = log.checkpoints[stage.steps].weights(), flat(stage.stolen)
    if spoof.goal == "W_T":
        assert float((final - target).norm()) <= 1e-4 * float(target.norm()), "what is claimed is the stolen model"
    assert all(isinstance(value, float | bool | str | int) for value in made.notes.values())
    return log


@pytest.mark.parametrize("spoof", TRAJECTORIES, ids=lambda spoof: spoof.name)
def test_on_digits_with_everything_to_choose(spoof: type[TrajectorySpoof]) -> None:
    stage = open_stage(SMALL, bytes(32), victim(SMALL, 0)[0], TERMS, 0)
    if spoof.name == "forged-scheduler":
        with pytest.raises(PreconditionNotMet, match="no scheduler with a state"):
            check(spoof, stage)
        return
    check(spoof, stage)


@pytest.mark.parametrize("spoof", [s for s in TRAJECTORIES if s is not ForgedScheduler], ids=lambda spoof: spoof.name)
def test_with_nothing_to_choose_the_recipes_rates_and_start_are_claimed(spoof: type[TrajectorySpoof]) -> None:
    """As on a registered run of polcommit, where losses are submitted as well."""
    stage = open_stage(SMALL, bytes(32), victim(SMALL, 0)[0], TERMS, 0)
    stage.free, stage.losses, stage.known = frozenset(), True, {}
    start = flat(stage.engine.capture().tensors)
    log = check(spoof, stage)
    assert [step.learning_rate for step in log.steps] == [SMALL.learning_rate(t) for t in range(1, 11)]
    assert torch.equal(log.checkpoints[0].weights(), start) == (spoof.name not in NEEDS_A_START)


@pytest.mark.parametrize("spoof", TRAJECTORIES, ids=lambda spoof: spoof.name)
def test_on_a_transformer_with_adam(spoof: type[TrajectorySpoof], gpt: Gpt) -> None:
    """Tied weights, groups, clipping, a scheduler, accumulation, and inputs that are whole numbers."""
    stage = open_stage(gpt, bytes(32), victim(gpt, 0)[0], TERMS, 0)
    reasons = {
        "adversarial-data-1": "no floating-point tensor",
        "adversarial-data-2": "no floating-point tensor",
        "adversarial-data-3": "no floating-point tensor",
        "synthetic-data": "no floating-point tensor",
        "swapped-labels": "inputs and labels apart",
        "forged-buffers": "no floating-point buffers",
    }
    if spoof.name in reasons:
        with pytest.raises(PreconditionNotMet, match=reasons[spoof.name]):
            check(spoof, stage)
        return
    check(spoof, stage)


def test_a_forged_scheduler_goes_by_a_schedule_of_its_own_and_plain_proofs_take_it(gpt: Gpt) -> None:
    spoof = ForgedScheduler()
    result = run_plain(spoof, gpt, 0, Terms(interval=1, top=None))
    difference = spoof.notes["largest difference of rates"]
    assert isinstance(difference, float) and difference > 0.1 * gpt.peak
    assert result.accepted and result.report.largest == 0.0


# against polcommit


#: Of each kind one, in the quick run.
QUICK = {"infinitesimal-update", "splice", "data-ordering", "swapped-labels"}
EACH = [
    pytest.param(spoof, id=spoof.name, marks=() if spoof.name in QUICK else pytest.mark.slow) for spoof in TRAJECTORIES
]


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena.open(Setting(recipe=SMALL)) as opened:
        yield opened


@pytest.mark.parametrize("spoof", EACH)
def test_no_trajectory_is_accepted_of_which_every_step_is_drawn(arena: Arena, spoof: type[TrajectorySpoof]) -> None:
    try:
        attempt = arena.try_out(spoof())
    except PreconditionNotMet as error:
        pytest.skip(error.message)
    assert attempt.registered and len(attempt.drawn) == SMALL.steps
    assert attempt.outcome == "rejected" and attempt.verdict == "rejected", attempt.why
    assert attempt.findings[-1].check in ("V7", "V9", "V10", "V12"), attempt.why


@pytest.mark.slow
def test_a_forged_scheduler_is_met_where_there_is_one(gpt: Gpt) -> None:
    with Arena.open(Setting(recipe=gpt, data=str(gpt.text))) as opened:
        attempt = opened.try_out(ForgedScheduler())
    assert (attempt.outcome, attempt.findings[-1].check) == ("rejected", "V10"), attempt.why


# the catalogue


def test_spoofs_state_their_threat_model() -> None:
    names = [spoof.name for spoof in SPOOFS]
    assert len(set(names)) == len(names)
    assert [FAMILIES.index(spoof.family) for spoof in SPOOFS] == sorted(FAMILIES.index(s.family) for s in SPOOFS)
    for spoof in SPOOFS:
        assert spoof.knows <= set(KNOWLEDGE) and spoof.title and spoof.source and spoof.__doc__, spoof.name
        assert spoof.goal in ("W_T", "own")


class Asked(dict[str, float]):
    """What can be known of plain Proof-of-Learning's terms, and which of it was asked for."""

    def __init__(self) -> None:
        super().__init__(Q=2.0, k=2.0, delta=0.01)
        self.names: set[str] = set()

    def get(self, name: str, default: object = None) -> object:
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("spoof", [s for s in TRAJECTORIES if s is not ForgedScheduler], ids=lambda spoof: spoof.name)
def test_who_uses_what_a_verifier_checks_says_that_it_knows_it(spoof: type[TrajectorySpoof]) -> None:
    stage = open_stage(SMALL, bytes(32), victim(SMALL, 0)[0], Terms(interval=2, top=2), 0)
    stage.known = asked = Asked()
    spoof().forge(stage)
    assert asked.names == spoof.knows & {"Q", "k", "delta"}


def test_a_spoof_is_found_by_its_name() -> None:
    assert find_spoof("splice").title.endswith("in its last step")
    with pytest.raises(UsageError, match="no spoof 'splce'"):
        find_spoof("splce")


class Mine(TrajectorySpoof):
    """Somebody else's."""

    name, family, title, source = "mine", "adaptive", "does something", "elsewhere"

    def forge(self, stage: object) -> None: ...


class SameName(Mine):
    name = "splice"


def test_other_packages_can_add_spoofs(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(value: str) -> None:
        entry = EntryPoint("x", f"test_trajectories_all:{value}", catalogue.GROUP)
        monkeypatch.setattr(catalogue, "entry_points", lambda group: [entry] if group == catalogue.GROUP else [])

    installed("Mine")
    assert find_spoof("mine").family == find_spoof("x").family == "adaptive"
    assert find_spoof("test_trajectories_all:Mine") is find_spoof("mine")
    for value, error, message in (
        ("SameName", None, "two spoofs are named splice"),
        ("SMALL", UsageError, "is not a Spoof"),
        ("Missing", Unavailable, "cannot be imported"),
    ):
        installed(value)
        found, wrong = catalogue.all_spoofs()
        assert found == SPOOFS and message in wrong[0], "the others are there all the same"
        assert find_spoof("splice") in SPOOFS
        if error is not None:
            with pytest.raises(error, match=message):
                find_spoof("x")
