"""The third party: a finished bundle, a policy, and no keys (spec §6.3).

V1 to V7 are checked here, against the policy's chain. What needs states and samples (V8 to V10, V12, V13) is
taken on the signed word of a verifier that the policy trusts, or, where the bundle holds them in clear,
re-executed. Where neither is to be had, the answer is `Unavailable`, never a guess.

A bundle proves nothing about challenges that came after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from polcommit.disclosure import PublicChecks
from polcommit.draws import BLOCKING, Ledger
from polcommit.encoding import digest
from polcommit.errors import Refuted, SignatureInvalid, Unavailable, UsageError
from polcommit.established import Established
from polcommit.origins import wanting_of_parent
from polcommit.policy import Policy
from polcommit.profiles import GROSS
from polcommit.records import Challenge, Evidence, Finding, Verdict
from polcommit.screens import LEAST_KEPT
from polcommit.signing import verify_receipt
from polcommit.summary import anchor_fields, bought, public_fields

HERE, WORD, FAILED, OPEN = "checked here", "word of the verifier", "failed", "not checked"
PUBLIC = ("V1", "V2", "V3", "V4", "V5", "V6", "V7")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a third party may conclude. `checks` says of each step what the conclusion rests on."""

    verdict: str                            # 'accepted', 'rejected' or 'inconclusive'
    findings: tuple[Finding, ...]
    checks: tuple[tuple[str, str], ...]
    claimed: Verdict                        # the signed verdict in the bundle
    basis: str = "none"                     # of an accepted one: 'bit-exact' or 'within-tolerance'


#: Steps without which no run is accepted: V11 only steers, and V13 needs a released model to compare.
_NEEDED = (*PUBLIC, "V8", "V9", "V10", "V12")

#: Re-executes a bundle's openings; returns a verdict of one's own.
Replay = Callable[[Challenge, Evidence], Verdict]


def judge(evidence: Evidence, policy: Policy, ledger: Ledger, replay: Replay | None = None) -> Judgement:
    """Check a bundle against the policy and its chain.

    Raises:
        Unavailable: the chain does not answer, no trusted verifier has spoken and there is no replay, or
            something is not final yet.
    """
    claimed = evidence.receipt.verdict
    checks = {f"V{number}": OPEN for number in range(1, 14)}
    checks["V1"] = HERE
    try:
        known = _check_public(evidence, policy, ledger, checks)
    except Refuted as error:
        checks[error.check] = FAILED
        finding = Finding(
            check=error.check, what=error.what, step=error.at, expected=error.expected, found=error.found
        )
        return Judgement("rejected", (finding,), tuple(checks.items()), claimed)
    if replay is not None:
        return _replayed(evidence, checks, replay)
    return _on_word(policy, claimed, checks, known)


def challenge_of(verdict: Verdict, *, gradients: bool = False) -> Challenge | None:
    """The challenge that a verdict says it answers; None where it did not come to one."""
    if verdict.request is None or verdict.nonce is None or verdict.challenge is None or verdict.challenge_id is None:
        return None
    return Challenge(
        request=verdict.request,
        nonce=verdict.nonce,
        id=verdict.challenge_id,
        block=verdict.challenge.block,
        gradients=gradients,
    )


def _check_public(
    evidence: Evidence, policy: Policy, ledger: Ledger, checks: dict[str, str]
) -> Established | None:
    claimed = evidence.receipt.verdict
    try:
        verify_receipt(evidence.receipt)
    except SignatureInvalid as error:
        raise Refuted("V1", "signature of the verdict", expected=claimed.verifier, found="another key") from error
    for what, stated, held in (
        ("disclosure", claimed.disclosure, evidence.disclosure),
        ("openings", claimed.openings, evidence.openings),
    ):
        if held is not None and digest(held) != stated:
            raise Refuted("V1", what, expected=stated, found=digest(held))
    if evidence.disclosure is None and claimed.disclosure is not None:
        raise Refuted("V1", "disclosure", expected=claimed.disclosure, found="none")
    policy.require_claimed_chain(
        chain_id=claimed.chain_id, genesis=claimed.genesis, contract=claimed.contract, code=claimed.code
    )
    policy.require_chain(ledger.identity())
    _require_seen(claimed, ledger)
    known = _check_steps(evidence, ledger, checks)
    _check_fields(claimed, policy, ledger, evidence, known)
    _check_own(claimed, known)
    if claimed.verdict == "accepted":
        _check_accepted(claimed, known)
    return known


def _require_seen(claimed: Verdict, ledger: Ledger) -> None:
    """The blocks that the verdict refers to are there, as they were. A server that lags behind is no refutation.

    Raises:
        Refuted: a block has another hash: the log that is referred to is on another branch, or made up.
        Unavailable: the chain, as this server knows it, has not come as far.
    """
    for reference in (claimed.registration, claimed.anchor, claimed.challenge):
        if reference is not None:
            block = ledger.block(reference.block)
            if block.hash != reference.block_hash:
                raise Refuted("V2", f"block {reference.block}", expected=reference.block_hash, found=block.hash)


