"""The verifier's side of a challenge, each step of it durable before the next (spec §5).

    <home>/challenges/<run>/<n>/    request, nonce, pending (the signed transaction), event, head, receipt

(1) request and nonce are stored; (2) the challenge is sent and paid for; (3) its block and the one that the
randomness comes from become final; (4) the prover is asked; (5) what it sends is verified; (6) the verdict is
signed and stored. An interrupted challenge goes on with the same draw. The prover's folder is never read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from polcommit import transcript as hashes
from polcommit.disclosure import open_envelope, require_outer_signature
from polcommit.encoding import decode, digest, tag
from polcommit.errors import (
    EncodingError,
    ProverUnavailable,
    Refuted,
    SignatureInvalid,
    StorageError,
    Unavailable,
    UsageError,
)
from polcommit.events import Anchored, Challenged
from polcommit.keys import key_id
from polcommit.opening import MAX_RECORD
from polcommit.prover import envelope_purpose, opening_purpose
from polcommit.records import Challenge, Evidence, OpeningKey, Receipt, Refusal, Request, RevealedHead, SealedOpening
from polcommit.sealing import Purpose, SealBroken, new_secret, unseal, unseal_stream
from polcommit.session import bundle
from polcommit.session.connection import Connection
from polcommit.session.pending import ChallengeFolder
from polcommit.session.processes import ProcessReplayer
from polcommit.session.wire import read_answer, read_chunks
from polcommit.signing import (
    challenge_message,
    opening_message,
    public_bytes,
    sign,
    sign_verdict,
    verify,
    verify_refusal,
    verify_statement,
)
from polcommit.storage.blobs import BlobFolder
from polcommit.verifier import ReleasedModel, Verification, refuted_anchor

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
        raise UsageError(f"run {run.hex()} has {what} on this chain", hint="is it the right run, and the right chain?")
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
    purpose = envelope_purpose(chain, anchor.run, anchor.sequence, envelope.prover, me)
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
    """V3: what was sealed to us opens for this run, chain, contract and sender; another's copied ciphertext does not."""
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


def send(verifier: Verifier, folder: ChallengeFolder, progress: Progress | None = None) -> Challenge:
    """(2), (3): send the challenge, once, and wait until the draw is fixed."""
    challenge = announce(verifier, folder)
    verifier.connection.ledger.wait_final(challenge.block + hashes.DELAY, progress=progress)
    return challenge


def announce(verifier: Verifier, folder: ChallengeFolder) -> Challenge:
    """(2): send the challenge, and pay for it; one that was signed before is sent again as it was."""
    ledger, request, nonce = verifier.connection.ledger, folder.request, folder.nonce
    pending = folder.pending
    if folder.id is None:
        event = ledger.resume(pending) if pending is not None else _challenge(verifier, folder, request, nonce)
        if not isinstance(event, Challenged) or event.request != digest(request):
            raise StorageError(f"{folder.path} holds a transaction of another challenge")
        first = _first_copy(ledger.challenges(request.run), event)
        folder.write_event(first.id, first.position.block)
    return Challenge(request=request, nonce=nonce, id=folder.id or 0, block=folder.block or 0)


def _challenge(verifier: Verifier, folder: ChallengeFolder, request: Request, nonce: bytes) -> Challenged:
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
        on_sent=lambda _, raw: folder.write_pending(raw),
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


# --- the answer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """How to verify: the released model to compare, threads and device of the re-execution."""

    model: ReleasedModel | None = None
    threads: int | None = None
    device: str = "cpu"


def verify_answer(
    verifier: Verifier,
    folder: ChallengeFolder,
    challenge: Challenge,
    answer: BinaryIO,
    out: Path,
    options: Options,
    progress: Progress | None = None,
) -> Receipt:
    """(5), (6): verify what the prover sent, sign the verdict, and write the evidence bundle to `out`.

    Raises:
        ProverUnavailable: the answer is cut short, or is not the prover's.
        Unavailable: this machine cannot re-execute it; the challenge can be resumed.
    """
    verification = Verification(
        policy=verifier.connection.policy,
        ledger=verifier.connection.ledger,
        replayer=ProcessReplayer(threads=options.threads, device=options.device),
        challenge=challenge,
        attested=folder.head,
        model=options.model,
    )
    with tempfile.TemporaryDirectory(prefix="polcommit-") as work:
        blobs = Path(work)
        _take_answer(verifier, verification, answer, blobs, progress)
        receipt = sign_verdict(verifier.key, verification.verdict(verifier.public))
        folder.write_receipt(receipt)
        write_evidence(out, verification, receipt, blobs)
    return receipt


def write_evidence(out: Path, verification: Verification, receipt: Receipt, blobs: Path) -> None:
    """Write the bundle; with states and samples in clear only where request and manifest both say so."""
    asked = verification.challenge.request.clear_openings
    complete = verification.checks["V10"] in ("passed", "failed", "not settled")
    openings = verification.openings if asked and complete else None
    evidence = Evidence(receipt=receipt, disclosure=verification.disclosure, openings=openings)
    bundle.write(out, evidence, blobs)


