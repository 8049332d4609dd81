"""The verifier against an honest prover, and against one attack at a time: which step catches it, and what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fakes import (
    ELSEWHERE,
    ENVIRONMENT,
    HonestReplayer,
    MemoryLedger,
    Opening,
    Outcome,
    Prover,
    Scene,
    State,
    Verifier,
    changed,
    execute,
    floats,
    initial_state,
    named,
    policy_for,
    scene,
)

from polcommit import transcript as hashes
from polcommit.anchors import CHECKS, refuted_anchor
from polcommit.encoding import decode, digest, encode
from polcommit.envelopes import make_envelope, open_envelope, sealed_digest
from polcommit.errors import BudgetExhausted, Refuted, Unavailable, UsageError
from polcommit.events import Anchored, Challenged
from polcommit.prover import next_head
from polcommit.records import (
    Challenge,
    EarlierChallenge,
    Envelope,
    Finding,
    Fingerprint,
    GenesisRecord,
    Gradient,
    Rate,
    Receipt,
    Request,
    SampleLeaf,
    StepRecord,
    Verdict,
)
from polcommit.sealing import SealBroken
from polcommit.signing import envelope_message, sign, sign_statement, sign_verdict
from polcommit.verifier import Verification

ALL = 12        # a challenge of every step: whatever is forged is drawn


class Honest:
    """An honest run, challenged and opened once; attacks replace something in the opening."""

    def __init__(self) -> None:
        self.scene = scene()
        self.challenge = self.scene.challenge(4)
        self.opening = self.scene.prover.respond(self.challenge)

    @property
    def steps(self) -> tuple[int, ...]:
        return self.scene.prover.draw(self.challenge).steps

    def verify(self, opening: Opening | None = None, **options: Any) -> Verification:
        challenge = options.pop("challenge", self.challenge)
        return self.scene.verify(challenge, opening or self.opening, **options)


@pytest.fixture(scope="module")
def honest() -> Honest:
    return Honest()


def attacked(cheat: type[Prover], **options: Any) -> Verification:
    """A cheat's run, challenged at every step, and opened as the cheat can."""
    return answered(scene(cheat, **options))


def answered(staged: Scene, count: int = ALL, **options: Any) -> Verification:
    challenge = staged.challenge(count)
    return staged.verify(challenge, staged.prover.respond(challenge), **options)


def verdict_of(verification: Verification) -> Verdict:
    return verification.verdict(Verifier().public)


def rejected(verification: Verification, check: str, what: str, at: int | None = None) -> Finding:
    """The one finding of a rejection; nothing after it was run."""
    verdict = verdict_of(verification)
    assert verdict.verdict == "rejected" and verdict.basis == "none"
    (finding,) = verdict.findings
    assert (finding.check, finding.what, finding.step) == (check, what, at)
    assert [name for name, outcome in verdict.checks if outcome == "failed"] == [check]
    return finding


def inconclusive(verification: Verification, check: str, what: str) -> Finding:
    verdict = verdict_of(verification)
    assert verdict.verdict == "inconclusive" and verdict.basis == "none"
    (finding,) = verdict.findings
    assert (finding.check, finding.what) == (check, what)
    assert dict(verdict.checks)[check] == "not settled"
    return finding


def accepted(verification: Verification) -> Verdict:
    verdict = verdict_of(verification)
    assert (verdict.verdict, verdict.findings) == ("accepted", ())
    return verdict


# --- honest ---------------------------------------------------------------------------------------------------


def test_an_honest_run_is_accepted(honest: Honest) -> None:
    verification = honest.verify(model=honest.scene.prover.model())
    verdict = accepted(verification)
    assert dict(verdict.checks) == dict.fromkeys(CHECKS, "passed") | {"V11": "not checked"}
    assert verdict.basis == "bit-exact"
    assert verdict.steps == verdict.reexecuted == honest.steps
    assert verdict.draw == "ledger" and verdict.registered and verdict.final
    assert (verdict.sequence, verdict.size, verdict.registrations) == (2, 13, (1, 1))
    assert verdict.disclosure == digest(honest.opening.disclosure)
    assert verdict.openings == digest(honest.opening.openings)
    assert verdict.environment == digest(ENVIRONMENT)
    assert verdict.sketched == 4
    # 5 % of 12 steps is one step: four draws meet it with 4/12
    assert verdict.probability == pytest.approx(1 / 3)


def test_every_step_of_an_honest_run_can_be_challenged() -> None:
    verdict = accepted(answered(scene()))
    assert verdict.reexecuted == tuple(range(1, 13)) and verdict.probability == 1.0


def test_listed_steps_buy_no_detection(honest: Honest) -> None:
    staged = honest.scene
    challenge = staged.challenge(steps=(1, 12), nonce="listed")
    opening = staged.prover.open(challenge, staged.prover.draw(challenge))
    verification = staged.verify(challenge, opening.disclosing(receipts=(receipt_of(honest),)))
    assert accepted(verification).steps == (1, 12)
    assert verdict_of(verification).probability == 0.0


def receipt_of(honest: Honest) -> bytes:
    return encode(honest.scene.verifier.signed(honest.verify()))


def test_an_unfinished_run_is_accepted_for_what_it_is() -> None:
    staged = scene(heads=(5,))
    assert accepted(answered(staged, 5)).final is False


def test_an_earlier_head_can_be_challenged() -> None:
    staged = scene()
    first = staged.ledger.anchored[0]
    challenge = staged.verifier.challenge(staged.ledger, first, 5)
    attested = staged.verifier.unsealed(staged.ledger.chain, first)
    verification = staged.verify(challenge, staged.prover.respond(challenge), attested=attested)
    assert accepted(verification).sequence == 1


ELSEWHERE_AND_NO_PROFILE = "re-executed in another environment than the prover's, and no noise profile covers the two"


def test_a_resume_in_another_environment_is_another_epoch() -> None:
    """Nothing is accepted while an epoch was recorded elsewhere, be its steps drawn or not; one finding says so."""
    staged = scene(heads=(5,))
    staged.prover.environments.append((6, ELSEWHERE))
    staged.anchor = staged.prover.train(7).anchor()
    verification = answered(staged, replayer=HonestReplayer(ELSEWHERE))
    inconclusive(verification, "V10", ELSEWHERE_AND_NO_PROFILE)
    assert min(verdict_of(verification).reexecuted) > 5, "those of the epoch that was recorded here"
    assert dict(verdict_of(verification).checks)["V12"] == "passed", "W_0 is exact on every machine"


def test_nan_losses_agree_with_themselves() -> None:
    """A diverged run is honest: NaN is compared by its bytes."""

    class Diverged(Prover):
        def recorded(self, record: StepRecord) -> StepRecord:
            return replace(record, loss=math.nan)

    class Same(HonestReplayer):
        def _step(self, *arguments: Any) -> Any:
            return replace(super()._step(*arguments), loss=math.nan)

    assert accepted(answered(scene(Diverged), replayer=Same()))
    finding = rejected(answered(scene(Diverged)), "V10", "loss", at=1)
    assert finding.expected == "7ff8000000000000"


# --- V1: messages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-1], lambda data: data + b"\xc0", lambda _: b"\x90", lambda _: b""]
)
def test_v1_a_disclosure_that_does_not_parse(honest: Honest, spoil: Any) -> None:
    verification = Verification(
        policy=policy_for(honest.scene.ledger),
        ledger=honest.scene.ledger,
        replayer=HonestReplayer(),
        challenge=honest.challenge,
        attested=honest.opening.disclosure.heads[-1],
    )
    assert not verification.take_disclosure(spoil(encode(honest.opening.disclosure)))
    rejected(verification, "V1", "disclosure record")


def test_v1_openings_that_do_not_parse(honest: Honest) -> None:
    verification = Verification(
        policy=policy_for(honest.scene.ledger),
        ledger=honest.scene.ledger,
        replayer=HonestReplayer(),
        challenge=honest.challenge,
        attested=honest.opening.disclosure.heads[-1],
    )
    assert verification.take_disclosure(encode(honest.opening.disclosure))
    assert verification.take_openings(encode(honest.opening.disclosure)) is None
    rejected(verification, "V1", "openings record")


def test_v1_no_heads_at_all(honest: Honest) -> None:
    rejected(honest.verify(honest.opening.disclosing(heads=())), "V1", "revealed heads")


def test_v1_an_envelope_that_is_none() -> None:
    staged = scene(heads=(5,))
    prover = staged.prover
    head = next_head(prover.train(7).run, prover.key)
    staged.anchor = prover.put(head.commitment, b"not an envelope")
    prover.heads.append(head)
    rejected(answered(staged, attested=head), "V1", "envelope")


def test_v1_an_unknown_dtype(honest: Honest) -> None:
    state = honest.opening.openings.states[0]
    odd = changed(state, index=replace(state.index, tensors=(replace(state.index.tensors[0], dtype="float3"),)))
    opening = honest.opening.opening(states=(odd, *honest.opening.openings.states[1:]))
    rejected(honest.verify(opening), "V1", "contents of the opening")


