"""The verifier's side of a challenge, each step of it durable before the next (spec §5).

    <home>/challenges/<run>/<n>/    request, nonce, pending (the signed transaction), event, head, receipt

(1) request and nonce are stored; (2) the challenge is sent and paid for; (3) its block and the one that the
randomness comes from become final; (4) the prover is asked; (5) what it sends is verified; (6) the verdict is
signed and stored. An interrupted challenge goes on with the same draw. The prover's folder is never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from polcommit import transcript as hashes
from polcommit.anchors import refuted_anchor
from polcommit.encoding import decode, digest
from polcommit.envelopes import open_envelope, purpose_of, require_outer_signature
from polcommit.errors import (
    EncodingError,
    Refuted,
    SignatureInvalid,
    StorageError,
    Unavailable,
    UsageError,
)
from polcommit.events import Anchored, Challenged
from polcommit.keys import key_id
from polcommit.ledger.transactions import OnSent
from polcommit.records import Challenge, Evidence, Request, RevealedHead
from polcommit.sealing import Purpose, SealBroken, new_secret, unseal
from polcommit.session.connection import Connection, once
from polcommit.session.pending import ChallengeFolder
from polcommit.signing import (
    challenge_message,
    public_bytes,
    sign,
    sign_verdict,
    verify_statement,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Verifier:
    """Who challenges: a connection, and the verifier's unlocked keys."""

    connection: Connection
    key: Ed25519PrivateKey
    recipient: X25519PrivateKey
    account_key: bytes

    @property
    def public(self) -> bytes:
        """The Ed25519 key that verdicts are signed with."""
        return public_bytes(self.key)


@dataclass(frozen=True, slots=True)
class Ask:
    """What to ask for: a strategy with its count or listed steps."""

    strategy: str = "random"
    count: int = 0
    steps: tuple[int, ...] = ()
    clear_openings: bool = False
    gradients: bool = False         # from the start; else only where digests do not settle it


# --- before the challenge -------------------------------------------------------------------------------------


def find_anchor(verifier: Verifier, run: bytes, sequence: int | None = None) -> Anchored:
    """The anchored head to challenge: the last one, or the one with this sequence number.

    Raises:
        UsageError: there is no such head on the ledger.
    """
    anchors = verifier.connection.ledger.anchors(run)
    found = [event for event in anchors if sequence is None or event.sequence == sequence]
    if not found:
        what = "no anchored head" if sequence is None else f"no head {sequence}"
        hint = "has it been anchored, with 'polcommit anchor'? is it the right chain?"
        raise UsageError(f"run {run.hex()} has {what} on this chain", hint=hint)
    return found[-1]


def open_head(verifier: Verifier, anchor: Anchored) -> RevealedHead:
    """What this verifier's key finds in the envelope on the ledger; V1 to V3 as far as they go by that.

    Raises:
        Refuted: the envelope is not for this run, not by who signed it, or does not open to C.
        Unavailable: it is not sealed to this verifier.
    """
    ledger = verifier.connection.ledger
    verifier.connection.ledger.wait_final(anchor.position.block)
    chain, registration = ledger.identity(), ledger.registration(anchor.run)
    if registration is None:
        raise Refuted("V2", "registration of the run", expected=anchor.run, found="no such event")
    envelope = open_envelope(anchor)
    require_outer_signature(chain, anchor, envelope, registration.account)
    me = key_id(verifier.recipient.public_key().public_bytes_raw())
    purpose = purpose_of("anchor", chain, anchor.run, anchor.sequence, envelope.prover, me)
    mine = [sealed.ciphertext for sealed in envelope.sealed if sealed.recipient == me[:8]]
    if not mine:
        raise Unavailable(
            "the anchor is not sealed to this verifier", hint="only a verifier that the manifest names can challenge it"
        )
    head = _unsealed(mine[0], verifier.recipient, purpose)
    try:
        verify_statement(envelope.prover, head)
    except SignatureInvalid as error:
        raise Refuted("V3", "inner signature", expected=envelope.prover, found="another key") from error
    if head.commitment != anchor.commitment:
        raise Refuted("V4", "commitment", expected=anchor.commitment, found=head.commitment)
    if (head.statement.run, head.statement.sequence) != (anchor.run, anchor.sequence):
        raise Refuted("V3", "statement", expected=anchor.run, found=head.statement.run)
    return head


