"""The registry's client against a real chain: what it sends, what it reads back, and every way to be refused."""

from __future__ import annotations

import hashlib
import secrets
import urllib.request
from collections.abc import Callable

import pytest
from ledger.conftest import free_port

from polcommit.errors import ChainUnavailable, StorageError, Superseded, TransactionFailed, UsageError, WrongChain
from polcommit.events import Anchored, Challenged, Registered
from polcommit.ledger.accounts import address_of
from polcommit.ledger.artifacts import registry_artifact
from polcommit.ledger.devnet import Devnet, DevnetInfo
from polcommit.ledger.eth import keccak
from polcommit.ledger.registry import Registry
from polcommit.ledger.rpc import Rpc
from polcommit.ledger.transactions import OnSent
from polcommit.session.connection import once

ZERO = bytes(24)


def run_of(info: DevnetInfo, account: bytes, nonce: int) -> bytes:
    parts = [b"polcommit/v1/run\0", info.chain_id.to_bytes(8), info.contract, account, nonce.to_bytes(8)]
    return hashlib.sha256(b"".join(parts)).digest()


def next_head(run: bytes, sequence: int, previous: bytes, commitment: bytes, envelope: bytes) -> bytes:
    tail = previous + commitment + hashlib.sha256(envelope).digest()
    return hashlib.sha256(b"polcommit/v1/chain\0" + run + sequence.to_bytes(8) + tail).digest()[:24]


def gas_used(info: DevnetInfo, event: Registered | Anchored | Challenged) -> int:
    receipt = Rpc(info.rpc).call("eth_getTransactionReceipt", "0x" + event.position.transaction.hex())
    return int(receipt["gasUsed"], 16)


def challenge(registry: Registry, key: bytes, run: bytes, **changed: bytes) -> Challenged:
    fields = {name: secrets.token_bytes(32) for name in ("verifier", "commitment", "request", "nonce_commitment")}
    return registry.challenge(key, run=run, **{**fields, "signature": secrets.token_bytes(64), **changed})


def test_a_run_from_registration_to_challenge(registry: Registry, info: DevnetInfo, funded: Callable[[], bytes]):
    prover, verifier = funded(), funded()
    account, manifest = address_of(prover), secrets.token_bytes(32)
    registered = registry.register(prover, manifest)
    assert registered.run == run_of(info, account, 0)
    assert (registered.account, registered.nonce, registered.manifest) == (account, 0, manifest)
    assert registry.registration(registered.run) == registered
    assert registry.head(registered.run) == (0, ZERO)
    assert registry.anchors(registered.run) == registry.challenges(registered.run) == ()
    gas = {"register, first": registered}

    previous, anchored = ZERO, []
    for sequence in (1, 2):
        commitment, envelope = secrets.token_bytes(32), secrets.token_bytes(515)
        anchored.append(registry.anchor(prover, 0, previous, commitment, envelope))
        previous = next_head(registered.run, sequence, previous, commitment, envelope)
        assert (anchored[-1].sequence, anchored[-1].commitment) == (sequence, commitment)
        assert anchored[-1].envelope == envelope
        assert registry.head(registered.run) == (sequence, previous)
    assert registry.anchors(registered.run) == tuple(anchored)
    gas |= {"anchor, first": anchored[0], "anchor, later": anchored[1]}

    signature = secrets.token_bytes(64)
    challenged = [challenge(registry, verifier, registered.run, signature=signature) for _ in range(2)]
    assert [event.id for event in challenged] == [1, 2]
    assert challenged[0].signature == signature
    assert registry.challenges(registered.run) == tuple(challenged)
    gas |= {"challenge, first": challenged[0], "challenge, later": challenged[1]}

    again = registry.register(prover, manifest)
    assert again.run == run_of(info, account, 1)
    assert registry.registrations(account) == 2
    assert registry.account_registrations(account) == (registered, again)
    gas["register, later"] = again
    used = {name: gas_used(info, event) for name, event in gas.items()}
    print("gas:", used)     # noqa: T201 - for whoever watches the figures, with -s
    assert used["register, first"] <= 75_000
    assert used["register, later"] <= 60_000
    assert used["anchor, first"] <= 66_000
    assert used["anchor, later"] <= 50_000


def test_events_carry_their_position(registry: Registry, key: bytes):
    event = registry.register(key, bytes(32))
    assert event.position.block_hash == registry.block(event.position.block).hash
    later = registry.register(key, bytes(32))
    assert event.position < later.position


def test_identity_is_that_of_the_policy_and_the_artifact(registry: Registry, info: DevnetInfo):
    found = registry.identity()
    assert (found.chain_id, found.genesis, found.contract) == (31337, info.genesis, info.contract)
    assert found.code == info.code == registry_artifact().code_hash


