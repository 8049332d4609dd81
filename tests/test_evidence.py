"""The third party: what it takes on whose word, and what it refutes however well it is signed."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fakes import HonestReplayer, MemoryLedger, Opening, Prover, Scene, Verifier, changed, policy_for, scene

from polcommit.anchors import refuted_anchor
from polcommit.encoding import Record, decode, digest, encode
from polcommit.errors import EncodingError, PolcommitError, Refuted, Unavailable, WrongChain
from polcommit.evidence import Judgement, Replay, judge
from polcommit.opening import opening_blobs
from polcommit.policy import Policy
from polcommit.records import (
    Budget,
    Challenge,
    Disclosure,
    Distance,
    EarlierChallenge,
    Evidence,
    Finding,
    Openings,
    Receipt,
    StepRecord,
    Verdict,
    Work,
)
from polcommit.signing import sign_verdict
from polcommit.storage.blobs import BlobFolder
from polcommit.verifier import Verification

OTHER = bytes(range(32))
R = TypeVar("R", bound=Record)


class Small(Prover):
    """As little as shows everything: every byte of its bundle is flipped below."""

    steps, batch, samples, keep = 4, 2, 6, 2


class Bundle:
    """An honest run's evidence, and who may judge it."""

    def __init__(self, cheat: type[Prover] = Small, *, count: int = 2) -> None:
        verifier = Verifier()
        self.scene: Scene = scene(cheat, heads=(2, 2), verifier=verifier, eligible=(verifier.eligible(),))
        self.challenge: Challenge = self.scene.challenge(count)
        self.opening: Opening = self.scene.prover.respond(self.challenge)
        self.verification: Verification = self.scene.verify(self.challenge, self.opening)
        self.evidence: Evidence = self.scene.evidence(self.verification)

    @property
    def ledger(self) -> MemoryLedger:
        return self.scene.ledger

    def policy(self, **changes: Any) -> Policy:
        """Of somebody who trusts this verifier."""
        return policy_for(self.ledger, self.scene.verifier.public, **changes)

    def judge(self, evidence: Evidence | None = None, **changes: Any) -> Judgement:
        return judge(evidence or self.evidence, self.policy(**changes), self.ledger)

    def signed(self, evidence: Evidence) -> Evidence:
        """The same, signed again by the trusted verifier: what is left is what nobody's word can change."""
        receipt = sign_verdict(self.scene.verifier.key, evidence.receipt.verdict)
        return replace(evidence, receipt=receipt)

    def telling(self, **lie: Any) -> Evidence:
        """The trusted verifier signs something else."""
        verdict = replace(self.evidence.receipt.verdict, **lie)
        return self.signed(replace(self.evidence, receipt=replace(self.evidence.receipt, verdict=verdict)))

    def replay(self, verifier: bytes = bytes(32)) -> Replay:
        """One's own re-execution of what the bundle holds in clear."""

        def run(challenge: Challenge, evidence: Evidence) -> Verdict:
            assert evidence.disclosure is not None and evidence.openings is not None
            head = evidence.disclosure.heads[-1]
            opening = Opening(evidence.disclosure, evidence.openings, self.opening.blobs)
            own = self.scene.verifier.verify(self.ledger, challenge, head, opening, policy=self.policy())
            return own.verdict(verifier)

        return run


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle()


def refuted(judgement: Judgement, check: str, what: str) -> Finding:
    assert judgement.verdict == "rejected"
    (finding,) = judgement.findings
    assert (finding.check, finding.what) == (check, what)
    assert dict(judgement.checks)[check] == "failed"
    return finding


# --- on whose word --------------------------------------------------------------------------------------------


def test_accepted_on_a_trusted_verifiers_word(bundle: Bundle) -> None:
    """V1 to V7 are checked here; what needs states and samples is the verifier's word, and said to be."""
    judgement = bundle.judge()
    assert (judgement.verdict, judgement.findings) == ("accepted", ())
    here = {f"V{number}": "checked here" for number in range(1, 8)}
    word = dict.fromkeys(("V8", "V9", "V10", "V12"), "word of the verifier")
    assert dict(judgement.checks) == here | word | dict.fromkeys(("V11", "V13"), "not checked")
    assert judgement.claimed == bundle.evidence.receipt.verdict


