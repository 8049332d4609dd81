"""A run's folder as the prover's logic wants it, and what a command can say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from polcommit import transcript as hashes
from polcommit.encoding import decode, digest, encode
from polcommit.errors import SignatureInvalid, StorageError
from polcommit.prover import Run
from polcommit.records import GenesisRecord, Receipt, StepRecord
from polcommit.sealing import derive
from polcommit.signing import verify_receipt, verify_statement
from polcommit.storage.journal import read_frames, scan
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.types import Registration
from polcommit.transcript import Transcript


def load_run(folder: RunFolder, learning_rate: Callable[[int], float] | None = None) -> Run:
    """Everything about a registered run, read and compared: frames parse, roots are the manifest's.

    `learning_rate` is the recipe's; without it no challenge can be answered, and torch is not needed.

    Raises:
        StorageError: the run is not registered, or something in its folder is damaged.
    """
    registration = folder.registration
    if registration is None:
        raise StorageError(f"{folder.path} is not registered yet", hint="finish it with 'polcommit register'")
    frames = list(read_frames(folder.journal_path))
    _require_records(folder.path, frames)
    _require_registered(folder, registration, frames)
    dataset = folder.dataset_leaves()
    if hashes.tree_head(dataset) != folder.manifest.dataset:
        raise StorageError(f"{folder.path / 'dataset.leaves'} is damaged", hint="restore it from a copy")
    contents = folder.dataset_contents()
    sequences = [number for number in folder.anchors.sequences() if folder.anchors.anchored(number) is not None]
    run = Run(
        id=registration.registered.run,
        manifest=folder.manifest,
        secret=folder.secret,
        seed=hashes.run_seed(registration.beacon),
        transcript=Transcript(folder.secret, frames),
        heads=tuple(folder.anchors.head(number) for number in sequences),
        environments=tuple((epoch.first, epoch.fingerprint) for epoch in folder.environments()),
        configuration=folder.settings.configuration,
        learning_rate=learning_rate or _unknown_schedule,
        dataset=dataset,
        contents=contents.__getitem__,
        receipts={
            receipt.verdict.challenge_id: encode(receipt)
            for receipt in _receipts(folder)
            if receipt.verdict.challenge_id is not None
        },
    )
    _require_committed(folder, run)
    return run


def _require_committed(folder: RunFolder, run: Run) -> None:
    """Journal, heads and environments are what was anchored: what is not would be rejected, and is not sent."""
    environments = tuple((first, digest(fingerprint)) for first, fingerprint in run.environments)
    for head in run.heads:
        statement, path = head.statement, folder.path / "anchors" / f"{head.statement.sequence}.head"
        try:
            verify_statement(run.manifest.prover, head)
        except SignatureInvalid as error:
            raise StorageError(f"{path} is damaged: {error}", hint="restore it from a copy") from error
        if head.blinding != derive(run.secret, "blinding/head", statement.sequence) or statement.run != run.id:
            raise StorageError(f"{path} is damaged: another blinding or run", hint="restore it from a copy")
        if statement.size > len(run.transcript) or run.transcript.head(statement.size).root != statement.root:
            raise StorageError(
                f"the journal in {folder.path} is not the one that head {statement.sequence} was anchored for",
                hint="restore it from a copy",
            )
        if environments[: len(statement.environments)] != statement.environments:
            raise StorageError(
                f"{folder.path / 'environments'} is damaged: not the epochs of head {statement.sequence}",
                hint="restore it from a copy",
            )


def _receipts(folder: RunFolder) -> Iterator[Receipt]:
    """The verdicts that were received; one with a broken signature would have the next opening rejected."""
    for receipt in folder.receipts():
        try:
            verify_receipt(receipt)
        except SignatureInvalid as error:
            path = folder.path / "receipts" / str(receipt.verdict.challenge_id)
            raise StorageError(f"{path} is damaged: {error}", hint="ask the verifier for it again") from error
        yield receipt


def genesis_record(folder: RunFolder, state: bytes) -> GenesisRecord:
    """Leaf 0 of the run's transcript; `state` is the digest of W_0. The run is registered."""
    registration, manifest = folder.registration, folder.manifest
    assert registration is not None
    return GenesisRecord(
        run=registration.registered.run,
        manifest=digest(manifest),
        beacon_block=registration.beacon_block,
        beacon=registration.beacon,
        state=state,
        chain_id=registration.chain_id,
        contract=registration.contract,
        account=manifest.account,
        prover=manifest.prover,
    )


def drop_extra_states(folder: RunFolder) -> None:
    """Remove states that were kept for a self-check only, once nothing waits to be checked."""
    if folder.checks.pending():
        return
    last = len(scan(folder.journal_path).offsets) - 1
    needed = {last} | {head.statement.steps for head in folder.anchors.heads()}
    needed |= {epoch.first - 1 for epoch in folder.environments()}      # no re-execution crosses into an epoch
    for step in folder.states.steps():
        if step % folder.manifest.keep and step not in needed:
            folder.states.remove(step)
    folder.states.collect()


def _unknown_schedule(step: int) -> float:
    raise StorageError(f"the learning rate of step {step} needs the run's recipe")


def _require_registered(folder: RunFolder, registration: Registration, frames: list[bytes]) -> None:
    """Manifest and secret are those that the registration commits to, and the journal begins with both."""
    blinding = derive(folder.secret, "blinding/manifest")
    if hashes.manifest_commitment(blinding, folder.manifest) != registration.registered.manifest:
        raise StorageError(
            f"manifest, secret and registration in {folder.path} do not belong together: one of them is damaged",
            hint="restore them from a copy",
        )
    event = registration.registered
    due = hashes.run_id(registration.chain_id, registration.contract, folder.manifest.account, event.nonce)
    number = event.position.block + hashes.DELAY
    if (event.run, event.account, registration.beacon_block) != (due, folder.manifest.account, number):
        raise StorageError(f"{folder.path / 'registration'} is damaged: not of this run", hint="restore it from a copy")
    if frames:
        genesis = decode(frames[0], GenesisRecord)
        expected = (registration.registered.run, digest(folder.manifest), registration.beacon)
        if (genesis.run, genesis.manifest, genesis.beacon) != expected:
            raise StorageError(
                f"the journal in {folder.path} is not of the registered run", hint="restore the folder from a copy"
            )


def _require_records(path: Path, frames: list[bytes]) -> None:
    """The journal holds a genesis record, then steps 1, 2, …"""
    for number, frame in enumerate(frames):
        try:
            record = decode(frame, StepRecord if number else GenesisRecord)
        except ValueError as error:
            raise StorageError(f"{path / 'journal'}: record {number} is damaged: {error}") from error
        if isinstance(record, StepRecord) and record.step != number:
            raise StorageError(f"{path / 'journal'}: record {number} is of step {record.step}")