def _take_answer(
    verifier: Verifier, verification: Verification, answer: BinaryIO, blobs: Path, progress: Progress | None
) -> None:
    try:
        first = read_answer(answer)
    except EncodingError as error:
        raise _not_the_provers(str(error)) from error
    prover = _prover_key(verification)
    challenge = verification.challenge
    if (first.run, first.id) != (challenge.request.run, challenge.id):
        raise _not_the_provers(f"it answers challenge {first.id}")
    if isinstance(first, Refusal):
        try:
            verify_refusal(prover, first)
        except SignatureInvalid as error:
            raise _not_the_provers(error.message) from error
        verification.refuse(first.reason, first.detail)
        return
    inner = _opening_key(verifier, verification, first, prover)
    signed = opening_message(run=first.run, challenge_id=first.id, payload=inner.payload)
    payload = _Payload(unseal_stream(read_chunks(answer), inner.key, signed))
    try:
        whole = _take_payload(verification, payload, blobs)
    except SealBroken as error:
        raise ProverUnavailable(error.message, hint="have the opening sent again and resume the challenge") from error
    if whole and payload.digest() != inner.payload:
        verification.reject(Refuted("V1", "digest of the opening", expected=inner.payload, found=payload.digest()))
    elif whole:
        verification.take_blobs(blobs, progress)


def _prover_key(verification: Verification) -> bytes:
    """The prover's key, from the envelope that opened to the challenged head."""
    request = verification.challenge.request
    anchors = verification.ledger.anchors(request.run)
    anchor = next((event for event in anchors if event.commitment == request.commitment), None)
    if anchor is None:
        raise Unavailable("the challenged head is no longer on the chain", hint="was there a reorganisation, or a reset?")
    return open_envelope(anchor).prover


def _opening_key(verifier: Verifier, verification: Verification, first: SealedOpening, prover: bytes) -> OpeningKey:
    chain = verification.ledger.identity()
    me = key_id(verifier.recipient.public_key().public_bytes_raw())
    purpose = opening_purpose(chain, first.run, first.id, prover, me)
    try:
        inner = decode(unseal(first.sealed, verifier.recipient, purpose), OpeningKey)
        signed = opening_message(run=first.run, challenge_id=first.id, payload=inner.payload)
        verify(prover, "sign/opening", signed, inner.signature)
    except (SealBroken, EncodingError, SignatureInvalid) as error:
        raise _not_the_provers(error.message if not isinstance(error, EncodingError) else str(error)) from error
    return inner


def _not_the_provers(why: str) -> ProverUnavailable:
    return ProverUnavailable(
        f"the answer is not the prover's answer to this challenge: {why}",
        hint="have the prover respond to the request again, then resume the challenge",
    )


def _take_payload(verification: Verification, payload: _Payload, blobs: Path) -> bool:
    """Feed the records to the verification, and the blobs into the folder; whether all of it was taken."""
    try:
        disclosure = payload.record()
    except EncodingError as error:
        verification.reject(Refuted("V1", "disclosure", expected="a framed record", found=error))
        return False
    if not verification.take_disclosure(disclosure):
        return False
    try:
        openings = payload.record()
    except EncodingError as error:
        verification.reject(Refuted("V1", "openings", expected="a framed record", found=error))
        return False
    due = verification.take_openings(openings)
    if due is None:
        return False
    try:
        BlobFolder(blobs).receive(payload.rest(), due)
    except EncodingError as error:
        verification.reject(Refuted("V8", "contents of states and samples", expected="as committed", found=error))
        return False
    return True


class _Payload:
    """A decrypted payload: records first, then the rest; hashed as it passes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._held = b""
        self._hasher = blake3(tag("payload"))

    def record(self) -> bytes:
        """The next length-prefixed record. Raises EncodingError: too long, or cut short."""
        length = int.from_bytes(self._take(8), "big")
        if length > MAX_RECORD:
            raise EncodingError(f"a record of {length} bytes, more than {MAX_RECORD}")
        return self._take(length)

    def rest(self) -> Iterator[bytes]:
        """Everything that is left."""
        if self._held:
            yield self._held
        self._held = b""
        for chunk in self._chunks:
            self._hasher.update(chunk)
            yield chunk

    def digest(self) -> bytes:
        """BLAKE3 of the tag and all of the payload, once it has passed."""
        return self._hasher.digest()

    def _take(self, length: int) -> bytes:
        parts = [self._held]
        size = len(self._held)
        while size < length:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise EncodingError("the payload is cut short")
            self._hasher.update(chunk)
            parts.append(chunk)
            size += len(chunk)
        data = b"".join(parts)
        self._held = data[length:]
        return data[:length]

