"""polcommit.signing and polcommit.sealing: what is bound by each, and that nothing else opens or verifies."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fakes import named, scene
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit import sealing, signing
from polcommit.encoding import TAGS, tag, unpack
from polcommit.errors import EncodingError, SignatureInvalid
from polcommit.records import Receipt
from polcommit.sealing import Purpose, SealBroken

law = settings(deadline=None)
KEY = Ed25519PrivateKey.from_private_bytes(named("key"))
PUBLIC = signing.public_bytes(KEY)
PURPOSES = sorted(name for name in TAGS if name.startswith("sign/"))


# --- signatures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_signature_is_for_one_purpose(purpose: str) -> None:
    signature = signing.sign(KEY, purpose, b"message")
    for other in PURPOSES:
        if other == purpose:
            signing.verify(PUBLIC, other, b"message", signature)
        else:
            with pytest.raises(SignatureInvalid, match="is not by key"):
                signing.verify(PUBLIC, other, b"message", signature)


def test_a_signature_is_over_the_tag_and_the_message() -> None:
    """What RFC 8032 says, with any implementation: nothing is hashed beforehand."""
    assert signing.sign(KEY, "sign/verdict", b"message") == KEY.sign(b"polcommit/v1/sign/verdict\0message")


@law
@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_signature_is_over_one_message(message: bytes, other: bytes) -> None:
    signature = signing.sign(KEY, "sign/verdict", message)
    signing.verify(PUBLIC, "sign/verdict", message, signature)
    if message != other:
        with pytest.raises(SignatureInvalid):
            signing.verify(PUBLIC, "sign/verdict", other, signature)


def test_a_signature_is_by_one_key() -> None:
    signature = signing.sign(KEY, "sign/verdict", b"message")
    with pytest.raises(SignatureInvalid, match=f"{bytes(31).hex()}01"):
        signing.verify(bytes(31) + b"\x01", "sign/verdict", b"message", signature)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_what_is_no_key_signed_nothing(key: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        signing.verify(key, "sign/verdict", b"message", signing.sign(KEY, "sign/verdict", b"message"))


def test_every_bit_of_a_signature_counts() -> None:
    signature = signing.sign(KEY, "sign/verdict", b"message")
    for position in range(8 * 64):
        flipped = bytearray(signature)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(SignatureInvalid):
            signing.verify(PUBLIC, "sign/verdict", b"message", bytes(flipped))


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_has_64_bytes(size: int) -> None:
    signature = (signing.sign(KEY, "sign/verdict", b"message") + bytes(1))[:size]
    with pytest.raises(SignatureInvalid):
        signing.verify(PUBLIC, "sign/verdict", b"message", signature)


def test_a_signature_plus_the_groups_order_is_another_signature() -> None:
    """Malleability: S + L would verify in a lenient implementation, and a receipt would have two encodings."""
    signature = signing.sign(KEY, "sign/verdict", b"message")
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(SignatureInvalid):
        signing.verify(PUBLIC, "sign/verdict", b"message", signature[:32] + scalar.to_bytes(32, "little"))


def test_an_unknown_purpose_has_no_tag() -> None:
    with pytest.raises(KeyError, match="no domain tag"):
        signing.sign(KEY, "sign/anything", b"message")


ENVELOPE: dict[str, Any] = {
    "commitment": named("C"),
    "sealed_digest": named("ciphertexts"),
    "run": named("run"),
    "sequence": 3,
    "chain_id": 31337,
    "contract": named("contract")[:20],
    "account": named("account")[:20],
}
CHALLENGE: dict[str, Any] = {
    "chain_id": 31337,
    "contract": named("contract")[:20],
    "run": named("run"),
    "commitment": named("C"),
    "request": named("request"),
    "nonce_commitment": named("nonce"),
}
OPENING: dict[str, Any] = {"run": named("run"), "challenge_id": 3, "payload": named("payload")}


@pytest.mark.parametrize(
    ("message", "content"),
    [
        (signing.envelope_message, ENVELOPE),
        (signing.challenge_message, CHALLENGE),
        (signing.opening_message, OPENING),
    ],
)
def test_a_signed_message_holds_every_field(message: Any, content: dict[str, Any]) -> None:
    assert unpack(message(**content)) == tuple(content.values())


def test_a_statement_is_the_provers() -> None:
    staged = scene(heads=(5,))
    head = staged.prover.heads[0]
    signing.verify_statement(staged.prover.public, head)
    for lie in ({"final": True}, {"sequence": 1, "size": 7}, {"root": bytes(32)}, {"recipients": ()}):
        with pytest.raises(SignatureInvalid, match="statement"):
            signing.verify_statement(staged.prover.public, replace(head, statement=replace(head.statement, **lie)))
    with pytest.raises(SignatureInvalid):
        signing.verify_statement(PUBLIC, head)


def test_an_inner_signature_does_not_depend_on_the_blinding() -> None:
    """It is over the statement alone, and holds wherever the statement is shown."""
    staged = scene(heads=(5,))
    signing.verify_statement(staged.prover.public, replace(staged.prover.heads[0], blinding=bytes(32)))


def test_a_refusal_is_the_provers() -> None:
    refusal = signing.sign_refusal(KEY, run=named("run"), challenge_id=3, reason="budget", detail="50 of 40 steps")
    signing.verify_refusal(PUBLIC, refusal)
    for lie in ({"run": bytes(32)}, {"id": 4}, {"reason": "invalid"}, {"detail": ""}):
        with pytest.raises(SignatureInvalid, match="refusal"):
            signing.verify_refusal(PUBLIC, replace(refusal, **lie))


def test_a_receipt_is_by_the_verifier_that_it_names() -> None:
    staged = scene()
    challenge = staged.challenge()
    receipt = staged.verifier.signed(staged.verify(challenge, staged.prover.respond(challenge)))
    signing.verify_receipt(receipt)
    own = replace(receipt.verdict, verifier=PUBLIC)
    with pytest.raises(SignatureInvalid, match=PUBLIC.hex()):
        signing.verify_receipt(Receipt(verdict=own, signature=receipt.signature))
    with pytest.raises(SignatureInvalid, match="verdict"):
        signing.verify_receipt(replace(receipt, verdict=replace(receipt.verdict, devnet=True)))


# --- sealed messages ------------------------------------------------------------------------------------------

RECIPIENT = X25519PrivateKey.from_private_bytes(named("recipient"))
TO = RECIPIENT.public_key().public_bytes_raw()
PURPOSE = Purpose(
    purpose="anchor",
    run=named("run"),
    number=1,
    chain_id=31337,
    contract=named("contract")[:20],
    sender=PUBLIC,
    recipient=hashlib.sha256(TO).digest(),
)


@law
@given(st.binary(max_size=300))
def test_what_is_sealed_opens(plaintext: bytes) -> None:
    assert sealing.unseal(sealing.seal(plaintext, TO, PURPOSE), RECIPIENT, PURPOSE) == plaintext


def test_a_seal_hides_whether_two_are_equal() -> None:
    assert sealing.seal(b"same", TO, PURPOSE) != sealing.seal(b"same", TO, PURPOSE)


OTHER_PURPOSES: dict[str, Any] = {
    "purpose": "opening",
    "run": bytes(32),
    "number": 2,
    "chain_id": 1,
    "contract": bytes(20),
    "sender": bytes(32),
    "recipient": bytes(32),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Purpose)])
def test_a_ciphertext_means_nothing_anywhere_else(name: str) -> None:
    sealed = sealing.seal(b"statement", TO, PURPOSE)
    with pytest.raises(SealBroken):
        sealing.unseal(sealed, RECIPIENT, replace(PURPOSE, **{name: OTHER_PURPOSES[name]}))


def test_info_is_the_tag_and_everything_bound() -> None:
    info = PURPOSE.info()
    assert info.startswith(b"polcommit/v1/hpke\0")
    bound = tuple(getattr(PURPOSE, field.name) for field in fields(Purpose))
    assert unpack(info.removeprefix(tag("hpke"))) == ("x25519-hkdf-sha256-chacha20poly1305", *bound)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(SealBroken):
        sealing.unseal(sealing.seal(b"statement", TO, PURPOSE), X25519PrivateKey.generate(), PURPOSE)


def test_every_byte_of_a_ciphertext_counts() -> None:
    sealed = sealing.seal(b"statement", TO, PURPOSE)
    for position in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[position] ^= 1
        with pytest.raises(SealBroken):
            sealing.unseal(bytes(flipped), RECIPIENT, PURPOSE)


@pytest.mark.parametrize("ciphertext", [b"", b"\0", bytes(32), bytes(48), bytes(100), b"\xff" * 100])
def test_what_was_never_sealed(ciphertext: bytes) -> None:
    """All zeros are a point of low order, which X25519 refuses."""
    with pytest.raises(SealBroken):
        sealing.unseal(ciphertext, RECIPIENT, PURPOSE)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[1:]])
def test_a_ciphertext_cut_or_extended(change: Any) -> None:
    with pytest.raises(SealBroken):
        sealing.unseal(change(sealing.seal(b"statement", TO, PURPOSE)), RECIPIENT, PURPOSE)


def test_a_large_ciphertext_is_refused_before_it_is_opened() -> None:
    with pytest.raises(SealBroken, match="more than"):
        sealing.unseal(bytes(sealing.MAX_SEALED + 1), RECIPIENT, PURPOSE)


# --- sealed streams -------------------------------------------------------------------------------------------

STREAM_KEY = sealing.new_stream_key()
LONG = hashlib.shake_256(b"long").digest(200_000)


def sealed_stream(data: bytes, context: bytes = b"context") -> bytes:
    return b"".join(sealing.seal_stream([data], STREAM_KEY, context))


def opened(sealed: bytes, key: bytes = STREAM_KEY, context: bytes = b"context", *, chunk: int = 7000) -> bytes:
    return b"".join(sealing.unseal_stream(pieces(sealed, chunk), key, context))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@law
@given(st.lists(st.binary(max_size=200), max_size=10), st.integers(1, 500))
def test_a_stream_opens_however_it_is_cut(chunks: list[bytes], size: int) -> None:
    sealed = b"".join(sealing.seal_stream(chunks, STREAM_KEY, b"context"))
    assert opened(sealed, chunk=size) == b"".join(chunks)


def test_a_long_stream_opens() -> None:
    assert opened(sealed_stream(LONG)) == LONG


@pytest.mark.parametrize("at", [0, 40, 70, 20_000, 100_000, -20, -1])
def test_a_changed_stream(at: int) -> None:
    sealed = bytearray(sealed_stream(LONG))
    sealed[at] ^= 1
    with pytest.raises(SealBroken):
        opened(bytes(sealed))


@pytest.mark.parametrize("kept", [0, 1, 32, 33, 1000, 65_536, 100_000, -17, -1])
def test_a_stream_cut_short(kept: int) -> None:
    with pytest.raises(SealBroken):
        opened(sealed_stream(LONG)[:kept])


def test_a_stream_with_something_behind_it() -> None:
    for extra in (b"\0", bytes(100), sealed_stream(b"more")):
        with pytest.raises(SealBroken):
            opened(sealed_stream(LONG) + extra)


def test_what_a_stream_yields_is_authentic() -> None:
    """Up to the point where it was changed; only the end says that nothing is missing."""
    sealed = bytearray(sealed_stream(LONG))
    sealed[-1] ^= 1
    got = b""
    with pytest.raises(SealBroken):
        for chunk in sealing.unseal_stream(pieces(bytes(sealed), 7000), STREAM_KEY, b"context"):
            got += chunk
            assert LONG.startswith(got)


def test_a_stream_belongs_to_its_context_and_key() -> None:
    sealed = sealed_stream(LONG)
    for key, context in ((STREAM_KEY, b"another"), (sealing.new_stream_key(), b"context")):
        with pytest.raises(SealBroken):
            opened(sealed, key, context)


# --- derived keys ---------------------------------------------------------------------------------------------


def test_derivation_is_hkdf_expand() -> None:
    """RFC 5869 §2.3 for one block: HMAC(secret, info ‖ 0x01)."""
    secret = named("secret")
    info = b"polcommit/v1/salt/transcript\0" + (7).to_bytes(8, "big")
    assert sealing.derive(secret, "salt/transcript", 7) == hmac.digest(secret, info + b"\x01", "sha256")
    info = b"polcommit/v1/blinding/manifest\0"
    assert sealing.derive(secret, "blinding/manifest") == hmac.digest(secret, info + b"\x01", "sha256")


def test_derived_values_differ_by_secret_purpose_and_counter() -> None:
    values = {
        sealing.derive(named(secret), purpose, *counters)
        for secret in ("a", "b")
        for purpose in ("salt/transcript", "salt/dataset", "blinding/head")
        for counters in ((), (0,), (1,), (1 << 63,))
    }
    assert len(values) == 2 * 3 * 4


@pytest.mark.parametrize("counter", [-1, 1 << 64, True])
def test_counters_are_64_bits(counter: int) -> None:
    with pytest.raises(EncodingError, match="64-bit"):
        sealing.derive(named("secret"), "salt/dataset", counter)


def test_fresh_secrets_are_fresh() -> None:
    assert len({sealing.new_secret() for _ in range(10)}) == 10 and len(sealing.new_secret()) == 32
    assert sealing.new_stream_key() != sealing.new_stream_key()