def test_an_untrusted_verifiers_word_is_no_answer(bundle: Bundle) -> None:
    with pytest.raises(Unavailable, match="whom the policy does not trust") as error:
        judge(bundle.evidence, policy_for(bundle.ledger), bundle.ledger)
    assert error.value.exit_status == 3 and error.value.hint


def test_a_friend_of_the_prover_does_not_count(bundle: Bundle) -> None:
    """The prover may name friends; only verdicts by keys in the reader's policy count."""
    policy = policy_for(bundle.ledger, Verifier("somebody else").public)
    with pytest.raises(Unavailable):
        judge(bundle.evidence, policy, bundle.ledger)


def test_a_released_model_is_the_verifiers_word_too(bundle: Bundle) -> None:
    staged = bundle.scene
    verification = staged.verify(bundle.challenge, bundle.opening, model=staged.prover.model())
    judgement = bundle.judge(staged.evidence(verification))
    assert judgement.verdict == "accepted" and dict(judgement.checks)["V13"] == "word of the verifier"


def test_later_registrations_and_challenges_change_nothing() -> None:
    """A bundle proves nothing about what came after it."""
    later = Bundle()
    staged = later.scene
    staged.ledger.register(staged.prover.account, bytes(32))
    staged.challenge(nonce="later")
    assert later.judge().verdict == "accepted"


def test_a_chain_that_does_not_answer_is_no_answer() -> None:
    silent = Bundle()
    silent.ledger.reached = False
    with pytest.raises(Unavailable):
        silent.judge()


def test_a_reader_who_wants_more_confirmations_waits() -> None:
    early = Bundle()
    early.ledger.confirmations = 50
    with pytest.raises(Unavailable, match="not final yet"):
        early.judge()
    early.ledger.mine(50)
    assert early.judge().verdict == "accepted"


def test_a_reader_with_another_chains_rpc_server_is_told_so(bundle: Bundle) -> None:
    elsewhere = MemoryLedger("another chain")
    with pytest.raises(WrongChain):
        judge(bundle.evidence, bundle.policy(), elsewhere)


@pytest.mark.parametrize("name", ["chain_id", "genesis", "contract", "codes"])
def test_v2_a_bundle_about_another_chain_than_the_policys(bundle: Bundle, name: str) -> None:
    other: dict[str, Any] = {"chain_id": 1, "genesis": bytes(32), "contract": bytes(20), "codes": frozenset({OTHER})}
    judgement = bundle.judge(**{name: other[name]})
    assert judgement.verdict == "rejected" and judgement.findings[0].check == "V2"


@pytest.mark.parametrize(("demanded", "verdict"), [(0.49, "accepted"), (0.6, "inconclusive")])
def test_a_policy_may_demand_more_detection(bundle: Bundle, demanded: float, verdict: str) -> None:
    """Two of four steps meet one forged step with probability 1/2."""
    judgement = bundle.judge(probability=demanded)
    assert judgement.verdict == verdict
    if verdict == "inconclusive":
        (finding,) = judgement.findings
        assert (finding.check, finding.what, finding.found) == ("V6", "probability of detection", "0.500")


def test_detection_is_computed_at_the_readers_own_fraction(bundle: Bundle) -> None:
    """Three of four forged are met by any two draws."""
    assert bundle.judge(probability=0.99, fraction=0.75).verdict == "accepted"


# --- what nobody's word can change ----------------------------------------------------------------------------

