"""Where a run begins: post hoc runs, whose seed nobody drew for them, and runs that continue another (V5, V12)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from fakes import (
    ELSEWHERE,
    HonestReplayer,
    MemoryLedger,
    Outcome,
    Prover,
    Scene,
    State,
    Verifier,
    changed,
    floats,
    initial_state,
    named,
    packed,
    policy_for,
    scene,
)
from verdicts import NO_PROFILE, PROFILE, accepted, answered, inconclusive, rejected, verdict_of

from polcommit import transcript as hashes
from polcommit.encoding import digest, encode
from polcommit.errors import Unavailable
from polcommit.evidence import Judgement, judge
from polcommit.origins import FALSE_REJECTS, least_probability
from polcommit.policy import Policy
from polcommit.records import Finding, GenesisRecord, ParentClaim, Receipt, TensorEntry, Verdict
from polcommit.replaying import TensorOrigin
from polcommit.signing import sign_verdict
from polcommit.verifier import Verification

SEED = named("a seed of its own choice")
UNREGISTERED = ("V5", "registered before training")
PARENT = ("V12", "verdict on the parent run")


def weights(state: State, **tensors: bytes) -> State:
    names = {"weight": "parameter/weight", "mean": "buffer/mean", "momentum": "optimizer/weight/momentum"}
    return replace(state, tensors={**state.tensors, **{names[name]: data for name, data in tensors.items()}})


# --- post hoc -------------------------------------------------------------------------------------------------


def post_hoc(cheat: type[Prover] = Prover, *, registered: bool = False, **verifying: Any) -> Verification:
    """A post hoc run, verified by a policy that allows such."""
    staged = scene(cheat, seed=SEED)
    policy = policy_for(staged.ledger, registered=registered)
    return answered(staged, verifying={"policy": policy, **verifying})


def test_a_post_hoc_run_is_accepted_as_one() -> None:
    verdict = accepted(post_hoc())
    assert not verdict.registered and verdict.registration is not None, "on the ledger, but not before training"
    assert verdict.basis == "bit-exact" and dict(verdict.checks)["V12"] == "passed"


def test_not_by_a_policy_that_wants_runs_registered() -> None:
    inconclusive(post_hoc(registered=True), UNREGISTERED)


def test_a_post_hoc_run_that_pretends_a_beacon() -> None:
    class Pretends(Prover):
        def genesis(self) -> GenesisRecord:
            number = self.registration.position.block + hashes.DELAY
            beacon = self.ledger.block(number).prevrandao
            return replace(super().genesis(), run=self.id, beacon_block=number, beacon=beacon)

    rejected(post_hoc(Pretends), "V5", "genesis record")


@pytest.mark.parametrize("field", ["run", "beacon", "beacon_block"])
def test_a_post_hoc_genesis_that_names_a_part_of_one(field: str) -> None:
    class Pretends(Prover):
        def genesis(self) -> GenesisRecord:
            return replace(super().genesis(), **{field: 9 if field == "beacon_block" else bytes(32)})

    rejected(post_hoc(Pretends), "V5", "genesis record")


def test_a_registered_manifest_with_a_post_hoc_genesis() -> None:
    """It would choose its order and W_0 by a seed that it made up."""

    class Chooses(Prover):
        def start(self) -> None:
            super().start()
            self.seed = hashes.run_seed(SEED)
            self.states = [initial_state(self.seed)]
            self.transcript = hashes.Transcript(self.secret, [encode(self.genesis())])

        def genesis(self) -> GenesisRecord:
            return replace(super().genesis(), run=None, beacon_block=None, beacon=None)

    rejected(answered(scene(Chooses)), "V5", "genesis record")


def test_the_order_of_the_data_is_the_stated_seeds() -> None:
    class Orders(Prover):
        def indices(self, step: int) -> tuple[int, ...]:
            return super().indices(step)[::-1]

    staged = scene(Orders, seed=SEED)
    challenge = staged.challenge(12)
    verification = staged.verify(challenge, staged.prover.respond(challenge))
    rejected(verification, "V7", "samples that the order demands", at=1)


class Chosen(Prover):
    """Starts from other weights than the seed's, of the recipe's distribution."""

    def first_state(self) -> State:
        return weights(super().first_state(), weight=floats(b"another draw", 6))


class Stolen(Prover):
    def first_state(self) -> State:
        return weights(super().first_state(), weight=packed([100.0] * 6))


def test_w0_of_the_recipes_distribution_passes_the_test() -> None:
    accepted(post_hoc(Chosen))


def test_w0_of_another_distribution() -> None:
    finding = rejected(post_hoc(Stolen), "V12", "parameter/weight of W_0", at=0)
    assert finding.found == "p = 0.0e+00 (statistic 1.0000)"


@pytest.mark.parametrize("name", ["mean", "momentum"])
def test_w0_with_a_buffer_or_momentum_of_ones_own(name: str) -> None:
    class Cheat(Prover):
        def first_state(self) -> State:
            size = 2 if name == "mean" else 6
            return weights(super().first_state(), **{name: floats(b"chosen", size)})

    what = {"mean": "buffer/mean of W_0", "momentum": "optimizer/weight/momentum of W_0"}[name]
    finding = rejected(post_hoc(Cheat), "V12", what, at=0)
    assert finding.expected == "as the recipe sets it"


def test_w0_with_a_counter_of_ones_own() -> None:
    class Cheat(Prover):
        def first_state(self) -> State:
            return replace(super().first_state(), counter=1000)

    rejected(post_hoc(Cheat), "V12", "scalars of W_0", at=0)


def origin(probability: float, *, constant: bool = False, equal: bool = False) -> TensorOrigin:
    return TensorOrigin(
        name="parameter/weight", size=6, statistic=0.5, probability=probability, constant=constant, equal=equal
    )


@pytest.mark.parametrize("probability", [math.nan, 0.0, 0.9 * FALSE_REJECTS])
def test_a_probability_that_is_too_small_or_none(probability: float) -> None:
    replayer = HonestReplayer(origin=(origin(probability),))
    rejected(post_hoc(Chosen, replayer=replayer), "V12", "parameter/weight of W_0", at=0)


def test_honest_runs_of_many_tensors_are_not_rejected_more_often() -> None:
    several = tuple(origin(0.3 * FALSE_REJECTS) for _ in range(4))
    fixed = origin(0.0, constant=True, equal=True)
    assert least_probability((*several, fixed)) == FALSE_REJECTS / 4
    accepted(post_hoc(Chosen, replayer=HonestReplayer(origin=(*several, fixed))))
    few = HonestReplayer(origin=(*several[:3], fixed))
    rejected(post_hoc(Chosen, replayer=few), "V12", "parameter/weight of W_0", at=0)


def test_what_the_seed_gives_needs_no_test() -> None:
    accepted(post_hoc(replayer=HonestReplayer(origin=None)))
    with pytest.raises(Unavailable, match="did not test the distribution of W_0"):
        post_hoc(Chosen, replayer=HonestReplayer(origin=None))


def test_w0_is_always_opened() -> None:
    staged = scene(Chosen, seed=SEED)
    challenge = staged.challenge()
    opening = staged.prover.respond(challenge)
    assert opening.openings.states[0].step == 0
    rejected(staged.verify(challenge, opening.opening(states=opening.openings.states[1:])), "V8", "opened states")


def test_in_a_strange_environment_the_distribution_is_a_doubt() -> None:
    verification = post_hoc(Stolen, replayer=HonestReplayer(ELSEWHERE))
    inconclusive(verification, NO_PROFILE, ("V12", "parameter/weight of W_0"))


def test_with_a_profile_it_is_none() -> None:
    staged = scene(Stolen, seed=SEED)
    verifying = {"replayer": HonestReplayer(ELSEWHERE), "profiles": (PROFILE,)}
    rejected(answered(staged, gradients=True, verifying=verifying), "V12", "parameter/weight of W_0", at=0)


def judged(staged: Scene, verdict: Verdict | None = None, *, of: Verification, **policy: Any) -> Judgement:
    """What a reader who trusts the verifier makes of it; of another verdict, signed by the same."""
    evidence = staged.evidence(of)
    if verdict is not None:
        evidence = replace(evidence, receipt=sign_verdict(staged.verifier.key, verdict))
    return judge(evidence, policy_for(staged.ledger, staged.verifier.public, **policy), staged.ledger)


def test_a_reader_decides_about_post_hoc_runs() -> None:
    staged = scene(seed=SEED)
    verification = answered(staged, verifying={"policy": policy_for(staged.ledger, registered=False)})
    assert judged(staged, of=verification, registered=False).verdict == "accepted"
    judgement = judged(staged, of=verification)
    assert judgement.verdict == "inconclusive"
    assert [(finding.check, finding.what) for finding in judgement.findings] == [UNREGISTERED]


def test_a_verifier_who_calls_it_registered() -> None:
    staged = scene(seed=SEED)
    verification = answered(staged, verifying={"policy": policy_for(staged.ledger, registered=False)})
    lie = replace(verdict_of(verification), registered=True)
    judgement = judged(staged, lie, of=verification)
    assert judgement.verdict == "rejected" and judgement.findings[0].what == "'registered' in the verdict"


# --- a run that continues another -----------------------------------------------------------------------------


class Forger(Prover):
    def recorded(self, record: Any) -> Any:
        return replace(record, loss=0.5)


@dataclass
class Family:
    """An anchored run with a verdict, by which another one starts from its last state."""

    parent: Scene
    receipt: Receipt

    def child(self, cheat: type[Prover] = Prover, *, receipt: Receipt | None = None, **options: Any) -> Scene:
        continues = self.parent.prover.continued(receipt or self.receipt)
        given = {"name": "child", "continues": continues, "ledger": self.parent.ledger}
        return scene(cheat, **given | options)

    def policy(self, **changes: Any) -> Policy:
        return policy_for(self.parent.ledger, self.parent.verifier.public, **changes)

    def verify(self, staged: Scene | None = None, count: int = 4, **changes: Any) -> Verification:
        """The child, by one who trusts the verifier of the parent."""
        return answered(staged or self.child(), count, verifying={"policy": self.policy(**changes)})

    def telling(self, **lie: Any) -> Receipt:
        """Another verdict on the parent, by the same verifier."""
        return sign_verdict(self.parent.verifier.key, changed(self.receipt.verdict, **lie))


def family(cheat: type[Prover] = Prover, *, count: int = 4, verifying: Any = None, **options: Any) -> Family:
    asked = {name: options.pop(name) for name in ("steps", "gradients", "strategy") if name in options}
    parent = scene(cheat, **{"name": "parent"} | options)
    verification = answered(parent, count, verifying=verifying, **asked)
    return Family(parent, parent.verifier.signed(verification))


@pytest.fixture(scope="module")
def honest() -> Family:
    return family()


def test_a_child_of_an_accepted_run_is_accepted(honest: Family) -> None:
    verdict = accepted(honest.verify())
    assert verdict.registered and verdict.basis == "bit-exact"
    assert verdict.parent == digest(honest.receipt.verdict)
    assert dict(verdict.checks)["V12"] == "passed"


def test_who_accepted_the_parent_needs_no_policy_to_trust_themselves(honest: Family) -> None:
    staged = honest.child()
    challenge = staged.challenge()
    opening = staged.prover.respond(challenge)
    inconclusive(staged.verify(challenge, opening), PARENT)
    accepted(staged.verify(challenge, opening, trusted=frozenset({honest.parent.verifier.public})))


def test_a_verdict_on_the_parent_by_the_provers_friend(honest: Family) -> None:
    friend = Verifier("a friend of the prover")
    verdict = replace(honest.receipt.verdict, verifier=friend.public)
    staged = honest.child(receipt=sign_verdict(friend.key, verdict))
    verdict = inconclusive(honest.verify(staged), PARENT)
    assert verdict.findings[0].found == friend.public.hex()


def test_a_parent_that_was_rejected() -> None:
    """Light fine-tuning of a stolen model, say, whose own run was forged."""
    forged = family(Forger)
    assert forged.receipt.verdict.verdict == "rejected"
    verdict = inconclusive(forged.verify(), PARENT)
    assert (verdict.findings[0].expected, verdict.findings[0].found) == ("accepted", "rejected")


def test_a_parent_about_which_nothing_is_known() -> None:
    doubtful = family(verifying={"replayer": HonestReplayer(ELSEWHERE)})
    assert doubtful.receipt.verdict.verdict == "inconclusive"
    assert inconclusive(doubtful.verify(), PARENT).findings[0].found == "inconclusive"


def test_a_parents_verdict_that_nobody_signed(honest: Family) -> None:
    forged = replace(honest.receipt, verdict=replace(honest.receipt.verdict, software="another"))
    rejected(honest.verify(honest.child(receipt=forged)), "V5", "verdict on the parent run")


def test_a_parents_verdict_that_is_none(honest: Family) -> None:
    staged = honest.child()
    challenge = staged.challenge()
    opening = staged.prover.respond(challenge)
    claim = opening.disclosure.parent
    assert claim is not None
    opening = opening.disclosing(parent=replace(claim, receipt=b"\xc0"))
    rejected(staged.verify(challenge, opening), "V5", "verdict on the parent run")


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        ({"run": bytes(32)}, "run of the verdict of the parent"),
        ({"commitment": bytes(32)}, "head of the verdict of the parent"),
        ({"chain_id": 1}, "chain of the parent"),
        ({"genesis": bytes(32)}, "chain of the parent"),
        ({"contract": bytes(20)}, "contract of the parent"),
    ],
)
def test_a_parents_verdict_about_something_else(honest: Family, lie: dict[str, Any], what: str) -> None:
    rejected(honest.verify(honest.child(receipt=honest.telling(**lie))), "V5", what)


def shown(honest: Family, **claim: Any) -> Verification:
    """A child whose disclosure shows something else of its parent."""
    staged = honest.child()
    challenge = staged.challenge()
    opening = staged.prover.respond(challenge)
    assert opening.disclosure.parent is not None
    opening = opening.disclosing(parent=replace(opening.disclosure.parent, **claim))
    return staged.verify(challenge, opening, policy=honest.policy())


def test_another_head_of_the_parent(honest: Family) -> None:
    """The one that was accepted, in place of the one that is continued."""
    rejected(shown(honest, head=honest.parent.prover.heads[0]), "V5", "head of the parent")


def test_an_earlier_heads_verdict_says_nothing_of_the_last() -> None:
    parent = scene(name="parent")
    first = parent.ledger.anchored[0]
    challenge = parent.verifier.challenge(parent.ledger, first)
    attested = parent.verifier.unsealed(parent.ledger.chain, first)
    verification = parent.verify(challenge, parent.prover.respond(challenge), attested=attested)
    early = Family(parent, parent.verifier.signed(verification))
    assert early.receipt.verdict.verdict == "accepted"
    rejected(early.verify(), "V5", "head of the verdict of the parent")


def test_another_run_than_the_manifest_names(honest: Family) -> None:
    other = scene(name="somebody else", ledger=honest.parent.ledger)
    rejected(shown(honest, head=other.prover.heads[-1]), "V5", "run of the parent")


def test_a_parent_that_is_not_shown(honest: Family) -> None:
    staged = honest.child()
    challenge = staged.challenge()
    opening = staged.prover.respond(challenge).disclosing(parent=None)
    rejected(staged.verify(challenge, opening, policy=honest.policy()), "V5", "parent run")


def test_a_parent_that_the_manifest_does_not_name(honest: Family) -> None:
    staged = scene()
    challenge = staged.challenge()
    claim = ParentClaim(head=honest.parent.prover.heads[-1], receipt=encode(honest.receipt))
    opening = staged.prover.respond(challenge).disclosing(parent=claim)
    rejected(staged.verify(challenge, opening), "V5", "parent run")


def test_a_run_is_not_its_own_parent(honest: Family) -> None:
    """Its id can be known before it is registered, and named; the digest of a head that names itself cannot."""
    ledger = MemoryLedger()
    account = named("prover", "account")[:20]
    own = hashes.run_id(ledger.chain.chain_id, ledger.chain.contract, account, 0)
    staged = scene(ledger=ledger, parent=(own, bytes(32)))
    assert staged.anchor.run == own
    challenge = staged.challenge()
    verdict = replace(honest.receipt.verdict, run=own)
    claim = ParentClaim(
        head=staged.prover.heads[-1], receipt=encode(sign_verdict(honest.parent.verifier.key, verdict))
    )
    opening = staged.prover.respond(challenge).disclosing(parent=claim)
    rejected(staged.verify(challenge, opening), "V5", "head of the parent")


# what it starts from


@pytest.mark.parametrize("name", ["weight", "mean", "momentum"])
def test_w0_that_is_not_the_parents(honest: Family, name: str) -> None:
    """Stolen weights, or a momentum that lands the first step anywhere."""

    class Cheat(Prover):
        def first_state(self) -> State:
            return weights(super().first_state(), **{name: floats(b"stolen", 2 if name == "mean" else 6)})

    names = {"weight": "parameter/weight", "mean": "buffer/mean", "momentum": "optimizer/weight/momentum"}
    rejected(honest.verify(honest.child(Cheat)), "V12", f"{names[name]} of W_0", at=0)


def test_w0_with_the_parents_own_momentum(honest: Family) -> None:
    """The optimizer is a fresh one: what the parent's held is nothing that this recipe builds."""

    class Keeps(Prover):
        def first_state(self) -> State:
            assert self.continues is not None
            momentum = self.continues.state.tensors["optimizer/weight/momentum"]
            return weights(super().first_state(), momentum=momentum)

    rejected(honest.verify(honest.child(Keeps)), "V12", "optimizer/weight/momentum of W_0", at=0)


