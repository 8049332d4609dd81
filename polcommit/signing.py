"""Ed25519 signatures (RFC 8032), each under a domain tag, and what exactly they cover (spec §4.5).

A signature proves that the holder of a key signed these bytes for this purpose; not when, and not that the
holder made what is signed.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from polcommit.encoding import digest, encode, pack, tag
from polcommit.errors import SignatureInvalid
from polcommit.records import Receipt, Refusal, RevealedHead, Statement, Verdict


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 raw bytes of a key's public half."""
    return key.public_key().public_bytes_raw()


def sign(key: Ed25519PrivateKey, purpose: str, message: bytes) -> bytes:
    """64 bytes: the signature of tag ‖ message. `purpose` is a tag beginning with 'sign/'."""
    return key.sign(tag(purpose) + message)


def verify(public: bytes, purpose: str, message: bytes, signature: bytes) -> None:
    """Return if `signature` is by `public` (32 bytes) over tag ‖ message.

    Raises:
        SignatureInvalid: it is not, or `public` is not a key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, tag(purpose) + message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureInvalid(f"signature ({purpose.removeprefix('sign/')}) is not by key {public.hex()}") from error


def sign_statement(key: Ed25519PrivateKey, statement: Statement, blinding: bytes) -> RevealedHead:
    """The inner signature: over the statement alone, so that it holds wherever the statement is shown."""
    signature = sign(key, "sign/statement", encode(statement))
    return RevealedHead(statement=statement, signature=signature, blinding=blinding)


def verify_statement(public: bytes, head: RevealedHead) -> None:
    """Raises SignatureInvalid unless the prover with this key signed the statement."""
    verify(public, "sign/statement", encode(head.statement), head.signature)


def envelope_message(
    *,
    commitment: bytes,
    sealed_digest: bytes,
    run: bytes,
    sequence: int,
    chain_id: int,
    contract: bytes,
    account: bytes,
) -> bytes:
    """What the outer signature covers: with the ciphertexts also where, and as whose, they are anchored."""
    return pack((commitment, sealed_digest, run, sequence, chain_id, contract, account))


def challenge_message(
    *, chain_id: int, contract: bytes, run: bytes, commitment: bytes, request: bytes, nonce_commitment: bytes
) -> bytes:
    """What a verifier signs into the challenge event."""
    return pack((chain_id, contract, run, commitment, request, nonce_commitment))


def opening_message(*, run: bytes, challenge_id: int, payload: bytes) -> bytes:
    """What the prover signs about an opening: its payload is the answer to this challenge of this run."""
    return pack((run, challenge_id, payload))


def sign_refusal(key: Ed25519PrivateKey, *, run: bytes, challenge_id: int, reason: str, detail: str) -> Refusal:
    """The prover's signed 'no'."""
    signature = sign(key, "sign/refusal", pack((run, challenge_id, reason, detail)))
    return Refusal(run=run, id=challenge_id, reason=reason, detail=detail, signature=signature)


def verify_refusal(public: bytes, refusal: Refusal) -> None:
    """Raises SignatureInvalid unless the prover with this key signed the refusal."""
    message = pack((refusal.run, refusal.id, refusal.reason, refusal.detail))
    verify(public, "sign/refusal", message, refusal.signature)


def sign_verdict(key: Ed25519PrivateKey, verdict: Verdict) -> Receipt:
    """The receipt: a verdict with its verifier's signature over the whole of it."""
    return Receipt(verdict=verdict, signature=sign(key, "sign/verdict", digest(verdict)))


def verify_receipt(receipt: Receipt) -> None:
    """Raises SignatureInvalid unless the verifier that the verdict names signed it."""
    verify(receipt.verdict.verifier, "sign/verdict", digest(receipt.verdict), receipt.signature)