def test_v1_one_content_of_two_lengths(honest: Honest) -> None:
    first, second, *others = honest.opening.openings.states
    entry = replace(first.index.tensors[0], shape=(3,))
    longer = changed(second, index=replace(second.index, tensors=(entry, *second.index.tensors[1:])))
    rejected(
        honest.verify(honest.opening.opening(states=(first, longer, *others))), "V1", "contents of the opening"
    )


def test_v1_gradients_that_nobody_asked_for(honest: Honest) -> None:
    opening = honest.opening.opening(gradients=(Gradient(step=1, tensors=()),))
    rejected(honest.verify(opening), "V1", "gradients in an opening")


# --- V2: the anchor -------------------------------------------------------------------------------------------


def replayed_by_another_account(victim: Scene) -> tuple[Anchored, Challenge]:
    """The victim's registration, C and envelope, sent again by another account, and challenged there."""
    thief = Prover(victim.ledger, *victim.prover.manifest.verifiers, name="thief")
    thief.registration = victim.ledger.register(thief.account, victim.prover.registration.manifest)
    thief.id = thief.registration.run
    victim.ledger.settle()
    anchor = thief.put(victim.anchor.commitment, victim.anchor.envelope)
    return anchor, victim.verifier.challenge(victim.ledger, anchor)


def test_v2_an_anchor_by_another_account() -> None:
    """The anchor of another's head, replayed from one's own account."""
    victim = scene(heads=(12,))
    opening = victim.prover.respond(victim.challenge())
    _, challenge = replayed_by_another_account(victim)
    finding = rejected(victim.verify(challenge, opening), "V2", "account of the run")
    assert finding.found == victim.prover.account.hex()


def test_v2_the_victim_does_not_answer_for_the_copy() -> None:
    victim = scene(heads=(12,))
    _, challenge = replayed_by_another_account(victim)
    with pytest.raises(Refuted, match="challenged head"):
        victim.prover.respond(challenge)


@pytest.mark.parametrize("other", [{"chain_id": 1}, {"contract": bytes(20)}])
def test_v2_events_of_another_chain_or_contract(honest: Honest, other: Any) -> None:
    """A run's id binds both: events copied to a look-alike are of no run of its own."""
    fresh = Honest()
    fresh.scene.ledger.chain = replace(fresh.scene.ledger.chain, **other)
    attested = honest.opening.disclosure.heads[-1]
    rejected(fresh.verify(attested=attested), "V2", "run id")


def test_v2_a_run_that_nobody_registered() -> None:
    fresh = Honest()
    attested = fresh.opening.disclosure.heads[-1]
    fresh.scene.ledger.registered.clear()
    rejected(fresh.verify(attested=attested), "V2", "registration of the run")


def test_v2_an_anchor_that_left_the_chain() -> None:
    """Reorganised away after the challenge: refuted, but there is nothing left that a verdict could be about."""
    fresh = Honest()
    attested = fresh.opening.disclosure.heads[-1]
    fresh.scene.ledger.anchored.pop()
    verification = fresh.verify(attested=attested)
    assert verification.refuted and verification.findings[0].what == "anchor on the ledger"
    with pytest.raises(Unavailable, match="no longer on the chain"):
        verdict_of(verification)


def test_v2_an_anchor_that_is_not_final_is_no_verdict() -> None:
    fresh = Honest()
    fresh.scene.ledger.confirmations = 100
    with pytest.raises(Unavailable, match=r"\(anchor\) is not final yet"):
        fresh.verify()


def test_v2_a_chain_that_does_not_answer_is_no_verdict() -> None:
    fresh = Honest()
    attested = fresh.opening.disclosure.heads[-1]
    fresh.scene.ledger.reached = False
    with pytest.raises(Unavailable):
        fresh.verify(attested=attested)


# --- V3: signatures -------------------------------------------------------------------------------------------


def thief_of(victim: Scene) -> Prover:
    """A registered run by somebody else, with the same verifiers."""
    return Prover(victim.ledger, *victim.prover.manifest.verifiers, name="thief").register()


def test_v3_another_runs_ciphertext_does_not_open() -> None:
    """HPKE's info binds the run: the verifier's own key finds nothing in a replayed envelope."""
    victim = scene(heads=(12,))
    anchor = thief_of(victim).put(victim.anchor.commitment, victim.anchor.envelope)
    with pytest.raises(SealBroken):
        victim.verifier.unsealed(victim.ledger.chain, anchor)


def test_v3_another_runs_envelope() -> None:
    """Replayed under one's own manifest: the envelope is somebody else's."""
    victim = scene(heads=(12,))
    thief = thief_of(victim)
    anchor = thief.put(victim.anchor.commitment, victim.anchor.envelope)
    rejected(answered_by(victim, thief, anchor), "V3", "prover of the envelope")


def answered_by(victim: Scene, thief: Prover, anchor: Anchored) -> Verification:
    """The victim's opening, which the thief got hold of, under the thief's manifest."""
    opening = victim.prover.respond(victim.challenge())
    challenge = victim.verifier.challenge(victim.ledger, anchor)
    opening = opening.disclosing(manifest=thief.manifest)
    return victim.verify(challenge, opening)


def resigned(victim: Scene, thief: Prover) -> Anchored:
    """The outer signature stripped, and the ciphertexts signed again as one's own."""
    stripped = open_envelope(victim.anchor)
    message = envelope_message(
        commitment=victim.anchor.commitment,
        sealed_digest=sealed_digest(stripped.sealed),
        run=thief.id,
        sequence=1,
        chain_id=victim.ledger.chain.chain_id,
        contract=victim.ledger.chain.contract,
        account=thief.account,
    )
    own = replace(stripped, prover=thief.public, signature=sign(thief.key, "sign/envelope", message))
    return thief.put(victim.anchor.commitment, encode(own))


def test_v3_stripped_and_signed_again_does_not_open() -> None:
    victim = scene(heads=(12,))
    anchor = resigned(victim, thief_of(victim))
    with pytest.raises(SealBroken):
        victim.verifier.unsealed(victim.ledger.chain, anchor)


def test_v3_stripped_and_signed_again() -> None:
    """What is sealed is still signed by the victim, inside."""
    victim = scene(heads=(12,))
    thief = thief_of(victim)
    finding = rejected(answered_by(victim, thief, resigned(victim, thief)), "V3", "inner signature")
    assert finding.expected == thief.public.hex()


@pytest.mark.parametrize(
    "elsewhere",
    [{"run": bytes(32)}, {"sequence": 1}, {"chain_id": 1}, {"contract": bytes(20)}, {"account": bytes(20)}],
)
def test_v3_an_outer_signature_for_another_place(elsewhere: Any) -> None:
    staged = scene(heads=(5,))
    prover = staged.prover
    head = next_head(prover.train(7).run, prover.key)
    envelope = decode(make_envelope(head, prover.manifest, staged.ledger.chain, prover.key), Envelope)
    where = {
        "run": prover.id,
        "sequence": 2,
        "chain_id": staged.ledger.chain.chain_id,
        "contract": staged.ledger.chain.contract,
        "account": prover.account,
    }
    covered = sealed_digest(envelope.sealed)
    message = envelope_message(commitment=head.commitment, sealed_digest=covered, **where | elsewhere)
    signed = replace(envelope, signature=sign(prover.key, "sign/envelope", message))
    staged.anchor = prover.put(head.commitment, encode(signed))
    prover.heads.append(head)
    rejected(answered(staged), "V3", "outer signature")


def test_v3_an_inner_signature_of_another_key(honest: Honest) -> None:
    head = honest.opening.disclosure.heads[-1]
    other = sign_statement(Ed25519PrivateKey.generate(), head.statement, head.blinding)
    heads = (*honest.opening.disclosure.heads[:-1], other)
    rejected(honest.verify(honest.opening.disclosing(heads=heads)), "V3", "inner signature")


@pytest.mark.parametrize("lie", [{"run": named("another run")}, {"sequence": 3}])
def test_v3_a_statement_about_another_head(lie: Any) -> None:
    """Sealed for the right place, signed, and committed to: but it says that it is something else."""
    staged = scene(heads=(5,))
    prover = staged.prover
    head = next_head(prover.train(7).run, prover.key)
    head = sign_statement(prover.key, replace(head.statement, **lie), head.blinding)
    envelope = envelope_for(prover, head, sequence=2)
    staged.anchor = prover.put(head.commitment, envelope)
    prover.heads.append(head)
    challenge = staged.challenge()
    opening = prover.open(challenge, prover.draw(challenge))
    rejected(staged.verify(challenge, opening, attested=head), "V3", "statement")


