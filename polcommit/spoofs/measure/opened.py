"""Steps recorded and opened in memory, honest or bent, and compared as a verifier compares them.

The training, the comparison and the judgement are polcommit's own; what is left out is everything around them: a
ledger, a tree of leaves, files. So what is said here is about steps, and not about a run that anybody committed to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from polcommit.records import Gradient, StateIndex, StepRecord, TensorEntry
from polcommit.replaying import Measured
from polcommit.spoofs.base import Stage
from polcommit.spoofs.cost import Meter
from polcommit.training.loading import FetchedBatch, Loader
from polcommit.training.measure import OpenedStep, measure
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.state import Captured
from polcommit.training.step import StepResult, gradient_entries, gradients
from polcommit.training.tree import raw_bytes
from polcommit.transcript import state_digest

Bend = Callable[[Engine, FetchedBatch], None]       # changes what lies in `.grad`


@dataclass(slots=True, eq=False)
class Memory:
    """Contents by digest."""

    held: dict[bytes, bytes] = field(default_factory=dict)

    def keep(self, captured: Captured) -> StateIndex:
        """Copy a state."""
        for entry in captured.index.tensors:
            self.held.setdefault(entry.content, bytes(captured.content(entry)))
        return captured.index

    def keep_gradient(self, step: int, engine: Engine) -> Gradient:
        """Copy what lies in `.grad`."""
        return self.keep_tensors(step, gradients(engine.state.model))

    def keep_tensors(self, step: int, found: Mapping[str, torch.Tensor]) -> Gradient:
        """Copy a gradient, by name of the parameter."""
        entries = gradient_entries(found)
        for entry, name in zip(entries, sorted(found), strict=True):
            self.held.setdefault(entry.content, bytes(raw_bytes(found[name])))
        return Gradient(step=step, tensors=entries)

    def fetch(self, entry: TensorEntry) -> bytes:
        """The bytes of an entry."""
        return self.held[entry.content]


@dataclass(frozen=True, slots=True)
class Opening:
    """What would be opened of one step."""

    record: StepRecord
    batch: FetchedBatch
    before: StateIndex
    gradient: Gradient
    after: StateIndex


@dataclass(slots=True, eq=False)
class OpenedRun:
    """Some steps of a run, in memory, and its first and last state."""

    recipe: Recipe
    seed: bytes
    memory: Memory
    openings: list[Opening]
    first: StateIndex
    last: StateIndex

    def compare(self, engine: Engine, opening: Opening) -> tuple[Measured, dict[str, torch.Tensor]]:
        """What the verifier's comparison makes of a step, here and now. Raises what `measure` raises."""
        opened = OpenedStep(
            step=opening.record.step,
            before=opening.before,
            gradient=opening.gradient,
            after=opening.after,
            last=self.last,
            fetch=self.memory.fetch,
        )
        return measure(engine, opened, opening.batch)


def open_run(
    recipe: Recipe, seed: bytes, steps: Iterable[int], *, bend: Bend | None = None, batches: Sequence[FetchedBatch] = ()
) -> OpenedRun:
    """Train a run from W_0 to its end, and open these steps. `bend` changes the gradient of each step."""
    engine, memory, wanted = Engine(recipe, seed), Memory(), set(steps)
    first = memory.keep(engine.initial())
    openings = []
    for batch in batches or Loader(recipe, seed, 1, recipe.steps):
        if batch.step in wanted:
            openings.append(open_step(engine, memory, batch, bend))
        else:
            engine.step(batch, between=_between(engine, batch, bend))
    return OpenedRun(recipe, seed, memory, openings, first, memory.keep(engine.capture()))


def open_step(engine: Engine, memory: Memory, batch: FetchedBatch, bend: Bend | None = None) -> Opening:
    """Run a step from the state that the engine holds, and open it."""
    before = memory.keep(engine.capture())
    taken: list[Gradient] = []

    def between() -> None:
        if bend is not None:
            bend(engine, batch)
        taken.append(memory.keep_gradient(batch.step, engine))

    result = engine.step(batch, between=between)
    after = memory.keep(engine.capture())
    return Opening(record_of(batch, result, after), batch, before, taken[0], after)


def record_of(batch: FetchedBatch, result: StepResult, after: StateIndex) -> StepRecord:
    """The step's record, less the samples: there is no tree of them here."""
    return StepRecord(
        step=batch.step,
        samples=bytes(32),
        batch=batch.digest,
        state=state_digest(after),
        loss=result.loss,
        learning_rate=result.learning_rate,
        clipped=result.clipped,
        skipped=result.skipped,
        environment=0,
    )


def _between(engine: Engine, batch: FetchedBatch, bend: Bend | None) -> Callable[[], None] | None:
    return None if bend is None else lambda: bend(engine, batch)


@dataclass(slots=True)
class MemoryStage(Stage):
    """Where a trajectory is submitted to nobody: states and records are kept, to be looked at."""

    memory: Memory = field(default_factory=Memory, kw_only=True)
    states: list[StateIndex] = field(default_factory=list, kw_only=True)        # after steps 0 to T
    records: list[StepRecord] = field(default_factory=list, kw_only=True)       # of steps 1 to T
    fetched: list[FetchedBatch] = field(default_factory=list, kw_only=True)     # likewise

    def batches(self) -> Iterator[FetchedBatch]:
        self.states.append(self.memory.keep(self.engine.capture()))
        yield from Loader(self.recipe, self.engine.seed, 1, self.steps)

    def commit(self, batch: FetchedBatch, result: StepResult) -> None:
        self.states.append(self.memory.keep(self.engine.capture()))
        self.records.append(record_of(batch, result, self.states[-1]))
        self.fetched.append(batch)

    def run(self, opened: Mapping[int, Mapping[str, torch.Tensor]]) -> OpenedRun:
        """All steps, with the gradients that the forger would open (by step and parameter)."""
        openings = []
        for position, (record, batch) in enumerate(zip(self.records, self.fetched, strict=True)):
            gradient = self.memory.keep_tensors(record.step, opened[record.step])
            openings.append(Opening(record, batch, self.states[position], gradient, self.states[position + 1]))
        return OpenedRun(self.recipe, self.engine.seed, self.memory, openings, self.states[0], self.states[-1])


def memory_stage(
    recipe: Recipe, seed: bytes, stolen: Mapping[str, torch.Tensor], *free: str, choices: int = 0
) -> MemoryStage:
    """A stage whose engine is at the seed's W_0; `choices` seeds the forger's own."""
    engine = Engine(recipe, seed)
    engine.initial()
    return MemoryStage(
        recipe=recipe, engine=engine, stolen=stolen, steps=recipe.steps, meter=Meter(), seed=choices,
        free=frozenset(free),
    )  # fmt: skip
