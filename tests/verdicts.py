"""What tests ask of a verdict: accepted, rejected by one finding, or inconclusive; and a noise profile."""

from __future__ import annotations

from typing import Any

from fakes import RECIPE, SOURCE, Scene, Verifier

from polcommit.profiles import Bound, Profile, Spread
from polcommit.records import Finding, Verdict
from polcommit.verifier import Verification

FREE = Spread(mean=0.0, sd=1.0, bound=1.0)      # six numbers have no direction worth testing
#: Between the fakes' two environments.
PROFILE = Profile(
    name="one thread and two",
    recipe=RECIPE,
    recipe_source=SOURCE,
    configuration=(("batch", "3"),),
    differs=(("threads", "1", "2"),),
    holds=(("kernels", "plain"),),
    alpha=0.02,
    alpha_preconditioned=None,
    tensors=(Bound(name="weight", relative=0.05, floor=1e-7, zeros=0),),
    buffers=(),
    distances=Spread(mean=0.0, sd=0.02, bound=0.02),
    distances_preconditioned=None,
    loss=1e-3,
    towards=FREE,
    pairs=FREE,
    honest=60,
    quantiles=(),
)
NO_PROFILE = ("V10", "re-executed in another environment than the prover's, and no noise profile covers the two")


def answered(staged: Scene, count: int = 4, *, verifying: dict[str, Any] | None = None, **asked: Any) -> Verification:
    """Challenge the last head, have it opened by its prover, and verify that."""
    challenge = staged.challenge(count, **asked)
    return staged.verify(challenge, staged.prover.respond(challenge), **(verifying or {}))


def verdict_of(verification: Verification) -> Verdict:
    return verification.verdict(Verifier().public)


def accepted(verification: Verification) -> Verdict:
    verdict = verdict_of(verification)
    assert (verdict.verdict, verdict.findings) == ("accepted", ())
    return verdict


def rejected(verification: Verification, check: str, what: str, at: int | None = None) -> Finding:
    """The refutation, after what may have been doubtful before it; nothing after it was run."""
    verdict = verdict_of(verification)
    assert (verdict.verdict, verdict.basis) == ("rejected", "none")
    finding = verdict.findings[-1]
    assert (finding.check, finding.what, finding.step) == (check, what, at)
    assert [name for name, outcome in verdict.checks if outcome == "failed"] == [check]
    return finding


def inconclusive(verification: Verification, *reasons: tuple[str, str]) -> Verdict:
    """For these reasons, (check, what), and no other."""
    verdict = verdict_of(verification)
    assert (verdict.verdict, verdict.basis) == ("inconclusive", "none")
    assert tuple((finding.check, finding.what) for finding in verdict.findings) == reasons
    assert {dict(verdict.checks)[check] for check, _ in reasons} == {"not settled"}
    return verdict