def envelope_for(prover: Prover, head: Any, sequence: int) -> bytes:
    """An envelope that is signed for the run's head `sequence`, whatever is sealed in it."""
    envelope = decode(make_envelope(head, prover.manifest, prover.ledger.chain, prover.key), Envelope)
    message = envelope_message(
        commitment=head.commitment,
        sealed_digest=sealed_digest(envelope.sealed),
        run=prover.id,
        sequence=sequence,
        chain_id=prover.ledger.chain.chain_id,
        contract=prover.ledger.chain.contract,
        account=prover.account,
    )
    return encode(replace(envelope, signature=sign(prover.key, "sign/envelope", message)))


def test_v3_a_statement_that_names_other_recipients_than_the_manifest() -> None:
    """A verifier that the statement leaves out was never meant to read it."""
    staged = scene(heads=())
    staged.anchor = staged.prover.train().anchor(recipients=(named("nobody"),))
    rejected(answered(staged), "V3", "recipients of the statement")


def test_v3_an_envelope_that_leaves_a_verifier_out() -> None:
    """Named in the manifest, and nothing was sealed for it: that verifier could never have challenged."""
    staged = scene(heads=())
    prover = staged.prover.train()
    head = next_head(prover.run, prover.key)
    mine = staged.verifier.eligible()
    short = replace(prover.manifest, verifiers=(mine,))
    envelope = make_envelope(head, short, staged.ledger.chain, prover.key)
    staged.anchor = prover.put(head.commitment, envelope)
    prover.heads.append(head)
    rejected(answered(staged), "V3", "recipients of the envelope")


def test_v3_a_manifest_that_names_others_than_the_anchor(honest: Honest) -> None:
    manifest = replace(honest.opening.disclosure.manifest, verifiers=())
    rejected(honest.verify(honest.opening.disclosing(manifest=manifest)), "V3", "recipients of the envelope")


def test_v3_another_statement_than_the_envelope_holds(honest: Honest) -> None:
    head = honest.opening.disclosure.heads[-1]
    attested = sign_statement(honest.scene.prover.key, head.statement, bytes(32))
    rejected(honest.verify(attested=attested), "V3", "revealed statement")


# --- V4: history ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", [{"final": False}, {"state": bytes(32)}, {"root": bytes(32)}])
def test_v4_another_statement_than_was_committed_to(honest: Honest, lie: Any) -> None:
    """The prover signs a second statement about the same head, and reveals that one."""
    head = honest.opening.disclosure.heads[-1]
    other = sign_statement(honest.scene.prover.key, replace(head.statement, **lie), head.blinding)
    heads = (*honest.opening.disclosure.heads[:-1], other)
    rejected(honest.verify(honest.opening.disclosing(heads=heads)), "V4", "commitment of head 2")


def test_v4_another_blinding(honest: Honest) -> None:
    head = replace(honest.opening.disclosure.heads[-1], blinding=bytes(32))
    heads = (*honest.opening.disclosure.heads[:-1], head)
    rejected(honest.verify(honest.opening.disclosing(heads=heads)), "V4", "commitment of head 2")


def test_v4_a_head_that_does_not_extend_the_one_before() -> None:
    """History rewritten between two anchors."""
    staged = scene(heads=(5,))
    prover = staged.prover
    prover.secret = named("another secret")     # other salts, so another tree
    prover.start()
    staged.anchor = prover.train(12).anchor()
    finding = rejected(answered(staged), "V4", "head 2 extends head 1")
    assert "root" in finding.found


def test_v4_a_head_withheld(honest: Honest) -> None:
    opening = honest.opening.disclosing(heads=honest.opening.disclosure.heads[1:], consistency=())
    rejected(honest.verify(opening), "V3", "statement")


def test_v4_the_last_head_withheld(honest: Honest) -> None:
    opening = honest.opening.disclosing(heads=honest.opening.disclosure.heads[:1], consistency=())
    finding = rejected(honest.verify(opening), "V4", "revealed heads")
    assert (finding.expected, finding.found) == ("2", "1")


def test_v4_more_heads_than_were_anchored(honest: Honest) -> None:
    heads = honest.opening.disclosure.heads
    rejected(honest.verify(honest.opening.disclosing(heads=(*heads, heads[-1]))), "V4", "revealed heads")


@pytest.mark.parametrize("proofs", [0, 2])
def test_v4_consistency_proofs_missing_or_too_many(honest: Honest, proofs: int) -> None:
    opening = honest.opening.disclosing(consistency=honest.opening.disclosure.consistency * proofs)
    rejected(honest.verify(opening), "V4", "consistency proofs")


@pytest.mark.parametrize("spoil", [lambda proof: proof[1:], lambda proof: (bytes(32), *proof[1:])])
def test_v4_a_consistency_proof_of_something_else(honest: Honest, spoil: Any) -> None:
    (proof,) = honest.opening.disclosure.consistency
    rejected(honest.verify(honest.opening.disclosing(consistency=(spoil(proof),))), "V4", "head 2 extends head 1")


def test_v4_a_previous_head_that_was_not() -> None:
    staged = scene(heads=(5,))
    staged.anchor = staged.prover.train(7).anchor(previous=bytes(32))
    rejected(answered(staged), "V4", "previous head")


def test_v4_a_head_after_a_final_one() -> None:
    staged = scene(heads=())
    prover = staged.prover
    prover.train(5).anchor(final=True)
    with pytest.raises(UsageError, match="the last head was final"):
        next_head(prover.train(7).run, prover.key)
    final = prover.heads[0]
    prover.heads[0] = replace(final, statement=replace(final.statement, final=False))
    staged.anchor = prover.anchor()
    prover.heads[0] = final
    rejected(answered(staged), "V4", "heads after a final one")


def test_there_is_nothing_to_anchor_without_a_new_step() -> None:
    """An anchor is never sent twice for one head."""
    staged = scene(heads=(5,))
    with pytest.raises(UsageError, match="no step was recorded since the last head"):
        next_head(staged.prover.run, staged.prover.key)
    fresh = scene(heads=())
    with pytest.raises(UsageError, match="no step was recorded"):
        next_head(fresh.prover.run, fresh.prover.key)


def test_a_head_that_was_never_anchored_is_not_opened(honest: Honest) -> None:
    unknown = changed(honest.challenge, request__commitment=bytes(32))
    with pytest.raises(Refuted, match="challenged head"):
        honest.scene.prover.open(unknown, honest.scene.prover.draw(honest.challenge))


def test_v4_environment_epochs_rewritten() -> None:
    staged = scene(heads=(5,))
    staged.anchor = staged.prover.train(7).anchor(environments=((1, digest(ELSEWHERE)),))
    rejected(answered(staged), "V4", "environment epochs")


# --- V5: before the first step --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"recipe_source": bytes(32)},
        {"recipe": "another"},
        {"configuration": bytes(32)},
        {"keep": 1},
        {"clear_openings": False},
    ],
)
def test_v5_another_manifest_than_was_registered(honest: Honest, other: Any) -> None:
    manifest = replace(honest.opening.disclosure.manifest, **other)
    rejected(honest.verify(honest.opening.disclosing(manifest=manifest)), "V5", "manifest commitment")


def test_v5_another_budget_than_was_registered(honest: Honest) -> None:
    manifest = honest.opening.disclosure.manifest
    richer = tuple(replace(verifier, steps=verifier.steps + 1) for verifier in manifest.verifiers)
    opening = honest.opening.disclosing(manifest=replace(manifest, verifiers=richer))
    rejected(honest.verify(opening), "V5", "manifest commitment")


def test_v5_another_data_set_than_was_registered() -> None:
    """The data is swapped for other data after the order is known."""

    class Swapped(Prover):
        def start(self) -> None:
            self.contents = [b"better " + content for content in self.contents]
            self.dataset = [
                hashes.sample_leaf(hashes.sample_salt(self.secret, index), self.sample_leaf(index))
                for index in range(self.samples)
            ]
            self.manifest = replace(self.manifest, dataset=hashes.tree_head(self.dataset))
            super().start()

    rejected(attacked(Swapped), "V5", "manifest commitment")


def test_v5_another_blinding_of_the_manifest(honest: Honest) -> None:
    rejected(honest.verify(honest.opening.disclosing(manifest_blinding=bytes(32))), "V5", "manifest commitment")


@pytest.mark.parametrize("spoil", ["reversed", "swapped", "repeated", "without the genesis", "none"])
def test_v5_leaves_that_do_not_rise_from_0(honest: Honest, spoil: str) -> None:
    first, second, *others = honest.opening.disclosure.leaves
    leaves = {
        "reversed": [*others[::-1], second, first],
        "swapped": [first, others[0], second, *others[1:]],
        "repeated": [first, second, second, *others],
        "without the genesis": [second, *others],
        "none": [],
    }
    rejected(honest.verify(honest.opening.disclosing(leaves=tuple(leaves[spoil]))), "V5", "opened leaves")