def test_other_code_is_seen_in_the_identity(info: DevnetInfo):
    """A look-alike with one more byte of code: `identity` gives its own hash, for the policy to compare."""
    where = secrets.token_bytes(20)
    code = registry_artifact().deployed + b"\0"
    Rpc(info.rpc).call("anvil_setCode", "0x" + where.hex(), "0x" + code.hex())
    found = Registry.connect(info.rpc, where).identity()
    assert found.contract == where
    assert found.code != info.code


def test_no_contract_at_the_address(info: DevnetInfo):
    with pytest.raises(WrongChain, match="there is no contract at 0x1111"):
        Registry.connect(info.rpc, b"\x11" * 20)


def test_nothing_listens():
    with pytest.raises(ChainUnavailable, match=r"cannot reach the chain at .* \(connection refused\)") as caught:
        Registry.connect(f"http://127.0.0.1:{free_port()}", bytes(20))
    assert caught.value.hint is not None and "polcommit devnet start" in caught.value.hint


@pytest.mark.parametrize("url", ["", "127.0.0.1:8545", "file:///etc/passwd", "ftp://127.0.0.1", "http://"])
def test_an_address_that_is_none(url: str):
    with pytest.raises(UsageError):
        Registry.connect(url, bytes(20))


def test_the_chain_id_changes_under_a_connection(devnet: Devnet, info: DevnetInfo, key: bytes):
    registry = Registry.connect(info.rpc, info.contract)
    Rpc(info.rpc).call("anvil_setChainId", 999)
    try:
        with pytest.raises(WrongChain, match="for chain 31337, found chain 999"):
            registry.register(key, bytes(32))
    finally:
        Rpc(info.rpc).call("anvil_setChainId", 31337)
    assert registry.registrations(address_of(key)) == 0


def test_the_same_anchor_is_refused_the_second_time(registry: Registry, key: bytes):
    run = registry.register(key, bytes(32)).run
    registry.anchor(key, 0, ZERO, b"c" * 32, b"envelope")
    sent: list[bytes] = []
    with pytest.raises(TransactionFailed, match=r"the head of run 0x.* is 0x.*, not 0x0000.*was sent already"):
        registry.anchor(key, 0, ZERO, b"c" * 32, b"envelope", on_sent=lambda _, raw: sent.append(raw))
    assert sent == []
    assert len(registry.anchors(run)) == 1


def test_a_run_that_is_not_registered_cannot_be_anchored(registry: Registry, key: bytes):
    with pytest.raises(TransactionFailed, match=f"account 0x{address_of(key).hex()} has not registered .* nonce 3"):
        registry.anchor(key, 3, ZERO, bytes(32), b"")


def test_a_run_without_an_anchor_cannot_be_challenged(registry: Registry, key: bytes):
    run = registry.register(key, bytes(32)).run
    with pytest.raises(TransactionFailed, match=f"run 0x{run.hex()} has no anchored head"):
        challenge(registry, key, run)


def test_an_anchor_that_reverts_in_its_block(registry: Registry, info: DevnetInfo, key: bytes):
    """Two anchors on one head, both signed before either is mined: the second is mined, and fails."""
    run = registry.register(key, bytes(32)).run

    def overtake(_: bytes, raw: bytes) -> None:
        # The account's nonce is free until `raw` is broadcast: this changes the head under the estimate.
        slot = Rpc(info.rpc)
        slot.call("anvil_setStorageAt", "0x" + info.contract.hex(), "0x" + _slot(run).hex(), "0x" + "11" * 32)

    with pytest.raises(TransactionFailed, match=r"was reverted \(the head of run .* was sent already\)"):
        registry.anchor(key, 0, ZERO, bytes(32), b"", on_sent=overtake)


def _slot(run: bytes) -> bytes:
    """Where the contract keeps a run's head: mapping number 1."""
    return keccak(run + (1).to_bytes(32))


def test_an_account_without_ether(registry: Registry):
    with pytest.raises(TransactionFailed, match=r"account 0x.* cannot pay for the transaction") as caught:
        registry.register(secrets.token_bytes(32), bytes(32))
    assert caught.value.hint is not None and "--account" in caught.value.hint


def test_a_transaction_is_known_before_it_is_sent(registry: Registry, key: bytes):
    """A crash right after `on_sent`: nothing was broadcast, and the same bytes can be sent later, once."""
    stored: list[tuple[bytes, bytes]] = []

    def crash(identifier: bytes, raw: bytes) -> None:
        stored.append((identifier, raw))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.register(key, b"m" * 32, on_sent=crash)
    assert registry.registrations(address_of(key)) == 0
    [(identifier, raw)] = stored
    first = registry.resume(raw)
    assert isinstance(first, Registered)
    assert first.position.transaction == identifier
    assert registry.resume(raw) == first
    assert registry.registrations(address_of(key)) == 1


