"""Steps that the sketches add to a challenge (V7, V11), and the strategies that ask for them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from fakes import (
    ELSEWHERE,
    SURGE,
    Floats,
    HonestReplayer,
    Opening,
    Outcome,
    Prover,
    Scene,
    State,
    Verifier,
    moved,
    policy_for,
    scene,
)
from verdicts import PROFILE, accepted, answered, inconclusive, rejected, verdict_of

from polcommit.draws import Drawn
from polcommit.encoding import encode
from polcommit.errors import BudgetExhausted, Unavailable
from polcommit.evidence import Judgement, judge
from polcommit.profiles import Spread
from polcommit.records import Challenge, Sketch, StepRecord, Verdict
from polcommit.replaying import Measured, ReplayJob
from polcommit.sampling import detection, forged_steps
from polcommit.screens import LARGEST
from polcommit.signing import sign_verdict

WEIGHT = "parameter/weight"


class Long(Prover):
    """Nine kept states: enough for screens."""

    steps, samples, keep = 24, 40, 3


class Surges(Long):
    """An honest run in which one sample moves the weights far away."""

    def content(self, index: int) -> bytes:
        return SURGE if index == 0 else super().content(index)

    @property
    def surges(self) -> tuple[int, ...]:
        """The steps that the sample is in."""
        return tuple(step for step in range(1, len(self.states)) if 0 in self.indices(step))


def long(cheat: type[Prover] = Surges, **options: Any) -> Scene:
    return scene(cheat, heads=(12, 12), **options)


class Splices(Long):
    """Jumps to other weights in one step, and trains on honestly."""

    at, by = 10, 512.0

    def update(self, step: int, outcome: Outcome) -> State:
        if step != self.at:
            return outcome.state
        tensors = {**outcome.state.tensors, WEIGHT: moved(outcome.state.tensors[WEIGHT], self.by)}
        return State(tensors, outcome.state.counter + (1000 if self.by == 512 else 100))


class Case:
    """A challenge of an honest run whose sketches add steps, and its opening."""

    def __init__(self, **asked: Any) -> None:
        self.scene = long()
        self.challenge: Challenge = self.scene.challenge(**asked)
        self.opening: Opening = self.scene.prover.respond(self.challenge)
        self.drawn: Drawn = self.scene.prover.draw(self.challenge)
        self.added = self.opening.disclosure.added

    def verify(self, opening: Opening | None = None, **options: Any) -> Any:
        return self.scene.verify(self.challenge, opening or self.opening, **options)

    def opened(self, *added: int) -> Opening:
        """A consistent opening with other steps added than are due."""
        prover = self.scene.prover
        case = self

        class Adds(type(prover)):  # type: ignore[misc]
            def screened(self, challenge: Challenge, drawn: Drawn, sketches: Any) -> Drawn:
                return replace(super().screened(challenge, drawn, sketches), added=added)

        prover.__class__ = Adds
        try:
            return prover.open(case.challenge, case.drawn)
        finally:
            prover.__class__ = Surges


@pytest.fixture(scope="module")
def case() -> Case:
    found = Case()
    assert found.added and not set(found.added) & set(found.drawn.steps)
    return found


# --- honest ---------------------------------------------------------------------------------------------------


def test_a_flag_adds_steps_and_rejects_nothing(case: Case) -> None:
    verdict = accepted(case.verify())
    assert dict(verdict.checks)["V11"] == "flagged"
    assert "jump" in {flag.screen for flag in verdict.flags}
    assert verdict.added == case.added and verdict.steps == case.drawn.steps
    assert verdict.reexecuted == tuple(sorted({*verdict.steps, *verdict.added}))


def test_the_step_that_jumps_is_among_them(case: Case) -> None:
    prover = case.scene.prover
    assert isinstance(prover, Surges) and prover.surges
    assert set(prover.surges) <= set(verdict_of(case.verify()).reexecuted)


def test_detection_counts_drawn_steps_only(case: Case) -> None:
    verdict = verdict_of(case.verify())
    assert verdict.probability == detection(24, forged_steps(24, 0.05), len(verdict.steps)) < 0.5


def test_a_run_that_nothing_is_odd_about() -> None:
    """Losses of the fakes fall in half of all runs, and six intervals are too few for their norms. What is added are
    the largest steps of the largest displacements, which are looked into all the same."""

    class Seven(Long):
        keep = 4

    for number in range(20):
        verdict = accepted(answered(long(Seven, name=f"prover {number}")))
        if not verdict.flags:
            break
    assert dict(verdict.checks)["V11"] == "passed" and verdict.flags == ()
    assert len(verdict.added) <= LARGEST


def test_with_fewer_than_five_kept_states_no_screen_runs() -> None:
    class Few(Surges):
        keep = 8

    verdict = accepted(answered(scene(Few, heads=(16, 8))))
    assert dict(verdict.checks)["V11"] == "not checked"
    assert verdict.flags == () and verdict.added == ()


def test_a_splice_is_met_although_it_is_not_drawn() -> None:
    """Of one step, where one random step of the stretch would meet it now and then."""
    for strategy in ({"steps": (1,)}, {"count": 1, "strategy": "mixed"}):
        rejected(answered(long(Splices), **strategy), "V10", "state after the step", at=10)


# --- leaving out, and adding ----------------------------------------------------------------------------------


def test_a_step_left_out(case: Case) -> None:
    finding = rejected(case.verify(case.opened(*case.added[1:])), "V11", "steps that the sketches add")
    assert (finding.expected, finding.found) == (str(case.added), str(case.added[1:]))


def test_all_of_them_left_out(case: Case) -> None:
    rejected(case.verify(case.opened()), "V11", "steps that the sketches add")


def test_a_step_more(case: Case) -> None:
    """Of the prover's own choice, such as one that is harmless."""
    more = next(step for step in range(1, 25) if step not in {*case.added, *case.drawn.steps})
    opening = case.opened(*sorted((*case.added, more)))
    rejected(case.verify(opening), "V11", "steps that the sketches add")