@pytest.mark.parametrize("lie", [{"salt": bytes(32)}, {"record": b"\x90"}, {"index": 1 << 40}])
def test_v5_a_leaf_that_is_not_in_the_anchored_tree(honest: Honest, lie: Any) -> None:
    leaves = honest.opening.disclosure.leaves
    opening = honest.opening.disclosing(leaves=(*leaves[:-1], replace(leaves[-1], **lie)))
    rejected(honest.verify(opening), "V5", "opened leaves are in the anchored tree")


def test_v5_a_leaf_in_the_place_of_another(honest: Honest) -> None:
    """Two opened records change places, their indices do not."""
    leaves = list(honest.opening.disclosure.leaves)
    leaves[1], leaves[2] = replace(leaves[2], index=leaves[1].index), replace(leaves[1], index=leaves[2].index)
    opening = honest.opening.disclosing(leaves=tuple(leaves))
    rejected(honest.verify(opening), "V5", "opened leaves are in the anchored tree")


@pytest.mark.parametrize(
    "spoil", [lambda _: (), lambda proof: (*proof, bytes(32)), lambda proof: (bytes(32),) * len(proof)]
)
def test_v5_a_proof_that_leads_nowhere(honest: Honest, spoil: Any) -> None:
    opening = honest.opening.disclosing(leaves_proof=spoil(honest.opening.disclosure.leaves_proof))
    rejected(honest.verify(opening), "V5", "opened leaves are in the anchored tree")


@pytest.mark.parametrize(
    "lie",
    [
        {"run": named("another run")},
        {"run": None},
        {"manifest": named("another manifest")},
        {"beacon": named("a beacon of one's own")},
        {"beacon_block": 3},
        {"chain_id": 1},
        {"contract": bytes(20)},
        {"account": bytes(20)},
        {"prover": bytes(32)},
    ],
)
def test_v5_a_genesis_record_of_something_else(lie: Any) -> None:
    class Cheat(Prover):
        def genesis(self) -> GenesisRecord:
            return replace(super().genesis(), **lie)

    rejected(attacked(Cheat), "V5", "genesis record")


def test_v5_no_genesis_record() -> None:
    class Cheat(Prover):
        def start(self) -> None:
            super().start()
            self.transcript = hashes.Transcript(self.secret, [encode(Rate(step=1, learning_rate=0.1))])

        def anchor(self, **changes: Any) -> Anchored:
            genuine, self.transcript._records[0] = self.transcript.record(0), encode(self.genesis())
            head = next_head(self.run, self.key)
            self.transcript._records[0] = genuine
            return self.send(head)

    rejected(attacked(Cheat), "V5", "record", at=0)


def test_v5_a_transcript_copied_from_another_run() -> None:
    """A thief who knows all of the victim's leaves anchors the same tree, properly signed, as his own run."""
    victim = scene(heads=(12,))
    thief = thief_of(victim)
    statement = replace(victim.prover.heads[0].statement, run=thief.id)
    anchor = thief.send(sign_statement(thief.key, statement, bytes(32)))
    challenge = victim.verifier.challenge(victim.ledger, anchor)
    opening = victim.prover.open(victim.challenge(nonce="2"), victim.prover.draw(victim.challenge(nonce="3")))
    opening = opening.disclosing(
        manifest=thief.manifest,
        manifest_blinding=hashes.derive(thief.secret, "blinding/manifest"),
        heads=tuple(thief.heads),
    )
    rejected(victim.verify(challenge, opening, attested=thief.heads[0]), "V5", "genesis record")


def test_v5_a_statement_about_another_genesis_record() -> None:
    staged = scene(heads=())
    staged.anchor = staged.prover.train().anchor(genesis=bytes(32))
    rejected(answered(staged), "V5", "genesis of the statements")


def test_v5_an_anchor_from_before_the_beacon() -> None:
    """Whoever foresees the beacon's block, such as a devnet's operator, could have trained before registering."""

    class Foresees(Prover):
        def register(self) -> Prover:
            super().register()
            self.ledger.latest = self.registration.position.block
            return self

    rejected(attacked(Foresees, heads=(12,)), "V5", "anchor after the beacon")


def test_v5_more_steps_than_were_planned() -> None:
    staged = scene(heads=(6, 7))          # four kept states: no screens, which would add step 13
    challenge = staged.challenge(steps=(1, 2))
    finding = rejected(staged.verify(challenge, staged.prover.respond(challenge)), "V5", "number of steps")
    assert (finding.expected, finding.found) == ("at most 12", "13")


def test_v5_another_configuration_than_was_registered(honest: Honest) -> None:
    opening = honest.opening.opening(configuration=(("accumulation", "1"), ("batch", "4"), ("steps", "12")))
    rejected(honest.verify(opening), "V5", "configuration")


@pytest.mark.parametrize(("name", "value"), [("batch", "4"), ("steps", "13"), ("accumulation", "3"), ("steps", None)])
def test_v5_a_configuration_that_contradicts_the_manifest(name: str, value: str | None) -> None:
    """Committed to, but not what the manifest says of batch, steps and accumulation."""

    class Cheat(Prover):
        def configured(self) -> tuple[tuple[str, str], ...]:
            pairs = dict(super().configured()) | {name: value}
            return tuple((key, text) for key, text in pairs.items() if text is not None)

    rejected(attacked(Cheat), "V5", f"'{name}'")


# --- V6: the challenge ----------------------------------------------------------------------------------------


def posed(request: Request, event: Challenged, nonce: str = "nonce") -> Challenge:
    """What the verifier hands over once its event is on the ledger."""
    return Challenge(
        request=request, nonce=named(nonce), id=event.id, block=event.position.block, gradients=False
    )


def with_challenge(honest: Honest, challenge: Challenge) -> Verification:
    return honest.verify(challenge=challenge)


def test_v6_a_challenge_that_is_not_on_the_ledger(honest: Honest) -> None:
    rejected(with_challenge(honest, replace(honest.challenge, id=99)), "V6", "challenge on the ledger")


def test_v6_a_challenge_of_another_block(honest: Honest) -> None:
    """The block decides the randomness."""
    wrong = replace(honest.challenge, block=honest.challenge.block + 1)
    rejected(with_challenge(honest, wrong), "V6", "challenge on the ledger")


def test_v6_another_nonce_than_was_committed_to(honest: Honest) -> None:
    """A verifier and a prover who are friends try nonces until the draw avoids what is forged."""
    rejected(with_challenge(honest, replace(honest.challenge, nonce=bytes(32))), "V6", "challenge event")


def test_v6_another_request_than_was_committed_to(honest: Honest) -> None:
    smaller = replace(honest.challenge, request=replace(honest.challenge.request, count=1))
    rejected(with_challenge(honest, smaller), "V6", "challenge event")


def test_v6_another_verifiers_challenge(honest: Honest) -> None:
    other = replace(honest.challenge.request, verifier=Verifier("another verifier").public)
    rejected(with_challenge(honest, replace(honest.challenge, request=other)), "V6", "challenge event")


def test_v6_a_copied_challenge_does_not_count() -> None:
    """Sent again by somebody else, event and signature and all: the first one counts, and nobody owes an answer."""
    staged = scene()
    request = staged.verifier.request(staged.anchor)
    first, copy = (staged.verifier.announce(staged.ledger, request) for _ in range(2))
    staged.ledger.settle()
    made = [posed(request, event) for event in (first, copy)]
    accepted(staged.verify(made[0], staged.prover.respond(made[0])))
    with pytest.raises(Refuted, match="or a copy"):
        staged.prover.respond(made[1])
    opening = staged.prover.open(made[1], staged.prover.draw(made[1]))
    finding = rejected(staged.verify(made[1], opening), "V6", "eligible verifier's signature")
    assert "copy" in finding.found


def test_v6_a_challenge_by_a_verifier_whom_the_manifest_does_not_name() -> None:
    staged = scene()
    friend = Verifier("friend")
    challenge = friend.challenge(staged.ledger, staged.anchor)
    with pytest.raises(Refuted, match="eligible"):
        staged.prover.respond(challenge)
    opening = staged.prover.open(challenge, staged.prover.draw(challenge))
    rejected(staged.verify(challenge, opening), "V6", "eligible verifier's signature")


def test_v6_a_challenge_that_its_verifier_did_not_sign() -> None:
    staged = scene()
    challenge = staged.challenge()
    events = staged.ledger.challenged
    events[-1] = replace(events[-1], signature=bytes(64))
    opening = staged.prover.open(challenge, staged.prover.draw(challenge))
    rejected(staged.verify(challenge, opening), "V6", "eligible verifier's signature")


def test_v6_a_signature_for_another_chain_does_not_count() -> None:
    staged = scene()
    elsewhere = MemoryLedger(chain_id=1)
    elsewhere.heads, elsewhere.latest = staged.ledger.heads, staged.ledger.latest
    event = staged.verifier.announce(elsewhere, staged.verifier.request(staged.anchor))
    staged.ledger.challenged.append(event)
    staged.ledger.mine()
    staged.ledger.settle()
    challenge = posed(staged.verifier.request(staged.anchor), event)
    with pytest.raises(Refuted, match="eligible verifier's signature"):
        staged.prover.respond(challenge)


