"""Key files of provers and verifiers, under a home folder that is nobody else's business.

    <home>/keys/<name>/signing.pem      Ed25519, PKCS #8
                       hpke.pem         X25519, PKCS #8; verifiers only
                       account.json     Ethereum account, a standard keystore
                       public.json      the card that one gives to others

Private files have mode 0600, their folder 0700. The passphrase encrypts all three; without one the PEM files
are in clear, and the keystore has the empty passphrase. A key is made whole or not at all, and never
overwritten. How a keystore is made and opened is passed in: the library for it belongs to `polcommit.ledger`.

What this does *not* guarantee: a key in memory is not wiped, and the files are as safe as the passphrase.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from polcommit.errors import EncodingError, KeyUnavailable, UsageError

Role: TypeAlias = Literal["prover", "verifier"]
ROLES: tuple[Role, ...] = get_args(Role)
KeystoreCreate: TypeAlias = Callable[[str], tuple[bytes, dict[str, Any]]]
"""Passphrase to (20-byte address, keystore as JSON values), of a new account."""
KeystoreOpen: TypeAlias = Callable[[dict[str, Any], str], bytes]
"""Keystore and passphrase to the 32-byte private key; a wrong passphrase is a KeyUnavailable or a ValueError."""

MAX_FILE = 64 << 10     # bytes of a key file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX = re.compile(r"[0-9a-f]*")
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def default_home() -> Path:
    """`$POLCOMMIT_HOME`, or ~/.polcommit."""
    return Path(os.environ.get("POLCOMMIT_HOME") or Path.home() / ".polcommit")


def key_id(public: bytes) -> bytes:
    """SHA-256 of a recipient's 32 raw public key bytes: what statements and HPKE's info name it by."""
    if len(public) != 32:
        raise EncodingError(f"a public key has 32 bytes, not {len(public)}")
    return hashlib.sha256(public).digest()


# --- the public part ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The public half of a prover's or verifier's keys, as it is given to others. It proves nothing by itself."""

    name: str
    role: Role
    signing: bytes              # 32 bytes: Ed25519
    recipient: bytes | None     # 32 bytes: X25519; verifiers only
    account: bytes              # 20 bytes

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise EncodingError(f"name {self.name!r}: 1 to 64 letters, digits, '.', '_' and '-'")
        if self.role not in ROLES:
            raise EncodingError(f"role {self.role!r}: must be 'prover' or 'verifier'")
        if (self.recipient is not None) != (self.role == "verifier"):
            raise EncodingError("recipient: a verifier has one, a prover has none")
        for name, size in (("signing", 32), ("recipient", 32), ("account", 20)):
            value = getattr(self, name)
            if value is not None and len(value) != size:
                raise EncodingError(f"{name} has {len(value)} bytes instead of {size}")

    def encode(self) -> bytes:
        """As JSON for people to read; hex in lower case, the account with 0x."""
        fields = {
            "name": self.name,
            "role": self.role,
            "signing": self.signing.hex(),
            "recipient": None if self.recipient is None else self.recipient.hex(),
            "account": "0x" + self.account.hex(),
        }
        return (json.dumps(fields, indent=2) + "\n").encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Card:
        """Read a card that somebody gave us.

        Raises:
            EncodingError: not JSON, an unknown, repeated or missing field, bad hex, or a wrong length.
        """
        found = _json_object(data)
        names = {"name", "role", "signing", "recipient", "account"}
        for name in sorted(found.keys() ^ names):
            raise EncodingError(f"{'unknown' if name in found else 'missing'} field {name[:40]!r}")
        recipient = found["recipient"]
        return cls(
            name=found["name"],
            role=found["role"],
            signing=_unhex(found["signing"], "signing"),
            recipient=None if recipient is None else _unhex(recipient, "recipient"),
            account=_unhex(found["account"], "account", prefix="0x"),
        )


