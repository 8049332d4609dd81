"""Made-up trajectories against polcommit: what is honest is accepted, and what is made up is met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from trials import FewDigits

from polcommit.errors import StorageError, UsageError
from polcommit.session.inprocess import in_processes
from polcommit.spoofs.attacks.retraining import Splice
from polcommit.spoofs.attacks.splices import spliced
from polcommit.spoofs.attacks.starting import RankMatchedStart, StartNearTarget
from polcommit.spoofs.attacks.structural import InfinitesimalUpdate
from polcommit.spoofs.base import ProtocolSpoof, Stage, TrajectorySpoof
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt, best
from polcommit.spoofs.opponent.setting import Setting, scratch
from polcommit.spoofs.plain.prover import Honest
from polcommit.spoofs.plain.trial import victim

STEPS = 10
SETTING = Setting(recipe=FewDigits(steps=STEPS))


@pytest.fixture(scope="module")
def registered() -> Iterator[Arena]:
    with Arena.open(SETTING) as arena:
        yield arena


@pytest.fixture(scope="module")
def post_hoc() -> Iterator[Arena]:
    with Arena.open(replace(SETTING, mode="post hoc")) as arena:
        yield arena


class HonestAfterAll(TrajectorySpoof):
    """Says that it is after the stolen model, and trains one of its own."""

    name = "honest-after-all"
    family = "retraining"
    title = "trains as it says"
    source = "these tests"

    def forge(self, stage: Stage) -> None:
        Honest().forge(stage)


class MovedStart(HonestAfterAll):
    """Begins elsewhere than at the W_0 of the run, whether that is free or not."""

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        forger.put(forger.weights() + 0.01)
        super().forge(stage)


class Unready(HonestAfterAll):
    """Commits to one step less than there are."""

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        for batch in stage.batches():
            if batch.step < stage.steps:
                forger.commit(batch, forger.step(batch))


def met(attempt: Attempt, check: str) -> bool:
    return attempt.outcome == "rejected" and attempt.findings[-1].check == check


# --- registered ---------------------------------------------------------------------------------------------------


def test_an_honest_trajectory_is_accepted(registered: Arena) -> None:
    attempt = registered.try_out(Honest())
    assert (attempt.outcome, attempt.basis, attempt.registered) == ("accepted", "bit-exact", True)
    assert len(attempt.drawn) == attempt.steps == STEPS and attempt.cost == 1.0


def test_interpolation_is_met_at_its_first_step(registered: Arena) -> None:
    attempt = registered.try_out(InfinitesimalUpdate())
    assert met(attempt, "V10") and attempt.findings[-1].step == 1
    assert attempt.notes["distance to W_T"] == 0.0, "what was claimed is the stolen model"


def test_one_forged_step_is_met_where_every_step_is_drawn(registered: Arena) -> None:
    attempt = registered.try_out(Splice())
    assert met(attempt, "V10") and attempt.findings[-1].step == STEPS


def test_an_accepted_run_that_is_not_the_stolen_model_says_so(registered: Arena) -> None:
    attempt = registered.try_out(HonestAfterAll())
    assert attempt.outcome == "missed" and attempt.verdict == "accepted" and attempt.succeeded
    assert "of the stolen model's norm away" in attempt.why


def test_another_start_than_the_beacons_is_met(registered: Arena) -> None:
    assert met(registered.try_out(MovedStart()), "V12")


def test_steps_are_committed_in_order_and_all_of_them(registered: Arena) -> None:
    with pytest.raises(UsageError, match=f"{STEPS - 1} of {STEPS} steps were committed"):
        registered.try_out(Unready())
    party = registered.party()
    folder = registered.new_run(party)
    stolen, _ = victim(SETTING.recipe, 0)
    with registered.stage(folder, stolen, Meter()) as stage:
        forger = Forger(stage)
        batches = stage.batches()
        first, second = next(batches), next(batches)
        result = forger.step(first)
        with pytest.raises(UsageError, match="step 1 is due"):
            forger.commit(second, result)


def test_a_run_that_no_disk_would_hold_is_not_begun(registered: Arena) -> None:
    """Every state is kept, so that whatever is drawn can be opened: 78,000 of a large net are terabytes."""
    folder = registered.new_run(registered.party())
    with registered.stage(folder, registered.target, Meter()) as stage:
        stage.steps = 10**9
        with pytest.raises(StorageError, match=r"1,000,000,001 states take [\d,.]+ GiB, and .* GiB are free") as caught:
            next(stage.batches())
    assert "TMPDIR" in str(caught.value.hint) and not folder.states.steps()


def test_an_arena_of_long_runs_does_not_lie_in_memory() -> None:
    assert scratch(FewDigits(steps=10**9)) is None


def test_what_a_trial_wrote_is_gone_afterwards_and_the_victims_run_is_not(registered: Arena) -> None:
    victims = registered.victim.folder.path
    before = set(registered.home.glob("run-*"))
    registered.try_out(InfinitesimalUpdate())
    assert set(registered.home.glob("run-*")) == before and victims in before


def test_a_victim_that_a_trial_asks_for_stays() -> None:
    class Asks(ProtocolSpoof):
        name, family, title, source = "asks", "protocol", "looks at the victim", "these tests"

        def attack(self, arena: Arena) -> Attempt:
            return arena.attempt(arena.victim.receipt.verdict, Meter())

    with Arena.open(Setting(recipe=FewDigits(steps=2))) as arena:
        assert arena.try_out(Asks()).outcome == "accepted"
        assert arena.victim.folder.states.steps()


def test_verdicts_in_processes_of_their_own_are_the_same(registered: Arena) -> None:
    """Digits, which another process can import: an answer is verified here and there, and found to be the same."""
    from polcommit.recipes.digits import Digits

    here = Setting(recipe=Digits(steps=2, batch=4, width=2))
    with Arena.open(here) as arena:
        run = spliced(arena)
        announced = arena.announce(run.put)
        answer = arena.dishonest(run.party, run.folder).answer(announced.challenge)
        first = arena.settle(announced, answer).verdict
        with in_processes():
            again = arena.settle(announced, answer).verdict
    assert first.verdict == "rejected" and again == first


# --- post hoc -----------------------------------------------------------------------------------------------------


def test_a_post_hoc_run_is_accepted_by_who_asks_for_no_better(post_hoc: Arena) -> None:
    attempt = post_hoc.try_out(Honest())
    assert (attempt.outcome, attempt.registered) == ("accepted", False)


@pytest.mark.parametrize(("spoof", "check"), [(StartNearTarget, "V12"), (RankMatchedStart, "V10")])
def test_a_chosen_start(post_hoc: Arena, spoof: type[TrajectorySpoof], check: str) -> None:
    """What is not from the distribution is refused for that; what is, for the steps that follow."""
    assert met(post_hoc.try_out(spoof()), check)


# --- attempts -----------------------------------------------------------------------------------------------------


def test_the_best_of_several_tries() -> None:
    tries = [Attempt(outcome=outcome, why="") for outcome in ("rejected", "inconclusive", "refused")]
    assert best(tries).outcome == "inconclusive"
    assert best([*tries, Attempt(outcome="accepted", why="")]).outcome == "accepted"


@pytest.mark.parametrize(("change", "message"), [({"mode": "late"}, "mode 'late'"), ({"count": 11}, "cannot draw 11")])
def test_a_setting_that_cannot_be(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTING, **change)


def test_long_runs_are_not_challenged_whole() -> None:
    long = Setting(recipe=FewDigits(steps=1000))
    assert SETTING.draws == STEPS and 80 < long.draws < 100
