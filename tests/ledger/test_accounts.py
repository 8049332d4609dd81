"""Keystores: what is written opens with its passphrase, and nothing else does, without a traceback."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from polcommit.errors import KeyUnavailable
from polcommit.ledger.accounts import address_of, create_keystore, open_keystore


@pytest.fixture(scope="module")
def account() -> tuple[bytes, dict[str, Any]]:
    return create_keystore("correct horse", light=True)


def test_what_is_written_opens(account: tuple[bytes, dict[str, Any]]):
    address, keystore = account
    assert len(address) == 20
    key = open_keystore(json.loads(json.dumps(keystore)), "correct horse")
    assert len(key) == 32
    assert address_of(key) == address
    assert keystore["address"] == address.hex()
    assert keystore["version"] == 3
    assert key.hex() not in json.dumps(keystore)


def test_accounts_differ(account: tuple[bytes, dict[str, Any]]):
    assert create_keystore("", light=True)[0] != account[0]


def test_a_full_keystore_costs_what_wallets_take():
    address, keystore = create_keystore("passphrase")
    assert keystore["crypto"]["kdfparams"]["n"] == 2**18
    assert address_of(open_keystore(keystore, "passphrase")) == address


@pytest.mark.parametrize("passphrase", ["", "Correct horse", "correct horse "])
def test_a_wrong_passphrase(account: tuple[bytes, dict[str, Any]], passphrase: str):
    with pytest.raises(KeyUnavailable, match="wrong passphrase"):
        open_keystore(account[1], passphrase)


def test_an_address_of_another_account(account: tuple[bytes, dict[str, Any]]):
    with pytest.raises(KeyUnavailable, match="names another address"):
        open_keystore({**account[1], "address": "00" * 20}, "correct horse")


def paths(value: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [at]
    return [at, *(path for name in value for path in paths(value[name], (*at, name)))]


@pytest.mark.parametrize("damage", [None, 0, -1, "", "zz", [], {}, 2**40, "delete"])
def test_every_field_damaged(account: tuple[bytes, dict[str, Any]], damage: Any):
    """Each field in turn is replaced, or removed: a key error, or no harm done (the id is not used)."""
    for path in paths(account[1])[1:]:
        keystore = copy.deepcopy(account[1])
        holder = keystore
        for name in path[:-1]:
            holder = holder[name]
        if damage == "delete":
            del holder[path[-1]]
        else:
            holder[path[-1]] = damage
        try:
            assert address_of(open_keystore(keystore, "correct horse")) == account[0]
        except KeyUnavailable:
            pass


@pytest.mark.parametrize("keystore", [{}, [], None, "text", {"crypto": {}}, {"version": 3}])
def test_not_a_keystore(keystore: Any):
    with pytest.raises(KeyUnavailable):
        open_keystore(keystore, "")


@pytest.mark.parametrize("key", [b"", b"\1" * 31, b"\1" * 33, bytes(32), b"\xff" * 32])
def test_not_a_private_key(key: bytes):
    with pytest.raises(KeyUnavailable):
        address_of(key)
