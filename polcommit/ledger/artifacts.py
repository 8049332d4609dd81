"""The compiled registry that polcommit ships.

`contracts/compile.mjs` writes it, and CI compares it with the sources.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from polcommit.errors import StorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled contract."""

    abi: tuple[dict[str, Any], ...]     # as solc writes it
    bytecode: bytes                     # creation code
    deployed: bytes                     # code at the contract's address; no immutables, so the same everywhere
    code_hash: bytes                    # 32 bytes: keccak-256 of `deployed`
    compiler: str                       # solc's version


@cache
def registry_artifact() -> Artifact:
    """The registry's ABI, code and code hash.

    Raises:
        StorageError: the installed file is missing or damaged.
    """
    source = resources.files("polcommit.ledger") / "artifacts" / "PolRegistry.json"
    try:
        found = json.loads(source.read_text("utf-8"))
        return Artifact(
            abi=tuple(found["abi"]),
            bytecode=bytes.fromhex(found["bytecode"].removeprefix("0x")),
            deployed=bytes.fromhex(found["deployedBytecode"].removeprefix("0x")),
            code_hash=bytes.fromhex(found["codeHash"].removeprefix("0x")),
            compiler=found["compiler"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"the packaged contract artifact {source} is missing or damaged ({type(error).__name__})",
            hint="install polcommit again",
        ) from error
