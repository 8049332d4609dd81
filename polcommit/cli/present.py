"""A verdict for machines and for people: the same facts, as JSON and as lines."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from polcommit.records import Finding, Flag, Reference, Verdict

CHECKED = {
    "V1": "messages parse canonically",
    "V2": "right chain, contract and account",
    "V3": "signed by the prover, inside and out",
    "V4": "commitments open, heads extend others",
    "V5": "terms as registered, or as in the manifest",
    "V6": "the steps are the ones drawn",
    "V7": "leaves, rates, samples as registered",
    "V8": "opened states as committed",
    "V9": "opened samples form the batches",
    "V10": "re-execution gives the same update",
    "V11": "screens over sketches and losses",
    "V12": "begins where such a run has to",
    "V13": "last state is the released model",
}
POST_HOC = "not registered before training: data, order and initial weights could be chosen by one who held the result"
DEVNET = "order, time and randomness of this chain are its operator's own: it is a devnet"


def plain(value: Any) -> Any:
    """Any record, as JSON has it: bytes in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The documented JSON of a verdict (docs/cli.md)."""
    return {
        "verdict": verdict.verdict,
        "basis": verdict.basis,
        "registered": verdict.registered,
        "draw": verdict.draw,
        "run": verdict.run.hex(),
        "account": "0x" + verdict.account.hex(),
        "prover": plain(verdict.prover),
        "root": plain(verdict.root),
        "size": verdict.size,
        "sequence": verdict.sequence,
        "final": verdict.final,
        **_events(verdict),
        "steps": list(verdict.steps),
        "added": list(verdict.added),
        "reexecuted": list(verdict.reexecuted),
        "tolerated": list(verdict.tolerated),
        "distances": [number_json(plain(distance)) for distance in verdict.distances],
        "profiles": [profile.hex() for profile in verdict.profiles],
        "reach": number_json(verdict.reach),
        "flags": [number_json(plain(flag)) for flag in verdict.flags],
        "work": plain(verdict.work),
        "parent": plain(verdict.parent),
        "detection": {"fraction": verdict.fraction, "probability": verdict.probability},
        "challenges": [plain(earlier) for earlier in verdict.challenges],
        "registrations": {"registered": verdict.registrations[0], "anchored": verdict.registrations[1]},
        "budgets": [plain(budget) for budget in verdict.budgets],
        "findings": [finding_json(finding) for finding in verdict.findings],
        "checks": dict(verdict.checks),
        "environment": plain(verdict.environment),
        "model": plain(verdict.model),
        "sketched": verdict.sketched,
        "verifier": verdict.verifier.hex(),
        "software": verdict.software,
    }


def _events(verdict: Verdict) -> dict[str, Any]:
    """Where it all is on the ledger."""
    return {
        "anchor": {
            "chain id": verdict.chain_id,
            "contract": "0x" + verdict.contract.hex(),
            **_where(verdict.anchor),
            "time": verdict.anchor_time,
            "devnet": verdict.devnet,
        },
        "registration": _where(verdict.registration) if verdict.registration is not None else None,
        "challenge": {**_where(verdict.challenge), "id": verdict.challenge_id} if verdict.challenge else None,
    }


def number_json(value: Any) -> Any:
    """The value with numbers that JSON does not have, NaN and the infinities, as text."""
    if isinstance(value, dict):
        return {name: number_json(item) for name, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _where(reference: Reference) -> dict[str, Any]:
    return {
        "block": reference.block,
        "block hash": "0x" + reference.block_hash.hex(),
        "transaction": "0x" + reference.transaction.hex(),
        "log index": reference.log_index,
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """A finding: `step` is the verification step, `at` the training step."""
    return {
        "step": finding.check,
        "what": finding.what,
        "at": finding.step,
        "expected": finding.expected,
        "found": finding.found,
    }


def verdict_text(verdict: Verdict) -> str:
    """The verdict for people: what it is first, then what it rests on, then its limits."""
    lines = [f"{verdict.verdict.upper()}  run {verdict.run.hex()}", ""]
    lines += [_finding_text(finding) for finding in verdict.findings]
    if verdict.findings:
        lines.append("")
    lines += [f"  {name:<4} {outcome:<20} {CHECKED[name]}" for name, outcome in verdict.checks]
    if any(outcome == "failed" for name, outcome in verdict.checks if name in ("V1", "V2", "V3", "V4")):
        lines += ["", "  what it says of itself is not repeated here: it does not hold together"]
    else:
        lines += ["", *_facts(verdict)]
    return "\n".join(lines)


def _reexecuted(verdict: Verdict) -> str:
    exact = f"{len(verdict.reexecuted)} re-executed bit for bit"
    return exact + (f", {len(verdict.tolerated)} within tolerance" if verdict.tolerated else "")


def _tolerance(verdict: Verdict) -> list[str]:
    worst = max(verdict.distances, key=lambda distance: distance.value)
    names = ", ".join(profile.hex()[:16] for profile in verdict.profiles) or "none"
    lines = [
        f"  compared in gradient space: at most {worst.value:.2e} apart (step {worst.step}), "
        f"{worst.tolerance:.2e} tolerated; noise profile: {names}"
    ]
    if verdict.reach is not None:
        lines.append(f"  those tolerances could have bent the run by {verdict.reach:.2g} of the way from W_0 to W_T")
    return lines


def _flag(flag: Flag) -> str:
    return (
        f"  flagged by the screen '{flag.screen}': steps {flag.first} to {flag.last} ({flag.value:.3g}, bound "
        f"{flag.bound:.3g}); a flag adds steps to the challenge, and refutes nothing"
    )


def _finding_text(finding: Finding) -> str:
    at = f" at step {finding.step}" if finding.step is not None else ""
    return f"  {finding.check}: {finding.what}{at}: expected {finding.expected or '-'}, found {finding.found or '-'}"


def _facts(verdict: Verdict) -> list[str]:
    lines = [
        f"  anchored in block {verdict.anchor.block} of chain {verdict.chain_id}, head {verdict.sequence}"
        + (", final" if verdict.final else ""),
    ]
    if verdict.steps:
        total = (verdict.size or 1) - 1
        lines.append(f"  {len(verdict.steps)} of {total} steps drawn ({verdict.draw}), {len(verdict.added)} added by "
                     f"sketches; {_reexecuted(verdict)}, basis: {verdict.basis}")  # fmt: skip
        lines.append(f"  if {verdict.fraction:.0%} of the steps were forged, this draw would have met one with "
                     f"probability {verdict.probability:.4f}")  # fmt: skip
    if verdict.distances:
        lines += _tolerance(verdict)
    lines += [_flag(flag) for flag in verdict.flags]
    if verdict.work is not None:
        flops = f", {verdict.work.flops:.3g} floating-point operations" if verdict.work.flops is not None else ""
        lines.append(f"  work claimed: {verdict.work.steps} steps, {verdict.work.samples} samples{flops}")
    if not verdict.registered:
        lines.append(f"  {POST_HOC}")
    for earlier in verdict.challenges:
        lines.append(f"  earlier challenge {earlier.id} by {earlier.verifier.hex()[:16]}…: {earlier.outcome}")
    lines.append(f"  the account registered {verdict.registrations[0]} runs, {verdict.registrations[1]} were anchored")
    for budget in verdict.budgets:
        lines.append(f"  verifier {budget.verifier.hex()[:16]}… may still be shown {budget.steps} steps")
    if verdict.devnet:
        lines.append(f"  {DEVNET}")
    lines.append("  the timestamp proves when and what; only the re-executed steps speak for how")
    return lines