#: One lie for every field that ledger and disclosure contradict: (value, check, what is found to be wrong).
LIES: dict[str, tuple[Any, str, str]] = {
    "basis": ("none", "V1", "basis"),
    "chain_id": (1, "V2", "chain"),
    "genesis": (OTHER, "V2", "chain"),
    "contract": (bytes(20), "V2", "contract"),
    "code": (OTHER, "V2", "contract code"),
    "run": (OTHER, "V1", "'run' in the verdict"),
    "account": (bytes(20), "V1", "'account' in the verdict"),
    "prover": (OTHER, "V1", "'prover' in the verdict"),
    "sequence": (1, "V1", "'sequence' in the verdict"),
    "commitment": (OTHER, "V1", "'commitment' in the verdict"),
    "size": (100, "V1", "'size' in the verdict"),
    "root": (OTHER, "V1", "'root' in the verdict"),
    "final": (False, "V1", "'final' in the verdict"),
    "registered": (False, "V1", "'registered' in the verdict"),
    "registration": (None, "V1", "'registration' in the verdict"),
    "anchor_time": (1, "V1", "'anchor_time' in the verdict"),
    "challenge": (None, "V1", "bundle of an accepted run"),
    "challenge_id": (2, "V6", "challenge on the ledger"),
    "request": (None, "V1", "bundle of an accepted run"),
    "nonce": (OTHER, "V6", "challenge event"),
    "draw": ("verifier's word", "V1", "'draw' in the verdict"),
    "steps": ((1, 2, 3, 4), "V1", "'steps' in the verdict"),
    "added": ((3,), "V1", "'added' in the verdict"),
    "tolerated": ((1, 2), "V1", "re-executed steps"),
    "distances": ((Distance(step=1, value=0.1, tolerance=0.2),), "V1", "steps within tolerance"),
    "profiles": ((OTHER,), "V1", "noise profiles"),
    "reach": (0.5, "V1", "reach of the tolerance"),
    "work": (Work(steps=24, samples=36, flops=None), "V1", "work claimed"),
    "parent": (OTHER, "V1", "'parent' in the verdict"),
    "reexecuted": ((), "V1", "probability of detection"),
    "fraction": (0.75, "V1", "probability of detection"),
    "probability": (0.99, "V1", "probability of detection"),
    "challenges": ((EarlierChallenge(id=1, verifier=OTHER, outcome="accepted"),), "V1", "'challenges' in the verdict"),
    "registrations": ((0, 0), "V2", "registrations of the account"),
    "budgets": ((Budget(verifier=OTHER, steps=1, samples=1),), "V1", "'budgets' in the verdict"),
    "checks": ((), "V1", "checks of the verdict"),
    "environment": (OTHER, "V1", "environment of the re-execution"),
    "model": (OTHER, "V1", "V13 of an accepted run"),
    "sketched": (64, "V1", "sketches compared"),
    "disclosure": (OTHER, "V1", "disclosure"),
}
#: And the rest: another verdict is the verifier's to give, with reasons or without; whether a chain is a devnet is
#: the reader's to know; the openings are not in this bundle; another verifier is another signature.
WORD = {"verdict", "findings", "flags", "anchor", "devnet", "openings", "verifier", "software"}


def test_every_field_of_a_verdict_is_bound_or_known_not_to_be() -> None:
    assert LIES.keys() | WORD == {field.name for field in dataclasses.fields(Verdict)}


@pytest.mark.parametrize("name", sorted(LIES))
def test_a_lie_of_a_trusted_verifier_is_refuted(bundle: Bundle, name: str) -> None:
    lie, check, what = LIES[name]
    assert getattr(bundle.evidence.receipt.verdict, name) != lie
    if name == "registrations":        # it may only have grown since
        lie = (2, 1)
    refuted(bundle.judge(bundle.telling(**{name: lie})), check, what)


@pytest.mark.parametrize("name", ["block", "block_hash", "transaction", "log_index"])
@pytest.mark.parametrize("reference", ["anchor", "registration", "challenge"])
def test_a_lie_about_where_a_log_stands(bundle: Bundle, reference: str, name: str) -> None:
    truth = getattr(bundle.evidence.receipt.verdict, reference)
    lie = replace(truth, **{name: 77 if name == "log_index" else truth.block - 1 if name == "block" else OTHER})
    judgement = bundle.judge(bundle.telling(**{reference: lie}))
    assert judgement.verdict == "rejected"
    assert judgement.findings[0].what in (
        f"'{reference}' in the verdict",
        "challenge on the ledger",
        f"block {lie.block}",
    )


def test_the_signer_is_the_challenger(bundle: Bundle) -> None:
    """A trusted key's word is about its own challenge: what another verifier saw, it cannot have seen."""
    request = replace(bundle.evidence.receipt.verdict.request, verifier=OTHER)  # type: ignore[type-var]
    judgement = bundle.judge(bundle.telling(request=request))
    assert judgement.verdict == "rejected"


def test_a_server_that_lags_behind_refutes_nothing(bundle: Bundle) -> None:
    """The block that a verdict refers to has not come yet, as far as this server knows: could not be checked."""
    later = replace(bundle.evidence.receipt.verdict.anchor, block=77)
    with pytest.raises(Unavailable):
        bundle.judge(bundle.telling(anchor=later))


