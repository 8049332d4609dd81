"""The verdict on an anchor that its envelope alone refutes: nothing was challenged (spec §6.1)."""

from __future__ import annotations

from typing import Any

from polcommit import __version__
from polcommit.draws import Ledger
from polcommit.errors import Refuted
from polcommit.events import Anchored
from polcommit.policy import Policy
from polcommit.records import Finding, Verdict
from polcommit.reexecution import NOTHING_SETTLED
from polcommit.summary import anchor_fields

CHECKS = tuple(f"V{number}" for number in range(1, 14))


def refuted_anchor(policy: Policy, ledger: Ledger, anchor: Anchored, error: Refuted, verifier: bytes) -> Verdict:
    """The verdict on an anchor that was refuted by its envelope alone: rejected, and nothing was challenged."""
    finding = Finding(check=error.check, what=error.what, step=error.at, expected=error.expected, found=error.found)
    known: dict[str, Any] = {**anchor_fields(policy, ledger, anchor, None), **dict.fromkeys(_WITHOUT_CHALLENGE)}
    return Verdict(
        **known,
        verdict="rejected",
        basis="none",
        draw="none",
        steps=(),
        **NOTHING_SETTLED,
        fraction=policy.fraction,
        probability=0.0,
        challenges=(),
        budgets=(),
        findings=(finding,),
        checks=tuple((check, "failed" if check == error.check else "not checked") for check in CHECKS),
        sketched=0,
        added=(),
        flags=(),
        work=None,
        parent=None,
        verifier=verifier,
        software=f"polcommit {__version__}",
    )


#: Fields that are not known where it did not come to a challenge.
_WITHOUT_CHALLENGE = (
    "size", "root", "final", "challenge", "challenge_id", "request", "nonce", "environment", "model", "disclosure",
    "openings",
)  # fmt: skip
