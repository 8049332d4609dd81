"""V8 to V10 and V13, one comparison each: what was opened or re-executed against what is committed (spec §6.1).

Pure functions; the order in which they are applied, and what a contradiction leads to, is `verifier`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polcommit import transcript as hashes
from polcommit.draws import Drawn, Screened
from polcommit.errors import Refuted, Unavailable
from polcommit.established import Established, pack_float
from polcommit.origins import check_parent
from polcommit.records import Disclosure, Flag, Openings, StepRecord, TensorEntry
from polcommit.replaying import ReplayedStep, ReplayJob, ReplayReport

LEAST_CONTRIBUTIONS = 8     # steps whose contributions are looked at; those of fewer say nothing


@dataclass(frozen=True, slots=True)
class ReleasedModel:
    """A model file to compare with the last state (V13)."""

    digest: bytes                                           # of the file
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]   # name -> dtype, shape, BLAKE3 of the raw bytes


def check_states(known: Established, openings: Openings) -> None:
    """V8, digests: the opened states are the ones that are due, and each is the one its leaf commits to."""
    configuration = hashes.configuration_digest(openings.configuration)
    if configuration != known.manifest.configuration:
        raise Refuted("V5", "configuration", expected=known.manifest.configuration, found=configuration)
    stated = dict(openings.configuration)
    for name in ("steps", "batch", "accumulation"):
        if stated.get(name) != str(getattr(known.manifest, name)):
            raise Refuted("V5", f"'{name}'", expected=getattr(known.manifest, name), found=stated.get(name))
    due = list(known.draw.opened)
    shown = [state.step for state in openings.states]
    if shown != due:
        raise Refuted("V8", "opened states", expected=due[:20], found=shown[:20])
    for state in openings.states:
        found = hashes.state_digest(state.index)
        if found != known.state(state.step):
            raise Refuted("V8", "opened state", at=state.step, expected=known.state(state.step), found=found)
    _check_follow_up(known, openings)
    check_parent(known, openings)


def _check_follow_up(known: Established, openings: Openings) -> None:
    """Gradients and next states are there if and only if they were asked for; the states are the committed ones."""
    asked, steps = known.challenge.gradients, list(known.draw.challenged)
    if (openings.gradients is not None, openings.next_states is not None) != (asked, asked):
        raise Refuted("V1", "gradients in an opening", expected="some" if asked else "none", found="otherwise")
    if openings.gradients is None or openings.next_states is None:
        return
    for what, shown in (
        ("gradients", [gradient.step for gradient in openings.gradients]),
        ("next states", [state.step for state in openings.next_states]),
    ):
        if shown != steps:
            raise Refuted("V8", what, expected=steps[:20], found=shown[:20])
    for state in openings.next_states:
        found = hashes.state_digest(state.index)
        if found != known.state(state.step):
            raise Refuted("V8", "state after the step", at=state.step, expected=known.state(state.step), found=found)


def check_added(known: Established, openings: Openings) -> tuple[Drawn, tuple[Flag, ...]]:
    """V11: the draw with all that the sketches add to it, and what the screens flag.

    A flag refutes nothing. Leaving out a step that it adds does: it is a step that was challenged and not opened.
    """
    assert known.records is not None
    sketches = {sketch.step: sketch.values for sketch in openings.sketches}
    kept, shown = known.draw.kept, tuple(sketch.step for sketch in openings.sketches)
    if not set(kept) <= set(shown) or list(shown) != sorted(sketches):
        raise Refuted("V8", "sketches", expected=f"{len(kept)} kept states, rising", found=f"{len(shown)} states")
    screened = Screened(
        known.challenge.request,
        known.manifest,
        seed=known.draw.seed,
        last=known.statement.steps,
        records=known.records,
        sketches={step: sketches[step] for step in kept},
    )
    due = tuple(sorted({*kept, *screened.fine}))
    if shown != due:
        raise Refuted("V8", "sketches", expected=f"{len(due)} states, {len(screened.fine)} not kept", found=len(shown))
    drawn = known.draw.with_added(screened.over(known.draw.steps, sketches))
    if drawn.added != known.draw.added:
        raise Refuted("V11", "steps that the sketches add", expected=drawn.added[:20], found=known.draw.added[:20])
    return drawn, screened.flags


def flagged_contributions(steps: Sequence[ReplayedStep]) -> tuple[Flag, ...]:
    """V11: whether the re-executed steps lower the loss, and more so on the batch that each says it comes from.

    'contribution' flags a share of steps, at most a half, that lower it on their own batch; 'batch' one that lower it
    more there than on another. With fewer than `LEAST_CONTRIBUTIONS` steps nothing is said.
    """
    scores = [step.contribution for step in steps if step.contribution is not None]
    if len(scores) < LEAST_CONTRIBUTIONS:
        return ()
    first, last = min(step.step for step in steps), max(step.step for step in steps)
    helped = sum(1 for own, _ in scores if own > 0) / len(scores)
    own_more = sum(1 for own, other in scores if own > other) / len(scores)
    return tuple(
        Flag(screen=screen, first=first, last=last, value=share, bound=0.5)
        for screen, share in (("contribution", helped), ("batch", own_more))
        if not share > 0.5
    )


def check_samples(known: Established, openings: Openings) -> None:
    """V9, digests: the opened samples are the ones whose leaf hashes the data set and the order demand."""
    assert known.samples is not None
    shown = [sample.index for sample in openings.samples]
    if shown != list(known.samples):
        raise Refuted("V9", "opened samples", expected=list(known.samples)[:20], found=shown[:20])
    for sample in openings.samples:
        if sample.leaf.index != sample.index:
            raise Refuted("V9", "index of a sample", expected=sample.index, found=sample.leaf.index)
        found = hashes.sample_leaf(sample.salt, sample.leaf)
        if found != known.samples[sample.index]:
            raise Refuted("V9", f"sample {sample.index}", expected=known.samples[sample.index], found=found)


def replay_job(known: Established, disclosure: Disclosure, openings: Openings) -> ReplayJob:
    """What to re-execute: the challenged steps, from the states before them."""
    assert known.records is not None
    return ReplayJob(
        recipe=known.manifest.recipe,
        configuration=openings.configuration,
        claimed=disclosure.environments[known.records[known.draw.challenged[-1]].environment],
        seed=known.seed,
        sketch_seed=hashes.sketch_seed(known.draw.seed),
        steps=tuple(known.records[step] for step in known.draw.reexecuted),
        samples=tuple(known.batch(step) for step in known.draw.reexecuted),
        states=openings.states,
        sketched=known.draw.checked,
        kept=_after_steps(known.draw.kept),
        opened=openings.samples,
        last=known.statement.steps,
        epochs=tuple(first for first, _ in known.statement.environments),
        gradients=openings.gradients,
        next_states=openings.next_states,
        origin_seed=hashes.origin_seed(known.draw.seed) if not known.manifest.from_beacon else None,
    )


def check_report(known: Established, openings: Openings, report: ReplayReport) -> None:
    """V7: kept steps have the recipe's learning rates. V8: its schema, and the sketches of the opened states."""
    if report.refuted is not None:
        check, what, step, expected, found = report.refuted
        raise Refuted(check, what, at=step, expected=expected, found=found)
    if tuple(step.step for step in report.steps) != known.draw.reexecuted:
        raise Unavailable("the re-execution did not report every step", hint="run it again")
    if tuple(step for step, _ in report.sketches) != known.draw.checked:
        raise Unavailable("the re-execution did not report every sketch", hint="run it again")
    check_kept_rates(known, report)
    check_sketches(openings, report)


