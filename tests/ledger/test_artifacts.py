"""The packaged contract is what the sources compile to, and is pinned by one constant hash."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from polcommit.ledger.artifacts import registry_artifact
from polcommit.ledger.eth import keccak

CONTRACTS = Path(__file__).parents[2] / "contracts"


@pytest.fixture
def compiler() -> list[str]:
    node = shutil.which("node")
    if node is None or not (CONTRACTS / "node_modules" / "solc").exists():
        pytest.skip("no solc: run scripts/node-setup")
    return [node, str(CONTRACTS / "compile.mjs")]


def test_the_artifact_is_what_the_sources_compile_to(compiler: list[str]):
    result = subprocess.run([*compiler, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_changed_artifact_is_named(compiler: list[str], tmp_path: Path):
    """In a copy of the tree, one byte of the packaged bytecode differs."""
    (tmp_path / "contracts").mkdir()
    for name in ("compile.mjs", "package.json"):
        shutil.copy(CONTRACTS / name, tmp_path / "contracts")
    shutil.copytree(CONTRACTS / "src", tmp_path / "contracts" / "src")
    (tmp_path / "contracts" / "node_modules").symlink_to(CONTRACTS / "node_modules")
    script = [compiler[0], str(tmp_path / "contracts" / "compile.mjs")]
    subprocess.run(script, check=True, capture_output=True)
    artifact = tmp_path / "polcommit" / "ledger" / "artifacts" / "PolRegistry.json"
    artifact.write_text(artifact.read_text().replace('"bytecode": "0x60', '"bytecode": "0x61'))
    result = subprocess.run([*script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "PolRegistry.json is not what contracts/src compiles to" in result.stderr


def test_the_hash_is_that_of_the_code():
    artifact = registry_artifact()
    assert keccak(artifact.deployed) == artifact.code_hash
    assert artifact.compiler.startswith("0.8.37+")


def test_the_input_names_its_settings():
    text = (resources.files("polcommit.ledger") / "artifacts" / "PolRegistry.input.json").read_text("utf-8")
    settings = json.loads(text)["settings"]
    assert settings["metadata"] == {"bytecodeHash": "none", "appendCBOR": False}
    assert settings["optimizer"]["enabled"]
    assert settings["evmVersion"] == "cancun"
