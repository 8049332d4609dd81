"""Envelopes of anchors: sealed to the verifiers, signed on the outside, opened and checked (spec §4.5, §4.6).

Both signatures matter. With the outer one alone, anybody can strip it and sign the ciphertexts as their own; with
the inner one alone, anybody can send them again from another account.
"""

from __future__ import annotations

from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polcommit.encoding import decode, encode, pack, tagged_hash
from polcommit.errors import EncodingError, Refuted, SignatureInvalid
from polcommit.events import Anchored, ChainIdentity
from polcommit.keys import key_id
from polcommit.records import Envelope, Manifest, RevealedHead, Sealed
from polcommit.sealing import Purpose, seal
from polcommit.signing import envelope_message, sign, verify, verify_statement

MAX_ENVELOPE = 1 << 16      # bytes


def purpose_of(
    what: Literal["anchor", "opening"], chain: ChainIdentity, run: bytes, number: int, prover: bytes, recipient: bytes
) -> Purpose:
    """HPKE's info: `number` is an anchor's sequence number or a challenge's id, `recipient` a key id."""
    return Purpose(
        purpose=what,
        run=run,
        number=number,
        chain_id=chain.chain_id,
        contract=chain.contract,
        sender=prover,
        recipient=recipient,
    )


def make_envelope(head: RevealedHead, manifest: Manifest, chain: ChainIdentity, key: Ed25519PrivateKey) -> bytes:
    """The encoded envelope: the head sealed to every eligible verifier, and the outer signature."""
    verify_statement(manifest.prover, head)
    statement = head.statement
    recipients = sorted((key_id(verifier.recipient), verifier.recipient) for verifier in manifest.verifiers)
    sealed = []
    for identifier, public in recipients:
        purpose = purpose_of("anchor", chain, statement.run, statement.sequence, manifest.prover, identifier)
        sealed.append(Sealed(recipient=identifier[:8], ciphertext=seal(encode(head), public, purpose)))
    message = envelope_message(
        commitment=head.commitment,
        sealed_digest=sealed_digest(tuple(sealed)),
        run=statement.run,
        sequence=statement.sequence,
        chain_id=chain.chain_id,
        contract=chain.contract,
        account=manifest.account,
    )
    signature = sign(key, "sign/envelope", message)
    return encode(Envelope(prover=manifest.prover, sealed=tuple(sealed), signature=signature))


def open_envelope(event: Anchored) -> Envelope:
    """V1: the envelope of an anchor, parsed; raises Refuted where it is none."""
    try:
        return decode(event.envelope, Envelope, max_size=MAX_ENVELOPE)
    except EncodingError as error:
        raise Refuted("V1", "envelope", expected="a canonical envelope", found=error) from error


def require_outer_signature(chain: ChainIdentity, event: Anchored, envelope: Envelope, account: bytes) -> None:
    """V3: the ciphertexts were signed for this run, sequence number, chain, contract and account, or Refuted."""
    message = envelope_message(
        commitment=event.commitment,
        sealed_digest=sealed_digest(envelope.sealed),
        run=event.run,
        sequence=event.sequence,
        chain_id=chain.chain_id,
        contract=chain.contract,
        account=account,
    )
    try:
        verify(envelope.prover, "sign/envelope", message, envelope.signature)
    except SignatureInvalid as error:
        raise Refuted(
            "V3",
            "outer signature",
            expected=f"by {envelope.prover.hex()} for run {event.run.hex()} of account {account.hex()}",
            found="a signature of something else",
        ) from error


def sealed_digest(sealed: tuple[Sealed, ...]) -> bytes:
    """SHA-256 over an envelope's ciphertexts, as the outer signature covers them."""
    return tagged_hash("envelope", pack([(one.recipient, one.ciphertext) for one in sealed]))