def _after_steps(kept: Sequence[int]) -> tuple[int, ...]:
    """Of the steps of kept states those that have a record of a step."""
    return tuple(step for step in kept if step)


def check_kept_rates(known: Established, report: ReplayReport) -> None:
    """V7, of the steps whose records the screens look at: displacements count as ordinary by their learning rates.

    The schedule that is registered does not do: it is the prover's own, and which states are kept is known before.
    """
    assert known.records is not None
    steps = _after_steps(known.draw.kept)
    if len(report.kept_rates) != len(steps):
        raise Unavailable("the re-execution did not report every learning rate", hint="run it again")
    for step, rate in zip(steps, report.kept_rates, strict=True):
        found = known.records[step].learning_rate
        if pack_float(found) != pack_float(rate):
            raise Refuted("V7", "learning rate of a kept step", at=step, expected=rate, found=found)


def check_sketches(openings: Openings, report: ReplayReport) -> None:
    """V8: the sketches that were recomputed are those that the prover gave; exact in every environment."""
    given = {sketch.step: sketch.values for sketch in openings.sketches}
    for step, values in report.sketches:
        if tuple(map(pack_float, values)) != tuple(map(pack_float, given[step])):
            raise Refuted("V8", "sketch", at=step, expected=values[:3], found=given[step][:3])


def differences(record: StepRecord, replayed: ReplayedStep) -> list[tuple[str, str, object, object]]:
    """Where a re-executed step differs from what was committed: (check, what, committed, re-executed)."""
    pairs = (
        ("V9", "batch as fed to the model", record.batch, replayed.batch),
        ("V10", "learning rate as applied", pack_float(record.learning_rate), pack_float(replayed.learning_rate)),
        ("V10", "loss", pack_float(record.loss), pack_float(replayed.loss)),
        ("V10", "whether clipped", record.clipped, replayed.clipped),
        ("V10", "whether skipped", record.skipped, replayed.skipped),
        ("V10", "state after the step", record.state, replayed.state),
    )
    return [pair for pair in pairs if pair[2] != pair[3]]


def compare_model(model: ReleasedModel, tensors: tuple[TensorEntry, ...], aliases: Mapping[str, str]) -> None:
    """V13: every tensor of the file is the last state's, and no parameter is missing. Raises Refuted."""
    entries = {entry.name: entry for entry in tensors if entry.kind in ("parameter", "buffer")}
    entries |= {alias: entries[target] for alias, target in aliases.items() if target in entries}
    by_name = {name.split("/", 1)[1]: entry for name, entry in entries.items()}
    for name, found in model.tensors.items():
        entry = by_name.get(name)
        if entry is None:
            raise Refuted("V13", f"tensor {name} of the released model", expected="none of that name", found="one")
        if (entry.dtype, entry.shape, entry.content) != found:
            raise Refuted("V13", f"tensor {name} of the released model", expected=entry.content, found=found[2])
    shown = {id(by_name[name]) for name in model.tensors}
    missing = [name for name, entry in by_name.items() if entry.kind == "parameter" and id(entry) not in shown]
    if missing:
        raise Refuted("V13", f"tensor {missing[0]} of the released model", expected="one", found="none")