def test_v6_a_challenge_from_before_the_anchor() -> None:
    """The contract does not know what was anchored; a prover could have its next head challenged beforehand."""
    staged = scene(heads=(5,))
    prover = staged.prover
    head = next_head(prover.train(7).run, prover.key)
    early = replace(staged.verifier.request(staged.anchor), commitment=head.commitment)
    event = staged.verifier.announce(staged.ledger, early)
    staged.ledger.settle()
    staged.anchor = prover.send(head)
    challenge = posed(early, event)
    with pytest.raises(Refuted, match="after the anchor"):
        prover.respond(challenge)
    opening = prover.open(challenge, prover.draw(challenge))
    rejected(staged.verify(challenge, opening), "V6", "challenge after the anchor")


def test_v6_more_steps_than_the_head_has(honest: Honest) -> None:
    staged = honest.scene
    for number, options in enumerate(({"count": 13}, {"steps": (1, 13)})):
        challenge = staged.challenge(**options, nonce=f"too many {number}")
        with pytest.raises(Refuted, match="V6: request: expected at most 12, found 13"):
            staged.prover.draw(challenge)
        rejected(staged.verify(challenge, honest.opening), "V6", "request")


def test_v6_randomness_that_is_not_final_is_no_verdict() -> None:
    staged = scene()
    request = staged.verifier.request(staged.anchor)
    event = staged.verifier.announce(staged.ledger, request)
    challenge = posed(request, event)
    staged.ledger.mine(hashes.DELAY - 1)
    with pytest.raises(Unavailable, match="randomness of the draw"):
        staged.prover.respond(challenge)
    opening = Honest().opening
    with pytest.raises(Unavailable, match="randomness of the draw"):
        staged.verify(challenge, opening)
    staged.ledger.mine()
    accepted(staged.verify(challenge, staged.prover.respond(challenge)))


def second_challenge(staged: Scene) -> tuple[Challenge, bytes]:
    """A first challenge that was answered, its receipt, and a second one."""
    first = staged.challenge(nonce="first")
    receipt = encode(staged.verifier.signed(staged.verify(first, staged.prover.respond(first))))
    return staged.challenge(nonce="second"), receipt


def test_v6_an_earlier_challenge_is_listed_with_its_verdict() -> None:
    staged = scene()
    challenge, receipt = second_challenge(staged)
    staged.prover.receipts[1] = receipt
    verdict = accepted(staged.verify(challenge, staged.prover.respond(challenge)))
    assert verdict.challenges == (EarlierChallenge(id=1, verifier=staged.verifier.public, outcome="accepted"),)


def test_v6_a_draw_that_was_refused_cannot_be_drawn_again() -> None:
    """A budget is the prover's word: a forger whose steps were drawn would plead it until none of them is met."""
    staged = scene()
    first = unanswered(staged)
    first.refuse("budget", "50 steps, 40 allowed")
    staged.prover.receipts[1] = encode(staged.verifier.signed(first))
    second = staged.challenge(nonce="second")
    verification = staged.verify(second, staged.prover.respond(second))
    inconclusive(verification, "V6", "challenge 1 was refused")


def test_v6_a_rejection_is_not_forgotten() -> None:
    """Nor can another draw, or another eligible verifier, be asked until one of them accepts."""

    class Forger(Prover):
        def update(self, step: int, outcome: Outcome) -> State:
            stolen = {**outcome.state.tensors, "parameter/weight": floats(b"stolen", 6)}
            return State(stolen, outcome.state.counter) if step == 9 else outcome.state

    staged = scene(Forger)
    drawn = [number for number in range(1, 13) if number not in (9, 10)]
    met, missed = (staged.verifier.request(staged.anchor, steps=steps) for steps in ((9,), tuple(drawn)))
    outcomes = []
    for number, request in enumerate((met, missed), 1):
        event = staged.verifier.announce(staged.ledger, request, nonce=named(f"nonce {number}"))
        challenge = posed(request, event, f"nonce {number}")
        staged.ledger.settle()
        verification = staged.verify(challenge, staged.prover.respond(challenge))
        outcomes.append(verification)
        staged.prover.receipts[event.id] = encode(staged.verifier.signed(verification))
    assert verdict_of(outcomes[0]).verdict == "rejected"
    inconclusive(outcomes[1], "V6", "challenge 1 was rejected")


def test_steps_of_another_environment_settle_nothing_although_none_is_drawn() -> None:
    """Forged steps that claim an environment of their own would be drawn without being refuted."""
    staged = scene(heads=(5,))
    staged.prover.environments.append((6, ELSEWHERE))
    staged.anchor = staged.prover.train(7).anchor()
    request = staged.verifier.request(staged.anchor, steps=(1, 2, 3))
    event = staged.verifier.announce(staged.ledger, request)
    challenge = posed(request, event)
    staged.ledger.settle()
    verification = staged.verify(challenge, staged.prover.respond(challenge))
    inconclusive(verification, "V10", ELSEWHERE_AND_NO_PROFILE)


def test_another_environment_refutes_neither_schema_nor_initial_state() -> None:
    """Another version of torch has other optimizer settings, and a recipe's W_0 may not be exact: no rejection."""

    class Elsewhere(HonestReplayer):
        def _replayed(self, job: Any, blobs: Any, report: Any) -> Any:
            raise Refuted("V8", "scalars of the state", expected="those of this version", found="others")

    staged = scene()
    verification = answered(staged, replayer=Elsewhere(ELSEWHERE))
    environment, schema = verdict_of(verification).findings
    assert (environment.check, environment.what) == ("V10", ELSEWHERE_AND_NO_PROFILE)
    assert (schema.check, schema.what) == ("V8", "scalars of the state")
    assert verdict_of(verification).verdict == "inconclusive"
    assert dict(verdict_of(verification).checks)["V8"] == "not settled"


@pytest.mark.parametrize(("steps", "claim"), [((5, 7), False), ((5, 4), True)])
def test_v5_whether_a_head_is_final_is_not_the_provers_to_say(steps: tuple[int, int], claim: bool) -> None:
    staged = scene(heads=steps[:1])
    staged.prover.train(steps[1])
    staged.anchor = staged.prover.anchor(final=claim)
    rejected(answered(staged, 4), "V5", "whether head 2 is final")


def test_v6_an_earlier_challenge_without_a_receipt_is_unanswered() -> None:
    """Dropping a receipt that hurts: no later verdict is more than inconclusive."""
    staged = scene()
    challenge, _ = second_challenge(staged)
    verification = staged.verify(challenge, staged.prover.respond(challenge))
    inconclusive(verification, "V6", "challenge 1 was unanswered")
    verdict = verdict_of(verification)
    assert verdict.reexecuted == verdict.steps and verdict.challenges[0].outcome == "unanswered"


@pytest.mark.parametrize("lie", ["another run", "another verifier", "another request"])
def test_v6_a_receipt_of_something_else_answers_nothing(lie: str) -> None:
    staged = scene()
    challenge, receipt = second_challenge(staged)
    signer = staged.verifier
    told = decode(receipt, Receipt).verdict
    if lie == "another run":
        told = replace(told, run=bytes(32))
    elif lie == "another request":
        told = changed(told, request__count=3)
    else:
        signer = Verifier("friend")
        told = replace(told, verifier=signer.public)
    staged.prover.receipts[1] = encode(sign_verdict(signer.key, told))
    opening = staged.prover.open(challenge, staged.prover.draw(challenge))
    inconclusive(staged.verify(challenge, opening), "V6", "challenge 1 was unanswered")


def test_v6_a_forged_receipt() -> None:
    """A rejection turned into something better."""
    staged = scene()
    challenge, receipt = second_challenge(staged)
    position = receipt.index(b"accepted")
    staged.prover.receipts[1] = receipt[:position] + b"rejected" + receipt[position + 8 :]
    opening = staged.prover.respond(challenge)
    rejected(staged.verify(challenge, opening), "V6", "receipt of an earlier challenge")


def test_v6_a_receipt_that_is_none(honest: Honest) -> None:
    opening = honest.opening.disclosing(receipts=(b"\xc0",))
    rejected(honest.verify(opening), "V6", "receipt of an earlier challenge")


def test_v6_a_receipt_of_a_later_challenge(honest: Honest) -> None:
    opening = honest.opening.disclosing(receipts=(receipt_of(honest),))
    rejected(honest.verify(opening), "V6", "receipts")


def test_v6_a_receipt_twice() -> None:
    staged = scene()
    challenge, receipt = second_challenge(staged)
    staged.prover.receipts[1] = receipt
    opening = staged.prover.respond(challenge).disclosing(receipts=(receipt, receipt))
    rejected(staged.verify(challenge, opening), "V6", "receipts")