def _check_steps(evidence: Evidence, ledger: Ledger, checks: dict[str, str]) -> Established | None:
    """V2 to V7 over the disclosure, as far as the verdict says they held."""
    claimed = evidence.receipt.verdict
    challenge = challenge_of(claimed)
    if evidence.disclosure is None or challenge is None:
        if claimed.verdict == "accepted":
            raise Refuted("V1", "bundle of an accepted run", expected="a disclosure and a challenge", found="none")
        return None
    public = PublicChecks(ledger, ledger.identity(), challenge, evidence.disclosure)
    for name, step in public.steps:
        step()
        checks[name] = HERE
    return public.established


def _check_fields(
    claimed: Verdict, policy: Policy, ledger: Ledger, evidence: Evidence, known: Established | None
) -> None:
    """Every public field of the verdict is what ledger, request and disclosure say."""
    own = replace(policy, fraction=claimed.fraction, devnet=claimed.devnet)
    challenge = challenge_of(claimed)
    if known is not None and challenge is not None and evidence.disclosure is not None:
        fields = public_fields(own, ledger, challenge, evidence.disclosure.heads[-1], known)
    else:
        anchor = next((event for event in ledger.anchors(claimed.run) if event.commitment == claimed.commitment), None)
        if anchor is None:
            raise Refuted("V2", "anchor on the ledger", expected=claimed.commitment, found="no such event")
        fields = anchor_fields(own, ledger, anchor, claimed.prover)
    registered, anchored = fields.pop("registrations")      # may have grown since
    if claimed.registrations[0] > registered or claimed.registrations[1] > anchored:
        raise Refuted("V2", "registrations of the account", expected=registered, found=claimed.registrations[0])
    for name, value in fields.items():
        if getattr(claimed, name) != value:
            raise Refuted("V1", f"'{name}' in the verdict", expected=value, found=getattr(claimed, name))


def _check_own(claimed: Verdict, known: Established | None) -> None:
    """What the verdict says of itself is consistent."""
    names = tuple(name for name, _ in claimed.checks)
    if names != tuple(f"V{number}" for number in range(1, 14)):
        raise Refuted("V1", "checks of the verdict", expected="V1 to V13, in order", found=", ".join(names[:20]))
    settled = [*claimed.reexecuted, *claimed.tolerated]
    if len(set(settled)) != len(settled) or not set(settled) <= {*claimed.steps, *claimed.added}:
        raise Refuted("V1", "re-executed steps", expected=claimed.steps, found=settled)
    if claimed.request is not None and claimed.request.verifier != claimed.verifier:
        raise Refuted("V1", "verifier of the challenge", expected=claimed.request.verifier, found=claimed.verifier)
    if claimed.basis != (_basis(claimed, known) if claimed.verdict == "accepted" else "none"):
        raise Refuted("V1", "basis", expected=f"that of a verdict '{claimed.verdict}'", found=claimed.basis)
    due = 0.0
    if claimed.size is not None:
        try:
            due = bought(claimed, claimed.fraction)
        except UsageError as error:     # of no fraction, or of more steps than there are
            raise Refuted("V1", "probability of detection", expected="of some of the steps", found=error) from error
    if due != claimed.probability:
        raise Refuted("V1", "probability of detection", expected=due, found=claimed.probability)


def _basis(claimed: Verdict, known: Established | None) -> str:
    """What an accepted verdict can rest on at best: the least of its own steps and of the run that it starts from."""
    parent = known.parent if known is not None else None
    tolerant = claimed.tolerated or (claimed.profiles and known is not None and _foreign(claimed, known))
    exact = not tolerant and (parent is None or parent.basis == "bit-exact")
    return "bit-exact" if exact else "within-tolerance"


def _foreign(claimed: Verdict, known: Established) -> list[tuple[int, bytes]]:
    """Environment epochs of the run that are not of the verifier's own environment."""
    return [(first, due) for first, due in known.statement.environments if due != claimed.environment]


def _check_accepted(claimed: Verdict, known: Established | None) -> None:
    """An accepted verdict says what only one that ran to the end can say."""
    assert known is not None and known.records is not None      # `_check_steps` has seen to it
    outcomes = dict(claimed.checks)
    lacking = [check for check in _NEEDED if outcomes.get(check) != "passed"]
    lacking += [
        check for check, outcome in claimed.checks if outcome not in ("passed", OPEN, *(["flagged"] * (check == "V11")))
    ]
    if lacking:
        raise Refuted("V1", f"{lacking[0]} of an accepted run", expected="passed", found="not passed")
    if (claimed.model is not None) != (outcomes.get("V13") == "passed"):
        raise Refuted("V1", "V13 of an accepted run", expected="passed where there is a model", found=claimed.model)
    if {*claimed.reexecuted, *claimed.tolerated} != {*claimed.steps, *claimed.added}:
        raise Refuted("V1", "re-executed steps", expected=claimed.steps, found=claimed.reexecuted)
    for earlier in claimed.challenges:
        if earlier.outcome in BLOCKING:
            raise Refuted("V6", f"challenge {earlier.id}", expected="accepted", found=earlier.outcome)
    screened = "flagged" if claimed.flags else "passed" if len(known.draw.kept) >= LEAST_KEPT else OPEN
    if outcomes["V11"] != screened:
        raise Refuted("V1", "V11 of an accepted run", expected=screened, found=outcomes["V11"])
    if claimed.sketched != len(known.draw.opened_kept):
        raise Refuted("V1", "sketches compared", expected=len(known.draw.opened_kept), found=claimed.sketched)
    steps = known.statement.steps
    work = (steps, steps * known.manifest.batch)
    if claimed.work is None or (claimed.work.steps, claimed.work.samples) != work:
        raise Refuted("V1", "work claimed", expected=work, found=claimed.work)
    _check_tolerance(claimed, known)