def _unsealed(ciphertext: bytes, key: X25519PrivateKey, purpose: Purpose) -> RevealedHead:
    """V3: what was sealed to us opens for this run, chain and sender; another's ciphertext, copied, does not."""
    try:
        return decode(unseal(ciphertext, key, purpose), RevealedHead)
    except SealBroken as error:
        expected = f"sealed by {purpose.sender.hex()} for this run"
        raise Refuted("V3", "sealed statement", expected=expected, found="does not open for it") from error
    except EncodingError as error:
        raise Refuted("V1", "sealed statement", expected="a canonical record", found=error) from error


def reject_anchor(verifier: Verifier, anchor: Anchored, error: Refuted) -> Evidence:
    """The signed verdict on an anchor whose envelope was refuted before it came to a challenge."""
    verdict = refuted_anchor(verifier.connection.policy, verifier.connection.ledger, anchor, error, verifier.public)
    return Evidence(receipt=sign_verdict(verifier.key, verdict), disclosure=None, openings=None)


# --- the challenge --------------------------------------------------------------------------------------------


def begin(verifier: Verifier, folder: ChallengeFolder, anchor: Anchored, head: RevealedHead, ask: Ask) -> None:
    """(1): store request and nonce, before anything is sent.

    Raises:
        UsageError: the head has not that many steps.
    """
    if max(ask.count, *ask.steps, 0) > head.statement.steps:
        raise UsageError(
            f"the head covers {head.statement.steps} steps", hint=f"ask for steps from 1 to {head.statement.steps}"
        )
    request = Request(
        run=anchor.run,
        commitment=anchor.commitment,
        verifier=verifier.public,
        strategy=ask.strategy,
        count=len(ask.steps) or ask.count,
        steps=ask.steps,
        clear_openings=ask.clear_openings,
    )
    folder.begin(request, new_secret(), head)
    if ask.gradients:
        folder.want_gradients()


def send(verifier: Verifier, folder: ChallengeFolder, progress: Progress | None = None) -> Challenge:
    """(2), (3): send the challenge, once, and wait until the draw is fixed."""
    ledger = verifier.connection.ledger
    while True:
        challenge = announce(verifier, folder)
        ledger.wait_final(challenge.block + hashes.DELAY, progress=progress)
        found = {event.id: event.position.block for event in ledger.challenges(challenge.request.run)}
        if found.get(challenge.id) == challenge.block:
            return challenge
        folder.forget_event()       # a reorganisation has moved it, or dropped it: the same transaction again


def announce(verifier: Verifier, folder: ChallengeFolder) -> Challenge:
    """(2): send the challenge, and pay for it; one that was signed before is sent again as it was."""
    ledger, request, nonce = verifier.connection.ledger, folder.request, folder.nonce
    if folder.id is None:
        event = once(
            ledger,
            folder.pending,
            lambda on_sent: _challenge(verifier, request, nonce, on_sent),
            lambda raw, replace: folder.write_pending(raw, replace=replace),
        )
        if not isinstance(event, Challenged) or event.request != digest(request):
            raise StorageError(f"{folder.path} holds a transaction of another challenge")
        first = _first_copy(ledger.challenges(request.run), event)
        folder.write_event(first.id, first.position.block)
    elif (folder.id, digest(request)) not in ((event.id, event.request) for event in ledger.challenges(request.run)):
        raise Unavailable(
            f"challenge {folder.id} is not on this chain, where it was sent in block {folder.block}",
            hint="was the devnet reset? give the chain that it was sent on with --rpc",
        )
    return Challenge(
        request=request, nonce=nonce, id=folder.id or 0, block=folder.block or 0, gradients=folder.gradients
    )


def _challenge(verifier: Verifier, request: Request, nonce: bytes, on_sent: OnSent) -> Challenged:
    chain = verifier.connection.ledger.identity()
    committed = hashes.nonce_commitment(nonce)
    signed = challenge_message(
        chain_id=chain.chain_id,
        contract=chain.contract,
        run=request.run,
        commitment=request.commitment,
        request=digest(request),
        nonce_commitment=committed,
    )
    return verifier.connection.ledger.challenge(
        verifier.account_key,
        run=request.run,
        verifier=request.verifier,
        commitment=request.commitment,
        request=digest(request),
        nonce_commitment=committed,
        signature=sign(verifier.key, "sign/challenge", signed),
        on_sent=on_sent,
    )


def _first_copy(events: tuple[Challenged, ...], event: Challenged) -> Challenged:
    """The event that counts: somebody may have copied ours into a block before our own transaction."""
    content = (event.verifier, event.commitment, event.request, event.nonce_commitment)
    same = [
        other
        for other in events
        if (other.verifier, other.commitment, other.request, other.nonce_commitment) == content
        and other.signature == event.signature
    ]
    return min(same, key=lambda other: other.id, default=event)