@pytest.mark.parametrize(
    ("name", "lie"),
    [("run", OTHER), ("commitment", OTHER), ("verifier", OTHER), ("count", 1), ("clear_openings", True)],
)
def test_a_lie_about_the_request(bundle: Bundle, name: str, lie: Any) -> None:
    request = replace(bundle.evidence.receipt.verdict.request, **{name: lie})  # type: ignore[type-var]
    assert bundle.judge(bundle.telling(request=request)).verdict == "rejected"


@pytest.mark.parametrize("fraction", [0.0, -1.0, 2.0, math.nan, math.inf])
def test_a_fraction_that_is_none(bundle: Bundle, fraction: float) -> None:
    """Not the reader's mistake, so neither a usage error."""
    assert bundle.judge(bundle.telling(fraction=fraction)).verdict == "rejected"


@pytest.mark.parametrize("check", ["V2", "V7", "V8", "V9", "V10", "V12"])
@pytest.mark.parametrize("outcome", ["failed", "not settled", "not checked"])
def test_an_accepted_run_has_passed_every_step(bundle: Bundle, check: str, outcome: str) -> None:
    checks = tuple((name, outcome if name == check else old) for name, old in bundle.evidence.receipt.verdict.checks)
    refuted(bundle.judge(bundle.telling(checks=checks)), "V1", f"{check} of an accepted run")


@pytest.mark.parametrize("check", ["V11", "V13"])
def test_an_accepted_run_has_failed_nothing(bundle: Bundle, check: str) -> None:
    checks = tuple((name, "failed" if name == check else old) for name, old in bundle.evidence.receipt.verdict.checks)
    refuted(bundle.judge(bundle.telling(checks=checks)), "V1", f"{check} of an accepted run")


def test_an_accepted_run_has_re_executed_every_drawn_step(bundle: Bundle) -> None:
    steps = bundle.evidence.receipt.verdict.steps
    one = bundle.telling(reexecuted=steps[:1], probability=0.25)
    refuted(bundle.judge(one), "V1", "re-executed steps")


@pytest.mark.parametrize("reexecuted", [(1, 1), (99,), (4, 3)])
def test_steps_that_were_not_drawn_were_not_re_executed(bundle: Bundle, reexecuted: tuple[int, ...]) -> None:
    refuted(bundle.judge(bundle.telling(reexecuted=reexecuted)), "V1", "re-executed steps")


def test_a_later_verdict_cannot_be_accepted_over_an_unanswered_challenge() -> None:
    """Whoever drops a receipt that hurts has a friend who overlooks it."""
    shopping = Bundle()
    staged = shopping.scene
    challenge = staged.challenge(nonce="second")
    verification = staged.verify(challenge, staged.prover.respond(challenge))
    evidence = staged.evidence(verification)
    assert evidence.receipt.verdict.verdict == "inconclusive"
    checks = tuple((name, "passed" if name == "V6" else old) for name, old in evidence.receipt.verdict.checks)
    verdict = replace(
        evidence.receipt.verdict, verdict="accepted", basis="bit-exact", findings=(), checks=checks
    )
    overlooked = shopping.signed(replace(evidence, receipt=replace(evidence.receipt, verdict=verdict)))
    refuted(shopping.judge(overlooked), "V6", "challenge 1")
    hidden = shopping.signed(changed(overlooked, receipt__verdict__challenges=()))
    refuted(shopping.judge(hidden), "V1", "'challenges' in the verdict")


# --- bundles put together from others -------------------------------------------------------------------------


def test_a_broken_signature(bundle: Bundle) -> None:
    broken = changed(bundle.evidence, receipt__signature=bytes(64))
    refuted(bundle.judge(broken), "V1", "signature of the verdict")


def test_a_verdict_signed_by_somebody_else(bundle: Bundle) -> None:
    """In a trusted verifier's name."""
    verdict = bundle.evidence.receipt.verdict
    receipt = sign_verdict(Ed25519PrivateKey.generate(), verdict)
    refuted(bundle.judge(replace(bundle.evidence, receipt=receipt)), "V1", "signature of the verdict")


def test_a_receipt_of_another_bundle(bundle: Bundle) -> None:
    other = Bundle(count=3)
    refuted(bundle.judge(replace(bundle.evidence, receipt=other.evidence.receipt)), "V1", "disclosure")


def test_a_disclosure_of_another_challenge(bundle: Bundle) -> None:
    """Signed for by a careless verifier, even: it opens other leaves than the draw demands."""
    other = Bundle(count=3)
    swapped = replace(bundle.evidence, disclosure=other.evidence.disclosure)
    refuted(bundle.judge(swapped), "V1", "disclosure")
    assert swapped.disclosure is not None
    signed = bundle.signed(changed(swapped, receipt__verdict__disclosure=digest(swapped.disclosure)))
    assert [finding.check for finding in bundle.judge(signed).findings] == ["V7"]


