"""Anchoring: put the head of a recorded run on the ledger, once (spec §4.4).

Order matters: self-checks done, state and statement durable, root recomputed by an independent implementation,
then the envelope signed, the transaction stored, and only then sent. Whatever is interrupted goes on with the
same head and the same transaction. A post hoc run is registered first, once, by its first anchor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polcommit.envelopes import make_envelope
from polcommit.errors import StorageError, TransactionFailed, UsageError
from polcommit.events import Anchored
from polcommit.ledger.transactions import OnSent
from polcommit.prover import Run, next_head
from polcommit.records import RevealedHead
from polcommit.session.connection import Connection, once
from polcommit.session.processes import check_recorded, keep_state
from polcommit.session.registration import register_post_hoc
from polcommit.session.run import check_run, drop_extra_states, is_post_hoc, load_run, require_registration
from polcommit.storage.audit import confirm_root
from polcommit.storage.journal import scan
from polcommit.storage.runfolder import RunFolder
from polcommit.transcript import chained_head

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class AnchoredHead:
    """A head and where it stands."""

    head: RevealedHead
    event: Anchored
    new: bool               # False where it had been anchored before, and nothing was sent


def anchor(
    folder: RunFolder,
    connection: Connection,
    key: Ed25519PrivateKey,
    account_key: bytes,
    progress: Progress | None = None,
) -> AnchoredHead:
    """Anchor what was recorded since the last head; if nothing was, say where that one stands.

    Raises:
        NotReproducible: a queued self-check found that this machine does not reproduce a step.
        StorageError: pymerkle computes another root, a kept state is missing, or the folder is damaged.
        UsageError: nothing was ever recorded, or a post hoc run was recorded for another chain or account.
        TransactionFailed, ChainUnavailable: nothing was sent twice; run it again.
    """
    with folder.lock():
        _drain_checks(folder)
        if folder.registration is None and is_post_hoc(folder):
            require_steps(folder)
            check_run(folder)       # what is sent cannot be taken back
            register_post_hoc(folder, connection, account_key, progress)
        run = load_run(folder)
        sequence = _prepare(folder, run, key)
        position = folder.anchors.anchored(sequence)
        head = folder.anchors.head(sequence)
        if position is not None:
            event = next((e for e in connection.ledger.anchors(run.id) if e.sequence == sequence), None)
            if event is None or event.commitment != head.commitment:
                raise StorageError(
                    f"head {sequence} is not on this chain, where it was anchored in block {position.block}",
                    hint="was the devnet reset? give the chain that it was anchored on with --rpc",
                )
            return AnchoredHead(head, event, new=False)
        while True:
            event = _send(folder, run, head, connection, key, account_key)
            connection.ledger.wait_final(event.position.block, progress=progress)
            if event in connection.ledger.anchors(run.id):
                break       # else a reorganisation has moved it, or dropped it: the same transaction again
        folder.anchors.write_anchored(sequence, event.position)
        return AnchoredHead(head, event, new=True)


def _drain_checks(folder: RunFolder) -> None:
    if folder.checks.pending():
        for threads in sorted({epoch.fingerprint.threads or 0 for epoch in folder.environments()}):
            check_recorded(folder.path, threads=threads or None)
        drop_extra_states(folder)


def _prepare(folder: RunFolder, run: Run, key: Ed25519PrivateKey) -> int:
    """The sequence number to anchor: an unfinished head's, a new one's, or, if there is nothing new, the last."""
    sequences = folder.anchors.sequences()
    if sequences and folder.anchors.anchored(sequences[-1]) is None:
        return sequences[-1]
    if run.heads and run.heads[-1].statement.steps == run.steps:
        return sequences[-1]
    head = next_head(run, key)
    statement = head.statement
    confirm_root(run.transcript.leaf_data(statement.size), statement.root)
    if statement.steps not in folder.states.steps():      # recording was interrupted: the state is regenerated
        keep_state(folder.path, statement.steps, threads=folder.environments()[-1].fingerprint.threads)
    folder.states.check(statement.steps)
    folder.anchors.write_head(head)
    return statement.sequence


def _send(
    folder: RunFolder,
    run: Run,
    head: RevealedHead,
    connection: Connection,
    key: Ed25519PrivateKey,
    account_key: bytes,
) -> Anchored:
    """Send the head's transaction; if one was signed before, that same one."""
    sequence = head.statement.sequence
    nonce = require_registration(folder).registered.nonce

    def send(on_sent: OnSent) -> Anchored:
        _, previous = connection.ledger.head(run.id)
        expected = _expected_head(run, connection)
        if previous != expected:
            raise TransactionFailed(
                f"the ledger's head of this run is {previous.hex()}, this folder knows {expected.hex()}",
                hint="was it anchored from a copy of the folder? go on from that copy",
            )
        envelope = make_envelope(head, run.manifest, connection.ledger.identity(), key)
        return connection.ledger.anchor(account_key, nonce, previous, head.commitment, envelope, on_sent=on_sent)

    event = once(
        connection.ledger,
        folder.anchors.pending(sequence),
        send,
        lambda raw, replace: folder.anchors.write_pending(sequence, raw, replace=replace),
    )
    if not isinstance(event, Anchored) or event.commitment != head.commitment:
        raise StorageError(f"{folder.path} holds a transaction of another head", hint="restore the folder from a copy")
    return event


def _expected_head(run: Run, connection: Connection) -> bytes:
    """The chained head that the contract must hold, if all that was anchored came from this folder."""
    chained = bytes(24)
    events = connection.ledger.anchors(run.id)
    for head, event in zip(run.heads, events, strict=False):
        chained = chained_head(run.id, head.statement.sequence, chained, head.commitment, event.envelope)
    return chained


def require_steps(folder: RunFolder) -> None:
    """Raises UsageError if no step was recorded yet."""
    if len(scan(folder.journal_path).offsets) < 2:      # the genesis record alone
        raise UsageError(f"nothing was recorded in {folder.path} yet", hint="record it with 'polcommit record'")
