"""A real chain for the tests: anvil on a free port, mining every second, and funded accounts on it."""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polcommit.ledger.accounts import address_of
from polcommit.ledger.anvil import npm_binary
from polcommit.ledger.devnet import Devnet, DevnetInfo
from polcommit.ledger.registry import Registry

CONTRACTS = Path(__file__).parents[2] / "contracts"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_anvil() -> None:
    if npm_binary(CONTRACTS / "node_modules") is None and shutil.which("anvil") is None:
        pytest.skip("no anvil: run scripts/node-setup")


@pytest.fixture(scope="session")
def devnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devnet]:
    """A running devnet that nobody kills."""
    require_anvil()
    chain = Devnet(tmp_path_factory.mktemp("devnet"))
    chain.start(port=free_port(), block_time=0.25)
    yield chain
    chain.stop()


@pytest.fixture(scope="session")
def info(devnet: Devnet) -> DevnetInfo:
    found = devnet.status()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def registry(info: DevnetInfo) -> Registry:
    return Registry.connect(info.rpc, info.contract)


@pytest.fixture
def own_devnet(tmp_path: Path) -> Iterator[Devnet]:
    """A devnet, not started, for a test that kills it."""
    require_anvil()
    chain = Devnet(tmp_path / "devnet")
    yield chain
    chain.stop()


@pytest.fixture
def funded(devnet: Devnet) -> Callable[[], bytes]:
    """Makes the private key of a fresh account with ether."""

    def make() -> bytes:
        key = secrets.token_bytes(32)
        devnet.fund(address_of(key))
        return key

    return make


@pytest.fixture
def key(funded: Callable[[], bytes]) -> bytes:
    return funded()