def test_a_disclosure_left_out(bundle: Bundle) -> None:
    refuted(bundle.judge(replace(bundle.evidence, disclosure=None)), "V1", "disclosure")
    signed = bundle.signed(changed(replace(bundle.evidence, disclosure=None), receipt__verdict__disclosure=None))
    refuted(bundle.judge(signed), "V1", "bundle of an accepted run")


def test_openings_of_another_challenge(bundle: Bundle) -> None:
    other = Bundle(count=3).opening.openings
    refuted(bundle.judge(replace(bundle.evidence, openings=other)), "V1", "openings")


def test_v2_a_run_that_nobody_registered() -> None:
    gone = Bundle()
    gone.ledger.registered.clear()
    refuted(gone.judge(), "V2", "registration of the run")


def test_v2_an_anchor_that_left_the_chain() -> None:
    gone = Bundle()
    gone.ledger.anchored.pop()
    refuted(gone.judge(), "V2", "anchor on the ledger")


def test_v6_a_challenge_that_left_the_chain() -> None:
    gone = Bundle()
    gone.ledger.challenged.pop()
    refuted(gone.judge(), "V6", "challenge on the ledger")


def test_a_reader_may_accept_runs_that_were_not_registered(bundle: Bundle) -> None:
    """And demand, as is the default, that they were: this one was."""
    assert bundle.judge(registered=False).verdict == bundle.judge(registered=True).verdict == "accepted"


# --- other verdicts -------------------------------------------------------------------------------------------


class Forger(Small):
    def recorded(self, record: StepRecord) -> StepRecord:
        return replace(record, loss=0.25)


def test_a_rejected_run_stays_rejected() -> None:
    """What only re-execution shows is the verifier's word, with its finding."""
    forged = Bundle(Forger)
    judgement = forged.judge()
    (finding,) = judgement.findings
    assert judgement.verdict == "rejected" and (finding.check, finding.what) == ("V10", "loss")
    assert dict(judgement.checks)["V10"] == "failed" and dict(judgement.checks)["V7"] == "checked here"


def test_a_rejection_of_an_untrusted_verifier_is_no_answer() -> None:
    forged = Bundle(Forger)
    with pytest.raises(Unavailable):
        judge(forged.evidence, policy_for(forged.ledger), forged.ledger)


def test_a_rejection_that_can_be_checked_here_needs_no_trust() -> None:
    class Cheat(Small):
        def recorded(self, record: StepRecord) -> StepRecord:
            return replace(record, learning_rate=1e-9)

    forged = Bundle(Cheat)
    judgement = judge(forged.evidence, policy_for(forged.ledger), forged.ledger)
    refuted(judgement, "V7", "learning rate")


def test_a_rejection_turned_into_an_acceptance() -> None:
    forged = Bundle(Forger)
    verdict = forged.evidence.receipt.verdict
    bought = replace(verdict, verdict="accepted", basis="bit-exact", findings=())
    refuted(forged.judge(changed(forged.evidence, receipt__verdict=bought)), "V1", "signature of the verdict")
    signed = forged.signed(changed(forged.evidence, receipt__verdict=bought))
    assert forged.judge(signed).verdict == "rejected"


def test_a_rejection_of_the_envelope_needs_no_challenge(bundle: Bundle) -> None:
    error = Refuted("V3", "outer signature", expected="by the prover", found="another")
    staged = bundle.scene
    verdict = refuted_anchor(bundle.policy(), staged.ledger, staged.anchor, error, staged.verifier.public)
    evidence = Evidence(receipt=sign_verdict(staged.verifier.key, verdict), disclosure=None, openings=None)
    judgement = bundle.judge(evidence)
    assert judgement.verdict == "rejected" and judgement.findings == verdict.findings
    assert dict(judgement.checks)["V2"] == "not checked"
    lie = bundle.signed(changed(evidence, receipt__verdict__sequence=1))
    refuted(bundle.judge(lie), "V1", "'sequence' in the verdict")
    lie = bundle.signed(changed(evidence, receipt__verdict__probability=0.99))
    refuted(bundle.judge(lie), "V1", "probability of detection")
    nowhere = bundle.signed(changed(evidence, receipt__verdict__commitment=OTHER))
    refuted(bundle.judge(nowhere), "V2", "anchor on the ledger")


