"""pymerkle's second opinion equals ours, and a difference stops the anchor."""

from __future__ import annotations

import hashlib
import sqlite3

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit import merkle
from polcommit.errors import StorageError
from polcommit.storage import audit


@settings(deadline=None)     # it writes files
@given(leaves=st.lists(st.binary(max_size=64), max_size=70))
def test_pymerkle_computes_rfc_9162s_root(leaves):
    assert audit.independent_root(iter(leaves)) == reference.mth(leaves)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 127, 128, 129, 255, 256, 257, 1000])
def test_around_the_threshold_of_its_cache(size):
    leaves = [hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(size)]
    assert audit.independent_root(leaves) == merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    audit.confirm_root(leaves, merkle.root([merkle.leaf_hash(leaf) for leaf in leaves]))


def test_a_difference_is_an_error_that_says_not_to_anchor():
    leaves = [b"a", b"b", b"c"]
    root = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    for other in (leaves[:2], [*leaves, b""], [b"b", b"a", b"c"], [merkle.leaf_hash(leaf) for leaf in leaves]):
        with pytest.raises(StorageError, match="pymerkle computes another root") as caught:
            audit.confirm_root(other, root)
        assert "do not anchor" in caught.value.hint


def test_no_room_for_its_database(monkeypatch):
    def full(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(audit.SqliteTree, "append_entries", full)
    with pytest.raises(StorageError, match=r"could not recompute the root \(database or disk is full\)"):
        audit.independent_root([b"a"])