def test_v6_a_challenge_by_a_stranger_need_not_be_answered() -> None:
    """Otherwise anybody could spoil a run's verdicts by paying for a challenge."""
    staged = scene()
    Verifier("stranger").challenge(staged.ledger, staged.anchor)
    challenge = staged.challenge()
    verdict = accepted(staged.verify(challenge, staged.prover.respond(challenge)))
    assert (challenge.id, verdict.challenges) == (2, ())


# --- V7: leaves -----------------------------------------------------------------------------------------------


def test_v7_other_steps_than_the_drawn_ones(honest: Honest) -> None:
    """The prover opens steps that it likes better."""
    staged = honest.scene
    drawn = staged.prover.draw(honest.challenge)
    others = tuple(step for step in range(1, 13) if step not in drawn.steps)[: len(drawn.steps)]
    opening = staged.prover.open(honest.challenge, replace(drawn, steps=others))
    rejected(honest.verify(opening), "V7", "opened leaves")


def test_v7_more_leaves_than_are_due(honest: Honest) -> None:
    staged = honest.scene
    drawn = staged.prover.draw(honest.challenge)
    opening = staged.prover.open(honest.challenge, replace(drawn, steps=tuple(range(1, 13))))
    rejected(honest.verify(opening), "V7", "opened leaves")


class Record:
    """Provers that commit to something else than they did, at step 6."""

    @staticmethod
    def lie(**fields: Any) -> type[Prover]:
        class Cheat(Prover):
            def recorded(self, record: StepRecord) -> StepRecord:
                return replace(record, **fields) if record.step == 6 else record

        return Cheat


def test_v7_a_leaf_of_another_step() -> None:
    finding = rejected(attacked(Record.lie(step=7)), "V7", "step number", at=6)
    assert (finding.expected, finding.found) == ("6", "7")


def test_v7_a_leaf_that_is_no_step() -> None:
    class Cheat(Prover):
        def train(self, steps: int | None = None) -> Prover:
            super().train(steps)
            records = [self.transcript.record(index) for index in range(len(self.transcript))]
            if len(records) == 13:
                records[7] = encode(Rate(step=7, learning_rate=0.1))
                self.transcript = hashes.Transcript(self.secret, records)
            return self

    rejected(attacked(Cheat, heads=(12,)), "V7", "record", at=7)


def test_v7_another_learning_rate_than_was_registered() -> None:
    finding = rejected(attacked(Record.lie(learning_rate=1e-9)), "V7", "learning rate", at=6)
    assert finding.found == "1e-09"


def test_v7_another_learning_rate_at_a_kept_step_that_is_not_challenged() -> None:
    """A displacement counts as ordinary by its learning rate: with a large one beside it no jump would be flagged."""
    staged = scene(Record.lie(learning_rate=1e6))
    challenge = staged.challenge(1, steps=(2,))
    verification = staged.verify(challenge, staged.prover.respond(challenge))
    finding = rejected(verification, "V7", "learning rate of a kept step", at=6)
    assert finding.found == "1000000.0"


def test_v7_another_learning_rate_disclosed_as_well(honest: Honest) -> None:
    """A learning rate of next to nothing, disclosed as if it were the schedule's."""
    staged = scene(Record.lie(learning_rate=1e-9))
    challenge = staged.challenge(ALL)
    opening = staged.prover.respond(challenge)
    rates = list(opening.disclosure.learning_rates)
    rates[5] = 1e-9
    verification = staged.verify(challenge, opening.disclosing(learning_rates=tuple(rates)))
    rejected(verification, "V7", "learning rates are the registered schedule's")


@pytest.mark.parametrize("lie", [math.nan, -0.0, 0.0])
def test_v7_rates_that_compare_oddly(lie: float) -> None:
    rejected(attacked(Record.lie(learning_rate=lie)), "V7", "learning rate", at=6)


def test_v7_learning_rates_missing(honest: Honest) -> None:
    rates = honest.opening.disclosure.learning_rates
    rejected(honest.verify(honest.opening.disclosing(learning_rates=rates[:-1])), "V7", "learning rates")


def test_v7_a_schedule_proof_of_something_else(honest: Honest) -> None:
    what = "learning rates are the registered schedule's"
    rejected(honest.verify(honest.opening.disclosing(schedule_proof=())), "V7", what)


def test_v7_other_samples_than_the_order_demands() -> None:
    """The prover trains on the samples that it likes."""

    class Cheat(Prover):
        def indices(self, step: int) -> tuple[int, ...]:
            return (0, 1, 2) if step == 6 else super().indices(step)

    rejected(attacked(Cheat), "V7", "samples that the order demands", at=6)


def test_v7_the_right_samples_in_another_order() -> None:
    class Cheat(Prover):
        def indices(self, step: int) -> tuple[int, ...]:
            return super().indices(step)[::-1] if step == 6 else super().indices(step)

    rejected(attacked(Cheat), "V7", "samples that the order demands", at=6)


def test_v7_a_sample_that_is_not_in_the_data_set(honest: Honest) -> None:
    shown = honest.opening.disclosure.sample_hashes
    opening = honest.opening.disclosing(sample_hashes=(bytes(32), *shown[1:]))
    rejected(honest.verify(opening), "V7", "samples are in the registered data set")


def test_v7_samples_missing(honest: Honest) -> None:
    shown = honest.opening.disclosure.sample_hashes
    rejected(honest.verify(honest.opening.disclosing(sample_hashes=shown[1:])), "V7", "samples")


@pytest.mark.parametrize("lie", [1, 2**40])
def test_v7_another_environment_epoch_than_stated(lie: int) -> None:
    rejected(attacked(Record.lie(environment=lie)), "V7", "environment epoch", at=6)


@pytest.mark.parametrize("shown", [(), (ELSEWHERE,), (ENVIRONMENT, ELSEWHERE)])
def test_v7_other_fingerprints_than_stated(honest: Honest, shown: tuple[Fingerprint, ...]) -> None:
    rejected(honest.verify(honest.opening.disclosing(environments=shown)), "V7", "environment fingerprints")


def test_v7_a_statement_about_another_last_state() -> None:
    """The statement names the released model, the transcript ends elsewhere."""
    staged = scene(heads=())
    staged.anchor = staged.prover.train().anchor(state=bytes(32))
    rejected(answered(staged), "V7", "last state", at=12)


# --- V8: states -----------------------------------------------------------------------------------------------


def test_v8_a_state_with_another_digest(honest: Honest) -> None:
    """A swapped checkpoint: a forged momentum buffer lands a step anywhere."""
    state = honest.opening.openings.states[0]
    momentum = replace(state.index.tensors[1], content=bytes(32))
    index = replace(state.index, tensors=(state.index.tensors[0], momentum, *state.index.tensors[2:]))
    opening = honest.opening.opening(states=(replace(state, index=index), *honest.opening.openings.states[1:]))
    rejected(honest.verify(opening), "V8", "opened state", at=state.step)


@pytest.mark.parametrize("field", ["values", "aliases"])
def test_v8_scalars_of_another_state(honest: Honest, field: str) -> None:
    state = honest.opening.openings.states[0]
    lie: Any = b"\x90" if field == "values" else ()
    odd = changed(state, **{f"index__scalars__{field}": lie})
    opening = honest.opening.opening(states=(odd, *honest.opening.openings.states[1:]))
    rejected(honest.verify(opening), "V8", "opened state", at=state.step)


def test_v8_two_states_change_places(honest: Honest) -> None:
    first, second, *others = honest.opening.openings.states
    swapped = (replace(first, index=second.index), replace(second, index=first.index), *others)
    rejected(honest.verify(honest.opening.opening(states=swapped)), "V8", "opened state", at=first.step)


@pytest.mark.parametrize("spoil", [lambda s: s[1:], lambda s: (s[0], *s), lambda s: s[::-1], lambda s: ()])
def test_v8_states_missing_or_more_than_are_due(honest: Honest, spoil: Any) -> None:
    opening = honest.opening.opening(states=spoil(honest.opening.openings.states))
    rejected(honest.verify(opening), "V8", "opened states")


def test_v8_bytes_of_another_state(honest: Honest) -> None:
    entry = honest.opening.openings.states[0].index.tensors[0]
    blobs = {**honest.opening.blobs, entry.content: bytes(8)}
    rejected(honest.verify(replace(honest.opening, blobs=blobs)), "V8", "contents of states and samples")


def test_v8_a_state_that_is_not_the_recipes() -> None:
    """A full training state has exactly the recipe's tensors, or something could hide in it."""

    class Cheat(Prover):
        def update(self, step: int, outcome: Outcome) -> State:
            only = {"parameter/weight": outcome.state.tensors["parameter/weight"]}
            return State(only, 1) if step == 12 else outcome.state

    rejected(attacked(Cheat), "V8", "schema of the recipe", at=12)