def test_v5_a_run_that_was_not_registered_before_training() -> None:
    """Nothing is known of its manifest: the verdict says no more than the anchor's refutation."""
    gone = Bundle()
    gone.ledger.registered.clear()
    error = Refuted("V3", "outer signature", expected="by the prover", found="another")
    staged = gone.scene
    verdict = refuted_anchor(gone.policy(), staged.ledger, staged.anchor, error, staged.verifier.public)
    assert not verdict.registered
    evidence = Evidence(receipt=sign_verdict(staged.verifier.key, verdict), disclosure=None, openings=None)
    for registered in (True, False):
        assert gone.judge(evidence, registered=registered).findings == verdict.findings


def test_an_inconclusive_run_stays_inconclusive() -> None:
    """A refusal for budget opens nothing that could be checked."""
    staged = scene(Small, heads=(2, 2))
    challenge = staged.challenge(2)
    attested = staged.verifier.unsealed(staged.ledger.chain, staged.anchor)
    verification = Verification(
        policy=policy_for(staged.ledger),
        ledger=staged.ledger,
        replayer=HonestReplayer(),
        challenge=challenge,
        attested=attested,
    )
    verification.refuse("budget", "2 steps, 1 allowed")
    evidence = staged.evidence(verification)
    judgement = judge(evidence, policy_for(staged.ledger, staged.verifier.public), staged.ledger)
    assert judgement.verdict == "inconclusive" and judgement.findings[0].what == "disclosure budget exhausted"


# --- one's own re-execution -----------------------------------------------------------------------------------


def in_clear(bundle: Bundle) -> Evidence:
    return replace(bundle.evidence, openings=bundle.opening.openings)


def test_re_execution_needs_no_trust(bundle: Bundle) -> None:
    judgement = judge(in_clear(bundle), policy_for(bundle.ledger), bundle.ledger, bundle.replay())
    assert judgement.verdict == "accepted"
    assert {dict(judgement.checks)[check] for check in ("V8", "V9", "V10", "V12")} == {"checked here"}


def test_re_execution_needs_openings(bundle: Bundle) -> None:
    with pytest.raises(Unavailable, match="holds no states and samples"):
        judge(bundle.evidence, bundle.policy(), bundle.ledger, bundle.replay())


def test_ones_own_re_execution_is_believed_over_anybodys_word() -> None:
    forged = Bundle(Forger)
    verdict = forged.evidence.receipt.verdict
    passed = tuple((name, "passed" if old == "failed" else old) for name, old in verdict.checks)
    friendly = replace(
        verdict,
        verdict="accepted",
        basis="bit-exact",
        findings=(),
        checks=tuple((name, "passed" if name in ("V9", "V12") else outcome) for name, outcome in passed),
        reexecuted=verdict.steps,
        probability=0.5,
    )
    evidence = forged.signed(changed(in_clear(forged), receipt__verdict=friendly))
    assert forged.judge(evidence).verdict == "accepted"         # on that verifier's word
    judgement = judge(evidence, forged.policy(), forged.ledger, forged.replay())
    assert judgement.verdict == "rejected" and judgement.findings[0].what == "loss"


# --- every byte -----------------------------------------------------------------------------------------------

ARRAYS = {*range(0x90, 0xA0), 0xDC, 0xDD}


def every_byte(data: bytes) -> list[int]:
    return list(range(len(data)))


