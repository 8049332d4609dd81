"""A registration on its way to the ledger, and its beacon; for whoever has no torch as well (spec §4.1).

The transaction is stored before it is sent, and sent once: an interrupted one goes on with the same.
"""

from __future__ import annotations

from collections.abc import Callable

from polcommit import transcript as hashes
from polcommit.errors import StorageError, UsageError
from polcommit.events import Registered
from polcommit.ledger.accounts import address_of
from polcommit.sealing import derive
from polcommit.session.connection import Connection, once
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.types import Registration

Progress = Callable[[int, int], None]


def send(run: RunFolder, connection: Connection, account_key: bytes) -> Registered:
    """Send the registration's transaction, once; the same one again after an interruption."""
    with run.lock():
        return _send(run, connection, account_key)


def _send(run: RunFolder, connection: Connection, account_key: bytes) -> Registered:
    commitment = hashes.manifest_commitment(derive(run.secret, "blinding/manifest"), run.manifest)
    event = once(
        connection.ledger,
        run.registration_pending,
        lambda on_sent: connection.ledger.register(account_key, commitment, on_sent=on_sent),
        lambda raw, replace: run.write_registration_pending(raw, replace=replace),
    )
    if not isinstance(event, Registered) or event.account != run.manifest.account:
        raise StorageError(f"{run.path} holds a transaction that does not register it", hint="restore the folder")
    return event


def await_beacon(
    run: RunFolder, connection: Connection, event: Registered, progress: Progress | None = None
) -> Registration:
    """Wait for the beacon's block to be final, and keep registration and beacon durably."""
    ledger = connection.ledger
    event = _await_final(run, connection, event, hashes.DELAY, progress)
    number = event.position.block + hashes.DELAY
    block = ledger.block(number)
    chain = ledger.identity()
    registration = Registration(
        chain_id=chain.chain_id,
        contract=chain.contract,
        registered=event,
        beacon_block=number,
        beacon_block_hash=block.hash,
        beacon=hashes.beacon(chain.chain_id, chain.contract, event.run, event.manifest, block.prevrandao),
    )
    run.write_registration(registration)
    return registration


def register_post_hoc(
    run: RunFolder, connection: Connection, account_key: bytes, progress: Progress | None = None
) -> Registration:
    """Register a post hoc run, which is about to be anchored for the first time. The caller holds the run's lock.

    Raises:
        UsageError: it is another chain, contract or account than the run was made for; nothing was sent.
    """
    chain, place = connection.ledger.identity(), run.place
    if (chain.chain_id, chain.contract) != (place.chain_id, place.contract):
        raise UsageError(
            f"{run.path} was recorded for contract 0x{place.contract.hex()} on chain {place.chain_id}",
            hint="its first record names them: anchor it there, with --policy or --rpc",
        )
    if address_of(account_key) != run.manifest.account:
        raise UsageError(
            f"the account 0x{address_of(account_key).hex()} is not the run's, 0x{run.manifest.account.hex()}",
            hint="choose the key that the run was made with by --key, or its keystore by --account",
        )
    event = _await_final(run, connection, _send(run, connection, account_key), 0, progress)
    registration = Registration(
        chain_id=chain.chain_id,
        contract=chain.contract,
        registered=event,
        beacon_block=None,
        beacon_block_hash=None,
        beacon=None,
    )
    run.write_registration(registration)
    return registration


def _await_final(
    run: RunFolder, connection: Connection, event: Registered, further: int, progress: Progress | None
) -> Registered:
    """The registration, once the block that lies `further` blocks behind its own is final."""
    ledger = connection.ledger
    while True:
        ledger.wait_final(event.position.block + further, progress=progress)
        found = ledger.registration(event.run)
        if found == event:
            return event
        event = found or send_again(run, connection)    # a reorganisation moved it, or dropped it


def send_again(run: RunFolder, connection: Connection) -> Registered:
    """Rebroadcast a registration that a reorganisation dropped."""
    pending = run.registration_pending
    assert pending is not None      # it was stored before it was first sent
    event = connection.ledger.resume(pending)
    assert isinstance(event, Registered)
    return event
