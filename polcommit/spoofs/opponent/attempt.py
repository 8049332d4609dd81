"""What comes of trying a spoof against polcommit: how it ended, what stopped it, what it cost the forger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from polcommit.records import Finding, Verdict

#: How an attempt ends.
#: accepted       a verifier accepted it
#: missed         likewise; what was accepted is not the model that was to be claimed
#: rejected       a verifier found a contradiction
#: inconclusive   a verifier gave neither; nobody may read that as support
#: refused        nothing came before a verifier: the ledger, or the victim, did not play along
OUTCOMES = ("accepted", "missed", "rejected", "inconclusive", "refused")

REACHED = 1e-3          # share of ‖W_T‖: a model that close to the stolen one is taken for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try."""

    outcome: str                        # one of OUTCOMES
    why: str                            # what decided it, in one line
    verdict: str | None = None          # of the verifier, where it came to one
    basis: str | None = None
    registered: bool | None = None      # the verdict says: data, order and W_0 were fixed before the beacon
    findings: tuple[Finding, ...] = ()
    drawn: tuple[int, ...] = ()         # steps that were challenged
    steps: int = 0                      # of the run that was claimed
    probability: float = 0.0            # that the draw would meet 5 % forged steps
    flags: tuple[str, ...] = ()         # screens that found something odd; they steer, and reject nothing
    cost: float | None = None           # forward-pass equivalents, as a share of honest training
    seconds: float = 0.0                # of forging
    notes: Mapping[str, float | bool | str] = field(default_factory=dict)

    @classmethod
    def of(cls, verdict: Verdict, **more: Any) -> Attempt:
        """What a verdict says."""
        return cls(
            outcome=verdict.verdict,
            why=_why(verdict),
            verdict=verdict.verdict,
            basis=verdict.basis,
            registered=verdict.registered,
            findings=verdict.findings,
            drawn=tuple(sorted({*verdict.steps, *verdict.added})),
            steps=(verdict.size or 1) - 1,
            probability=verdict.probability,
            flags=tuple(sorted({flag.screen for flag in verdict.flags})),
            **more,
        )

    @classmethod
    def refused(cls, why: str, **more: Any) -> Attempt:
        """It did not come to a verifier."""
        return cls(outcome="refused", why=why, **more)

    def noted(self, notes: Mapping[str, float | bool | str]) -> Attempt:
        """The same, with more notes."""
        return replace(self, notes={**self.notes, **notes})

    def short_of(self, reached: float) -> Attempt:
        """The same, by one who ends at this distance from the stolen model, as a share of its norm."""
        if self.outcome != "accepted" or reached <= REACHED:
            return self
        why = f"{self.why}; but it ends {reached:.3g} of the stolen model's norm away from it"
        return replace(self, outcome="missed", why=why)

    @property
    def succeeded(self) -> bool:
        """A verifier has accepted what was forged, whatever it was worth."""
        return self.verdict == "accepted"

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "outcome": self.outcome,
            "why": self.why,
            "verdict": self.verdict,
            "basis": self.basis,
            "registered": self.registered,
            "findings": [
                {"check": f.check, "what": f.what, "at": f.step, "expected": f.expected, "found": f.found}
                for f in self.findings
            ],
            "drawn": len(self.drawn),
            "steps": self.steps,
            "probability": self.probability,
            "flags": list(self.flags),
            "cost": self.cost,
            "seconds": self.seconds,
            "notes": dict(self.notes),
        }


def best(attempts: Sequence[Attempt]) -> Attempt:
    """Of several tries, the one in which the forger came furthest; of equal ones the first."""
    order = ("refused", "rejected", "missed", "inconclusive", "accepted")
    return max(attempts, key=lambda attempt: order.index(attempt.outcome))


def _why(verdict: Verdict) -> str:
    if not verdict.findings:
        settled = len({*verdict.reexecuted, *verdict.tolerated})
        return f"{settled} steps re-executed, {verdict.basis}"
    found = verdict.findings[-1 if verdict.verdict == "rejected" else 0]        # what ended it came last
    at = f" at step {found.step}" if found.step is not None else ""
    return f"{found.check}: {found.what}{at}"
