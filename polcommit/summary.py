"""The part of a verdict that is not opinion: what ledger, request and disclosure say (spec §6).

The verifier fills a verdict from here; a third party computes the same fields for itself and compares.
"""

from __future__ import annotations

from typing import Any

from polcommit import prf, sampling
from polcommit.draws import Ledger
from polcommit.encoding import digest
from polcommit.errors import Unavailable
from polcommit.established import Established
from polcommit.events import Anchored, Position
from polcommit.policy import Policy
from polcommit.records import Budget, Challenge, Reference, Request, RevealedHead, Verdict


def reference(position: Position) -> Reference:
    """A log's position as it stands in a verdict."""
    return Reference(
        block=position.block,
        block_hash=position.block_hash,
        transaction=position.transaction,
        log_index=position.log_index,
    )


def public_fields(
    policy: Policy,
    ledger: Ledger,
    challenge: Challenge,
    head: RevealedHead,
    known: Established | None,
) -> dict[str, Any]:
    """Fields of a `Verdict` that follow from the ledger, the request and the disclosure.

    Where the disclosure was refuted before `known` was complete, what it would have told is left empty.

    Raises:
        Unavailable: the anchor has left the chain, so there is nothing that a verdict could be about.
    """
    request, statement = challenge.request, head.statement
    anchor = next((event for event in ledger.anchors(request.run) if event.commitment == request.commitment), None)
    if anchor is None:
        hint = "was there a reorganisation, or a reset?"
        raise Unavailable("the challenged head is no longer on the chain", hint=hint)
    event = next((event for event in ledger.challenges(request.run) if event.id == challenge.id), None)
    drawn = known.drawn.steps if known is not None and known.drawn is not None else ()
    return {
        **anchor_fields(policy, ledger, anchor, known.manifest.prover if known is not None else None),
        "size": statement.size,
        "root": statement.root,
        "final": statement.final,
        "challenge": reference(event.position) if event is not None else None,
        "challenge_id": challenge.id,
        "request": request,
        "nonce": challenge.nonce,
        "draw": "ledger",
        "steps": drawn,
        "added": known.drawn.added if known is not None and known.drawn is not None else (),
        "registered": known is not None and known.registered and known.drawn is not None,
        "parent": digest(known.parent) if known is not None and known.parent is not None else None,
        "fraction": policy.fraction,
        "challenges": known.earlier if known is not None else (),
        "budgets": budgets(known) if known is not None and known.drawn is not None else (),
    }


def probability(request: Request | None, steps: int, reexecuted: int, fraction: float) -> float:
    """That a run of `steps` steps with this fraction forged would have been met: by random, re-executed steps only."""
    if request is None or request.strategy not in ("random", "mixed"):
        return 0.0
    return sampling.detection(steps, sampling.forged_steps(steps, fraction), reexecuted)


def counted(verdict: Verdict) -> int:
    """Drawn steps that were re-executed, or came within tolerance: not the ones that were added."""
    return len({*verdict.reexecuted, *verdict.tolerated} & set(verdict.steps))


def bought(verdict: Verdict, fraction: float) -> float:
    """Detection that a verdict's steps buy, at a share of forged steps of the reader's own."""
    if verdict.size is None:
        return 0.0
    return probability(verdict.request, verdict.size - 1, counted(verdict), fraction)


def anchor_fields(policy: Policy, ledger: Ledger, anchor: Anchored, prover: bytes | None) -> dict[str, Any]:
    """Fields of a `Verdict` that follow from the chain alone."""
    chain = ledger.identity()
    registration = ledger.registration(anchor.run)
    account = registration.account if registration is not None else bytes(20)
    registered = ledger.account_registrations(account) if registration is not None else ()
    return {
        "chain_id": chain.chain_id,
        "genesis": chain.genesis,
        "contract": chain.contract,
        "code": chain.code,
        "devnet": policy.devnet,
        "run": anchor.run,
        "account": account,
        "prover": prover,
        "sequence": anchor.sequence,
        "commitment": anchor.commitment,
        "registered": False,        # until the manifest is known, and says so
        "registration": reference(registration.position) if registration is not None else None,
        "anchor": reference(anchor.position),
        "anchor_time": ledger.block(anchor.position.block).timestamp,
        "registrations": (len(registered), sum(1 for other in registered if ledger.anchors(other.run))),
    }


def budgets(known: Established) -> tuple[Budget, ...]:
    """What the manifest still allows each eligible verifier, by the answered challenges and this one."""
    opened: dict[bytes, set[int]] = {known.challenge.request.verifier: set(known.draw.challenged)}
    for verdict in known.verdicts:
        opened.setdefault(verdict.verifier, set()).update(verdict.steps, verdict.added)
    result = []
    for eligible in known.manifest.verifiers:
        steps = opened.get(eligible.key, set())
        samples = samples_of(known.seed, steps, known.manifest.dataset.size, known.manifest.batch)
        result.append(
            Budget(
                verifier=eligible.key,
                steps=max(0, eligible.steps - len(steps)),
                samples=max(0, eligible.samples - len(samples)),
            )
        )
    return tuple(result)


def samples_of(seed: bytes, steps: set[int], size: int, batch: int) -> set[int]:
    """Distinct dataset indices that these steps take."""
    return {index for step in steps for index in prf.batch_indices(seed, step, size, batch)}