def test_w0_with_the_parents_own_counter(honest: Family) -> None:
    class Keeps(Prover):
        def first_state(self) -> State:
            return replace(super().first_state(), counter=12)

    rejected(honest.verify(honest.child(Keeps)), "V12", "scalars of W_0", at=0)


def test_w0_from_the_beacon_is_not_the_parents(honest: Family) -> None:
    class Fresh(Prover):
        def first_state(self) -> State:
            return initial_state(self.seed)

    rejected(honest.verify(honest.child(Fresh)), "V12", "buffer/mean of W_0", at=0)


def opened(honest: Family, **openings: Any) -> Verification:
    staged = honest.child()
    challenge = staged.challenge()
    opening = staged.prover.respond(challenge).opening(**openings)
    return staged.verify(challenge, opening, policy=honest.policy())


def test_another_final_state_of_the_parent(honest: Family) -> None:
    """One that the child does start from, but that the parent's head does not commit to."""
    rejected(opened(honest, parent=honest.parent.prover.states[3].index()), "V8", "final state of the parent")


def test_a_final_state_of_the_parent_with_an_entry_more(honest: Family) -> None:
    index = honest.parent.prover.states[-1].index()
    more = TensorEntry(name="zzz", kind="other", dtype="float32", shape=(1,), content=bytes(32))
    rejected(
        opened(honest, parent=replace(index, tensors=(*index.tensors, more))), "V8", "final state of the parent"
    )


