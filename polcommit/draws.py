"""Challenges on the ledger, and what they draw (spec §5.1, §5.2): the same code for prover, verifier and reader.

A draw is fixed by the chain: request and nonce were committed to in the event, the randomness is that of a later
block. What a chain operator who chooses prevrandao can do is not addressed here; on a devnet every verdict says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from polcommit import transcript as hashes
from polcommit.encoding import digest
from polcommit.errors import Refuted, SignatureInvalid, Unavailable
from polcommit.events import Anchored, Block, ChainIdentity, Challenged, Registered
from polcommit.records import Challenge, Manifest, Request, Statement, StepRecord, Verdict
from polcommit.sampling import draw, kept_steps, opened_kept
from polcommit.screens import Kept, added_steps, fine_states, fine_stretches, pinned_steps, screen
from polcommit.signing import challenge_message, verify


class Ledger(Protocol):
    """What is asked of a chain. Raises `Unavailable` where there is no answer."""

    def identity(self) -> ChainIdentity: ...
    def registration(self, run: bytes) -> Registered | None: ...
    def account_registrations(self, account: bytes) -> tuple[Registered, ...]: ...
    def anchors(self, run: bytes) -> tuple[Anchored, ...]: ...
    def challenges(self, run: bytes) -> tuple[Challenged, ...]: ...
    def block(self, number: int) -> Block: ...
    def is_final(self, number: int) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a challenge asks to be opened."""

    event: Challenged
    seed: bytes                         # of the draw, 32 bytes
    steps: tuple[int, ...]              # drawn steps, rising
    kept: tuple[int, ...]               # steps of the kept states up to the head: all are sketched
    opened_kept: tuple[int, ...]        # of those, the ones whose full state is opened
    added: tuple[int, ...] = ()         # these three as in `Added`
    fine: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()

    @property
    def challenged(self) -> tuple[int, ...]:
        """Drawn and added steps, rising."""
        return tuple(sorted({*self.steps, *self.added}))

    @property
    def reexecuted(self) -> tuple[int, ...]:
        """The same, drawn ones first: of many steps only the residuals of the first are compared with each other."""
        return (*self.steps, *self.added)

    @property
    def checked(self) -> tuple[int, ...]:
        """Steps of the opened states that sketches are compared with, rising: of all that have both."""
        sketched = {*self.kept, *self.fine}
        return tuple(step for step in self.opened if step in sketched)

    @property
    def opened(self) -> tuple[int, ...]:
        """As `opened_states`."""
        return opened_states(self.challenged, self.opened_kept, self.pinned)

    def with_added(self, added: Added) -> Drawn:
        """The draw, with what the sketches add to it."""
        return replace(self, added=added.steps, fine=added.fine, pinned=added.pinned)


def require_final(ledger: Ledger, number: int, what: str) -> None:
    """Raises Unavailable while the block is not final by the reader's policy."""
    if not ledger.is_final(number):
        raise Unavailable(f"block {number} ({what}) is not final yet", hint="wait for more blocks and run it again")


def counted_challenges(
    chain: ChainIdentity, manifest: Manifest, events: tuple[Challenged, ...]
) -> tuple[Challenged, ...]:
    """Challenges that count: by an eligible verifier, validly signed, and the first event with that content.

    Anybody can send the event again with the same signature; a copy is neither a challenge nor unanswered.
    """
    counted: dict[tuple[bytes, ...], Challenged] = {}
    for event in sorted(events, key=lambda event: event.id):
        if manifest.eligible(event.verifier) is None:
            continue
        message = challenge_message(
            chain_id=chain.chain_id,
            contract=chain.contract,
            run=event.run,
            commitment=event.commitment,
            request=event.request,
            nonce_commitment=event.nonce_commitment,
        )
        try:
            verify(event.verifier, "sign/challenge", message, event.signature)
        except SignatureInvalid:
            continue        # by rule an event without an eligible verifier's valid signature is ignored
        counted.setdefault((event.verifier, event.commitment, event.request, event.nonce_commitment), event)
    return tuple(counted.values())


def answers(verdict: Verdict, event: Challenged) -> bool:
    """Whether a verdict is the answer to this challenge: same run, same verifier, same request."""
    asked = digest(verdict.request) if verdict.request is not None else b""
    return (verdict.run, verdict.verifier, asked) == (event.run, event.verifier, event.request)


#: Outcomes of earlier challenges after which no verdict is better than inconclusive: otherwise a prover whose forged
#: steps were drawn says nothing, or pleads a budget, or finds another verifier, and is drawn again.
BLOCKING = frozenset({"unanswered", "refused", "rejected", "not reproduced"})

#: What is found of a step that claims the environment it was re-executed in, and gives other bits there. It depends on
#: which steps were drawn, so that it must not be drawn again until they are missed.
OTHER_BITS = "same environment claimed, different bits"


