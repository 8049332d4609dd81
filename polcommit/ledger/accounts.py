"""Ethereum accounts in standard keystores (Web3 Secret Storage, version 3).

What the passphrase protects is the account that pays and registers; it does not sign statements.
"""

from __future__ import annotations

import secrets
from typing import Any

from polcommit.errors import KeyUnavailable
from polcommit.ledger.eth import Account

# scrypt's n: eth_account's own default (about 1 s, 256 MB), and geth's 'light' (4 MB), for keys that are kept with an
# empty passphrase by choice, where time spent on deriving protects nothing.
FULL = 2**18
LIGHT = 2**12


def create_keystore(passphrase: str, *, light: bool = False) -> tuple[bytes, dict[str, Any]]:
    """A fresh account: its 20-byte address, and its keystore as a JSON object."""
    while True:
        key = secrets.token_bytes(32)
        try:
            address = address_of(key)
        except KeyUnavailable:      # not below the curve's order: 1 in 2^128
            continue
        keystore: dict[str, Any] = Account.encrypt(key, passphrase, kdf="scrypt", iterations=LIGHT if light else FULL)
        # Wallets write addresses in lower case without 0x.
        return address, {**keystore, "address": address.hex()}


def open_keystore(keystore: dict[str, Any], passphrase: str) -> bytes:
    """The 32-byte private key.

    Raises:
        KeyUnavailable: the passphrase is wrong, the keystore is damaged, or it belongs to another address.
    """
    _require_bounded(keystore)
    try:
        key = bytes(Account.decrypt(keystore, passphrase))
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, AssertionError) as error:
        if "MAC mismatch" in str(error):
            raise KeyUnavailable(
                "wrong passphrase for the Ethereum account, or its keystore is damaged",
                hint="try again, or restore the file from a backup",
            ) from None
        raise _damaged(type(error).__name__) from error
    address = address_of(key)
    named = keystore.get("address")
    if named is not None and str(named).lower().removeprefix("0x") != address.hex():
        raise _damaged(f"it names another address than its key's, 0x{address.hex()}")
    return key


def address_of(key: bytes) -> bytes:
    """The 20-byte address of a 32-byte private key. Raises KeyUnavailable where it is not one."""
    try:
        return bytes.fromhex(Account.from_key(key).address[2:])
    except Exception as error:  # eth_keys and its backends raise several kinds for a bad key
        raise KeyUnavailable("that is not a private key of an Ethereum account") from error


def _require_bounded(keystore: dict[str, Any]) -> None:
    """A damaged work factor must not take the machine's memory or an hour of its time."""
    try:
        parameters = keystore["crypto"]["kdfparams"]
        cost = int(parameters.get("n", 1)) * int(parameters.get("r", 1)) * int(parameters.get("p", 1))
        rounds = int(parameters.get("c", 1))
        length = int(parameters["dklen"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(f"no {error}" if isinstance(error, KeyError) else "odd structure") from error
    if not 0 < cost <= 2**24 or not 0 < rounds <= 2**26 or length != 32:
        raise _damaged("its work factor is out of bounds")


def _damaged(why: str) -> KeyUnavailable:
    return KeyUnavailable(f"the Ethereum keystore is damaged ({why})", hint="restore the file from a backup")