def every_field(data: bytes) -> list[int]:
    """The first, middle and last byte of every value in a record, however deep, and of every array its head."""
    reader = msgpack.Unpacker()
    reader.feed(data)
    found: set[int] = set()
    while (at := reader.tell()) < len(data):
        found.add(at)
        if data[at] in ARRAYS:
            reader.read_array_header()
        else:
            reader.skip()
            found |= {(at + reader.tell()) // 2, reader.tell() - 1}
    return sorted(found)


def flips(data: bytes, positions: list[int]) -> Iterator[bytes]:
    """The data with one bit flipped, once for each position; another bit each time."""
    for number, position in enumerate(positions):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (3 * number) % 8
        yield bytes(flipped)


#: Which bytes of a record are flipped: of the larger ones all of them only where there is time.
Positions = Callable[[bytes], list[int]]
positions_of = pytest.mark.parametrize(
    "positions", [every_field, pytest.param(every_byte, marks=pytest.mark.slow)], ids=lambda way: way.__name__
)


def outcome(bundle: Bundle, evidence: Evidence) -> str:
    """What a reader is told; whatever is raised is one of our own errors."""
    try:
        return judge(evidence, bundle.policy(), bundle.ledger).verdict
    except PolcommitError as error:
        return type(error).__name__


def parsed(data: bytes, kind: type[R]) -> R | None:
    try:
        return decode(data, kind)
    except EncodingError:
        return None


def test_every_field_has_positions(bundle: Bundle) -> None:
    """Of the tests themselves: of a known record, the array's head, and each value's beginning, middle and end."""
    sample = encode(bundle.opening.openings.samples[0].leaf)
    assert every_field(sample) == [0, 1, 9, 17, 18, 19, 20, 21, 38, 54]


def refute_every_flip(bundle: Bundle, evidence: Evidence, positions: Positions) -> None:
    data = encode(evidence)
    decoded = 0
    for flipped in flips(data, positions(data)):
        again = parsed(flipped, Evidence)
        if again is not None:
            decoded += 1
            assert outcome(bundle, again) == "rejected"
    assert decoded > len(positions(data)) / 3       # the rest is no record at all


def test_every_byte_of_a_bundle_flipped_as_it_is(bundle: Bundle) -> None:
    refute_every_flip(bundle, bundle.evidence, every_byte)


@positions_of
def test_a_bundle_with_openings_flipped_as_it_is(bundle: Bundle, positions: Positions) -> None:
    refute_every_flip(bundle, in_clear(bundle), positions)


@positions_of
@pytest.mark.parametrize("name", ["disclosure", "openings"])
def test_flipped_and_digests_recomputed_around_it(bundle: Bundle, name: str, positions: Positions) -> None:
    """Digests need no key: the verifier's signature over them does."""
    whole = in_clear(bundle)
    kind = Disclosure if name == "disclosure" else Openings
    data = encode(getattr(whole, name))
    for flipped in flips(data, positions(data)):
        record = parsed(flipped, kind)
        if record is not None:
            evidence = changed(replace(whole, **{name: record}), **{f"receipt__verdict__{name}": digest(record)})
            refuted(bundle.judge(evidence), "V1", "signature of the verdict")


def test_every_byte_of_a_verdict_is_signed(bundle: Bundle) -> None:
    data = encode(bundle.evidence.receipt)
    for flipped in flips(data, every_byte(data)):
        receipt = parsed(flipped, Receipt)
        if receipt is not None:
            assert outcome(bundle, replace(bundle.evidence, receipt=receipt)) == "rejected"


@positions_of
def test_every_byte_of_a_disclosure_is_bound_by_the_ledger(bundle: Bundle, positions: Positions) -> None:
    """Stronger: even signed again by a trusted verifier, for every byte is committed to, or proves what is."""
    disclosure = bundle.evidence.disclosure
    assert disclosure is not None
    data = encode(disclosure)
    for flipped in flips(data, positions(data)):
        record = parsed(flipped, Disclosure)
        if record is not None:
            evidence = replace(bundle.evidence, disclosure=record)
            signed = bundle.signed(changed(evidence, receipt__verdict__disclosure=digest(record)))
            assert outcome(bundle, signed) == "rejected"


@positions_of
def test_every_byte_of_openings_is_bound_by_re_execution(bundle: Bundle, positions: Positions) -> None:
    """Here every kept state is opened, so that every sketch is checked."""
    drawn = bundle.scene.prover.draw(bundle.challenge)
    assert drawn.opened_kept == drawn.kept
    data = encode(bundle.opening.openings)
    with tempfile.TemporaryDirectory() as folder:
        due = opening_blobs(bundle.opening.openings)
        BlobFolder(Path(folder)).receive([bundle.opening.blobs[blob.content] for blob in due], due)
        for flipped in flips(data, positions(data)):
            again = Verification(
                policy=bundle.policy(),
                ledger=bundle.ledger,
                replayer=HonestReplayer(),
                challenge=bundle.challenge,
                attested=bundle.verification.attested,
                established=bundle.verification.established,
                disclosure=bundle.verification.disclosure,
            )
            if again.take_openings(flipped) is not None:
                again.take_blobs(Path(folder))
            assert again.verdict(bytes(32)).verdict == "rejected"
