"""The verifier: numbered steps over an opening, ending in a verdict (spec §6).

A state machine that is fed bytes. The order of calls is fixed: `take_disclosure` (V1 to V7), `take_openings`
(V8, V9 and V11 as far as digests and sketches go; tells which blobs are due), `take_blobs` (re-execution: V8 to
V10, V12, V13), `verdict`. The first contradiction ends it: what comes after is 'not checked', and `verdict` says
rejected. `Unavailable` passes through: what could not be checked is no verdict, and the challenge can be resumed.

Where bits differ, or were recorded elsewhere, `unsettled` says so after `take_blobs`: the challenge is to be asked
once more with gradients, and a new verification begun on the answer.

What a verdict does not say: what training cost, or that the data was good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polcommit import __version__
from polcommit.anchors import CHECKS
from polcommit.comparisons import (
    ReleasedModel,
    check_added,
    check_report,
    check_samples,
    check_states,
    compare_model,
    flagged_contributions,
    replay_job,
)
from polcommit.disclosure import PublicChecks
from polcommit.draws import BLOCKING, Ledger
from polcommit.encoding import decode, digest
from polcommit.errors import EncodingError, Refuted, Unavailable
from polcommit.established import Established
from polcommit.opening import MAX_RECORD, Blob, opening_blobs
from polcommit.origins import check_origin, wanting_of_parent
from polcommit.policy import Policy
from polcommit.profiles import Profile
from polcommit.records import (
    Challenge,
    Disclosure,
    Finding,
    Fingerprint,
    Flag,
    Openings,
    RevealedHead,
    Verdict,
    Work,
)
from polcommit.reexecution import NOTHING_SETTLED, Settled
from polcommit.replaying import Replayer, ReplayReport
from polcommit.screens import LEAST_KEPT
from polcommit.summary import probability, public_fields

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Verification:
    """One challenge, being verified. See the module's docstring for the order of calls."""

    policy: Policy
    ledger: Ledger
    replayer: Replayer
    challenge: Challenge
    attested: RevealedHead                  # what this verifier's own key found in the envelope on the ledger
    model: ReleasedModel | None = None
    profiles: tuple[Profile, ...] = ()      # of noise between environments: where tolerances come from
    demanded: tuple[Profile, ...] = ()      # that must fit this run: it is an error if they do not
    trusted: frozenset[bytes] = frozenset()     # besides the policy's: whose word on a parent run is taken
    findings: list[Finding] = field(default_factory=list)
    checks: dict[str, str] = field(default_factory=lambda: dict.fromkeys(CHECKS, "not checked"))
    established: Established | None = None
    disclosure: Disclosure | None = None
    openings: Openings | None = None
    environment: Fingerprint | None = None
    settled: Settled | None = None          # what became of the steps, once they were re-executed
    flags: tuple[Flag, ...] = ()
    flops: int | None = None
    refuted: bool = False

    @contextmanager
    def _step(self, check: str) -> Iterator[None]:
        """Run one numbered step: a contradiction becomes a finding and ends the verification."""
        try:
            yield
        except Refuted as error:
            self.reject(error)
            raise _Ended from error
        if self.checks[check] == "not checked":
            self.checks[check] = "passed"

    def reject(self, error: Refuted) -> None:
        """Record a contradiction, found here or while the opening was received."""
        self.refuted = True
        self.checks[error.check] = "failed"
        self.findings.append(
            Finding(check=error.check, what=error.what, step=error.at, expected=error.expected, found=error.found)
        )

    def _doubt(self, check: str, what: str, *, step: int | None = None, expected: str = "", found: str = "") -> None:
        """Record why something could not be settled: the verdict will be inconclusive, not rejected."""
        self.checks[check] = "not settled"
        if any(finding.what == what for finding in self.findings):
            return          # said once: twenty steps in another environment are one reason, not twenty
        self.findings.append(
            Finding(check=check, what=what, step=step, expected=expected[:500], found=found[:500])
        )

    # --- V1 to V7 ---------------------------------------------------------------------------------------------

    def take_disclosure(self, data: bytes) -> bool:
        """Parse and check the public part; whether to go on."""
        try:
            with self._step("V1"):
                self.disclosure = _parse(data, Disclosure)
            with self._step("V2"):
                checks = PublicChecks(self.ledger, self.ledger.identity(), self.challenge, self.disclosure)
                self.established = checks.established
            for name, step in checks.steps:
                with self._step(name):
                    step()
            with self._step("V3"):
                if self.disclosure.heads[-1] != self.attested:
                    raise Refuted("V3", "revealed statement", expected="what the envelope holds", found="another")
        except _Ended:
            return False
        for earlier in self.established.earlier:
            if earlier.outcome in BLOCKING:
                what = f"challenge {earlier.id} was {earlier.outcome}"
                self._doubt("V6", what, expected="an opening that was accepted", found=earlier.outcome)
        return True

    # --- V8, V9: what digests settle --------------------------------------------------------------------------

    def take_openings(self, data: bytes) -> list[Blob] | None:
        """Parse the private part and compare it with the commitments; the blobs that are due, or None to stop."""
        assert self.established is not None and self.disclosure is not None
        try:
            with self._step("V1"):
                self.openings = _parse(data, Openings)
                blobs = _blobs(self.openings)
            with self._step("V11"):
                self.established.drawn, self.flags = check_added(self.established, self.openings)
            with self._step("V8"):
                check_states(self.established, self.openings)
            with self._step("V9"):
                check_samples(self.established, self.openings)
        except _Ended:
            return None
        self.checks["V8"] = self.checks["V9"] = "not checked"       # until the bytes have been seen as well
        if len(self.established.draw.kept) < LEAST_KEPT:
            self.checks["V11"] = "not checked"
        self._flag(self.flags)
        return blobs

    def _flag(self, flags: tuple[Flag, ...]) -> None:
        """V11: keep what is odd. It refutes nothing."""
        self.flags = tuple(dict.fromkeys((*self.flags, *flags)))
        if self.flags:
            self.checks["V11"] = "flagged"

    # --- V8 to V10, V12, V13: re-execution --------------------------------------------------------------------

    def take_blobs(self, folder: Path, progress: Progress | None = None) -> None:
        """Re-execute the challenged steps from the blobs in `folder`, whose digests have been checked.

        Raises:
            Unavailable: they cannot be re-executed here.
            UsageError: a noise profile that was demanded is not of this recipe or these environments.
        """
        assert self.established is not None and self.openings is not None and self.disclosure is not None
        known = self.established
        report = self.replayer.replay(replay_job(known, self.disclosure, self.openings), folder, progress)
        if report.recipe_source != known.manifest.recipe_source:
            raise Unavailable(
                f"your copy of recipe '{known.manifest.recipe}' is not the registered one",
                hint="review and install the version that the prover registered, then resume the challenge",
            )
        self.environment, self.flops = report.environment, report.flops
        self._flag(flagged_contributions(report.steps))
        profiles = (*self.demanded, *self.profiles)
        self.settled = Settled(known, self.disclosure, self.openings, report, profiles, self._doubt)
        self.settled.require(self.demanded)
        try:
            self.settled.require_profiles()
            with self._step("V8"), self._leniently(report, report.refuted is not None):
                check_report(known, self.openings, report)
            with self._step("V12"), self._leniently(report, True):
                check_origin(known, self.openings, report)
                self._v12_parent()
            with self._step("V9"), self._step("V10"):
                self.settled.settle(self.policy)
            if self.settled.unsettled is not None:
                self.checks["V9"] = "not settled"       # the batch as fed to the model was compared with nothing
            if self.model is not None:
                with self._step("V13"):
                    self._v13_released(self.model)
        except _Ended:
            return

    @contextmanager
    def _leniently(self, report: ReplayReport, lenient: bool) -> Iterator[None]:
        """In a strange environment a recipe's schema or W_0 may be another: a doubt, where it would be a refutation."""
        assert self.settled is not None
        try:
            yield
        except Refuted as error:
            if not (lenient and self.settled.strange):
                raise
            self._doubt(error.check, error.what, step=error.at, expected=error.expected, found=error.found)
            if report.refuted is not None:      # the re-execution went no further
                raise _Ended from error

    def _v12_parent(self) -> None:
        """V12: what this run starts from was accepted by somebody whose word counts here."""
        assert self.established is not None
        parent = self.established.parent
        if parent is None:
            return
        for what, expected, found in wanting_of_parent(parent, self.policy, self.policy.trusted | self.trusted):
            self._doubt("V12", what, expected=expected, found=found)

    def _v13_released(self, model: ReleasedModel) -> None:
        """V13: the model that was released is the last state."""
        assert self.established is not None and self.openings is not None
        if not self.established.statement.final:
            raise Refuted("V13", "released model", expected="a final head", found="training has not ended")
        last = self.established.statement.steps
        state = next(opened.index for opened in self.openings.states if opened.step == last)
        compare_model(model, state.tensors, dict(state.scalars.aliases))

    # --- verdict ----------------------------------------------------------------------------------------------

    def refuse(self, reason: str, detail: str) -> None:
        """The prover's signed refusal: 'budget' cannot be held against the run, anything else is a failure.

        The follow-up shows no step that the first answer did not: a budget that covered one covers the other.
        """
        if reason == "budget" and not self.challenge.gradients:
            self._doubt("V6", "disclosure budget exhausted", expected="an opening", found=detail)
        else:
            self.reject(Refuted("V10", f"the prover does not open ({reason})", expected="an opening", found=detail))

    def verdict(self, verifier: bytes) -> Verdict:
        """The verdict so far, unsigned. `verifier` is the Ed25519 key that will sign it."""
        fields = public_fields(self.policy, self.ledger, self.challenge, self.attested, self.established)
        steps = self.attested.statement.steps
        settled = self.settled.fields() if self.settled is not None else NOTHING_SETTLED
        counted = self.settled.counted if self.settled is not None else 0
        bought = probability(self.challenge.request, steps, counted, self.policy.fraction)
        self._demand(bought, registered=bool(fields["registered"]))
        outcome = "rejected" if self.refuted else "inconclusive" if self.findings else "accepted"
        return Verdict(
            **fields,
            verdict=outcome,
            basis=self._basis() if outcome == "accepted" else "none",
            **settled,
            probability=bought,
            findings=tuple(self.findings),
            checks=tuple(self.checks.items()),
            environment=digest(self.environment) if self.environment is not None else None,
            model=self.model.digest if self.model is not None else None,
            sketched=len(self.established.draw.opened_kept) if self.established and self._passed("V8") else 0,
            flags=self.flags,
            work=self._work(),
            disclosure=digest(self.disclosure) if self.disclosure is not None else None,
            openings=digest(self.openings) if self.openings is not None else None,
            verifier=verifier,
            software=f"polcommit {__version__}",
        )

    def _passed(self, check: str) -> bool:
        return self.checks[check] == "passed"

    @property
    def unsettled(self) -> str | None:
        """Why the challenge should be asked once more with gradients; None where it need not."""
        if self.settled is None or (self.refuted and self.findings[-1].check != "V10"):
            return None         # what gradients do not change is a verdict already
        return self.settled.unsettled

    def _basis(self) -> str:
        """The weakest of what the run, and what it starts from, rests on."""
        assert self.established is not None and self.settled is not None
        parent = self.established.parent
        exact = self.settled.exact and (parent is None or parent.basis == "bit-exact")
        return "bit-exact" if exact else "within-tolerance"

    def _work(self) -> Work | None:
        if self.established is None:
            return None
        steps = self.established.statement.steps
        flops = self.flops * steps if self.flops is not None else None
        return Work(steps=steps, samples=steps * self.established.manifest.batch, flops=flops)

    def _demand(self, bought: float, *, registered: bool) -> None:
        """What the policy wants beyond the steps: enough detection, and a run that was registered before training."""
        if self.refuted:
            return
        if not bought >= self.policy.probability:
            wanted = f"at least {self.policy.probability:.3f}"
            self._doubt("V6", "probability of detection", expected=wanted, found=f"{bought:.3f}")
        if self.policy.registered and not registered and self.established is not None and self.established.drawn:
            self._doubt("V5", "registered before training", expected="yes, by your policy", found="no")


class _Ended(Exception):
    """A step was refuted; the ones after it are not run."""


def _parse(data: bytes, kind: Any) -> Any:
    try:
        return decode(data, kind, max_size=MAX_RECORD)
    except EncodingError as error:
        raise Refuted("V1", f"{kind.__name__.lower()} record", expected="canonical encoding", found=error) from error


def _blobs(openings: Openings) -> list[Blob]:
    try:
        return opening_blobs(openings)
    except EncodingError as error:
        raise Refuted("V1", "contents of the opening", expected="known dtypes and lengths", found=error) from error