def test_resuming_a_transaction_whose_nonce_was_used_by_another(registry: Registry, key: bytes):
    stored: list[bytes] = []

    def crash(_: bytes, raw: bytes) -> None:
        stored.append(raw)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.register(key, b"1" * 32, on_sent=crash)
    registry.register(key, b"2" * 32)
    with pytest.raises(Superseded, match=r"has sent another transaction with nonce 0"):
        registry.resume(stored[0])
    assert registry.registrations(address_of(key)) == 1


def test_a_transaction_that_can_never_be_mined_is_signed_anew_once(registry: Registry, key: bytes):
    """Its account's nonce was used from elsewhere: without another signature the command could never be finished."""
    kept: list[tuple[bytes, bool]] = []

    def send(on_sent: OnSent) -> Registered:
        return registry.register(key, b"1" * 32, on_sent=on_sent)

    def crash(raw: bytes, replace: bool) -> None:
        kept.append((raw, replace))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(registry, None, send, crash)
    registry.register(key, b"2" * 32)
    event = once(registry, kept[0][0], send, lambda raw, replace: kept.append((raw, replace)))
    assert isinstance(event, Registered) and event.manifest == b"1" * 32
    assert [replace for _, replace in kept] == [False, True]
    assert once(registry, kept[1][0], send, crash) == event, "and the new one is resumed, not sent a second time"
    assert registry.registrations(address_of(key)) == 2


def test_resuming_damaged_bytes(registry: Registry, key: bytes):
    stored: list[bytes] = []
    registry.register(key, bytes(32), on_sent=lambda _, raw: stored.append(raw))
    for damaged in (b"", b"\x02", stored[0][:-1], b"\x01" + stored[0][1:], stored[0] + b"\0", secrets.token_bytes(99)):
        with pytest.raises(StorageError, match="the stored transaction is damaged"):
            registry.resume(damaged)


def test_resuming_on_another_chain(info: DevnetInfo, registry: Registry, key: bytes):
    stored: list[bytes] = []
    registry.register(key, bytes(32), on_sent=lambda _, raw: stored.append(raw))
    Rpc(info.rpc).call("anvil_setChainId", 999)
    try:
        other = Registry.connect(info.rpc, info.contract)
    finally:
        Rpc(info.rpc).call("anvil_setChainId", 31337)
    with pytest.raises(WrongChain):
        other.resume(stored[0])


def test_durable_before_it_returns(devnet: Devnet, info: DevnetInfo, key: bytes):
    calls: list[int] = []
    registry = Registry.connect(info.rpc, info.contract, on_durable=lambda: calls.append(1))
    event = registry.register(key, bytes(32))
    assert len(calls) == 1
    seen: list[tuple[int, int]] = []
    registry.wait_final(event.position.block + 2, progress=lambda *at: seen.append(at))
    assert len(calls) >= 3
    assert seen[-1][0] == seen[-1][1]
    registry.wait_final(event.position.block)
    assert len(calls) >= 4


def test_finality(registry: Registry, info: DevnetInfo):
    latest = registry.latest()
    deep = Registry.connect(info.rpc, info.contract, confirmations=1000)
    assert registry.is_final(latest)
    assert not registry.is_final(latest + 100)
    assert not deep.is_final(latest)
    tagged = Registry.connect(info.rpc, info.contract, finality="finalized")
    assert tagged.is_final(0)
    assert not tagged.is_final(latest)
    with pytest.raises(ChainUnavailable, match=f"block {latest + 1000} is not final after 0 s"):
        registry.wait_final(latest + 1000, timeout=0.1)


def test_a_block_that_does_not_exist_yet(registry: Registry):
    with pytest.raises(ChainUnavailable, match="block 1000000 does not exist yet"):
        registry.block(1_000_000)


def test_an_unknown_run_has_nothing(registry: Registry):
    run = secrets.token_bytes(32)
    assert registry.registration(run) is None
    assert registry.anchors(run) == registry.challenges(run) == ()
    assert registry.head(run) == (0, ZERO)
    assert registry.account_registrations(secrets.token_bytes(20)) == ()


def test_a_search_that_starts_after_the_events_is_noticed(registry: Registry, info: DevnetInfo, key: bytes):
    """The contract counts what the events leave out."""
    event = registry.register(key, bytes(32))
    registry.anchor(key, 0, ZERO, bytes(32), b"")
    late = Registry.connect(info.rpc, info.contract, from_block=event.position.block + 100)
    with pytest.raises(ChainUnavailable, match="left out anchors: 1 are counted in the contract, 0 came"):
        late.anchors(event.run)


def test_a_dropped_connection_in_the_middle(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(ChainUnavailable, match="connection reset by peer"):
        registry.latest()