def test_a_final_state_of_the_parent_that_is_not_opened(honest: Family) -> None:
    rejected(opened(honest, parent=None), "V8", "final state of the parent")


def test_a_final_state_of_no_parent() -> None:
    staged = scene()
    challenge = staged.challenge()
    opening = staged.prover.respond(challenge).opening(parent=staged.prover.states[0].index())
    rejected(staged.verify(challenge, opening), "V8", "final state of the parent")


def test_a_report_without_the_recipes_initial_state_is_no_verdict(honest: Family) -> None:
    verifying = {"policy": honest.policy(), "replayer": HonestReplayer(initial_index=None)}
    with pytest.raises(Unavailable, match="did not report the recipe's initial state"):
        answered(honest.child(), verifying=verifying)


# what a chain of runs rests on


def test_a_child_of_a_post_hoc_run_is_not_registered_either() -> None:
    """Else a stolen model becomes the final state of a run that was made up, and its child is clean."""
    parent = scene(name="parent", seed=SEED)
    lenient = policy_for(parent.ledger, parent.verifier.public, registered=False)
    made_up = Family(parent, parent.verifier.signed(answered(parent, verifying={"policy": lenient})))
    assert made_up.receipt.verdict.verdict == "accepted"
    child = made_up.child()
    assert child.prover.manifest.seed is None
    verification = made_up.verify(child)
    assert not inconclusive(verification, UNREGISTERED).registered
    accepted(made_up.verify(made_up.child(), registered=False))