def test_another_step_in_its_place(case: Case) -> None:
    other = next(step for step in range(1, 25) if step not in {*case.added, *case.drawn.steps})
    opening = case.opened(*sorted((other, *case.added[1:])))
    rejected(case.verify(opening), "V11", "steps that the sketches add")


@pytest.mark.parametrize("odd", ["drawn", "beyond", "zero", "twice", "falling"])
def test_added_steps_that_cannot_be(case: Case, odd: str) -> None:
    added = {
        "drawn": tuple(sorted((*case.added, case.drawn.steps[0]))),
        "beyond": (*case.added, 25),
        "zero": (0, *case.added),
        "twice": (case.added[0], *case.added),
        "falling": (24, 23) if 24 not in case.drawn.steps and 23 not in case.drawn.steps else (2, 1),
    }[odd]
    rejected(case.verify(case.opening.disclosing(added=added)), "V7", "added steps")


def test_the_draws_own_steps_are_not_the_provers_to_add(case: Case) -> None:
    """A drawn step that is called an added one is missing from the draw."""
    opening = case.opening.disclosing(added=())
    rejected(case.verify(opening), "V7", "opened leaves")


# --- the sketches that they come from -------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["kept", "fine", "more", "twice"])
def test_sketches_missing_or_more_than_are_due(case: Case, spoil: str) -> None:
    shown = case.opening.openings.sketches
    kept = set(case.drawn.kept)
    fine = [sketch for sketch in shown if sketch.step not in kept]
    assert fine, "states inside the flagged stretch are sketched as well"
    spare = next(step for step in range(25) if step not in {sketch.step for sketch in shown})
    changed = {
        "kept": shown[1:],
        "fine": tuple(sketch for sketch in shown if sketch != fine[0]),
        "more": tuple(sorted((*shown, Sketch(step=spare, values=shown[0].values)), key=lambda s: s.step)),
        "twice": (shown[0], *shown),
    }[spoil]
    rejected(case.verify(case.opening.opening(sketches=changed)), "V8", "sketches")


class Tells(Splices):
    """Its sketches of some states are not those of the states."""

    def told(self, step: int, sketches: dict[int, Floats]) -> Floats:
        return sketches[step]

    def sketches(self, drawn: Drawn) -> dict[int, Floats]:
        true = super().sketches(drawn)
        return {step: self.told(step, true) for step in true}


