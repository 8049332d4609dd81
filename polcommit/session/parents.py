"""The run that another one starts from: its last head, a verdict on that, and its final state (spec §4.1).

Taken from the parent's own folder, or from an evidence bundle: one that holds states in clear has all of it, and for
another the index of the final state and the model are given beside it. Everything is compared with what the head
commits to, so that a run which could not show its parent is not begun.

Whether a reader trusts the verifier who signed is that reader's policy's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polcommit.encoding import decode, encode
from polcommit.errors import Refuted, StorageError, UsageError
from polcommit.events import ChainIdentity
from polcommit.records import ParentClaim, Receipt, RevealedHead, StateIndex, TensorEntry
from polcommit.session import bundle
from polcommit.session.initial import read_tensors
from polcommit.session.run import load_run, parent_fault
from polcommit.storage import stored
from polcommit.storage.blobs import BlobFolder
from polcommit.storage.files import Buffer
from polcommit.storage.parents import continued
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.tensors import tensor_size
from polcommit.storage.types import StoredParent
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.tree import raw_bytes, tensor_content

Fetch = Callable[[TensorEntry], Buffer]


@dataclass(frozen=True, slots=True)
class FoundParent:
    """A run to start from, and who has the bytes of its final parameters and buffers."""

    stored: StoredParent
    fetch: Fetch

    @property
    def named(self) -> tuple[bytes, bytes]:
        """What a child's manifest says of it: run and head digest."""
        statement = self.stored.claim.head.statement
        return statement.run, statement.head


def find_parent(path: Path, work: Path, *, state: Path | None = None, model: Path | None = None) -> FoundParent:
    """The parent in a run folder or an evidence bundle; bulky things go through the folder `work`, which must last.

    `state` (an index, as it is kept under states/) and `model` (a safetensors file) are for a bundle that holds no
    states in clear.

    Raises:
        UsageError: it has no anchored head, no accepted verdict on the last one, or a bundle lacks the final state.
        StorageError: it is neither, or damaged.
    """
    if path.is_dir():
        if state is not None or model is not None:
            hint = "leave --parent-state and --parent-model out"
            raise UsageError("a parent's folder holds its final state", hint=hint)
        return _in_folder(path)
    return _in_bundle(path, work, state, model)


def require_continuable(parent: FoundParent, recipe: Recipe, chain: ChainIdentity) -> None:
    """Raises UsageError unless the parent is on this chain, and its final state fits the recipe's model."""
    verdict = decode(parent.stored.claim.receipt, Receipt).verdict
    if (verdict.chain_id, verdict.genesis, verdict.contract) != (chain.chain_id, chain.genesis, chain.contract):
        raise UsageError(
            f"the parent is on chain {verdict.chain_id}, in contract 0x{verdict.contract.hex()}, and not on this one",
            hint="a run and its parent are on one chain, in one contract: choose it with --policy",
        )
    fresh = Engine(recipe, bytes(32)).initial().index
    here = {entry.name: (entry.dtype, entry.shape) for entry in continued(fresh)}
    there = {entry.name: (entry.dtype, entry.shape) for entry in continued(parent.stored.state)}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise UsageError(
                f"{name} of the parent's final state is {_form(there.get(name))}, of the recipe's model "
                f"{_form(here.get(name))}",
                hint="a run continues one whose model has the same tensors",
            )
    if fresh.scalars.aliases != parent.stored.state.scalars.aliases:
        raise UsageError("the parent's model ties other tensors than the recipe's")


def _form(form: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{form[0]} {form[1]}" if form is not None else "not there"


def _in_folder(path: Path) -> FoundParent:
    folder = RunFolder.open(path)
    run = load_run(folder)
    if not run.heads:
        raise UsageError(f"the parent in {path} has no anchored head", hint="anchor it, and have it challenged")
    head = run.heads[-1]
    receipts = [receipt for receipt in folder.receipts() if receipt.verdict.commitment == head.commitment]
    accepted = [receipt for receipt in receipts if receipt.verdict.verdict == "accepted"]
    if not accepted:
        found = f"'{receipts[-1].verdict.verdict}'" if receipts else "none"
        raise UsageError(
            f"the last head of the parent in {path} has no accepted verdict: {found}",
            hint="have it challenged; a run is accepted only where its parent was",
        )
    best = max(accepted, key=lambda receipt: receipt.verdict.basis == "bit-exact")
    return _checked(path, head, best, folder.states.get(head.statement.steps), folder.tensors.get)


def _in_bundle(path: Path, work: Path, state: Path | None, model: Path | None) -> FoundParent:
    try:
        found = bundle.read(path)
    except Refuted as error:
        raise StorageError(f"{path} is damaged: {error}", hint="have it sent again") from error
    evidence = found.evidence
    verdict = evidence.receipt.verdict
    if verdict.verdict != "accepted" or evidence.disclosure is None:
        raise UsageError(
            f"the verdict in {path} is '{verdict.verdict}'", hint="a run is accepted only where its parent was"
        )
    head = evidence.disclosure.heads[-1]
    if evidence.openings is None:
        if state is None or model is None:
            raise UsageError(
                f"{path} holds no states in clear",
                hint="give the parent's folder, or its last state with --parent-state and --parent-model",
            )
        index = stored.read_record(state, StateIndex)
        return _checked(path, head, evidence.receipt, index, _from_model(model))
    opened = [opened.index for opened in evidence.openings.states if opened.step == head.statement.steps]
    if not opened:
        raise UsageError(f"{path} does not hold the parent's final state", hint="give the parent's folder")
    try:
        found.extract(work)
    except Refuted as error:
        raise StorageError(f"{path} is damaged: {error}", hint="have it sent again") from error
    blobs = BlobFolder(work)
    return _checked(
        path, head, evidence.receipt, opened[0], lambda entry: blobs.get(entry.content, tensor_size(entry))
    )


def _from_model(path: Path) -> Fetch:
    """The bytes of parameters and buffers, from a safetensors file that holds them under the model's names."""
    tensors = read_tensors(path)

    def fetch(entry: TensorEntry) -> Buffer:
        tensor = tensors.get(entry.name.partition("/")[2])
        if tensor is None or tensor_content(tensor) != entry.content:
            what = "does not hold" if tensor is None else "is not the parent's final model: it has another"
            raise UsageError(f"{path} {what} {entry.name}", hint="give the model with all its buffers")
        return raw_bytes(tensor)

    return fetch


def _checked(path: Path, head: RevealedHead, receipt: Receipt, state: StateIndex, fetch: Fetch) -> FoundParent:
    kept = StoredParent(claim=ParentClaim(head=head, receipt=encode(receipt)), state=state)
    wrong = parent_fault((head.statement.run, head.statement.head), kept)
    if wrong is not None:
        raise StorageError(f"the parent in {path} is damaged: {wrong}", hint="restore it from a copy")
    return FoundParent(kept, fetch)