def test_v8_a_lying_sketch(honest: Honest) -> None:
    staged = honest.scene
    drawn = staged.prover.draw(honest.challenge)
    sketches = list(honest.opening.openings.sketches)
    position = drawn.kept.index(drawn.opened_kept[0])
    values = sketches[position].values
    sketches[position] = replace(sketches[position], values=(values[0] + 1, *values[1:]))
    opening = honest.opening.opening(sketches=tuple(sketches))
    rejected(honest.verify(opening), "V8", "sketch", at=drawn.opened_kept[0])


def test_v8_swapped_sketches(honest: Honest) -> None:
    drawn = honest.scene.prover.draw(honest.challenge)
    sketches = list(honest.opening.openings.sketches)
    a, b = (drawn.kept.index(step) for step in drawn.opened_kept[:2])
    sketches[a], sketches[b] = (replace(sketches[i], values=sketches[j].values) for i, j in ((a, b), (b, a)))
    opening = honest.opening.opening(sketches=tuple(sketches))
    rejected(honest.verify(opening), "V8", "sketch", at=drawn.opened_kept[0])


def test_v8_sketches_of_an_earlier_challenge() -> None:
    """The signs are drawn with the challenge: sketches prepared for others do not fit."""
    staged = scene()
    first = staged.prover.respond(staged.challenge(nonce="first"))
    second = staged.challenge(nonce="second")
    opening = staged.prover.respond(second).opening(sketches=first.openings.sketches)
    verification = staged.verify(second, opening)
    assert verification.refuted and verification.findings[-1].what == "sketch"


@pytest.mark.parametrize("spoil", [lambda s: s[1:], lambda s: s[::-1], lambda s: (*s, s[-1])])
def test_v8_sketches_missing_or_more_than_are_due(honest: Honest, spoil: Any) -> None:
    opening = honest.opening.opening(sketches=spoil(honest.opening.openings.sketches))
    rejected(honest.verify(opening), "V8", "sketches")


# --- V9: samples ----------------------------------------------------------------------------------------------


def with_sample(honest: Honest, **fields: Any) -> Verification:
    first, *others = honest.opening.openings.samples
    return honest.verify(honest.opening.opening(samples=(changed(first, **fields), *others)))


def test_v9_a_sample_with_another_salt(honest: Honest) -> None:
    index = honest.opening.openings.samples[0].index
    rejected(with_sample(honest, salt=bytes(32)), "V9", f"sample {index}")


def test_v9_a_sample_whose_leaf_has_another_index(honest: Honest) -> None:
    rejected(with_sample(honest, leaf__index=19), "V9", "index of a sample")


@pytest.mark.parametrize("field", ["content", "length"])
def test_v9_another_sample(honest: Honest, field: str) -> None:
    """Data made up after the fact."""
    first = honest.opening.openings.samples[0]
    made_up: Any = bytes(32) if field == "content" else first.leaf.length + 1
    rejected(with_sample(honest, **{f"leaf__{field}": made_up}), "V9", f"sample {first.index}")


@pytest.mark.parametrize("spoil", [lambda s: s[1:], lambda s: s[::-1], lambda s: (*s, s[-1])])
def test_v9_samples_missing_or_more_than_are_due(honest: Honest, spoil: Any) -> None:
    opening = honest.opening.opening(samples=spoil(honest.opening.openings.samples))
    rejected(honest.verify(opening), "V9", "opened samples")


def test_v9_a_sample_of_less_than_no_bytes_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="length -1"):
        SampleLeaf(index=0, length=-1, content=bytes(32))


def test_v9_another_batch_than_was_fed_to_the_model() -> None:
    """The right samples, transformed in another way."""
    rejected(attacked(Record.lie(batch=bytes(32))), "V9", "batch as fed to the model", at=6)


# --- V10: re-execution ----------------------------------------------------------------------------------------


def test_v10_a_forged_update() -> None:
    """One step lands elsewhere; everything after it is honest."""

    class Cheat(Prover):
        def update(self, step: int, outcome: Outcome) -> State:
            if step != 6:
                return outcome.state
            stolen = {"parameter/weight": floats(b"stolen", 6)}
            return replace(outcome.state, tensors={**outcome.state.tensors, **stolen})

    finding = rejected(attacked(Cheat), "V10", "state after the step", at=6)
    assert finding.expected != finding.found


def test_v10_a_forged_momentum_buffer() -> None:
    """The full training state is compared, not only the weights."""

    class Cheat(Prover):
        def update(self, step: int, outcome: Outcome) -> State:
            forged = {"optimizer/weight/momentum": bytes(24)} if step == 6 else {}
            return replace(outcome.state, tensors={**outcome.state.tensors, **forged})

    rejected(attacked(Cheat), "V10", "state after the step", at=6)


def test_v10_interpolation_by_infinitesimal_updates() -> None:
    """Every state lies between W_0 and a stolen model, an ulp apart from what the step would give."""

    class Cheat(Prover):
        def update(self, step: int, outcome: Outcome) -> State:
            data = bytearray(self.states[-1].tensors["parameter/weight"])
            data[0] ^= 1
            return State({**self.states[-1].tensors, "parameter/weight": bytes(data)}, step)

    rejected(attacked(Cheat), "V10", "state after the step", at=1)


def test_v10_a_step_left_out() -> None:
    class Cheat(Prover):
        def update(self, step: int, outcome: Outcome) -> State:
            return self.states[-1] if step == 6 else outcome.state

    rejected(attacked(Cheat), "V10", "state after the step", at=6)


def test_v10_what_is_not_drawn_is_not_seen() -> None:
    """What the probability of detection is about: a draw that misses the forged step accepts."""

    class Cheat(Prover):
        def recorded(self, record: StepRecord) -> StepRecord:
            return replace(record, loss=0.25) if record.step == 6 else record

    verdicts = set()
    for number in range(30):
        staged = scene(Cheat)
        challenge = staged.challenge(1, nonce=str(number))
        verification = staged.verify(challenge, staged.prover.respond(challenge))
        verdict = verdict_of(verification)
        verdicts.add(verdict.verdict)
        assert verdict.verdict == ("rejected" if verdict.steps == (6,) else "accepted")
    assert verdicts == {"accepted", "rejected"}


@pytest.mark.parametrize("lie", [0.5, math.nan, -0.0])
def test_v10_a_forged_loss(lie: float) -> None:
    rejected(attacked(Record.lie(loss=lie)), "V10", "loss", at=6)


def test_v10_forged_clipping() -> None:
    class Cheat(Prover):
        def recorded(self, record: StepRecord) -> StepRecord:
            return replace(record, clipped=not record.clipped) if record.step == 6 else record

    rejected(attacked(Cheat), "V10", "whether clipped", at=6)


def test_v10_a_forged_skip() -> None:
    rejected(attacked(Record.lie(skipped=True)), "V10", "whether skipped", at=6)


def test_v10_a_registered_schedule_that_the_recipe_does_not_follow() -> None:
    """Registered and recorded alike, but not what the recipe applies."""

    class Cheat(Prover):
        def rate(self, step: int) -> float:
            return 0.3 if step == 2 else super().rate(step)

    rejected(attacked(Cheat), "V10", "learning rate as applied", at=2)


def test_v10_another_environment_is_inconclusive(honest: Honest) -> None:
    verification = honest.verify(replayer=HonestReplayer(ELSEWHERE))
    finding = inconclusive(verification, "V10", ELSEWHERE_AND_NO_PROFILE)
    assert (finding.expected, finding.found) == ("threads=1", "threads=2")
    verdict = verdict_of(verification)
    assert verdict.reexecuted == () and verdict.probability == 0.0
    assert dict(verdict.checks)["V9"] == "not settled"


def test_v10_another_environment_never_buys_detection() -> None:
    """A forger who claims an environment that nobody has is not accepted either."""

    class Cheat(Prover):
        def recorded(self, record: StepRecord) -> StepRecord:
            return replace(record, loss=0.25)

    verification = answered(scene(Cheat), replayer=HonestReplayer(ELSEWHERE))
    assert verdict_of(verification).verdict == "inconclusive"


def test_v10_a_machine_that_does_not_reproduce_itself_is_inconclusive(honest: Honest) -> None:
    verification = honest.verify(replayer=HonestReplayer(reproduces=False))
    inconclusive(verification, "V10", "this machine does not reproduce itself")
    assert verdict_of(verification).reexecuted == ()


def test_v10_another_copy_of_the_recipe_is_no_verdict(honest: Honest) -> None:
    with pytest.raises(Unavailable, match="your copy of recipe 'fake' is not the registered one"):
        honest.verify(replayer=HonestReplayer(source=bytes(32)))


def test_v10_a_report_without_every_step_is_no_verdict(honest: Honest) -> None:
    class Lazy(HonestReplayer):
        def _replayed(self, *arguments: Any) -> Any:
            report = super()._replayed(*arguments)
            return replace(report, steps=report.steps[1:])

    with pytest.raises(Unavailable, match="did not report every step"):
        honest.verify(replayer=Lazy())


