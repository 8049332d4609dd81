"""RFC 9162 proofs from transparency-dev/merkle, one attack in each: polcommit.merkle must agree on all of them.

The files lie beside the repository, not in it; without them these tests skip.
"""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from polcommit import merkle
from polcommit.errors import ProofError

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors" / "rfc9162"
COUNT = 196


def vectors(kind: str) -> list[Any]:
    files = sorted((VECTORS / kind).rglob("*.json"))
    if not files:
        reason = "no vectors: ../shared/vectors/rfc9162 is missing"
        return [pytest.param(None, id="missing", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(json.loads(f.read_text()), id=str(f.relative_to(VECTORS).with_suffix(""))) for f in files]


def hashes(values: list[str] | None) -> list[bytes]:
    return [b64decode(value) for value in values or []]


@pytest.mark.parametrize("vector", vectors("inclusion"))
def test_inclusion(vector: dict[str, Any]) -> None:
    def verify() -> None:
        merkle.verify_inclusion(
            b64decode(vector["leafHash"]),
            vector["leafIdx"],
            vector["treeSize"],
            hashes(vector["proof"]),
            b64decode(vector["root"]),
        )

    if vector["wantErr"]:
        with pytest.raises(ProofError):
            verify()
    else:
        verify()


@pytest.mark.parametrize("vector", vectors("consistency"))
def test_consistency(vector: dict[str, Any]) -> None:
    def verify() -> None:
        merkle.verify_consistency(
            vector["size1"],
            vector["size2"],
            hashes(vector["proof"]),
            b64decode(vector["root1"]),
            b64decode(vector["root2"]),
        )

    if vector["wantErr"]:
        with pytest.raises(ProofError):
            verify()
    else:
        verify()


@pytest.mark.skipif(not VECTORS.is_dir(), reason="no vectors: ../shared/vectors/rfc9162 is missing")
def test_all_vectors_were_found() -> None:
    assert len(list(VECTORS.rglob("*.json"))) == COUNT
