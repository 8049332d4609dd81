"""A run's folder as the prover's logic wants it, and what a command can say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from polcommit import transcript as hashes
from polcommit.encoding import decode, digest, encode
from polcommit.errors import EncodingError, SignatureInvalid, StorageError
from polcommit.prover import Parent, Run
from polcommit.records import GenesisRecord, Receipt, StepRecord
from polcommit.sealing import derive
from polcommit.signing import verify_receipt, verify_statement
from polcommit.storage.journal import read_frames, scan
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.types import Registration, StoredParent
from polcommit.transcript import Transcript


def is_post_hoc(folder: RunFolder) -> bool:
    """Whether the run chose its own seed, and is registered only before its first anchor."""
    return folder.manifest.seed is not None


def require_registration(folder: RunFolder) -> Registration:
    """The run's registration on the ledger. Raises StorageError: there is none yet."""
    registration = folder.registration
    if registration is None and is_post_hoc(folder):
        raise StorageError(
            f"{folder.path} is a post hoc run that was never anchored: it is on no ledger yet, and has no id",
            hint="record it, then put it on the ledger with 'polcommit anchor'",
        )
    if registration is None:
        raise StorageError(f"{folder.path} is not registered yet", hint="finish it with 'polcommit register'")
    return registration


def seed_of(folder: RunFolder) -> bytes:
    """The run's seed, 32 bytes: from its beacon, or from the manifest of a post hoc run.

    Raises:
        StorageError: the run is to have a beacon, and is not registered yet.
    """
    manifest = folder.manifest
    if manifest.seed is not None:
        return hashes.post_hoc_seed(manifest.seed, manifest.account, manifest.prover)
    beacon = require_registration(folder).beacon
    if beacon is None:
        raise StorageError(f"{folder.path / 'registration'} is damaged: no beacon", hint="restore it from a copy")
    return hashes.run_seed(beacon)


def load_run(folder: RunFolder, learning_rate: Callable[[int], float] | None = None) -> Run:
    """Everything about a registered run, read and compared: frames parse, roots are the manifest's.

    `learning_rate` is the recipe's; without it no challenge can be answered, and torch is not needed.

    Raises:
        StorageError: the run is not registered, or something in its folder is damaged.
    """
    registration = require_registration(folder)
    frames, dataset, contents = _recorded(folder)
    sequences = [number for number in folder.anchors.sequences() if folder.anchors.anchored(number) is not None]
    run = Run(
        id=registration.registered.run,
        manifest=folder.manifest,
        secret=folder.secret,
        seed=seed_of(folder),
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
        parent=load_parent(folder),
    )
    _require_committed(folder, run)
    return run


def check_run(folder: RunFolder) -> None:
    """What `load_run` compares; a post hoc run need not be registered yet. Raises StorageError."""
    if folder.registration is None and is_post_hoc(folder):
        _recorded(folder)
        load_parent(folder)
    else:
        load_run(folder)


def _recorded(folder: RunFolder) -> tuple[list[bytes], list[bytes], list[tuple[bytes, int]]]:
    """Frames of the journal, leaf hashes and contents of the data set, compared with manifest and registration."""
    frames = list(read_frames(folder.journal_path))
    _require_records(folder.path, frames)
    _require_registered(folder, folder.registration)
    if frames:
        _require_genesis(folder, decode(frames[0], GenesisRecord))
    dataset = folder.dataset_leaves()
    if hashes.tree_head(dataset) != folder.manifest.dataset:
        raise StorageError(f"{folder.path / 'dataset.leaves'} is damaged", hint="restore it from a copy")
    return frames, dataset, folder.dataset_contents()


def load_parent(folder: RunFolder) -> Parent | None:
    """The run that this one starts from, with a verdict on the head that the manifest names; None if it names none.

    Raises:
        StorageError: what is kept of it is not there, or not that.
    """
    named = folder.manifest.parent
    if named is None:
        return None
    kept = folder.parent.read()
    wrong = parent_fault(named, kept)
    if wrong is not None:
        raise StorageError(f"{folder.path / 'parent'} is damaged: {wrong}", hint="restore it from a copy")
    return Parent(claim=kept.claim, state=kept.state)


def parent_fault(named: tuple[bytes, bytes], parent: StoredParent) -> str | None:
    """What keeps this from being the run and head (32 bytes each) named, with a verdict on it and its last state."""
    statement = parent.claim.head.statement
    try:
        receipt = decode(parent.claim.receipt, Receipt)
        verify_receipt(receipt)
    except (EncodingError, SignatureInvalid) as error:
        return f"the verdict on it is none: {error}"
    if named != (statement.run, statement.head):
        return f"the head is head {statement.sequence} of run {statement.run.hex()}"
    if (receipt.verdict.run, receipt.verdict.commitment) != (statement.run, parent.claim.head.commitment):
        return "the verdict is on another head"
    if hashes.state_digest(parent.state) != statement.state:
        return "the state is not the one that the head commits to"
    return None


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
    """Leaf 0 of the run's transcript; `state` is the digest of W_0. The run is registered, or post hoc."""
    registration, manifest = (None if is_post_hoc(folder) else require_registration(folder)), folder.manifest
    where = registration or folder.place
    return GenesisRecord(
        run=registration.registered.run if registration else None,
        manifest=digest(manifest),
        beacon_block=registration.beacon_block if registration else None,
        beacon=registration.beacon if registration else None,
        state=state,
        chain_id=where.chain_id,
        contract=where.contract,
        account=manifest.account,
        prover=manifest.prover,
    )


def committed_state(step: int, frame: bytes) -> bytes:
    """The digest of the state after `step` that a frame of the journal holds."""
    return decode(frame, StepRecord).state if step else decode(frame, GenesisRecord).state


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


def _require_registered(folder: RunFolder, registration: Registration | None) -> None:
    """Manifest and secret are those that the registration commits to, and it is this run's."""
    if registration is None:
        return      # of a post hoc run nothing has been committed to yet
    blinding = derive(folder.secret, "blinding/manifest")
    if hashes.manifest_commitment(blinding, folder.manifest) != registration.registered.manifest:
        raise StorageError(
            f"manifest, secret and registration in {folder.path} do not belong together: one of them is damaged",
            hint="restore them from a copy",
        )
    event = registration.registered
    due = hashes.run_id(registration.chain_id, registration.contract, folder.manifest.account, event.nonce)
    post_hoc = is_post_hoc(folder)
    number = None if post_hoc else event.position.block + hashes.DELAY
    place = folder.place if post_hoc else registration
    where = (registration.chain_id, registration.contract) == (place.chain_id, place.contract)
    found = (event.run, event.account, registration.beacon_block)
    if not where or found != (due, folder.manifest.account, number):
        raise StorageError(f"{folder.path / 'registration'} is damaged: not of this run", hint="restore it from a copy")


def _require_genesis(folder: RunFolder, genesis: GenesisRecord) -> None:
    """The journal begins with the run's own genesis record."""
    if genesis != genesis_record(folder, genesis.state):
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