def test_nor_is_its_grandchild() -> None:
    parent = scene(name="parent", seed=SEED)
    lenient = policy_for(parent.ledger, parent.verifier.public, registered=False)
    first = Family(parent, parent.verifier.signed(answered(parent, verifying={"policy": lenient})))
    child = first.child()
    second = Family(child, child.verifier.signed(first.verify(child, registered=False)))
    assert second.receipt.verdict.verdict == "accepted"
    inconclusive(second.verify(second.child(name="grandchild")), UNREGISTERED)


def test_a_post_hoc_child_of_a_registered_run_is_post_hoc(honest: Family) -> None:
    child = honest.child(seed=SEED)
    inconclusive(honest.verify(child), UNREGISTERED)
    assert not accepted(honest.verify(honest.child(seed=SEED), registered=False)).registered


@pytest.fixture(scope="module")
def tolerated() -> Family:
    """The parent was accepted within tolerance, and so rests on that."""
    return family(gradients=True, verifying={"replayer": HonestReplayer(ELSEWHERE), "profiles": (PROFILE,)})


def test_the_basis_is_the_least_of_the_chain(tolerated: Family) -> None:
    verdict = accepted(tolerated.verify())
    assert verdict.basis == "within-tolerance" and verdict.tolerated == ()
    child = tolerated.child()
    second = Family(child, child.verifier.signed(tolerated.verify(child)))
    assert accepted(second.verify(second.child(name="grandchild"))).basis == "within-tolerance"


