"""V10 between environments, as the state machine and a third party see it: what is accepted within a tolerance, what
is refuted without one, and what stays open. The fakes' gradients are a little different in each environment."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from fakes import (
    ELSEWHERE,
    ENVIRONMENT,
    HonestReplayer,
    Opening,
    Outcome,
    Prover,
    Scene,
    State,
    changed,
    execute,
    floats,
    packed,
    policy_for,
    scene,
    values_of,
)
from verdicts import NO_PROFILE, PROFILE, accepted, answered, inconclusive, rejected, verdict_of

from polcommit.encoding import digest, encode
from polcommit.errors import UsageError
from polcommit.evidence import Judgement, judge
from polcommit.profiles import Profile, Spread
from polcommit.profiles import digest as profile_digest
from polcommit.records import Challenge, Distance, Evidence, Fingerprint, OpenedState, StepRecord, Verdict
from polcommit.replaying import Measured, TensorDistance
from polcommit.signing import sign_verdict
from polcommit.verifier import Verification

STRICT = replace(
    PROFILE,
    distances=Spread(mean=1e-4, sd=1e-4, bound=0.02),
    towards=Spread(mean=0.0, sd=0.1, bound=0.6),
    pairs=Spread(mean=0.0, sd=0.1, bound=0.6),
)
THIRD = Fingerprint(items=(("kernels", "plain"), ("threads", "3")))

NOT_ASKED = ("V10", "gradients to compare were not asked for")
OTHER_BITS = ("V10", "same environment claimed, different bits")
REACH = ("V10", "reach of the tolerance")
ALL = 12


def there(*, count: int = 4, gradients: bool = True, profiles: tuple[Profile, ...] = (PROFILE,), **more: Any) -> Any:
    """A verification elsewhere than where the run was recorded."""
    verifying = {"profiles": profiles, "policy": more.pop("policy", None), "model": more.pop("model", None)}
    verifying["replayer"] = more.pop("replayer", None) or HonestReplayer(ELSEWHERE, **more.pop("told", {}))
    return answered(scene(more.pop("cheat", Prover)), count, gradients=gradients, verifying=verifying)


class Bent(Prover):
    """Every gradient is bent by a share of its length, and training goes on from there."""

    share = 0.03

    def execute(self, step: int, fed: list[bytes]) -> Outcome:
        honest = super().execute(step, fed)
        gradient = packed(x * (1 + self.share) for x in values_of(honest.gradient))
        led = execute(self.states[-1], step, fed, self.seed, self.environments[-1][1], gradient)
        return replace(led, gradient=gradient)


class HalfBent(Bent):
    share = 0.6


class Jumps(Prover):
    """Opens the true gradients, from which other states follow than were committed."""

    def update(self, step: int, outcome: Outcome) -> State:
        stolen = {"parameter/weight": floats(b"stolen", 6)}
        return replace(outcome.state, tensors={**outcome.state.tensors, **stolen})


class ClaimsHere(Prover):
    """Recorded elsewhere, whatever is claimed: an item that bits depend on is missing from its fingerprint."""

    def execute(self, step: int, fed: list[bytes]) -> Outcome:
        return execute(self.states[-1], step, fed, self.seed, THIRD)


class LiesAboutLoss(Prover):
    def recorded(self, record: StepRecord) -> StepRecord:
        return replace(record, loss=record.loss / 2)


# --- without gradients ----------------------------------------------------------------------------------------


def test_another_environment_wants_gradients() -> None:
    verification = there(gradients=False)
    assert verification.unsettled == "it was recorded in another environment"
    verdict = inconclusive(verification, NOT_ASKED)
    assert (verdict.reexecuted, verdict.tolerated, verdict.probability) == ((), (), 0.0)
    assert dict(verdict.checks)["V9"] == "not settled", "the batch as fed to the model was compared with nothing"


def test_and_says_so_without_a_profile_too() -> None:
    verification = there(gradients=False, profiles=())
    assert verification.unsettled is not None
    inconclusive(verification, NO_PROFILE)


def test_what_settles_itself_wants_none() -> None:
    assert answered(scene()).unsettled is None


def test_a_released_model_that_is_another_is_refuted_without_gradients() -> None:
    """What gradients cannot change is not asked for again: the prover would only stop answering."""
    staged = scene()
    model = staged.prover.model(weight=("float32", (2, 3), bytes(32)))
    verification = there(gradients=False, model=model)
    rejected(verification, "V13", "tensor weight of the released model")
    assert verification.unsettled is None


# --- with gradients -------------------------------------------------------------------------------------------


def test_an_honest_run_is_accepted_within_tolerance() -> None:
    verification = there()
    verdict = accepted(verification)
    assert verdict.basis == "within-tolerance" and verification.unsettled is None
    assert verdict.tolerated == verdict.steps and verdict.reexecuted == ()
    assert tuple(distance.step for distance in verdict.distances) == verdict.steps
    assert all(0 < distance.value < 1e-3 and distance.tolerance == 0.02 for distance in verdict.distances)
    assert verdict.profiles == (profile_digest(PROFILE),)
    assert verdict.reach is not None and 0 < verdict.reach < 1
    assert verdict.environment == digest(ELSEWHERE)
    assert verdict.probability == pytest.approx(1 / 3), "steps within tolerance buy detection"
    assert dict(verdict.checks)["V9"] == dict(verdict.checks)["V10"] == "passed"


def test_the_profile_holds_in_either_direction() -> None:
    class Elsewhere(Prover):
        def start(self) -> None:
            self.environments = [(1, ELSEWHERE)]
            super().start()

    verdict = accepted(there(cheat=Elsewhere, replayer=HonestReplayer(ENVIRONMENT)))
    assert verdict.tolerated == verdict.steps


def test_without_a_profile_nothing_is_accepted() -> None:
    verdict = inconclusive(there(profiles=()), NO_PROFILE)
    assert verdict.tolerated == () and verdict.profiles == () and verdict.reach is None
    assert verdict.probability == 0.0
    assert tuple(distance.step for distance in verdict.distances) == verdict.steps, "measured all the same"


def test_a_profile_of_another_pair_is_none() -> None:
    other = replace(PROFILE, differs=(("threads", "1", "4"),))
    inconclusive(there(profiles=(other,)), NO_PROFILE)


def test_a_bent_gradient_is_refuted() -> None:
    verification = there(cheat=Bent, count=ALL)
    finding = rejected(verification, "V10", "gradient", at=1)
    assert finding.expected == "within 0.02 of its norm"


def test_a_gradient_bent_within_tolerance_is_not_seen_step_by_step() -> None:
    """α is a security parameter: what the profile allows, a forger may use at every step."""

    class Careful(Bent):
        share = 0.01

    assert accepted(there(cheat=Careful, count=ALL)).basis == "within-tolerance"
    rejected(there(cheat=Careful, count=ALL, profiles=(STRICT,)), "V10", "distances of the gradients")


@pytest.mark.parametrize("profiles", [(), (PROFILE,)])
def test_half_of_a_gradient_is_too_much_with_or_without_a_profile(profiles: tuple[Profile, ...]) -> None:
    rejected(there(cheat=HalfBent, count=ALL, profiles=profiles), "V10", "gradient", at=1)


@pytest.mark.parametrize("profiles", [(), (PROFILE,)])
def test_an_update_that_does_not_follow_from_the_opened_gradient(profiles: tuple[Profile, ...]) -> None:
    rejected(there(cheat=Jumps, count=ALL, profiles=profiles), "V10", "state after the step", at=1)


def test_the_gradient_that_would_lead_there_is_too_far() -> None:
    """Whoever opens another gradient than was computed, so that the update follows, fails test 1."""

    class Fits(Prover):
        def execute(self, step: int, fed: list[bytes]) -> Outcome:
            gradient = floats(b"towards a stolen model", 6)
            led = execute(self.states[-1], step, fed, self.seed, ENVIRONMENT, gradient)
            return replace(led, gradient=gradient)

    rejected(there(cheat=Fits, count=ALL, profiles=()), "V10", "gradient", at=1)


def test_a_loss_beyond_tolerance() -> None:
    rejected(there(cheat=LiesAboutLoss, count=ALL), "V10", "loss", at=1)


# --- the follow-up is what was asked for ----------------------------------------------------------------------


class Followed:
    """An honest run, challenged elsewhere with gradients and opened once."""

    def __init__(self) -> None:
        self.scene: Scene = scene()
        self.challenge: Challenge = self.scene.challenge(gradients=True)
        self.opening: Opening = self.scene.prover.respond(self.challenge)
        self.steps = self.scene.prover.draw(self.challenge).steps

    def verify(self, opening: Opening, challenge: Challenge | None = None) -> Verification:
        return self.scene.verify(
            challenge or self.challenge, opening, replayer=HonestReplayer(ELSEWHERE), profiles=(PROFILE,)
        )


@pytest.fixture(scope="module")
def followed() -> Followed:
    return Followed()


def test_the_follow_up_is_of_the_same_draw(followed: Followed) -> None:
    before = replace(followed.challenge, gradients=False)
    first = followed.scene.prover.open(before, followed.scene.prover.draw(before))
    assert followed.verify(first, before).unsettled is not None
    assert accepted(followed.verify(followed.opening)).steps == verdict_of(followed.verify(first, before)).steps


def test_gradients_that_were_not_asked_for(followed: Followed) -> None:
    before = replace(followed.challenge, gradients=False)
    rejected(followed.verify(followed.opening, before), "V1", "gradients in an opening")


@pytest.mark.parametrize("missing", [("gradients",), ("next_states",), ("gradients", "next_states")])
def test_gradients_or_next_states_missing(followed: Followed, missing: tuple[str, ...]) -> None:
    opening = followed.opening.opening(**dict.fromkeys(missing))
    rejected(followed.verify(opening), "V1", "gradients in an opening")


@pytest.mark.parametrize(("field", "what"), [("gradients", "gradients"), ("next_states", "next states")])
@pytest.mark.parametrize("spoil", ["fewer", "twice", "other", "none"])
def test_gradients_of_other_steps(followed: Followed, field: str, what: str, spoil: str) -> None:
    shown = getattr(followed.opening.openings, field)
    other = {
        "fewer": shown[1:],
        "twice": (shown[0], *shown),
        "other": (replace(shown[0], step=99), *shown[1:]),
        "none": (),
    }
    rejected(followed.verify(followed.opening.opening(**{field: other[spoil]})), "V8", what)


def test_a_next_state_with_another_digest(followed: Followed) -> None:
    """The state before the step, say, so that nothing seems to have happened."""
    shown = followed.opening.openings.next_states
    assert shown is not None
    before = followed.scene.prover.states[followed.steps[0] - 1].index()
    opening = followed.opening.opening(next_states=(OpenedState(step=shown[0].step, index=before), *shown[1:]))
    rejected(followed.verify(opening), "V8", "state after the step", at=followed.steps[0])


def test_another_gradient_than_led_to_the_next_state(followed: Followed) -> None:
    """Opened in its place is one that this environment would find at no distance at all."""
    shown = followed.opening.openings.gradients
    assert shown is not None
    prover, step = followed.scene.prover, followed.steps[0]
    fed = [prover.contents[index] for index in prover.indices(step)]
    here = execute(prover.states[step - 1], step, fed, prover.seed, ELSEWHERE).gradient
    honest, prover.gradients[step] = prover.gradients[step], here
    opening = prover.open(followed.challenge, prover.draw(followed.challenge))
    prover.gradients[step] = honest
    rejected(followed.verify(opening), "V10", "state after the step", at=step)


def test_a_gradient_of_no_parameter(followed: Followed) -> None:
    shown = followed.opening.openings.gradients
    assert shown is not None
    nothing = replace(shown[0], tensors=())
    opening = followed.opening.opening(gradients=(nothing, *shown[1:]))
    rejected(followed.verify(opening), "V8", "gradient", shown[0].step)


# --- the same environment claimed -----------------------------------------------------------------------------


def test_other_bits_without_gradients_are_refuted_and_may_be_followed_up() -> None:
    verification = answered(scene(ClaimsHere), ALL)
    rejected(verification, "V10", "loss", at=1)
    assert verification.unsettled == "the environment that is claimed gives other bits"


def test_other_bits_with_gradients_that_agree_are_neither() -> None:
    """Never accepted, profile or not: exactness is what a claim of the same environment is held to."""
    verification = answered(scene(ClaimsHere), ALL, gradients=True, verifying={"profiles": (PROFILE,)})
    verdict = inconclusive(verification, OTHER_BITS)
    assert (verdict.reexecuted, verdict.tolerated, verdict.probability) == ((), (), 0.0)
    assert verification.unsettled is None


def test_other_bits_are_not_drawn_again_until_they_are_missed() -> None:
    """A doubt that depends on which steps were drawn: until then every later verdict is inconclusive too."""
    staged = scene(ClaimsHere)
    first = staged.challenge(ALL, gradients=True, nonce="first")
    staged.prover.receipts[1] = encode(staged.verifier.signed(staged.verify(first, staged.prover.respond(first))))
    again = staged.challenge(1, gradients=True, nonce="second")
    verdict = staged.verify(again, staged.prover.respond(again)).verdict(staged.verifier.public)
    assert verdict.verdict == "inconclusive" and verdict.challenges[0].outcome == "not reproduced"
    assert ("V6", "challenge 1 was not reproduced") in [(found.check, found.what) for found in verdict.findings]


@pytest.mark.parametrize("gradients", [False, True])
def test_a_follow_up_shows_no_step_that_a_budget_did_not_cover_before(gradients: bool) -> None:
    staged = scene()
    challenge = staged.challenge(ALL, gradients=gradients)
    verification = staged.verify(challenge, staged.prover.respond(challenge))
    verification.refuse("budget", "12 steps, 4 allowed")
    assert verification.verdict(staged.verifier.public).verdict == ("rejected" if gradients else "inconclusive")


@pytest.mark.parametrize(
    ("cheat", "what"), [(HalfBent, "gradient"), (Jumps, "state after the step")], ids=["bent", "jumps"]
)
def test_other_bits_with_gradients_that_do_not_agree(cheat: type[Prover], what: str) -> None:
    rejected(answered(scene(cheat), ALL, gradients=True), "V10", what, at=1)


def test_right_bits_with_gradients_are_bit_exact() -> None:
    verdict = accepted(answered(scene(), gradients=True, verifying={"profiles": (PROFILE,)}))
    assert verdict.basis == "bit-exact" and verdict.reexecuted == verdict.steps
    assert verdict.distances == () and verdict.reach is None and verdict.profiles == ()


@pytest.mark.parametrize("gradients", [False, True])
def test_a_lie_about_the_loss_beside_the_right_bits_is_no_noise(gradients: bool) -> None:
    """The gradients, which are honest, do not turn it into a doubt, and are not asked for."""
    verification = answered(scene(LiesAboutLoss), ALL, gradients=gradients)
    rejected(verification, "V10", "loss", at=1)
    assert verification.unsettled is None


def test_another_batch_is_refuted_whatever_the_gradients_say() -> None:
    class Feeds(Prover):
        def recorded(self, record: StepRecord) -> StepRecord:
            return replace(record, batch=bytes(32))

    verification = answered(scene(Feeds), ALL)
    rejected(verification, "V9", "batch as fed to the model", at=1)
    assert verification.unsettled is None


def test_an_optimizer_without_a_bound_excuses_no_other_bits() -> None:
    """Only bits can settle its steps, and they have: the verdict is not left open for ever."""
    replayer = HonestReplayer(seen={"exact_only": "16-bit parameters"})
    verification = answered(scene(ClaimsHere), ALL, gradients=True, verifying={"replayer": replayer})
    rejected(verification, "V10", "loss", at=1)


def test_a_machine_that_does_not_reproduce_itself_says_so_with_gradients_too() -> None:
    verifying = {"replayer": HonestReplayer(reproduces=False)}
    inconclusive(
        answered(scene(), gradients=True, verifying=verifying), ("V10", "this machine does not reproduce itself")
    )


# --- numbers that are none ------------------------------------------------------------------------------------

WHOLE = TensorDistance(name="weight", distance=1e-5, opened=1.0, here=1.0, size=6, zeros=0)


@pytest.mark.parametrize(
    "seen",
    [
        {"distance": math.nan},
        {"opened": math.nan},
        {"here": math.nan},
        {"distance": math.inf},
        {"distance": math.inf, "opened": math.inf, "here": math.inf},
        {"tensors": (replace(WHOLE, distance=math.nan),)},
        {"tensors": (replace(WHOLE, opened=math.nan),)},
        {"tensors": (replace(WHOLE, here=math.nan),)},
        {"finite": (False, True)},
        {"finite": (True, False)},
        {"update": ("parameter/weight", math.nan)},
        {"loss": math.nan},
        {"learning_rate": math.nan},
        {"towards": math.nan},
        {"missing": ("tied",)},
    ],
    ids=str,
)
def test_what_is_not_a_number_does_not_pass(seen: dict[str, Any]) -> None:
    verdict = verdict_of(there(told={"seen": seen}))
    assert verdict.verdict == "rejected" and verdict.findings[0].check == "V10"


def test_nor_does_it_beside_an_infinite_preconditioner() -> None:
    adaptive = replace(PROFILE, alpha_preconditioned=0.05, distances_preconditioned=PROFILE.distances)
    for pair in ((math.inf, math.inf), (math.nan, 1.0), (0.0, math.nan), (0.0, math.inf)):
        verification = there(profiles=(adaptive,), told={"seen": {"preconditioned": pair}})
        assert verdict_of(verification).verdict == "rejected", pair


@pytest.mark.parametrize(
    "told",
    [{"seen": {"stride": math.nan}}, {"seen": {"stride": math.inf}}, {"span": math.nan}, {"span": None}, {"span": 0.0}],
    ids=str,
)
def test_a_reach_that_is_not_known_is_not_within_bounds(told: dict[str, Any]) -> None:
    verdict = inconclusive(there(told=told), REACH)
    assert verdict.reach == math.inf


def test_a_gradient_that_overflowed_and_was_applied_is_compared_where_it_is_finite() -> None:
    """'Could not check' would be drawn again until it is missed; and one infinite element must not hide any others."""
    accepted(there(told={"seen": {"finite": (False, False)}}))
    verification = there(told={"seen": {"finite": (False, False), "distance": math.inf}})
    rejected(verification, "V10", "gradient", at=1)


def test_nor_does_it_in_the_environment_that_is_claimed() -> None:
    replayer = HonestReplayer(seen={"finite": (False, False)})
    verification = answered(scene(ClaimsHere), ALL, gradients=True, verifying={"replayer": replayer})
    rejected(verification, "V10", "loss", at=1)


def test_a_step_without_a_bound_is_a_doubt() -> None:
    verification = there(told={"seen": {"exact_only": "16-bit parameters"}})
    verdict = verdict_of(verification)
    assert verdict.verdict == "inconclusive" and verdict.tolerated == () and verdict.probability == 0.0
    assert "can be compared bit for bit only: 16-bit parameters" in verdict.findings[0].what


# --- alignment and reach --------------------------------------------------------------------------------------


def test_residuals_that_point_towards_the_last_state() -> None:
    aimed = {"seen": {"towards": 0.99}}
    finding = rejected(
        there(profiles=(STRICT,), told=aimed), "V10", "cosines of the residuals with the way to the last state"
    )
    assert finding.found == "0.99"


def test_residuals_that_point_all_one_way() -> None:
    told = {"seen": {"towards": 0.0}, "residuals": (0.9,) * 6}
    rejected(there(profiles=(STRICT,), told=told), "V10", "cosines of the residuals of every two steps")


def test_residuals_without_a_direction() -> None:
    accepted(there(profiles=(STRICT,), told={"seen": {"towards": 0.0}}))


def test_steps_that_overflowed_do_not_dilute_the_others() -> None:
    """Nine of twelve were skipped, and the pairs of the three that were not point one way."""

    class Skips(HonestReplayer):
        def _measure(self, job: Any, record: StepRecord, *arguments: Any) -> Measured:
            found = super()._measure(job, record, *arguments)
            return found if record.step % 4 == 0 else replace(found, finite=(False, False), skipped=True)

        def _residuals(self, job: Any, fetch: Any) -> tuple[float, ...]:
            steps = [record.step for record in job.steps]
            return tuple(
                0.9 if a % 4 == b % 4 == 0 else 0.0
                for position, a in enumerate(steps)
                for b in steps[position + 1 :]
            )

    class Skipping(Prover):
        def recorded(self, record: StepRecord) -> StepRecord:
            return replace(record, skipped=record.step % 4 != 0)

    replayer = Skips(ELSEWHERE, seen={"towards": 0.0})
    verification = there(cheat=Skipping, count=ALL, profiles=(STRICT,), replayer=replayer)
    rejected(verification, "V10", "cosines of the residuals of every two steps")


def test_a_reach_beyond_the_policys() -> None:
    verdict = inconclusive(there(told={"span": 1e-3}), REACH)
    assert verdict.reach is not None and verdict.reach > 1
    staged = scene()
    lenient = policy_for(staged.ledger, reach=1e6)
    assert accepted(there(told={"span": 1e-3}, policy=lenient)).reach == verdict.reach


def test_a_policy_that_accepts_no_tolerance() -> None:
    exact = policy_for(scene().ledger, tolerance=False)
    verdict = inconclusive(there(policy=exact), ("V10", "basis"))
    assert verdict.findings[0].expected == "bit-exact, by your policy"


# --- epochs ---------------------------------------------------------------------------------------------------


def resumed(environment: Fingerprint = ELSEWHERE) -> Scene:
    """Steps 1 to 5 here, and 6 to 12 elsewhere."""
    staged = scene(heads=(5,))
    staged.prover.environments.append((6, environment))
    staged.anchor = staged.prover.train(7).anchor()
    return staged


@pytest.mark.parametrize("here", [ENVIRONMENT, ELSEWHERE])
def test_each_epoch_is_judged_by_its_own_environment(here: Fingerprint) -> None:
    verifying = {"replayer": HonestReplayer(here), "profiles": (PROFILE,)}
    verdict = accepted(answered(resumed(), ALL, gradients=True, verifying=verifying))
    first, second = tuple(range(1, 6)), tuple(range(6, 13))
    assert (verdict.reexecuted, verdict.tolerated) == ((first, second) if here == ENVIRONMENT else (second, first))
    assert verdict.basis == "within-tolerance" and verdict.probability == 1.0


def test_the_tolerance_of_one_epoch_is_not_anothers() -> None:
    verifying = {"replayer": HonestReplayer(ENVIRONMENT), "profiles": (PROFILE,)}
    verdict = inconclusive(answered(resumed(THIRD), ALL, gradients=True, verifying=verifying), NO_PROFILE)
    assert verdict.reexecuted == tuple(range(1, 6)) and verdict.tolerated == ()


@pytest.mark.parametrize("gradients", [False, True])
def test_an_epoch_that_no_step_is_drawn_of_needs_a_profile_all_the_same(gradients: bool) -> None:
    asked: dict[str, Any] = {"steps": (1, 2, 3), "gradients": gradients}
    inconclusive(answered(resumed(), **asked), NO_PROFILE)
    verdict = accepted(answered(resumed(), **asked, verifying={"profiles": (PROFILE,)}))
    assert verdict.reexecuted == (1, 2, 3) and verdict.tolerated == () and verdict.reach is None
    assert verdict.basis == "within-tolerance", "a step of that epoch would have been accepted so"
    assert verdict.profiles == (profile_digest(PROFILE),)


def test_a_policy_that_accepts_no_tolerance_accepts_no_such_epoch() -> None:
    """Else forged steps in it are drawn again until none of them is met."""
    staged = resumed()
    verifying = {"profiles": (PROFILE,), "policy": policy_for(staged.ledger, tolerance=False)}
    inconclusive(answered(staged, steps=(1, 2, 3), verifying=verifying), ("V10", "basis"))


def test_reach_counts_the_steps_of_its_epochs() -> None:
    whole = accepted(there(count=ALL))
    verifying = {"replayer": HonestReplayer(ENVIRONMENT), "profiles": (PROFILE,)}
    part = accepted(answered(resumed(), ALL, gradients=True, verifying=verifying))
    assert whole.reach is not None and part.reach is not None and part.reach < whole.reach


# --- profiles that are demanded -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "digits"}, "of recipe 'digits', not 'fake'"),
        ({"recipe_source": bytes(32)}, "of another source of recipe 'fake'"),
        ({"configuration": (("batch", "4"),)}, "of another configuration: 'batch' '4', not '3'"),
        ({"differs": (("threads", "1", "4"),)}, "of another pair of environments: 'threads' '1' and '4' there"),
        ({"holds": (("kernels", "fast"),)}, "of another environment: 'kernels' 'fast'"),
    ],
)
def test_a_demanded_profile_that_does_not_fit_is_an_error(changes: dict[str, Any], message: str) -> None:
    """Whatever else there is that would: who names one means it."""
    staged = scene()
    challenge = staged.challenge(gradients=True)
    opening = staged.prover.respond(challenge)
    options: dict[str, Any] = {"replayer": HonestReplayer(ELSEWHERE), "profiles": (PROFILE,)}
    with pytest.raises(UsageError, match=f"noise profile 'one thread and two' is {message}"):
        staged.verify(challenge, opening, demanded=(replace(PROFILE, **changes),), **options)
    accepted(staged.verify(challenge, opening, demanded=(PROFILE,), **options | {"profiles": ()}))


def test_a_demanded_profile_is_no_use_where_nothing_was_recorded_elsewhere() -> None:
    with pytest.raises(UsageError, match="of another pair of environments: 'threads'"):
        answered(scene(), verifying={"demanded": (PROFILE,)})


def test_a_demanded_profile_comes_before_the_others() -> None:
    tighter = replace(PROFILE, name="tighter", alpha=0.01)
    verifying = {"replayer": HonestReplayer(ELSEWHERE), "profiles": (PROFILE,), "demanded": (tighter,)}
    verdict = accepted(answered(scene(), gradients=True, verifying=verifying))
    assert verdict.profiles == (profile_digest(tighter),) and verdict.distances[0].tolerance == 0.01


# --- the third party ------------------------------------------------------------------------------------------


class Bundle:
    """A run that a trusted verifier accepted within tolerance."""

    def __init__(self, staged: Scene | None = None, *, here: Fingerprint = ELSEWHERE, **asked: Any) -> None:
        self.scene = staged or scene()
        self.challenge = self.scene.challenge(gradients=True, **asked)
        self.opening = self.scene.prover.respond(self.challenge)
        self.verification = self.scene.verify(
            self.challenge, self.opening, replayer=HonestReplayer(here), profiles=(PROFILE,)
        )
        self.evidence = self.scene.evidence(self.verification)
        self.verdict: Verdict = self.evidence.receipt.verdict

    def judge(self, evidence: Evidence | None = None, **changes: Any) -> Judgement:
        policy = policy_for(self.scene.ledger, self.scene.verifier.public, **changes)
        return judge(evidence or self.evidence, policy, self.scene.ledger)

    def telling(self, **lie: Any) -> Evidence:
        """The same verifier signs something else."""
        verdict = replace(self.verdict, **lie)
        return replace(self.evidence, receipt=sign_verdict(self.scene.verifier.key, verdict))

    def refuted(self, what: str, **lie: Any) -> None:
        judgement = self.judge(self.telling(**lie))
        assert judgement.verdict == "rejected"
        assert [(finding.check, finding.what) for finding in judgement.findings] == [("V1", what)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle()


def test_a_reader_accepts_it_for_what_it_is(bundle: Bundle) -> None:
    judgement = bundle.judge()
    assert (judgement.verdict, judgement.basis) == ("accepted", "within-tolerance")


@pytest.mark.parametrize(
    ("policy", "check", "what"),
    [
        ({"tolerance": False}, "V10", "basis"),
        ({"reach": 1e-9}, "V10", "reach of the tolerance"),
        ({"probability": 0.5}, "V6", "probability of detection"),
    ],
)
def test_a_reader_may_demand_more(bundle: Bundle, policy: dict[str, Any], check: str, what: str) -> None:
    judgement = bundle.judge(**policy)
    assert (judgement.verdict, judgement.basis) == ("inconclusive", "none")
    assert [(finding.check, finding.what) for finding in judgement.findings] == [(check, what)]


def test_a_verifier_who_calls_it_bit_exact(bundle: Bundle) -> None:
    bundle.refuted("basis", basis="bit-exact")
    steps = bundle.verdict.steps
    bundle.refuted("basis", basis="bit-exact", reexecuted=steps, tolerated=(), distances=(), reach=None)


def test_a_verifier_who_re_executed_bit_for_bit_what_was_recorded_elsewhere(bundle: Bundle) -> None:
    exact = {"reexecuted": bundle.verdict.steps, "tolerated": (), "distances": (), "reach": None}
    bundle.refuted("how a step was compared", **exact)
    bundle.refuted("environment of the re-execution", **exact, profiles=(), basis="bit-exact")


def test_a_verifier_who_tolerates_what_was_recorded_in_its_own_environment() -> None:
    mixed = Bundle(resumed(), here=ENVIRONMENT, count=ALL)
    assert mixed.judge().verdict == "accepted"
    distance = Distance(step=1, value=0.01, tolerance=0.02)
    lie = {"reexecuted": mixed.verdict.reexecuted[1:], "tolerated": (1, *mixed.verdict.tolerated)}
    mixed.refuted("how a step was compared", **lie, distances=(distance, *mixed.verdict.distances))


@pytest.mark.parametrize(
    "value_and_tolerance",
    [(0.03, 0.02), (math.nan, 0.02), (0.01, math.nan), (-1.0, 0.02), (0.6, 0.7), (0.01, math.inf)],
)
def test_distances_that_are_not_within_a_tolerance(bundle: Bundle, value_and_tolerance: tuple[float, float]) -> None:
    """Nor is there a profile with a tolerance beyond one half."""
    value, tolerance = value_and_tolerance
    odd = Distance(step=bundle.verdict.tolerated[0], value=value, tolerance=tolerance)
    bundle.refuted("distances", distances=(odd, *bundle.verdict.distances[1:]))


def test_distances_of_other_steps(bundle: Bundle) -> None:
    bundle.refuted("steps within tolerance", distances=bundle.verdict.distances[1:])
    bundle.refuted("steps within tolerance", distances=(*bundle.verdict.distances, bundle.verdict.distances[-1]))


@pytest.mark.parametrize("reach", [None, math.nan, -1.0])
def test_a_reach_that_is_none(bundle: Bundle, reach: float | None) -> None:
    bundle.refuted("reach of the tolerance", reach=reach)


def test_tolerance_without_a_profile(bundle: Bundle) -> None:
    bundle.refuted("environment of the re-execution", profiles=())


def test_a_bundle_whose_own_environment_is_hidden() -> None:
    """Without one, every step was recorded elsewhere."""
    exact = Bundle(here=ENVIRONMENT)
    assert exact.verdict.basis == "bit-exact"
    exact.refuted("environment of the re-execution", environment=None)
    exact.refuted("how a step was compared", environment=None, profiles=(bytes(32),), basis="within-tolerance")


def test_ones_own_re_execution_within_tolerance(bundle: Bundle) -> None:
    """The bundle holds gradients in clear, so that the reader's own environment may be another as well."""
    clear = replace(bundle.evidence, openings=bundle.opening.openings)

    def replay(challenge: Challenge, evidence: Evidence) -> Verdict:
        assert challenge.gradients and evidence.disclosure is not None and evidence.openings is not None
        opening = Opening(evidence.disclosure, evidence.openings, bundle.opening.blobs)
        head = evidence.disclosure.heads[-1]
        replayer = HonestReplayer(ELSEWHERE)
        own = bundle.scene.verifier.verify(
            bundle.scene.ledger, challenge, head, opening, replayer=replayer, profiles=(PROFILE,)
        )
        return own.verdict(bytes(32))

    judgement = judge(clear, policy_for(bundle.scene.ledger), bundle.scene.ledger, replay)
    assert (judgement.verdict, judgement.basis) == ("accepted", "within-tolerance")


def test_a_bundle_of_the_follow_up_does_not_pass_for_the_first_answer(bundle: Bundle) -> None:
    """The digest of the openings says which of the two was verified."""
    first = replace(bundle.opening.openings, gradients=None, next_states=None)
    evidence = changed(bundle.evidence, openings=first)
    judgement = bundle.judge(evidence)
    assert judgement.verdict == "rejected" and judgement.findings[0].what == "openings"


def test_the_fakes_differ_between_environments_in_the_gradient_alone() -> None:
    """Of the tests themselves: from the opened gradient the same state follows everywhere."""
    prover = scene().prover
    fed = [prover.contents[index] for index in prover.indices(1)]
    here, elsewhere = (execute(prover.states[0], 1, fed, prover.seed, e) for e in (ENVIRONMENT, ELSEWHERE))
    assert here.gradient != elsewhere.gradient and here.state != elsewhere.state
    led = execute(prover.states[0], 1, fed, prover.seed, ELSEWHERE, here.gradient)
    assert led.state == here.state == prover.states[1]
