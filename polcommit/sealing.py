"""HPKE envelopes (RFC 9180) and sealed streams, and keys derived from the run secret.

HPKE runs in base mode, X25519 with HKDF-SHA256 and ChaCha20-Poly1305: it hides, and says nothing about who
sealed. Senders are authenticated by the signatures inside and outside; `info` binds purpose, run, chain,
contract, sender and recipient, so that a ciphertext means nothing anywhere else. Payloads of any size go
under a fresh key in authenticated chunks.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from polcommit.encoding import pack, tag, u64
from polcommit.errors import UsageError, VerificationError

SUITE_NAME = "x25519-hkdf-sha256-chacha20poly1305"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
MAX_SEALED = 1 << 20        # envelopes and keys are small; a larger ciphertext is refused before it is opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a ciphertext is for; becomes HPKE's `info` (spec §4.6)."""

    purpose: str            # 'anchor' or 'opening'
    run: bytes
    number: int             # sequence number of the anchor, or id of the challenge
    chain_id: int
    contract: bytes
    sender: bytes           # Ed25519 key of the prover
    recipient: bytes        # key id

    def info(self) -> bytes:
        """Tag and canonical encoding of all fields, the suite first."""
        fields = (self.purpose, self.run, self.number, self.chain_id, self.contract, self.sender, self.recipient)
        return tag("hpke") + pack((SUITE_NAME, *fields))


class SealBroken(VerificationError):
    """A ciphertext does not open with this key for this purpose, or was changed."""


def seal(plaintext: bytes, recipient: bytes, purpose: Purpose) -> bytes:
    """HPKE ciphertext (32 bytes encapsulated key, then AEAD) for the holder of X25519 key `recipient`."""
    return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(recipient), info=purpose.info())


def require_sealable(recipient: bytes) -> None:
    """Raises UsageError if nothing can be sealed to this key: found out at registration, not after training."""
    try:
        _SUITE.encrypt(b"", X25519PublicKey.from_public_bytes(recipient), info=b"")
    except ValueError as error:
        hint = "ask the verifier for its card again"
        raise UsageError(f"{recipient.hex()} is no key that can be sealed to", hint=hint) from error


def unseal(ciphertext: bytes, key: X25519PrivateKey, purpose: Purpose) -> bytes:
    """The plaintext that was sealed to this key for this purpose.

    Raises:
        SealBroken: another key, another purpose, or changed bytes.
    """
    if len(ciphertext) > MAX_SEALED:
        raise SealBroken(f"a sealed message of {len(ciphertext)} bytes, more than {MAX_SEALED}")
    try:
        return _SUITE.decrypt(ciphertext, key, info=purpose.info())
    except (InvalidTag, ValueError) as error:
        raise SealBroken("the sealed message does not open with this key for this purpose") from error


def new_stream_key() -> bytes:
    """32 fresh bytes for one stream."""
    return Cobblestone256Encryptor.generate_key()


def seal_stream(chunks: Iterable[bytes], key: bytes, context: bytes) -> Iterator[bytes]:
    """Encrypt a stream of any length in authenticated chunks; `context` must be given again to open it."""
    encryptor = Cobblestone256Encryptor(key, tag("stream") + context)
    for chunk in chunks:
        yield encryptor.update(chunk)
    yield encryptor.finalize()


def unseal_stream(chunks: Iterable[bytes], key: bytes, context: bytes) -> Iterator[bytes]:
    """Decrypt what `seal_stream` made. What is yielded is authentic; only the end says that it is complete.

    Raises:
        SealBroken: changed, reordered or truncated bytes, or another key or context.
    """
    decryptor = Cobblestone256Decryptor(key, tag("stream") + context)
    try:
        for chunk in chunks:
            yield decryptor.update(chunk)
        yield decryptor.finalize()
    except (InvalidTag, ValueError) as error:
        raise SealBroken("the sealed payload was changed or cut short") from error


def new_secret() -> bytes:
    """32 fresh bytes: a run secret, a nonce."""
    return secrets.token_bytes(32)


def derive(secret: bytes, purpose: str, *counters: int) -> bytes:
    """32 bytes from the run secret: HKDF-Expand (RFC 5869 §2.3) with SHA-256, info = tag ‖ u64 counters."""
    info = tag(purpose) + b"".join(u64(counter) for counter in counters)
    return HKDFExpand(algorithm=SHA256(), length=32, info=info).derive(secret)