def test_a_policy_of_bits_alone_holds_for_the_parent(tolerated: Family) -> None:
    inconclusive(tolerated.verify(tolerance=False), ("V12", "basis of the parent run"))


def test_the_reach_demanded_holds_for_the_parent(tolerated: Family) -> None:
    inconclusive(tolerated.verify(reach=1e-9), ("V12", "reach of the tolerance in the parent run"))


def test_the_detection_demanded_holds_for_the_parent() -> None:
    """A parent that somebody looked at one step of, of the prover's own choice, and a child beyond reproach."""
    hardly = family(steps=(1,))
    assert hardly.receipt.verdict.verdict == "accepted"
    accepted(hardly.verify())
    verdict = inconclusive(
        hardly.verify(count=12, probability=0.9), ("V12", "probability of detection in the parent run")
    )
    assert (verdict.findings[0].found, verdict.probability) == ("0.000", 1.0)


def test_an_accepted_verdict_by_a_friend_does_not_register_a_run() -> None:
    """The verdict's own word that the parent was registered counts as little as the rest of it."""
    parent = scene(name="parent", seed=SEED)
    friend = Verifier("a friend of the prover")
    verdict = verdict_of(answered(parent, verifying={"policy": policy_for(parent.ledger, registered=False)}))
    lie = sign_verdict(friend.key, replace(verdict, registered=True, verifier=friend.public))
    made_up = Family(parent, lie)
    inconclusive(made_up.verify(), PARENT)