def test_a_jump_cannot_be_told_as_lying_elsewhere_in_its_stretch() -> None:
    """Before and after the largest displacement that is claimed, the sketches are compared with opened states."""

    class Elsewhere(Tells):
        def told(self, step: int, sketches: dict[int, Floats]) -> Floats:
            return sketches[9] if step in (10, 11) else sketches[step]      # 10 jumps; 9 and 12 are kept

    rejected(answered(long(Elsewhere), steps=(1,)), "V8", "sketch", at=10)


def test_sketches_that_are_not_numbers_are_flagged() -> None:
    """Where no opened state contradicts them."""

    class Infinite(Tells):
        at = 99

        def told(self, step: int, sketches: dict[int, Floats]) -> Floats:
            return (math.nan,) * 64 if step in self.unseen else sketches[step]

        def sketches(self, drawn: Drawn) -> dict[int, Floats]:
            self.unseen = sorted(set(drawn.kept) - set(drawn.opened_kept))[1:2]
            return super().sketches(drawn)

    verdict = verdict_of(answered(long(Infinite), steps=(1,)))
    assert "not-finite" in {flag.screen for flag in verdict.flags}


def test_sketches_of_states_that_are_not_opened_are_the_provers_word() -> None:
    """A limit: which states are opened is known to the prover before it gives its sketches. Between two of them a jump
    can be told as a ramp, which is flagged only where it is steep. The drawn steps meet it like any forged step."""

    class Ramps(Tells):
        by = 24.0

        def told(self, step: int, sketches: dict[int, Floats]) -> Floats:
            after = min(other for other in self.opened if other >= 10)
            before = max(other for other in self.opened if other < 10)
            if not before < step < after:
                return sketches[step]
            share = (step - before) / (after - before)
            return tuple(x + share * (y - x) for x, y in zip(sketches[before], sketches[after], strict=True))

        def sketches(self, drawn: Drawn) -> dict[int, Floats]:
            self.opened = {0, *drawn.opened_kept}
            return super().sketches(drawn)

    class Honestly(Splices):
        by = 24.0

    told, true = set(), set()
    for number in range(12):
        for cheat, found in ((Ramps, told), (Honestly, true)):
            verdict = verdict_of(answered(long(cheat, name=f"prover {number}"), steps=(1,)))
            found.add(verdict.verdict)
    assert "accepted" in told and true == {"rejected"}
    assert verdict_of(answered(long(Ramps), 24)).verdict == "rejected"


# --- strategies -----------------------------------------------------------------------------------------------


def test_mixed_adds_the_ends_and_the_largest_displacements() -> None:
    staged = long()
    verdict = accepted(answered(staged, strategy="mixed"))
    assert len(verdict.steps) == 4 and {1, 24} <= {*verdict.steps, *verdict.added}
    assert isinstance(staged.prover, Surges) and set(staged.prover.surges) <= set(verdict.reexecuted)
    assert verdict.probability == detection(24, forged_steps(24, 0.05), 4), "what is not random buys none"


def test_mixed_without_its_last_step() -> None:
    found = Case(strategy="mixed")
    assert 24 in found.added
    opening = found.opened(*(step for step in found.added if step != 24))
    rejected(found.verify(opening), "V11", "steps that the sketches add")


def test_top_q_draws_nothing_at_random() -> None:
    staged = long()
    verdict = accepted(answered(staged, 1, strategy="top-q"))
    assert verdict.steps == () and verdict.added and verdict.reexecuted == verdict.added
    assert verdict.probability == 0.0


def test_top_q_takes_any_number_although_there_are_not_as_many_steps() -> None:
    verdict = accepted(answered(long(), 1000, strategy="top-q"))
    assert len(verdict.added) >= 8, "one of each interval"


def test_top_q_needs_two_kept_states_and_no_screens() -> None:
    verdict = accepted(answered(scene(Long, heads=(24,), keep=24), 1, strategy="top-q"))
    assert len(verdict.added) == 1 and dict(verdict.checks)["V11"] == "not checked"


def test_top_q_that_adds_nothing() -> None:
    found = Case(count=1, strategy="top-q")
    rejected(found.verify(found.opening.disclosing(added=())), "V7", "challenged steps")