def _check_tolerance(claimed: Verdict, known: Established) -> None:
    """Environments other than the verifier's have a noise profile, and steps within tolerance a distance."""
    foreign = _foreign(claimed, known)
    if foreign and not claimed.profiles:
        first, there = foreign[0]
        raise Refuted("V1", "environment of the re-execution", at=first, expected=there, found=claimed.environment)
    if claimed.profiles and not foreign:
        raise Refuted("V1", "noise profiles", expected="none: no foreign epoch", found=claimed.profiles[0])
    assert known.records is not None
    stated = known.statement.environments
    for step in sorted({*claimed.reexecuted, *claimed.tolerated}):
        here = stated[known.records[step].environment][1] == claimed.environment
        if here != (step in claimed.reexecuted):
            due, other = ("bit for bit", "within tolerance") if here else ("within tolerance", "bit for bit")
            raise Refuted("V1", "how a step was compared", at=step, expected=due, found=other)
    if tuple(distance.step for distance in claimed.distances) != claimed.tolerated:
        found = tuple(distance.step for distance in claimed.distances)
        raise Refuted("V1", "steps within tolerance", expected=claimed.tolerated, found=found)
    if not all(0 <= distance.value <= distance.tolerance <= GROSS for distance in claimed.distances):
        raise Refuted("V1", "distances", expected=f"within a tolerance of at most {GROSS}", found="one beyond it")
    if (claimed.reach is None) != (not claimed.tolerated) or not (claimed.reach is None or claimed.reach >= 0):
        raise Refuted("V1", "reach of the tolerance", expected="where steps were tolerated", found=claimed.reach)


def _replayed(evidence: Evidence, checks: dict[str, str], replay: Replay) -> Judgement:
    openings = evidence.openings
    followed = openings is not None and openings.gradients is not None
    challenge = challenge_of(evidence.receipt.verdict, gradients=followed)
    if challenge is None or openings is None or evidence.disclosure is None:
        raise Unavailable(
            "the bundle holds no states and samples to re-execute",
            hint="ask the verifier for one made with 'challenge --with-openings', or check it without --replay",
        )
    own = replay(challenge, evidence)
    for name, outcome in own.checks:
        checks[name] = {"passed": HERE, "failed": FAILED}.get(outcome, outcome)
    return Judgement(own.verdict, own.findings, tuple(checks.items()), evidence.receipt.verdict, own.basis)


def _wanting(claimed: Verdict, policy: Policy, known: Established | None) -> Iterator[Finding]:
    """What an accepted verdict lacks of what this reader demands."""

    def finding(check: str, what: str, expected: str, found: str) -> Finding:
        return Finding(check=check, what=what, step=None, expected=expected, found=found)

    detected = bought(claimed, policy.fraction)
    if not detected >= policy.probability:
        yield finding("V6", "probability of detection", f"at least {policy.probability:.3f}", f"{detected:.3f}")
    if policy.registered and not claimed.registered:
        yield finding("V5", "registered before training", "yes, by your policy", "no")
    if claimed.basis != "bit-exact" and not policy.tolerance:
        yield finding("V10", "basis", "bit-exact, by your policy", claimed.basis)
    if claimed.reach is not None and not claimed.reach <= policy.reach:
        yield finding("V10", "reach of the tolerance", f"at most {policy.reach:g}", f"{claimed.reach:.3g}")
    parent = known.parent if known is not None else None
    for what, expected, found in wanting_of_parent(parent, policy, policy.trusted) if parent is not None else ():
        yield finding("V12", what, expected, found)


def _on_word(policy: Policy, claimed: Verdict, checks: dict[str, str], known: Established | None) -> Judgement:
    if claimed.verifier not in policy.trusted:
        raise Unavailable(
            f"V8 to V10 rest on verifier {claimed.verifier.hex()}, whom the policy does not trust",
            hint="add the key to [verifiers] trusted in the policy, or re-execute with --replay",
        )
    for name, outcome in claimed.checks:
        if name in checks and name not in PUBLIC:
            checks[name] = {"passed": WORD, "failed": FAILED}.get(outcome, outcome)
    findings = claimed.findings
    verdict = claimed.verdict
    if verdict == "accepted":
        findings = tuple(_wanting(claimed, policy, known))
        verdict = "inconclusive" if findings else verdict
    basis = claimed.basis if verdict == "accepted" else "none"
    return Judgement(verdict, findings, tuple(checks.items()), claimed, basis)