def test_v10_a_report_without_every_sketch_is_no_verdict(honest: Honest) -> None:
    class Lazy(HonestReplayer):
        def _replayed(self, *arguments: Any) -> Any:
            return replace(super()._replayed(*arguments), sketches=())

    with pytest.raises(Unavailable, match="did not report every s"):
        honest.verify(replayer=Lazy())


# --- V12: where it starts -------------------------------------------------------------------------------------


def test_v12_a_chosen_starting_point() -> None:
    """Every step is honest, from a W_0 that was chosen, such as a stolen model."""

    class Cheat(Prover):
        def first_state(self) -> State:
            return initial_state(named("chosen"))

    rejected(attacked(Cheat), "V12", "W_0 from the beacon", at=0)


def test_v12_counts_although_step_1_was_not_drawn() -> None:
    class Cheat(Prover):
        def first_state(self) -> State:
            return replace(super().first_state(), counter=1)

    staged = scene(Cheat)
    challenge = staged.challenge(steps=(9,))
    rejected(staged.verify(challenge, staged.prover.respond(challenge)), "V12", "W_0 from the beacon", at=0)


# --- V13: the released model ----------------------------------------------------------------------------------


def released(honest: Honest, **changes: Any) -> Verification:
    return honest.verify(model=honest.scene.prover.model(**changes))


WEIGHT = ("float32", (2, 3))


def test_v13_another_model(honest: Honest) -> None:
    """Proving one model and shipping another."""
    other = (*WEIGHT, bytes(32))
    rejected(released(honest, weight=other), "V13", "tensor weight of the released model")


@pytest.mark.parametrize("form", [("float32", (3, 2)), ("int32", (2, 3))])
def test_v13_the_same_bytes_in_another_form(honest: Honest, form: tuple[str, tuple[int, ...]]) -> None:
    content = honest.scene.prover.model().tensors["weight"][2]
    rejected(released(honest, weight=(*form, content)), "V13", "tensor weight of the released model")


def test_v13_a_tensor_that_training_never_had(honest: Honest) -> None:
    finding = rejected(released(honest, extra=(*WEIGHT, bytes(32))), "V13", "tensor extra of the released model")
    assert finding.expected == "none of that name"


def test_v13_a_parameter_missing(honest: Honest) -> None:
    finding = rejected(released(honest, weight=None), "V13", "tensor weight of the released model")
    assert finding.found == "none"


def test_v13_optimizer_state_is_not_part_of_a_model(honest: Honest) -> None:
    state = honest.scene.prover.states[-1].index().tensors[1]
    assert state.name == "optimizer/weight/momentum"
    moved = {"weight/momentum": (state.dtype, state.shape, state.content)}
    rejected(released(honest, **moved), "V13", "tensor weight/momentum of the released model")


def test_v13_a_buffer_may_be_missing(honest: Honest) -> None:
    """Buffers that are not persistent are not in a model's file."""
    assert dict(accepted(released(honest, mean=None)).checks)["V13"] == "passed"


def test_v13_a_tied_tensor_may_go_by_either_name(honest: Honest) -> None:
    weight = honest.scene.prover.model().tensors["weight"]
    accepted(released(honest, tied=weight))
    accepted(released(honest, tied=weight, weight=None))
    rejected(
        released(honest, tied=(*WEIGHT, bytes(32))), "V13", "tensor tied of the released model"
    )


def test_v13_a_model_from_before_the_end() -> None:
    staged = scene(heads=(5,))
    finding = rejected(answered(staged, 5, model=staged.prover.model()), "V13", "released model")
    assert finding.expected == "a final head"


def test_v13_is_not_checked_without_a_model(honest: Honest) -> None:
    verdict = accepted(honest.verify())
    assert dict(verdict.checks)["V13"] == "not checked" and verdict.model is None


# --- refusals, budgets, demands -------------------------------------------------------------------------------


def unanswered(staged: Scene, **options: Any) -> Verification:
    return Verification(
        policy=policy_for(staged.ledger, **options),
        ledger=staged.ledger,
        replayer=HonestReplayer(),
        challenge=staged.challenge(),
        attested=staged.verifier.unsealed(staged.ledger.chain, staged.anchor),
    )


@pytest.mark.parametrize("reason", ["irreproducible", "invalid"])
def test_a_refusal_counts_as_failed(reason: str) -> None:
    verification = unanswered(scene())
    verification.refuse(reason, "I would rather not")
    finding = rejected(verification, "V10", f"the prover does not open ({reason})")
    assert finding.found == "I would rather not"


def test_a_refusal_for_budget_is_inconclusive() -> None:
    verification = unanswered(scene())
    verification.refuse("budget", "50 steps, 40 allowed")
    inconclusive(verification, "V6", "disclosure budget exhausted")
    verdict = verdict_of(verification)
    assert verdict.steps == () and verdict.probability == 0.0 and math.copysign(1, verdict.probability) == 1


@pytest.mark.parametrize(("limits", "what"), [({"steps": 3}, "4 steps"), ({"samples": 5}, r"\d+ samples")])
def test_the_budget_is_enforced(limits: Any, what: str) -> None:
    """Or challenges become a way to pump out the training set."""
    verifier = Verifier()
    staged = scene(verifier=verifier, eligible=(verifier.eligible(**limits),))
    with pytest.raises(BudgetExhausted, match=f"{what} would be disclosed"):
        staged.prover.respond(staged.challenge())


def test_the_budget_counts_distinct_steps_over_all_challenges() -> None:
    verifier = Verifier()
    staged = scene(verifier=verifier, eligible=(verifier.eligible(steps=5),))
    staged.prover.respond(staged.challenge(steps=(1, 2, 3)))
    staged.prover.respond(staged.challenge(steps=(2, 3, 4), nonce="overlapping"))
    again = staged.challenge(steps=(4, 5), nonce="the fifth")
    staged.prover.respond(again)
    staged.prover.respond(again)        # asked once more, for it was interrupted: it costs nothing
    with pytest.raises(BudgetExhausted):
        staged.prover.respond(staged.challenge(steps=(6,), nonce="the sixth"))


def test_one_verifiers_budget_is_not_anothers() -> None:
    first, second = Verifier("first"), Verifier("second")
    staged = scene(verifier=first, eligible=(first.eligible(steps=4), second.eligible(steps=4)))
    staged.prover.respond(staged.challenge())
    staged.prover.respond(second.challenge(staged.ledger, staged.anchor))


def test_a_verdict_prints_what_is_left_of_the_budgets() -> None:
    verifier = Verifier()
    staged = scene(verifier=verifier, eligible=(verifier.eligible(steps=6, samples=20),))
    first = staged.challenge(steps=(1, 2))
    staged.prover.receipts[1] = encode(staged.verifier.signed(staged.verify(first, staged.prover.respond(first))))
    second = staged.challenge(steps=(2, 3), nonce="second")
    (left,) = accepted(staged.verify(second, staged.prover.respond(second))).budgets
    distinct = {index for step in (1, 2, 3) for index in staged.prover.indices(step)}
    assert (left.steps, left.samples) == (3, 20 - len(distinct))


@pytest.mark.parametrize(("demanded", "verdict"), [(0.3, "accepted"), (0.4, "inconclusive")])
def test_detection_demanded_by_policy(honest: Honest, demanded: float, verdict: str) -> None:
    verification = honest.verify(policy=policy_for(honest.scene.ledger, probability=demanded))
    assert verdict_of(verification).verdict == verdict
    if verdict == "inconclusive":
        finding = inconclusive(verification, "V6", "probability of detection")
        assert (finding.expected, finding.found) == ("at least 0.400", "0.333")


def test_an_anchor_that_was_refuted_before_a_challenge() -> None:
    staged = scene()
    error = Refuted("V3", "outer signature", expected="by the prover", found="another")
    verdict = refuted_anchor(
        policy_for(staged.ledger), staged.ledger, staged.anchor, error, staged.verifier.public
    )
    assert verdict.verdict == "rejected" and verdict.challenge is None and verdict.size is None
    assert dict(verdict.checks)["V3"] == "failed"
    assert decode(encode(verdict), Verdict) == verdict


def test_execution_is_a_pure_function() -> None:
    """Of the tests themselves: what the fake replayer re-executes is what the fake prover did."""
    state = initial_state(bytes(32))
    assert execute(state, 1, [b"a"], bytes(32), ENVIRONMENT) == execute(state, 1, [b"a"], bytes(32), ENVIRONMENT)
    assert execute(state, 1, [b"a"], bytes(32), ENVIRONMENT) != execute(state, 1, [b"b"], bytes(32), ENVIRONMENT)
    assert execute(state, 1, [b"a"], bytes(32), ENVIRONMENT) != execute(state, 1, [b"a"], bytes(32), ELSEWHERE)
