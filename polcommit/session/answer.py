"""The prover's answer, received and verified piece by piece, to a signed verdict (spec §5.4, §6).

What does not carry the prover's signature is no answer: the challenge stays open. What does, and contradicts what
was committed to, is a rejection.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from polcommit.comparisons import ReleasedModel
from polcommit.encoding import decode, tag
from polcommit.envelopes import open_envelope, purpose_of
from polcommit.errors import EncodingError, GradientsWanted, ProverUnavailable, Refuted, SignatureInvalid, Unavailable
from polcommit.keys import key_id
from polcommit.opening import MAX_RECORD
from polcommit.profiles import Profile
from polcommit.records import Challenge, Evidence, OpeningKey, Openings, Receipt, Refusal, SealedOpening
from polcommit.sealing import SealBroken, unseal, unseal_stream
from polcommit.session import bundle
from polcommit.session.challenge import Progress, Verifier
from polcommit.session.environments import AS_CLAIMED, EnvironmentSettings
from polcommit.session.pending import ChallengeFolder
from polcommit.session.processes import ProcessReplayer
from polcommit.session.wire import read_answer, read_chunks
from polcommit.signing import opening_message, sign_verdict, verify, verify_refusal
from polcommit.storage.blobs import BlobFolder
from polcommit.verifier import Verification


@dataclass(frozen=True, slots=True)
class Options:
    """How to verify: the released model to compare, threads and device of the re-execution."""

    model: ReleasedModel | None = None
    threads: int | None = None
    device: str | None = None
    recipes: tuple[str, ...] = ()       # allowed to run besides the installed ones
    profiles: tuple[Profile, ...] = ()  # of noise between environments, for where one is needed
    demanded: tuple[Profile, ...] = ()  # that must be of this run's recipe, and of these environments
    settings: EnvironmentSettings = AS_CLAIMED      # of the re-execution's environment, over what the steps claim
    follow_up: bool = True              # where digests do not settle it, ask for gradients before giving a verdict

    def __post_init__(self) -> None:
        self.settings.combined(self.threads, self.device)       # a contradiction shows before anything is paid for


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
        GradientsWanted: digests do not settle it; the challenge goes on with the follow-up.
        Unavailable: this machine cannot re-execute it; the challenge can be resumed.
    """
    verification = Verification(
        policy=verifier.connection.policy,
        ledger=verifier.connection.ledger,
        replayer=ProcessReplayer(options.threads, options.device, options.recipes, options.settings),
        challenge=challenge,
        attested=folder.head,
        model=options.model,
        profiles=options.profiles,
        demanded=options.demanded,
        trusted=frozenset({verifier.public}),
    )
    with tempfile.TemporaryDirectory(prefix="polcommit-") as work:
        blobs = Path(work)
        _take_answer(verifier, verification, answer, blobs, progress)
        if verification.unsettled is not None and not challenge.gradients and options.follow_up:
            folder.want_gradients()
            raise GradientsWanted(
                f"challenge {challenge.id} takes the gradients of its steps as well: {verification.unsettled}",
                hint=f"have it answered once more: 'polcommit challenge RUN --resume {challenge.id}'",
            )
        receipt = sign_verdict(verifier.key, verification.verdict(verifier.public))
        write_evidence(out, verification, receipt, blobs)
        folder.write_receipt(receipt)       # last: until the evidence is written, the challenge can be resumed
    return receipt


def write_evidence(out: Path, verification: Verification, receipt: Receipt, blobs: Path) -> None:
    """Write the bundle; with states and samples in clear only where request and manifest both say so."""
    disclosed = verification.disclosure
    permitted = disclosed is not None and disclosed.manifest.clear_openings
    asked = verification.challenge.request.clear_openings and permitted
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
        hint = "was there a reorganisation, or a reset?"
        raise Unavailable("the challenged head is no longer on the chain", hint=hint)
    return open_envelope(anchor).prover


def _opening_key(verifier: Verifier, verification: Verification, first: SealedOpening, prover: bytes) -> OpeningKey:
    chain = verification.ledger.identity()
    me = key_id(verifier.recipient.public_key().public_bytes_raw())
    purpose = purpose_of("opening", chain, first.run, first.id, prover, me)
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
    _require_asked(verification.challenge, openings)
    due = verification.take_openings(openings)
    if due is None:
        return False
    needed, free = sum(blob.length for blob in due), shutil.disk_usage(blobs).free
    if needed > free:       # what shapes a prover commits to, nobody has looked at yet
        raise Unavailable(
            f"the opening takes {needed} bytes, and {free} are free in {blobs.parent}",
            hint="make room, or set TMPDIR to where there is, and resume the challenge",
        )
    try:
        BlobFolder(blobs).receive(payload.rest(), due)
    except EncodingError as error:
        verification.reject(Refuted("V8", "contents of states and samples", expected="as committed", found=error))
        return False
    return True


def _require_asked(challenge: Challenge, data: bytes) -> None:
    """Raises ProverUnavailable if this answers the other request of a challenge: the first one, or the follow-up.

    Nothing in an answer says which of the two it is to, and a file can be the wrong one: that is no contradiction.
    """
    try:
        openings = decode(data, Openings, max_size=MAX_RECORD)
    except EncodingError:
        return          # a contradiction of another kind, for the verification to find
    if {openings.gradients is None, openings.next_states is None} == {challenge.gradients}:
        what = "without gradients, and they were asked for" if challenge.gradients else "with gradients, and none were"
        raise _not_the_provers(f"it is an opening {what}")


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