# the third party


def child_evidence(of: Family, **policy: Any) -> tuple[Scene, Verification]:
    staged = of.child()
    return staged, of.verify(staged, **policy)


def found(judgement: Judgement) -> list[tuple[str, str]]:
    return [(finding.check, finding.what) for finding in judgement.findings]


def test_a_reader_accepts_a_child(honest: Family) -> None:
    staged, verification = child_evidence(honest)
    judgement = judged(staged, of=verification)
    assert (judgement.verdict, judgement.basis) == ("accepted", "bit-exact")


def test_a_reader_who_trusts_the_childs_verifier_alone(honest: Family) -> None:
    """The parent's verifier is trusted by the child's, which is nothing to the reader."""
    other = Verifier("another verifier")
    verdict = replace(honest.receipt.verdict, verifier=other.public)
    staged = honest.child(receipt=sign_verdict(other.key, verdict))
    policy = policy_for(honest.parent.ledger, other.public)
    verification = answered(staged, verifying={"policy": policy})
    assert verdict_of(verification).verdict == "accepted"
    judgement = judged(staged, of=verification)
    assert judgement.verdict == "inconclusive" and found(judgement) == [PARENT]


def test_a_careless_verifier_who_accepts_the_child_of_a_rejected_run() -> None:
    forged = family(Forger)
    staged, verification = child_evidence(forged)
    checks = tuple((name, "passed" if name == "V12" else outcome) for name, outcome in verdict_of(verification).checks)
    careless = replace(
        verdict_of(verification), verdict="accepted", findings=(), checks=checks, basis="within-tolerance"
    )
    judgement = judged(staged, careless, of=verification)
    assert judgement.verdict == "inconclusive" and found(judgement) == [PARENT]