def _json_object(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise EncodingError("a field stands twice in one object")
        return dict(pairs)

    if len(data) > MAX_FILE:
        raise EncodingError(f"{len(data)} bytes, more than the {MAX_FILE} allowed")
    try:
        found = json.loads(data, object_pairs_hook=unique)
    except EncodingError:
        raise
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise EncodingError("not a JSON object")
    return found


def _unhex(text: object, name: str, prefix: str = "") -> bytes:
    if not isinstance(text, str) or not text.startswith(prefix):
        raise EncodingError(f"{name}: not hex digits" + (f" behind '{prefix}'" if prefix else ""))
    digits = text.removeprefix(prefix)
    if len(digits) % 2 or not _HEX.fullmatch(digits):
        raise EncodingError(f"{name}: not an even number of lower-case hex digits")
    return bytes.fromhex(digits)


# --- making ---------------------------------------------------------------------------------------------------


def create(home: Path, name: str, role: Role, passphrase: str | None, keystore_create: KeystoreCreate) -> Card:
    """Make a new set of keys under a name; `passphrase` None leaves them unencrypted.

    Raises:
        UsageError: the name is taken or not one, the role is unknown, or the passphrase is empty.
        KeyUnavailable: a file could not be written; nothing stays behind.
    """
    folder = _folder(home, name)
    if role not in ROLES:
        raise UsageError(f"unknown role '{role}'", hint="'prover' or 'verifier'")
    if passphrase == "":
        raise UsageError("the passphrase is empty", hint="give one, or say that the key shall not be encrypted")
    with _reported(folder):
        if os.path.lexists(folder):
            raise UsageError(f"key '{name}' exists already in {folder}", hint="choose another name")
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder.parent / f".new-{secrets.token_hex(8)}"
        temporary.mkdir(mode=0o700)
        try:
            card = _write_keys(temporary, name, role, passphrase, keystore_create)
            _sync(temporary)
            temporary.rename(folder)    # fails if somebody else made it in between: it is not empty
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(folder.parent)
    return card


def _write_keys(
    folder: Path, name: str, role: Role, passphrase: str | None, keystore_create: KeystoreCreate
) -> Card:
    signing = Ed25519PrivateKey.generate()
    recipient = X25519PrivateKey.generate() if role == "verifier" else None
    address, keystore = keystore_create(passphrase or "")
    card = Card(
        name=name,
        role=role,
        signing=signing.public_key().public_bytes_raw(),
        recipient=None if recipient is None else recipient.public_key().public_bytes_raw(),
        account=address,
    )
    _write_new(folder / "signing.pem", _pem(signing, passphrase), 0o600)
    if recipient is not None:
        _write_new(folder / "hpke.pem", _pem(recipient, passphrase), 0o600)
    _write_new(folder / "account.json", (json.dumps(keystore, indent=2) + "\n").encode(), 0o600)
    _write_new(folder / "public.json", card.encode(), 0o644)
    return card


def _pem(key: Ed25519PrivateKey | X25519PrivateKey, passphrase: str | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(_password(passphrase))
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- loading --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The keys under a name; private ones are read and unlocked when they are asked for."""

    card: Card
    folder: Path
    encrypted: bool                 # whether a passphrase is needed
    warnings: tuple[str, ...]       # for the user: private files that others may read

    def signing(self, passphrase: str | None) -> Ed25519PrivateKey:
        """The signing key. Raises KeyUnavailable: missing, damaged, or the passphrase is missing or wrong."""
        key = self._unlock("signing.pem", passphrase)
        if not isinstance(key, Ed25519PrivateKey) or key.public_key().public_bytes_raw() != self.card.signing:
            raise self._foreign("signing.pem")
        return key

    def recipient(self, passphrase: str | None) -> X25519PrivateKey:
        """The key that envelopes and openings are sealed to. Raises KeyUnavailable, also for a prover."""
        if self.card.recipient is None:
            raise KeyUnavailable(
                f"key '{self.card.name}' is a prover's and opens no envelopes", hint="use a verifier's key"
            )
        key = self._unlock("hpke.pem", passphrase)
        if not isinstance(key, X25519PrivateKey) or key.public_key().public_bytes_raw() != self.card.recipient:
            raise self._foreign("hpke.pem")
        return key

    def account(self, passphrase: str | None, keystore_open: KeystoreOpen) -> bytes:
        """The 32-byte private key of the Ethereum account. Raises KeyUnavailable as `signing` does."""
        path = self.folder / "account.json"
        try:
            keystore = _json_object(_read(path))
        except EncodingError as error:
            raise _damaged(path, str(error)) from error
        try:
            key = keystore_open(keystore, self._needed(passphrase) or "")
        except KeyUnavailable as error:
            raise KeyUnavailable(f"{path}: {error.message}", hint=error.hint) from error
        except ValueError as error:
            raise _wrong_passphrase(path) from error
        except (KeyError, TypeError, AttributeError, NotImplementedError) as error:
            raise _damaged(path, "not a keystore") from error
        if len(key) != 32:
            raise _damaged(path, f"holds a key of {len(key)} bytes")
        return key

    def _unlock(self, name: str, passphrase: str | None) -> object:
        path = self.folder / name
        data = _read(path)
        encrypted = data.lstrip().startswith(_ENCRYPTED)
        password = _password(self._needed(passphrase) or "") if encrypted else None
        try:
            return serialization.load_pem_private_key(data, password)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:   # the last for some bad lengths
            if encrypted and "password" in str(error).lower():
                raise _wrong_passphrase(path) from error
            raise _damaged(path, "not a private key in PEM form") from error

    def _needed(self, passphrase: str | None) -> str | None:
        if self.encrypted and not passphrase:
            raise KeyUnavailable(
                f"key '{self.card.name}' is encrypted, and no passphrase was given",
                hint="give it when asked, or in the environment",
            )
        return passphrase if self.encrypted else None

    def _foreign(self, name: str) -> KeyUnavailable:
        return _damaged(self.folder / name, "not the key that public.json names")


def load(home: Path, name: str) -> KeySet:
    """The keys under a name, still locked.

    Raises:
        KeyUnavailable: there are none, or their public part is damaged.
    """
    folder = _folder(home, name)
    with _reported(folder):
        if not folder.is_dir():
            raise KeyUnavailable(f"no key '{name}' in {folder.parent}", hint=_hint(name))
        private = [path for path in (folder / "signing.pem", folder / "hpke.pem", folder / "account.json")
                   if path.exists()]  # fmt: skip
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *private]}
    path = folder / "public.json"
    try:
        card = Card.parse(_read(path))
    except EncodingError as error:
        raise _damaged(path, str(error)) from error
    if card.name != name:
        raise _damaged(path, f"is the card of '{card.name}'")
    return KeySet(
        card=card,
        folder=folder,
        encrypted=_read(folder / "signing.pem").lstrip().startswith(_ENCRYPTED),
        warnings=tuple(
            f"{path} can be read by others (mode {mode:04o}); run 'chmod {'700' if path == folder else '600'} {path}'"
            for path, mode in modes.items()
            if mode & 0o077
        ),
    )


def list_names(home: Path) -> tuple[str, ...]:
    """Names of all keys under a home folder, sorted."""
    folder = home / "keys"
    with _reported(folder):
        if not folder.is_dir():
            return ()
        found = (path.name for path in folder.iterdir() if (path / "public.json").is_file())
        return tuple(sorted(name for name in found if _NAME.fullmatch(name)))


def _folder(home: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a key", hint="1 to 64 letters, digits, '.', '_' and '-'")
    return home / "keys" / name


def _read(path: Path) -> bytes:
    with _reported(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)     # a pipe must not hang
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise _damaged(path, f"more than {MAX_FILE} bytes")
    return data


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a KeyUnavailable that names the file."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        hints = {
            errno.ENOENT: _hint(path.parent.name),
            errno.EACCES: "check who owns it and its permissions",
            errno.ENOSPC: "free space and run the same command again",
            errno.EDQUOT: "free space and run the same command again",
        }
        raise KeyUnavailable(
            f"{where}: {(error.strerror or str(error)).lower()}", hint=hints.get(error.errno or 0)
        ) from error


def _hint(name: str) -> str:
    return f"make one with 'polcommit keys new {name} --role ...'"


def _password(passphrase: str) -> bytes:
    return passphrase.encode("utf-8", "surrogateescape")


def _wrong_passphrase(path: Path) -> KeyUnavailable:
    return KeyUnavailable(f"wrong passphrase for {path}", hint="or the file is damaged: restore it from a copy")


def _damaged(path: Path, what: str) -> KeyUnavailable:
    return KeyUnavailable(f"{path} is damaged: {what}", hint="restore it from a copy")