def test_top_q_misses_what_is_small() -> None:
    """Blindfold top-q (Fang et al., EuroS&P 2023, §6.2): forged updates that are smaller than others are never met."""

    class Small(Surges):
        forged = 5

        def update(self, step: int, outcome: Outcome) -> State:
            if step != self.forged:
                return outcome.state
            tensors = {**outcome.state.tensors, WEIGHT: self.states[-1].tensors[WEIGHT]}
            return replace(outcome.state, tensors=tensors)

    met = set()
    for number in range(6):
        verification = answered(long(Small, name=f"prover {number}"), 1, strategy="top-q")
        met.add(verdict_of(verification).verdict)
    assert "accepted" in met
    rejected(answered(long(Small), 24), "V10", "state after the step", at=5)


def test_a_policy_that_demands_detection_is_not_content_with_top_q() -> None:
    staged = long()
    verifying = {"policy": policy_for(staged.ledger, probability=0.01)}
    inconclusive(answered(staged, 1000, strategy="top-q", verifying=verifying), ("V6", "probability of detection"))


# --- in another environment -----------------------------------------------------------------------------------

ALIGNED = replace(PROFILE, pairs=Spread(mean=0.0, sd=0.1, bound=0.6))


class Sees(HonestReplayer):
    """Keeps the job; residuals of steps that are `aligned` point one way, and idle steps have no stride."""

    def __init__(self, aligned: frozenset[int] = frozenset(), idle: frozenset[int] = frozenset()) -> None:
        super().__init__(ELSEWHERE)
        self.aligned, self.idle = aligned, idle
        self.steps: list[int] = []

    def _residuals(self, job: ReplayJob, fetch: Any) -> tuple[float, ...]:
        self.steps = [record.step for record in job.steps]
        return tuple(
            0.9 if {a, b} <= self.aligned else 0.0
            for position, a in enumerate(self.steps)
            for b in self.steps[position + 1 :]
        )

    def _measure(self, job: ReplayJob, record: StepRecord, *arguments: Any) -> Measured:
        found = super()._measure(job, record, *arguments)
        return replace(found, stride=0.0) if record.step in self.idle else found


@pytest.fixture(scope="module")
def foreign() -> Case:
    return Case(gradients=True)


def test_the_follow_up_is_of_the_added_steps_too(foreign: Case) -> None:
    verdict = accepted(foreign.verify(replayer=HonestReplayer(ELSEWHERE), profiles=(PROFILE,)))
    assert verdict.tolerated == tuple(sorted({*verdict.steps, *verdict.added}))
    shown = foreign.opening.openings.gradients
    assert shown is not None
    fewer = tuple(gradient for gradient in shown if gradient.step != foreign.added[0])
    rejected(foreign.verify(foreign.opening.opening(gradients=fewer)), "V8", "gradients")


def test_drawn_steps_are_re_executed_first(foreign: Case) -> None:
    """The residuals of the first 64 are compared with each other: decoys must not take the drawn ones' places."""
    replayer = Sees()
    accepted(foreign.verify(replayer=replayer, profiles=(PROFILE,)))
    assert replayer.steps == [*foreign.drawn.steps, *foreign.added]


def test_alignment_is_that_of_the_drawn_steps(foreign: Case) -> None:
    chosen = frozenset(foreign.added)
    accepted(foreign.verify(replayer=Sees(chosen), profiles=(ALIGNED,)))
    drawn = frozenset(foreign.drawn.steps)
    verification = foreign.verify(replayer=Sees(drawn), profiles=(ALIGNED,))
    rejected(verification, "V10", "cosines of the residuals of every two steps")


def test_added_steps_do_not_shorten_the_reach(foreign: Case) -> None:
    """A prover who has idle stretches flagged would pay for large steps with small ones."""
    whole = accepted(foreign.verify(replayer=Sees(), profiles=(PROFILE,)))
    idle = accepted(foreign.verify(replayer=Sees(idle=frozenset(foreign.added)), profiles=(PROFILE,)))
    assert whole.reach == idle.reach is not None


def test_top_q_within_tolerance() -> None:
    staged = long()
    verifying = {"replayer": HonestReplayer(ELSEWHERE), "profiles": (PROFILE,)}
    verdict = accepted(answered(staged, 2, strategy="top-q", gradients=True, verifying=verifying))
    assert verdict.tolerated == verdict.added and verdict.probability == 0.0
    assert verdict.reach is not None and math.isfinite(verdict.reach)


