"""Key files: private ones stay private, a wrong passphrase or a damaged file is one line, nothing is overwritten."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from polcommit import keys
from polcommit.errors import EncodingError, KeyUnavailable, UsageError
from polcommit.keys import Card

PASSPHRASE = "correct horse"
ACCOUNT_KEY = b"\7" * 32


def keystore_create(passphrase: str) -> tuple[bytes, dict[str, Any]]:
    """Stands in for eth_account, which takes a second: the same types, and ValueError for a wrong passphrase."""
    digest = hashlib.sha256(passphrase.encode()).hexdigest()
    return b"\3" * 20, {"version": 3, "crypto": {"mac": digest, "key": ACCOUNT_KEY.hex()}}


def keystore_open(keystore: dict[str, Any], passphrase: str) -> bytes:
    if keystore["crypto"]["mac"] != hashlib.sha256(passphrase.encode()).hexdigest():
        raise ValueError("MAC mismatch")
    return bytes.fromhex(keystore["crypto"]["key"])


def make(home: Path, name: str = "victor", role: keys.Role = "verifier", passphrase: str | None = PASSPHRASE) -> Card:
    return keys.create(home, name, role, passphrase, keystore_create)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


# --- making -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
@pytest.mark.parametrize("role", keys.ROLES)
def test_keys_come_back(tmp_path, role, passphrase):
    card = make(tmp_path, "someone", role, passphrase)
    found = keys.load(tmp_path, "someone")
    assert found.card == card == Card.parse((found.folder / "public.json").read_bytes())
    assert found.encrypted is (passphrase is not None)
    assert found.warnings == ()
    assert isinstance(found.signing(passphrase), Ed25519PrivateKey)
    assert found.signing(passphrase).public_key().public_bytes_raw() == card.signing
    assert found.account(passphrase, keystore_open) == ACCOUNT_KEY
    if role == "verifier":
        assert isinstance(found.recipient(passphrase), X25519PrivateKey)
        assert found.recipient(passphrase).public_key().public_bytes_raw() == card.recipient
    else:
        with pytest.raises(KeyUnavailable, match="'someone' is a prover's and opens no envelopes"):
            found.recipient(passphrase)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_private_files_are_the_owners_alone(tmp_path, mask):
    before = os.umask(mask)
    try:
        make(tmp_path)
    finally:
        os.umask(before)
    folder = tmp_path / "keys" / "victor"
    assert folder.stat().st_mode & 0o777 == 0o700
    public = 0o644 & ~mask
    assert modes(folder) == {"signing.pem": 0o600, "hpke.pem": 0o600, "account.json": 0o600, "public.json": public}


def test_the_passphrase_encrypts_what_is_on_disk(tmp_path):
    make(tmp_path)
    folder = tmp_path / "keys" / "victor"
    for name in ("signing.pem", "hpke.pem"):
        assert (folder / name).read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    raw = keys.load(tmp_path, "victor").signing(PASSPHRASE).private_bytes_raw()
    assert not any(raw in path.read_bytes() or raw.hex().encode() in path.read_bytes() for path in folder.iterdir())


def test_nothing_is_overwritten(tmp_path):
    card = make(tmp_path)
    with pytest.raises(UsageError, match="key 'victor' exists already"):
        make(tmp_path, role="prover")
    assert keys.load(tmp_path, "victor").card == card


def test_what_fails_half_way_leaves_nothing(tmp_path):
    def broken(_: str) -> tuple[bytes, dict[str, Any]]:
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyUnavailable, match="no space left on device") as caught:
        keys.create(tmp_path, "victor", "verifier", PASSPHRASE, broken)
    assert "free space" in caught.value.hint
    assert list((tmp_path / "keys").iterdir()) == []
    assert keys.list_names(tmp_path) == ()
    make(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../evil", "a/b", "-rf", ".hidden", "ü", "a" * 65, "a\n", "a\0"])
def test_names_that_are_no_names(tmp_path, name):
    for attempt in (lambda: make(tmp_path, name), lambda: keys.load(tmp_path, name)):
        with pytest.raises(UsageError, match="no name for a key"):
            attempt()


def test_other_bad_arguments(tmp_path):
    with pytest.raises(UsageError, match="unknown role 'watcher'"):
        keys.create(tmp_path, "x", "watcher", None, keystore_create)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the passphrase is empty"):
        make(tmp_path, passphrase="")


def test_list_names(tmp_path):
    assert keys.list_names(tmp_path) == ()
    make(tmp_path, "victor")
    make(tmp_path, "alice", "prover")
    (tmp_path / "keys" / "not-a-key").mkdir()
    killed = tmp_path / "keys" / ".new-0123"
    killed.mkdir()
    (killed / "public.json").write_bytes(b"{}")
    assert keys.list_names(tmp_path) == ("alice", "victor")


def test_home_is_from_the_environment(monkeypatch):
    monkeypatch.setenv("POLCOMMIT_HOME", "/somewhere")
    assert keys.default_home() == Path("/somewhere")
    monkeypatch.setenv("POLCOMMIT_HOME", "")
    assert keys.default_home() == Path.home() / ".polcommit"


def test_key_id():
    assert keys.key_id(b"\1" * 32) == hashlib.sha256(b"\1" * 32).digest()
    with pytest.raises(EncodingError, match="not 31"):
        keys.key_id(b"\1" * 31)


# --- what can be wrong ------------------------------------------------------------------------------------------


def test_a_wrong_passphrase(tmp_path):
    make(tmp_path)
    found = keys.load(tmp_path, "victor")
    for attempt in (found.signing, found.recipient, lambda wrong: found.account(wrong, keystore_open)):
        with pytest.raises(KeyUnavailable, match="wrong passphrase for"):
            attempt("battery staple")


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_passphrase_is_needed(tmp_path, nothing):
    make(tmp_path)
    found = keys.load(tmp_path, "victor")
    for attempt in (found.signing, found.recipient, lambda none: found.account(none, keystore_open)):
        with pytest.raises(KeyUnavailable, match="'victor' is encrypted, and no passphrase was given") as caught:
            attempt(nothing)
        assert caught.value.hint


def test_a_passphrase_that_is_not_needed_is_ignored(tmp_path):
    make(tmp_path, passphrase=None)
    found = keys.load(tmp_path, "victor")
    found.signing(PASSPHRASE)
    found.recipient(PASSPHRASE)
    assert found.account(PASSPHRASE, keystore_open) == ACCOUNT_KEY


def test_missing(tmp_path):
    with pytest.raises(KeyUnavailable, match="no key 'nobody'") as caught:
        keys.load(tmp_path, "nobody")
    assert caught.value.hint == "make one with 'polcommit keys new nobody --role ...'"
    make(tmp_path)
    (tmp_path / "keys" / "victor" / "hpke.pem").unlink()
    with pytest.raises(KeyUnavailable, match=r"hpke\.pem: no such file") as caught:
        keys.load(tmp_path, "victor").recipient(PASSPHRASE)
    assert "keys new victor" in caught.value.hint


@pytest.mark.parametrize("name", ["signing.pem", "hpke.pem", "account.json", "public.json"])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"[1]", b"{}", b"x" * 100_000])
@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
def test_foreign_files(tmp_path, name, content, passphrase):
    make(tmp_path, passphrase=passphrase)
    (tmp_path / "keys" / "victor" / name).write_bytes(content)
    with pytest.raises(KeyUnavailable, match=name) as caught:
        use(tmp_path, passphrase)
    assert "\n" not in caught.value.message


def use(home: Path, passphrase: str | None) -> None:
    found = keys.load(home, "victor")
    found.signing(passphrase)
    found.recipient(passphrase)
    found.account(passphrase, keystore_open)


@pytest.mark.parametrize("name", ["signing.pem", "hpke.pem"])
def test_no_flip_of_a_private_key_gives_another_key(tmp_path, name):
    """Either the file is refused, or the key is the one on the card (a flip in the PEM's white space)."""
    make(tmp_path, passphrase=None)
    path = tmp_path / "keys" / "victor" / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        for flip in (0x01, 0x04, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            try:
                use(tmp_path, None)
            except KeyUnavailable as error:
                assert name in error.message


def test_a_truncated_encrypted_key(tmp_path):
    make(tmp_path)
    path = tmp_path / "keys" / "victor" / "signing.pem"
    whole = path.read_bytes()
    for keep in range(0, len(whole) - 2, 9):
        path.write_bytes(whole[:keep])
        with pytest.raises(KeyUnavailable, match=r"signing\.pem"):
            keys.load(tmp_path, "victor").signing(PASSPHRASE)


def test_somebody_elses_key_in_the_folder(tmp_path):
    make(tmp_path)
    make(tmp_path, "mallory")
    for name in ("signing.pem", "hpke.pem"):
        (tmp_path / "keys" / "mallory" / name).replace(tmp_path / "keys" / "victor" / name)
    found = keys.load(tmp_path, "victor")
    for attempt in (found.signing, found.recipient):
        with pytest.raises(KeyUnavailable, match=r"not the key that public\.json names"):
            attempt(PASSPHRASE)


def test_somebody_elses_card_in_the_folder(tmp_path):
    make(tmp_path)
    make(tmp_path, "mallory")
    (tmp_path / "keys" / "mallory" / "public.json").replace(tmp_path / "keys" / "victor" / "public.json")
    with pytest.raises(KeyUnavailable, match="is the card of 'mallory'"):
        keys.load(tmp_path, "victor")


def test_a_keystore_that_opens_to_something_else(tmp_path):
    make(tmp_path)
    found = keys.load(tmp_path, "victor")
    with pytest.raises(KeyUnavailable, match="holds a key of 31 bytes"):
        found.account(PASSPHRASE, lambda keystore, passphrase: b"\7" * 31)


def test_an_error_of_the_keystores_library_gets_the_files_name(tmp_path):
    def refuses(keystore: dict[str, Any], passphrase: str) -> bytes:
        raise KeyUnavailable("wrong passphrase for the account", hint="try again")

    make(tmp_path)
    with pytest.raises(KeyUnavailable, match=r"account\.json: wrong passphrase for the account") as caught:
        keys.load(tmp_path, "victor").account(PASSPHRASE, refuses)
    assert caught.value.hint == "try again"


def test_files_that_others_may_read_are_warned_about(tmp_path):
    make(tmp_path)
    folder = tmp_path / "keys" / "victor"
    (folder / "signing.pem").chmod(0o640)
    folder.chmod(0o755)
    found = keys.load(tmp_path, "victor")
    assert len(found.warnings) == 2
    assert f"{folder} can be read by others (mode 0755); run 'chmod 700 {folder}'" in found.warnings
    assert any("signing.pem" in warning and "chmod 600" in warning for warning in found.warnings)
    found.signing(PASSPHRASE)


# --- cards ------------------------------------------------------------------------------------------------------

CARD = Card(name="victor", role="verifier", signing=b"\1" * 32, recipient=b"\2" * 32, account=b"\3" * 20)


@given(signing=st.binary(min_size=32, max_size=32), account=st.binary(min_size=20, max_size=20), data=st.data())
def test_cards_come_back(signing, account, data):
    role = data.draw(st.sampled_from(keys.ROLES))
    recipient = data.draw(st.binary(min_size=32, max_size=32)) if role == "verifier" else None
    name = data.draw(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"))
    card = Card(name=name, role=role, signing=signing, recipient=recipient, account=account)
    assert Card.parse(card.encode()) == card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown field 'extra'"),
        ({"signing": "01" * 31}, "signing has 31 bytes instead of 32"),
        ({"signing": "0x" + "01" * 31}, "signing: not an even number of lower-case hex digits"),
        ({"signing": "0g" * 32}, "signing: not an even number"),
        ({"signing": "AB" * 32}, "signing: not an even number of lower-case"),
        ({"signing": "0" * 63}, "signing: not an even number"),
        ({"signing": "01 " * 32}, "signing: not an even number"),
        ({"signing": 5}, "signing: not hex digits"),
        ({"account": "03" * 20}, "account: not hex digits behind '0x'"),
        ({"account": "0x" + "03" * 21}, "account has 21 bytes"),
        ({"recipient": None}, "recipient: a verifier has one"),
        ({"role": "prover"}, "recipient: a verifier has one, a prover has none"),
        ({"role": "judge"}, "role 'judge'"),
        ({"role": ["prover"]}, "role"),
        ({"name": "../evil"}, "name '../evil'"),
        ({"name": 7}, "name 7"),
    ],
)
def test_bad_cards_name_the_field(change, message):
    fields = {**json.loads(CARD.encode()), **change}
    with pytest.raises(EncodingError, match=message):
        Card.parse(json.dumps(fields).encode())


@pytest.mark.parametrize("field", json.loads(CARD.encode()))
def test_a_missing_or_repeated_field(field):
    fields = json.loads(CARD.encode())
    text = json.dumps(fields)
    with pytest.raises(EncodingError, match="stands twice"):
        Card.parse((text[:-1] + f', "{field}": {json.dumps(fields[field])}}}').encode())
    del fields[field]
    with pytest.raises(EncodingError, match=f"missing field '{field}'"):
        Card.parse(json.dumps(fields).encode())


@given(data=st.binary(max_size=80))
def test_no_input_breaks_the_parser(data):
    with pytest.raises(EncodingError):
        Card.parse(data)


@pytest.mark.parametrize("data", [b"[" * 60_000, b" " * 100_000, b'"card"', b"\xff\xfe"])
def test_what_is_no_card(data):
    with pytest.raises(EncodingError):
        Card.parse(data)


def test_a_card_that_exists_is_valid():
    for change in ({"signing": b""}, {"recipient": None}, {"account": b"\3" * 21}, {"name": ""}):
        with pytest.raises(EncodingError):
            dataclasses.replace(CARD, **change)