def outcome(verdict: Verdict | None) -> str:
    """What became of a challenge: its verdict; 'unanswered' without one, 'refused' if nothing was opened for it.

    'not reproduced' where a drawn step gave other bits in the environment that it claims.
    """
    if verdict is None:
        return "unanswered"
    if verdict.verdict == "inconclusive" and any(finding.what == OTHER_BITS for finding in verdict.findings):
        return "not reproduced"
    return "refused" if verdict.verdict == "inconclusive" and verdict.openings is None else verdict.verdict


def challenge_event(
    ledger: Ledger, chain: ChainIdentity, manifest: Manifest, anchor: Anchored, challenge: Challenge
) -> Challenged:
    """The event of this challenge: signed by an eligible verifier, no copy, and after the anchor. Else Refuted (V6)."""
    request = challenge.request
    events = ledger.challenges(request.run)
    event = next((event for event in events if event.id == challenge.id), None)
    if event is None or event.position.block != challenge.block:
        raise Refuted("V6", "challenge on the ledger", expected=challenge.id, found="no such event")
    asked = (request.commitment, digest(request), hashes.nonce_commitment(challenge.nonce), request.verifier)
    if (event.commitment, event.request, event.nonce_commitment, event.verifier) != asked:
        raise Refuted("V6", "challenge event", expected=digest(request), found=event.request)
    if event not in counted_challenges(chain, manifest, events):
        raise Refuted("V6", "eligible verifier's signature", expected=request.verifier, found="none, or a copy")
    if anchor.position >= event.position:
        raise Refuted("V6", "challenge after the anchor", expected="a later event", found="an earlier one")
    return event


def resolve(
    ledger: Ledger,
    chain: ChainIdentity,
    manifest: Manifest,
    challenge: Challenge,
    event: Challenged,
    statements: tuple[Statement, ...],
) -> Drawn:
    """The draw of a challenge of the last of these heads (all of them, from the first).

    Raises:
        Refuted: the head has fewer steps than the request wants (V6).
        Unavailable: the block of the randomness is not final yet.
    """
    request, last = challenge.request, statements[-1].steps
    number = event.position.block + hashes.DELAY
    require_final(ledger, number, "randomness of the draw")
    seed = hashes.draw_seed(
        chain_id=chain.chain_id,
        contract=chain.contract,
        run=request.run,
        commitment=request.commitment,
        challenge_id=challenge.id,
        request=digest(request),
        nonce=challenge.nonce,
        prevrandao=ledger.block(number).prevrandao,
    )
    wanted = request.steps[-1] if request.steps else request.count
    if wanted > last and request.strategy != "top-q":
        raise Refuted("V6", "request", expected=f"at most {last}", found=wanted)
    kept = kept_steps(manifest.keep, tuple(statement.steps for statement in statements))
    return Drawn(
        event=event,
        seed=seed,
        steps=draw(seed, request, last),
        kept=kept,
        opened_kept=opened_kept(seed, kept, last, first=not manifest.from_beacon),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What the sketches add to a draw; all rising."""

    steps: tuple[int, ...]              # challenged besides the drawn ones
    fine: tuple[int, ...]               # steps of the states that are sketched besides the kept ones
    pinned: tuple[int, ...]             # challenged steps before and after which the sketches are checked


def opened_states(challenged: Sequence[int], opened_kept: Sequence[int], pinned: Sequence[int]) -> tuple[int, ...]:
    """Steps whose full state is opened, rising: before each challenged step, before and after each pinned one, and
    the kept ones that were drawn."""
    return tuple(sorted({*(step - 1 for step in challenged), *opened_kept, *pinned, *(step - 1 for step in pinned)}))


class Screened:
    """What the sketches of a run add to a challenge (spec §5.2, V11): the same on both sides.

    First the sketches of all kept states, which say what is flagged and which further states are sketched (`fine`);
    with those the steps that are added.
    """

    def __init__(
        self,
        request: Request,
        manifest: Manifest,
        *,
        seed: bytes,
        last: int,
        records: Mapping[int, StepRecord],
        sketches: Mapping[int, Sequence[float]],
    ) -> None:
        """`seed` is the draw's, `last` the head's last step; `records` and `sketches` are those of the kept steps."""
        self._request, self._manifest, self._seed = request, manifest, seed
        self._kept = [
            Kept(
                step=step,
                sketch=tuple(sketches[step]),
                loss=records[step].loss if step else None,
                learning_rate=records[step].learning_rate if step else None,
            )
            for step in sorted(sketches)
        ]
        self.flags = screen(self._kept, steps=last, batch=manifest.batch, samples=manifest.dataset.size)
        self._stretches = fine_stretches(seed, self.flags, self._kept)
        self.fine = fine_states(self._stretches, self._kept)

    def over(self, drawn: Sequence[int], fine: Mapping[int, Sequence[float]]) -> Added:
        """What is added to the drawn steps. `fine` holds the sketches of the `fine` states."""
        sketches = {state.step: state.sketch for state in self._kept} | {step: tuple(fine[step]) for step in self.fine}
        pinned = pinned_steps(self._stretches, sketches)
        epoch = self._manifest.dataset.size // self._manifest.batch
        added = added_steps(self._seed, self._request, self.flags, self._kept, drawn, epoch, pinned)
        return Added(steps=added, fine=self.fine, pinned=pinned)
