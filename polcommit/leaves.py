"""V7: the opened leaves are the challenged steps, and agree with what was registered (spec §6.1).

Not established here: that the states and samples which the leaves commit to are what training takes and gives.
"""

from __future__ import annotations

from dataclasses import replace

from polcommit import merkle
from polcommit import transcript as hashes
from polcommit.encoding import digest
from polcommit.errors import ProofError, Refuted
from polcommit.established import Established, environment_epoch, opened_record, pack_float
from polcommit.records import Disclosure, StepRecord


def check_leaves(known: Established, disclosure: Disclosure) -> None:
    """V7: each opened leaf is the step it says, and its learning rate and samples are what was registered."""
    size = known.statement.size
    _check_added(known, disclosure)
    wanted = hashes.opened_leaves(known.draw.challenged, known.draw.kept, size)
    found = [leaf.index for leaf in disclosure.leaves]
    if found != wanted:
        raise Refuted("V7", "opened leaves", expected=wanted[:20], found=found[:20])
    known.records = {}
    for leaf in disclosure.leaves[1:]:
        record = opened_record(leaf, StepRecord, "V7")
        if record.step != leaf.index:
            raise Refuted("V7", "step number", at=leaf.index, expected=leaf.index, found=record.step)
        due = environment_epoch(known.statement, record.step)
        if record.environment != due:
            raise Refuted("V7", "environment epoch", at=record.step, expected=due, found=record.environment)
        known.records[record.step] = record
    last = known.records[known.statement.steps]
    if last.state != known.statement.state:
        raise Refuted("V7", "last state", at=last.step, expected=known.statement.state, found=last.state)
    _check_environments(known, disclosure)
    _check_schedule(known, disclosure, known.records)
    _check_samples(known, disclosure, known.records)


def _check_added(known: Established, disclosure: Disclosure) -> None:
    """The added steps are steps of the head, and not drawn ones. Whether they are due is V11's to say."""
    added, last = disclosure.added, known.statement.steps
    if list(added) != sorted({step for step in added if 1 <= step <= last} - set(known.draw.steps)):
        raise Refuted("V7", "added steps", expected=f"rising, from 1 to {last}, not drawn", found=added[:20])
    if not known.draw.steps and not added:
        raise Refuted("V7", "challenged steps", expected="at least one", found=0)
    known.drawn = replace(known.draw, added=added)


def _check_environments(known: Established, disclosure: Disclosure) -> None:
    stated = [fingerprint for _, fingerprint in known.statement.environments]
    shown = [digest(fingerprint) for fingerprint in disclosure.environments]
    if shown != stated:
        raise Refuted("V7", "environment fingerprints", expected=len(stated), found=len(shown))


def _check_schedule(known: Established, disclosure: Disclosure, records: dict[int, StepRecord]) -> None:
    rates = disclosure.learning_rates
    if len(rates) != len(known.draw.challenged):
        raise Refuted("V7", "learning rates", expected=len(known.draw.challenged), found=len(rates))
    leaves = {}
    for step, rate in zip(known.draw.challenged, rates, strict=True):
        leaves[step - 1] = hashes.schedule_leaf(step, rate)
        if pack_float(records[step].learning_rate) != pack_float(rate):
            raise Refuted("V7", "learning rate", at=step, expected=rate, found=records[step].learning_rate)
    schedule = known.manifest.schedule
    try:
        merkle.verify_batch(leaves, schedule.size, disclosure.schedule_proof, schedule.root)
    except ProofError as error:
        what = "learning rates are the registered schedule's"
        raise Refuted("V7", what, expected=schedule.root, found=error) from error


def _check_samples(known: Established, disclosure: Disclosure, records: dict[int, StepRecord]) -> None:
    dataset = disclosure.manifest.dataset
    indices = sorted({index for step in known.draw.challenged for index in known.batch(step)})
    if len(indices) != len(disclosure.sample_hashes):
        raise Refuted("V7", "samples", expected=len(indices), found=len(disclosure.sample_hashes))
    known.samples = dict(zip(indices, disclosure.sample_hashes, strict=True))
    try:
        merkle.verify_batch(known.samples, dataset.size, disclosure.dataset_proof, dataset.root)
    except ProofError as error:
        raise Refuted("V7", "samples are in the registered data set", expected=dataset.root, found=error) from error
    for step in known.draw.challenged:
        due = hashes.samples_digest(known.samples[index] for index in known.batch(step))
        if records[step].samples != due:
            found = records[step].samples
            raise Refuted("V7", "samples that the order demands", at=step, expected=due, found=found)
