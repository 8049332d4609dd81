"""One devnet and one small run, made once through the commands; tests work on copies of what they damage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from shell import Result, ok, polcommit

from polcommit.ledger.anvil import npm_binary

CONTRACTS = Path(__file__).parents[2] / "contracts"
STEPS = 12


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_anvil() -> None:
    if npm_binary(CONTRACTS / "node_modules") is None and shutil.which("anvil") is None:
        pytest.skip("no anvil: run scripts/node-setup")


@dataclass(frozen=True)
class World:
    """A home folder with a prover's and a verifier's key, a devnet, and what a challenged run leaves behind."""

    home: Path
    port: int
    run: Path
    id: str
    evidence: Path      # of challenge 1, with openings in clear
    receipt: Path       # of challenge 1
    request: Path       # of challenge 2, which stays unfinished
    opening: Path       # the prover's answer to it
    policy: Path        # the devnet's, and trusts the verifier

    @property
    def rpc(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __call__(self, *args: object, **options: object) -> Result:
        return polcommit(*args, **{"home": self.home, **options})   # type: ignore[arg-type]

    def copy(self, target: Path) -> Path:
        """A copy of the run folder, to damage."""
        return shutil.copytree(self.run, target / "run", symlinks=True)


def start_devnet(home: Path, port: int) -> None:
    ok(polcommit("devnet", "start", "--port", port, "--block-time", 0.25, home=home))


def new_keys(home: Path) -> None:
    for name, role in (("alice", "prover"), ("vera", "verifier")):
        ok(polcommit("keys", "new", name, "--role", role, "--no-passphrase", home=home))


def register(home: Path, run: Path, *more: object, **options: object) -> Result:
    return polcommit(
        "register", run, "--recipe", "digits", "--steps", STEPS, "--keep", 4, *more, home=home, **options  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """Keys and a running devnet: the home folder and the port."""
    require_anvil()
    home, port = tmp_path_factory.mktemp("world") / "home", free_port()
    start_devnet(home, port)
    try:
        new_keys(home)
        yield home, port
    finally:
        polcommit("devnet", "stop", home=home)


def kill_devnet(home: Path) -> None:
    """kill -9 of the chain's process."""
    found = json.loads(ok(polcommit("devnet", "status", "--json", home=home)).out)
    os.kill(found["process"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{found['process']}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.fixture(scope="session")
def world(empty_home: tuple[Path, int]) -> World:
    """A run of 12 steps: registered, recorded, anchored, challenged, and asked once more.

    The chain is killed after each thing that it reported; `test_chain_trouble` looks at what is left.
    """
    home, port = empty_home
    folder = home.parent
    run = folder / "digits"

    def killed() -> None:
        kill_devnet(home)
        start_devnet(home, port)

    done = json.loads(ok(register(home, run, "--allow-clear-openings", "--json")).out)
    killed()
    ok(polcommit("record", run, "--json", home=home))
    anchored = json.loads(ok(polcommit("anchor", run, "--json", home=home)).out)
    assert anchored["sent"]
    killed()
    assert json.loads(ok(polcommit("anchor", run, "--json", home=home)).out) == anchored | {"sent": False}
    evidence, receipt = folder / "evidence", folder / "receipt"
    first = ("challenge", run, "--count", 3, "--with-openings", "--out", evidence, "--receipt", receipt, "--json")
    assert json.loads(ok(polcommit(*first, home=home)).out)["verdict"] == "accepted"
    request, opening = folder / "request", folder / "opening"
    asked = ok(polcommit("challenge", done["run"], "--count", 2, "--request", request, "--json", home=home))
    assert json.loads(asked.out) == {"challenge": 2, "request": str(request)}
    killed()
    answered = ok(polcommit("respond", run, "--request", request, "--out", opening, "--json", home=home))
    assert json.loads(answered.out)["bytes"] == opening.stat().st_size
    card = json.loads((home / "keys" / "vera" / "public.json").read_text())
    policy = folder / "policy.toml"
    trusted = f'[verifiers]\ntrusted = ["{card["signing"]}"]\n'
    policy.write_text((home / "devnet" / "policy.toml").read_text() + trusted)
    return World(home, port, run, done["run"], evidence, receipt, request, opening, policy)


@pytest.fixture
def elsewhere(world: World, tmp_path: Path) -> dict[str, Any]:
    """Options for commands with copies of the world's keys and challenges, and nothing of the devnet's in that home:
    its chain is any chain then, of which nothing is dumped."""
    home = tmp_path / "elsewhere"
    shutil.copytree(world.home, home, ignore=shutil.ignore_patterns("devnet"))
    return {"home": home, "env": {"POLCOMMIT_POLICY": str(world.policy)}}
