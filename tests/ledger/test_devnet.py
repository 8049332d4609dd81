"""The devnet: what a command reported survives kill -9, and nothing is deleted or overwritten by mistake."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import signal
import socket
import threading
import time
import tomllib
from pathlib import Path

import pytest
from ledger.conftest import free_port

from polcommit.errors import ChainUnavailable, PolcommitError, StorageError, Unavailable
from polcommit.ledger.accounts import address_of
from polcommit.ledger.devnet import Devnet, DevnetInfo
from polcommit.ledger.registry import Registry
from polcommit.ledger.rpc import Rpc


def kill(info: DevnetInfo) -> None:
    os.kill(info.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            Rpc(info.rpc).call("eth_blockNumber")
        except ChainUnavailable:
            return
        time.sleep(0.02)
    raise AssertionError("anvil survived SIGKILL")


def connect(devnet: Devnet, info: DevnetInfo) -> Registry:
    return Registry.connect(info.rpc, info.contract, on_durable=devnet.checkpoint)


def test_kill_9_loses_nothing_that_was_reported(own_devnet: Devnet):
    info = own_devnet.start(port=free_port())
    registry, key = connect(own_devnet, info), secrets.token_bytes(32)
    own_devnet.fund(address_of(key))
    registered = registry.register(key, b"m" * 32)
    anchored = registry.anchor(key, 0, bytes(24), b"c" * 32, b"envelope")
    beacon = anchored.position.block + 4
    registry.wait_final(beacon)
    blocks = [registry.block(number) for number in range(beacon + 1)]
    receipt = Rpc(info.rpc).call("eth_getTransactionReceipt", "0x" + anchored.position.transaction.hex())
    head, identity = registry.head(registered.run), registry.identity()
    kill(info)
    assert own_devnet.status() is None

    restarted = own_devnet.start(port=free_port())
    assert not restarted.already_running
    again = connect(own_devnet, restarted)
    assert again.identity() == identity
    assert [again.block(number) for number in range(beacon + 1)] == blocks
    assert again.registration(registered.run) == registered
    assert again.anchors(registered.run) == (anchored,)
    assert again.head(registered.run) == head
    found = Rpc(restarted.rpc).call("eth_getTransactionReceipt", "0x" + anchored.position.transaction.hex())
    assert found == receipt
    # The chain goes on: time rises, and the next anchor extends the head.
    again.wait_final(beacon + 1)
    assert again.block(beacon + 1).timestamp > blocks[-1].timestamp
    assert again.anchor(key, 0, head[1], b"d" * 32, b"second").sequence == 2


def test_kill_9_between_sending_and_reporting(own_devnet: Devnet):
    """The transaction was mined, but no dump has it: the stored bytes bring it back, once."""
    info = own_devnet.start(port=free_port())
    key, stored = secrets.token_bytes(32), []
    own_devnet.fund(address_of(key))
    registry = Registry.connect(info.rpc, info.contract)
    registry.register(key, b"m" * 32, on_sent=lambda _, raw: stored.append(raw))
    kill(info)
    restarted = own_devnet.start(port=free_port())
    again = connect(own_devnet, restarted)
    assert again.registrations(address_of(key)) == 0
    event = again.resume(stored[0])
    assert again.account_registrations(address_of(key)) == (event,)


def test_starting_twice_is_no_second_start(devnet: Devnet, info: DevnetInfo):
    found = devnet.start(port=free_port())
    assert found.already_running
    assert (found.pid, found.port, found.genesis) == (info.pid, info.port, info.genesis)


def test_stop_and_start_is_the_same_chain(own_devnet: Devnet):
    port = free_port()
    first = own_devnet.start(port=port)
    assert own_devnet.stop()
    assert not own_devnet.stop()
    assert own_devnet.status() is None
    second = own_devnet.start(port=port)
    assert (second.genesis, second.contract) == (first.genesis, first.contract)
    assert second.latest >= first.latest


def test_the_policy_pins_the_chain(devnet: Devnet, info: DevnetInfo):
    chain = tomllib.loads(devnet.policy.read_text())["chain"]
    assert chain == {
        "id": 31337,
        "genesis": "0x" + info.genesis.hex(),
        "contract": "0x" + info.contract.hex(),
        "code": ["0x" + info.code.hex()],
        "rpc": info.rpc,
        "confirmations": 1,
        "devnet": True,
    }


def test_a_port_in_use(own_devnet: Devnet):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port} cannot be used") as caught:
            own_devnet.start(port=port)
    assert caught.value.hint is not None and "--port" in caught.value.hint


def test_a_process_id_that_was_used_again(own_devnet: Devnet):
    """A stale record names a live process that is not ours: it is neither taken for the devnet nor stopped."""
    own_devnet.folder.mkdir()
    record = {"pid": os.getpid(), "start": "1", "port": 1, "genesis": "00" * 32}
    (own_devnet.folder / "devnet.json").write_text(json.dumps(record))
    assert own_devnet.status() is None
    assert not own_devnet.stop()
    assert not own_devnet.start(port=free_port()).already_running


@pytest.mark.parametrize(
    "damage",
    [
        lambda dump: dump[: len(dump) // 2],
        lambda dump: b"",
        lambda dump: b"not a dump",
        lambda dump: gzip.compress(b"{}"),
        lambda dump: dump[:200] + bytes([dump[200] ^ 1]) + dump[201:],
    ],
    ids=["truncated", "empty", "foreign", "other JSON", "flipped bit"],
)
def test_a_damaged_dump_is_named_and_left_alone(own_devnet: Devnet, devnet: Devnet, damage):
    devnet.checkpoint()
    damaged = damage((devnet.folder / "state.json.gz").read_bytes())
    own_devnet.folder.mkdir()
    dump = own_devnet.folder / "state.json.gz"
    dump.write_bytes(damaged)
    with pytest.raises(StorageError, match=r"state\.json\.gz is damaged"):
        own_devnet.start(port=free_port())
    assert dump.read_bytes() == damaged
    assert own_devnet.status() is None
    assert not (own_devnet.folder / "state.loading.json").exists()


def test_racing_checkpoints_leave_the_newest(own_devnet: Devnet):
    own_devnet.start(port=free_port())
    dump, failures = own_devnet.folder / "state.json.gz", []
    heights: list[int] = []

    def checkpoints() -> None:
        try:
            for _ in range(10):
                Devnet(own_devnet.folder).checkpoint()
        except PolcommitError as error:
            failures.append(error)

    threads = [threading.Thread(target=checkpoints) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        heights.append(json.loads(gzip.decompress(dump.read_bytes()))["best_block_number"])
        own_devnet_rpc(own_devnet).call("evm_mine")
    assert failures == []
    assert heights == sorted(heights)
    assert list(own_devnet.folder.glob("*.tmp")) == []


def own_devnet_rpc(devnet: Devnet) -> Rpc:
    found = devnet.status()
    assert found is not None
    return Rpc(found.rpc)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(own_devnet: Devnet, monkeypatch: pytest.MonkeyPatch):
    own_devnet.start(port=free_port())
    dump = own_devnet.folder / "state.json.gz"
    before = dump.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left on device"):
            own_devnet.checkpoint()
    assert dump.read_bytes() == before
    assert list(own_devnet.folder.glob("*.tmp")) == []


def test_a_checkpoint_of_nothing(own_devnet: Devnet):
    with pytest.raises(ChainUnavailable, match="the devnet is not running"):
        own_devnet.checkpoint()


def test_funding(devnet: Devnet):
    account = secrets.token_bytes(20)
    assert devnet.account_needs_funds(account)
    devnet.fund(account, 2 * 10**18)
    assert not devnet.account_needs_funds(account)
    assert devnet.account_needs_funds(account, 3 * 10**18)


def test_anvil_that_cannot_be_run(own_devnet: Devnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("POLCOMMIT_ANVIL", str(tmp_path / "missing"))
    with pytest.raises(Unavailable, match=r"POLCOMMIT_ANVIL names .*missing, which cannot be run"):
        own_devnet.start(port=free_port())
    monkeypatch.setenv("POLCOMMIT_ANVIL", "false")
    with pytest.raises(Unavailable, match="anvil ended at once"):
        own_devnet.start(port=free_port())
    assert own_devnet.status() is None
