"""One devnet and one small run, made once through the commands; tests work on copies of what they damage."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


@pytest.fixture(scope="session")
def world(empty_home: tuple[Path, int]) -> World:
    """A run of 12 steps: registered, recorded, anchored, challenged, and asked once more."""
    home, port = empty_home
    folder = home.parent
    run = folder / "digits"
    done = json.loads(ok(register(home, run, "--allow-clear-openings", "--json")).out)
    ok(polcommit("record", run, home=home))
    ok(polcommit("anchor", run, home=home))
    evidence, receipt = folder / "evidence", folder / "receipt"
    first = ("challenge", run, "--count", 3, "--with-openings", "--out", evidence, "--receipt", receipt)
    ok(polcommit(*first, home=home))
    request, opening = folder / "request", folder / "opening"
    ok(polcommit("challenge", done["run"], "--count", 2, "--request", request, home=home))
    ok(polcommit("respond", run, "--request", request, "--out", opening, home=home))
    card = json.loads((home / "keys" / "vera" / "public.json").read_text())
    policy = folder / "policy.toml"
    trusted = f'[verifiers]\ntrusted = ["{card["signing"]}"]\n'
    policy.write_text((home / "devnet" / "policy.toml").read_text() + trusted)
    return World(home, port, run, done["run"], evidence, receipt, request, opening, policy)