@pytest.mark.parametrize(
    ("policy", "what"),
    [({"tolerance": False}, "basis of the parent run"), ({"reach": 1e-9}, "reach of the tolerance in the parent run")],
)
def test_a_reader_may_demand_more_of_the_parent(tolerated: Family, policy: dict[str, Any], what: str) -> None:
    staged, verification = child_evidence(tolerated)
    judgement = judged(staged, of=verification, **policy)
    assert judgement.verdict == "inconclusive" and ("V12", what) in found(judgement)


def test_a_reader_may_demand_detection_in_the_parent() -> None:
    hardly = family(steps=(1,))
    staged = hardly.child()
    verification = hardly.verify(staged, count=12)
    assert judged(staged, of=verification).verdict == "accepted"
    judgement = judged(staged, of=verification, probability=0.9)
    assert found(judgement) == [("V12", "probability of detection in the parent run")]


@pytest.mark.parametrize(
    ("lie", "what"),
    [({"basis": "bit-exact"}, "basis"), ({"parent": None}, "'parent' in the verdict")],
)
def test_a_verifier_who_hides_what_the_parent_rests_on(tolerated: Family, lie: dict[str, Any], what: str) -> None:
    staged, verification = child_evidence(tolerated)
    judgement = judged(staged, replace(verdict_of(verification), **lie), of=verification)
    assert judgement.verdict == "rejected" and found(judgement) == [("V1", what)]


def test_a_bundle_with_another_parent(honest: Family) -> None:
    """Signed for by the child's verifier, even."""
    staged, verification = child_evidence(honest)
    evidence = staged.evidence(verification)
    assert evidence.disclosure is not None and evidence.disclosure.parent is not None
    other = honest.telling(software="another")
    claim = replace(evidence.disclosure.parent, receipt=encode(other))
    disclosure = replace(evidence.disclosure, parent=claim)
    verdict = replace(evidence.receipt.verdict, disclosure=digest(disclosure))
    swapped = replace(evidence, disclosure=disclosure, receipt=sign_verdict(staged.verifier.key, verdict))
    judgement = judge(swapped, honest.policy(), staged.ledger)
    assert found(judgement) == [("V1", "'parent' in the verdict")]


def test_findings_name_the_step(honest: Family) -> None:
    """Of the tests themselves: a child that trains on as its parent did is refuted where it lies."""

    class Lies(Prover):
        def update(self, step: int, outcome: Outcome) -> State:
            return weights(outcome.state, weight=floats(b"stolen", 6)) if step == 7 else outcome.state

    finding: Finding = rejected(honest.verify(honest.child(Lies), 12), "V10", "state after the step", at=7)
    assert finding.check == "V10"
