"""How a run stands, and whether its folder still holds what was committed to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from polcommit import transcript as hashes
from polcommit.encoding import digest
from polcommit.errors import MissingExtra, PolcommitError
from polcommit.records import SampleLeaf
from polcommit.session.run import check_run, committed_state, is_post_hoc, load_parent, load_run
from polcommit.signing import verify_receipt
from polcommit.storage.audit import confirm_root
from polcommit.storage.journal import read_frames, scan
from polcommit.storage.parents import continued
from polcommit.storage.runfolder import RunFolder

Progress = Callable[[int, int], None]


def summary(folder: RunFolder) -> dict[str, Any]:
    """What the folder says of itself, without checking it."""
    manifest, registration = folder.manifest, folder.registration
    steps = max(0, len(scan(folder.journal_path).offsets) - 1)
    anchored = [n for n in folder.anchors.sequences() if folder.anchors.anchored(n) is not None]
    covered = folder.anchors.head(anchored[-1]).statement.steps if anchored else 0
    post_hoc, parent = is_post_hoc(folder), manifest.parent
    return {
        "run": registration.registered.run.hex() if registration is not None else None,
        "registered": registration is not None and not post_hoc,
        "post hoc": post_hoc,
        "parent": parent[0].hex() if parent is not None else None,
        "recipe": manifest.recipe,
        "samples": manifest.dataset.size,
        "steps": steps,
        "planned": manifest.steps,
        "anchored heads": len(anchored),
        "anchored steps": covered,
        "kept states": len(folder.states.steps()),
        "self-checks done": len(folder.checks.done()),
        "self-checks waiting": len(folder.checks.pending()),
        "challenges answered": len(folder.disclosed()),
        "verdicts": {str(r.verdict.challenge_id): r.verdict.verdict for r in folder.receipts()},
    }


def damage(folder: RunFolder, progress: Progress | None = None) -> Iterator[str]:
    """Everything that is wrong with the folder, in words: each file is read and compared with what commits to it."""
    checks: list[tuple[str, Callable[[], None]]] = [
        ("run", lambda: _check_run(folder)),
        ("samples", lambda: _check_samples(folder)),
        ("anchors", lambda: _check_anchors(folder)),
        ("receipts", lambda: _check_receipts(folder)),
        ("parent", lambda: _check_parent(folder)),
        ("kept states", lambda: _check_kept(folder)),
        *((f"state {step}", _state_check(folder, step)) for step in folder.states.steps()),
    ]
    for position, (what, check) in enumerate(checks):
        if progress is not None:
            progress(position, len(checks))
        try:
            check()
        except MissingExtra:
            raise
        except (PolcommitError, ValueError) as error:
            yield f"{what}: {error}"


def _check_run(folder: RunFolder) -> None:
    check_run(folder)
    settings, manifest = folder.settings, folder.manifest
    configuration = hashes.configuration_digest(settings.configuration)
    if settings.recipe != manifest.recipe or configuration != manifest.configuration:
        raise PolcommitError("settings.json does not hold the registered recipe and configuration")


def _check_kept(folder: RunFolder) -> None:
    """Every state that an opening may need, and cannot do without, is there."""
    last = len(scan(folder.journal_path).offsets) - 1
    heads = (head.statement.steps for head in folder.anchors.heads())
    due = {*range(0, last + 1, folder.manifest.keep), *heads}
    missing = sorted(due - {*folder.states.steps()})
    if missing:
        raise PolcommitError(f"those after steps {', '.join(map(str, missing[:20]))} are missing")


def _check_samples(folder: RunFolder) -> None:
    """What is kept of each sample's content is what its leaf commits to."""
    for index, ((content, length), leaf) in enumerate(
        zip(folder.dataset_contents(), folder.dataset_leaves(), strict=True)
    ):
        sample = SampleLeaf(index=index, length=length, content=content)
        if hashes.sample_leaf(hashes.sample_salt(folder.secret, index), sample) != leaf:
            raise PolcommitError(f"dataset.contents or dataset.leaves is damaged at sample {index}")


def _check_receipts(folder: RunFolder) -> None:
    for receipt in folder.receipts():
        try:
            verify_receipt(receipt)
        except PolcommitError as error:
            raise PolcommitError(f"of challenge {receipt.verdict.challenge_id}: {error.message}") from error


def _check_parent(folder: RunFolder) -> None:
    """What this run takes over from its parent is there, and is what that run's head commits to."""
    parent = load_parent(folder)
    for entry in continued(parent.state) if parent is not None else ():
        folder.tensors.get(entry)


def _check_anchors(folder: RunFolder) -> None:
    if folder.registration is None and is_post_hoc(folder):
        return          # there are none yet
    run = load_run(folder)
    for head in run.heads:
        statement = head.statement
        if statement.size > len(run.transcript) or run.transcript.head(statement.size).root != statement.root:
            raise PolcommitError(f"the journal is not the one that head {statement.sequence} was anchored for")
        confirm_root(run.transcript.leaf_data(statement.size), statement.root)
        covered = tuple((first, digest(found)) for first, found in run.environments if first <= statement.steps)
        if covered != tuple(pair for pair in statement.environments if pair[0] <= statement.steps):
            raise PolcommitError(f"the environments are not the ones that head {statement.sequence} was anchored for")


def _state_check(folder: RunFolder, step: int) -> Callable[[], None]:
    def check() -> None:
        folder.states.check(step)
        frame = next(read_frames(folder.journal_path, step, step + 1), None)
        if frame is None:
            return          # written before its leaf, when recording was interrupted
        if hashes.state_digest(folder.states.get(step)) != committed_state(step, frame):
            raise PolcommitError("not the state that was committed")

    return check