def test_a_report_in_another_order_is_no_verdict(foreign: Case) -> None:
    class Sorts(HonestReplayer):
        def _replayed(self, *arguments: Any) -> Any:
            report = super()._replayed(*arguments)
            return replace(report, steps=tuple(sorted(report.steps, key=lambda step: -step.step)))

    with pytest.raises(Unavailable, match="did not report every step"):
        foreign.verify(replayer=Sorts(ELSEWHERE), profiles=(PROFILE,))


# --- budgets --------------------------------------------------------------------------------------------------


def test_added_steps_count_against_the_budget(case: Case) -> None:
    verdict = verdict_of(case.verify())
    left = {budget.verifier: budget.steps for budget in verdict.budgets}
    assert left[Verifier().public] == 100 - len(verdict.steps) - len(verdict.added)


def test_a_budget_that_the_added_steps_exhaust() -> None:
    verifier = Verifier()
    staged = long(verifier=verifier, eligible=(verifier.eligible(steps=4),))
    challenge = staged.challenge(4)
    staged.prover.accept(challenge)         # the drawn ones alone are within it
    with pytest.raises(BudgetExhausted, match="steps would be disclosed to this verifier, the manifest allows 4"):
        staged.prover.respond(challenge)


def test_added_steps_of_an_earlier_challenge_were_disclosed() -> None:
    staged = long()
    first = verdict_of(verification := answered(staged, nonce="first"))
    staged.prover.receipts[1] = encode(staged.verifier.signed(verification))
    second = verdict_of(answered(staged, nonce="second"))
    shown = {*first.reexecuted, *second.reexecuted}
    left = {budget.verifier: budget.steps for budget in second.budgets}
    assert left[Verifier().public] == 100 - len(shown)


# --- the third party ------------------------------------------------------------------------------------------


def judged(case: Case, **lie: Any) -> Judgement:
    """What a reader makes of another verdict, by a verifier that they trust."""
    evidence = case.scene.evidence(case.verify())
    verdict: Verdict = replace(evidence.receipt.verdict, **lie)
    signed = replace(evidence, receipt=sign_verdict(case.scene.verifier.key, verdict))
    return judge(signed, policy_for(case.scene.ledger, case.scene.verifier.public), case.scene.ledger)


def test_a_reader_accepts_flags(case: Case) -> None:
    judgement = judged(case)
    assert judgement.verdict == "accepted" and dict(judgement.checks)["V11"] == "flagged"


def checks_with(case: Case, outcome: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, outcome if name == "V11" else old) for name, old in verdict_of(case.verify()).checks)


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        ({"added": ()}, "'added' in the verdict"),
        ({"reexecuted": "drawn"}, "re-executed steps"),
        ({"probability": "all"}, "probability of detection"),
        ({"checks": "not checked"}, "V11 of an accepted run"),
        ({"checks": "passed"}, "V11 of an accepted run"),
        ({"flags": ()}, "V11 of an accepted run"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_verifier_who_makes_something_else_of_them(case: Case, lie: dict[str, Any], what: str) -> None:
    verdict = verdict_of(case.verify())
    all_of_them = detection(24, forged_steps(24, 0.05), len(verdict.reexecuted))
    values = {"drawn": verdict.steps, "all": all_of_them}
    lie = {name: values.get(value, value) if isinstance(value, str) else value for name, value in lie.items()}
    if "checks" in lie:
        lie["checks"] = checks_with(case, lie["checks"])
    judgement = judged(case, **lie)
    assert judgement.verdict == "rejected"
    assert [(finding.check, finding.what) for finding in judgement.findings] == [("V1", what)]


def test_a_verifier_who_screens_what_cannot_be() -> None:
    class Few(Surges):
        keep = 8

    few = Case.__new__(Case)
    few.scene = scene(Few, heads=(16, 8))
    few.challenge = few.scene.challenge()
    few.opening = few.scene.prover.respond(few.challenge)
    assert judged(few).verdict == "accepted"
    judgement = judged(few, checks=checks_with(few, "passed"))
    assert [(finding.check, finding.what) for finding in judgement.findings] == [("V1", "V11 of an accepted run")]
