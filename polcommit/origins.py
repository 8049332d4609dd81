"""V12: where a run begins (spec §6, V12).

A registered run begins with the W_0 that the recipe makes of its beacon: nobody who holds W_T could choose it. A run
that continues another begins with that run's final parameters and buffers, and a fresh optimizer. A post hoc run
begins wherever its prover says, so that only the distribution of its W_0 can be tested (Jia et al., S&P 2021, §V-D4).

Not excluded for a post hoc run: a W_0 whose elements were permuted, sorted after a stolen W_T for instance; it has the
right distribution.
"""

from __future__ import annotations

from collections.abc import Iterator

from polcommit import transcript as hashes
from polcommit.errors import Refuted, Unavailable
from polcommit.established import Established
from polcommit.policy import Policy
from polcommit.records import Openings, StateIndex, TensorEntry, Verdict
from polcommit.replaying import ReplayReport, TensorOrigin
from polcommit.summary import bought

#: Probability of rejecting an honest W_0: divided by the number of tensors that are tested.
FALSE_REJECTS = 1e-3


def check_parent(known: Established, openings: Openings) -> None:
    """V8, digests: the parent's final state is the one that its head commits to."""
    if (openings.parent is None) != (known.parent_state is None):
        expected, found = known.parent_state is not None, openings.parent is not None
        raise Refuted("V8", "final state of the parent", expected=expected, found=found)
    if openings.parent is not None:
        found_digest = hashes.state_digest(openings.parent)
        if found_digest != known.parent_state:
            raise Refuted("V8", "final state of the parent", expected=known.parent_state, found=found_digest)


def wanting_of_parent(parent: Verdict, policy: Policy, trusted: frozenset[bytes]) -> Iterator[tuple[str, str, str]]:
    """What the verdict on a parent lacks of what a reader demands of any run: (what, expected, found).

    Of the parent itself: what that one started from, its verifier has judged by a policy of its own.
    """
    if parent.verifier not in trusted:
        yield "verdict on the parent run", "by a verifier that the policy trusts", parent.verifier.hex()
        return
    if parent.verdict != "accepted":
        yield "verdict on the parent run", "accepted", parent.verdict
        return
    detected = bought(parent, policy.fraction)
    if not detected >= policy.probability:
        yield "probability of detection in the parent run", f"at least {policy.probability:.3f}", f"{detected:.3f}"
    if parent.basis != "bit-exact" and not policy.tolerance:
        yield "basis of the parent run", "bit-exact, by your policy", parent.basis
    if parent.reach is not None and not parent.reach <= policy.reach:
        yield "reach of the tolerance in the parent run", f"at most {policy.reach:g}", f"{parent.reach:.3g}"


def check_origin(known: Established, openings: Openings, report: ReplayReport) -> None:
    """V12: raises Refuted unless the run begins where a run of its kind has to."""
    if known.manifest.from_beacon:
        if report.initial != known.state(0):
            raise Refuted("V12", "W_0 from the beacon", at=0, expected=report.initial, found=known.state(0))
    elif openings.parent is not None:
        _check_continued(openings.parent, _initial(openings), report)
    elif report.initial != known.state(0):      # equal: what the recipe makes of the seed in the manifest
        _check_distribution(report)


def _initial(openings: Openings) -> StateIndex:
    return next(state.index for state in openings.states if state.step == 0)


def _check_continued(parent: StateIndex, found: StateIndex, report: ReplayReport) -> None:
    """Parameters and buffers are the parent's; whatever else there is, is as the recipe builds it."""
    fresh = report.initial_index
    if fresh is None:
        raise Unavailable("the re-execution did not report the recipe's initial state", hint="run it again")
    due = _by_name(fresh, "optimizer", "other") | _by_name(parent, "parameter", "buffer")
    here = {entry.name: entry for entry in found.tensors}
    for name in sorted(due.keys() | here.keys()):
        if due.get(name) != here.get(name):
            expected, shown = (entry.content if entry else "none" for entry in (due.get(name), here.get(name)))
            raise Refuted("V12", f"{name} of W_0", at=0, expected=expected, found=shown)
    if fresh.scalars != found.scalars:
        raise Refuted("V12", "scalars of W_0", at=0, expected="as the recipe builds them", found="others")


def _by_name(index: StateIndex, *kinds: str) -> dict[str, TensorEntry]:
    return {entry.name: entry for entry in index.tensors if entry.kind in kinds}


def _check_distribution(report: ReplayReport) -> None:
    if report.origin is None:
        raise Unavailable("the re-execution did not test the distribution of W_0", hint="run it again")
    least = least_probability(report.origin)
    for tensor in report.origin:
        if tensor.constant and not tensor.equal:
            raise Refuted("V12", f"{tensor.name} of W_0", at=0, expected="as the recipe sets it", found="other values")
        if not tensor.constant and not tensor.probability >= least:
            expected = f"the recipe's distribution, at p >= {least:.1e}"
            found = f"p = {tensor.probability:.1e} (statistic {tensor.statistic:.4f})"
            raise Refuted("V12", f"{tensor.name} of W_0", at=0, expected=expected, found=found)


def least_probability(tensors: tuple[TensorOrigin, ...]) -> float:
    """The probability below which a tensor is not from its distribution: Bonferroni's share of FALSE_REJECTS."""
    return FALSE_REJECTS / max(1, sum(1 for tensor in tensors if not tensor.constant))
