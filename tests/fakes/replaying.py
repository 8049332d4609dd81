"""Re-execution of that training, as honest as the verifier's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fakes.chain import named
from fakes.training import (
    ALIASES,
    ENVIRONMENT,
    SHAPES,
    SOURCE,
    Outcome,
    State,
    cosine,
    execute,
    floats,
    initial_state,
    learning_rate,
    minus,
    norm,
    sketch,
    values_of,
)
from polcommit import transcript as hashes
from polcommit.encoding import unpack
from polcommit.errors import Refuted
from polcommit.records import (
    Fingerprint,
    StateIndex,
    StepRecord,
)
from polcommit.replaying import Measured, Rates, ReplayedStep, ReplayJob, ReplayReport, TensorDistance, TensorOrigin
from polcommit.storage.blobs import BlobFolder


class HonestReplayer:
    """Re-executes for real, from the blobs in the folder; implements `polcommit.replaying.Replayer`."""

    def __init__(
        self,
        environment: Fingerprint = ENVIRONMENT,
        *,
        source: bytes = SOURCE,
        reproduces: bool = True,
        seen: Mapping[str, Any] | None = None,
        **told: Any,
    ) -> None:
        """`seen` replaces fields of every comparison in gradient space, `told` fields of the report."""
        self.environment = environment
        self.source = source
        self.reproduces = reproduces
        self.seen = seen or {}
        self.told = told
        self.executions = 0

    def replay(
        self, job: ReplayJob, blobs: Path, progress: Callable[[int, int], None] | None = None
    ) -> ReplayReport:
        report = ReplayReport(
            environment=self.environment,
            recipe_source=self.source,
            initial=initial_state(job.seed).digest(),
            steps=(),
            sketches=(),
            kept_rates=tuple(map(learning_rate, job.kept)),
            refuted=None,
            flops=1000,
            residuals=(),
            rates=tuple(
                Rates(steps=len(rates), total=math.fsum(rates), squares=math.fsum(rate * rate for rate in rates))
                for first, after in pairwise((*job.epochs, job.last + 1))
                for rates in [[learning_rate(step) for step in range(first, after)]]
            ),
            span=1.0,
            origin=None,
            initial_index=initial_state(job.seed).index(),
        )
        try:
            return replace(self._replayed(job, BlobFolder(blobs), report), **self.told)
        except Refuted as error:
            return replace(report, refuted=(error.check, error.what, error.at, error.expected, error.found))

    def _replayed(self, job: ReplayJob, blobs: BlobFolder, report: ReplayReport) -> ReplayReport:
        def fetch(content: bytes) -> bytes:
            return blobs.path(content).read_bytes()

        states = {state.step: state.index for state in job.states}
        for step, index in states.items():
            self._require_schema(step, index)
        sketches = tuple((step, sketch(states[step], fetch, job.sketch_seed)) for step in job.sketched)
        opened = {sample.index: sample.leaf.content for sample in job.opened}
        steps = []
        for record, indices in zip(job.steps, job.samples, strict=True):
            batch = [fetch(opened[index]) for index in indices]
            before = self._restored(states[record.step - 1], fetch)
            steps.append(self._step(job, record, before, batch, fetch))
        last = values_of(fetch(weight_of(states[job.last])))
        first = fetch(weight_of(states[0])) if 0 in states else initial_state(job.seed).tensors["parameter/weight"]
        return replace(
            report,
            steps=tuple(steps),
            sketches=sketches,
            residuals=self._residuals(job, fetch),
            span=norm(minus(last, values_of(first))),
            origin=self._origin(job, states[0], fetch) if job.origin_seed is not None else None,
        )

    def _origin(self, job: ReplayJob, opened: StateIndex, fetch: Callable[[bytes], bytes]) -> tuple[TensorOrigin, ...]:
        """The weights' distribution is anything up to 8 in magnitude; all else is as the seed has it."""
        own = {entry.name: entry for entry in initial_state(job.seed).index().tensors}
        found = []
        for entry in opened.tensors:
            drawn = entry.kind == "parameter"
            near = drawn and all(abs(value) <= 8 for value in values_of(fetch(entry.content)))
            found.append(
                TensorOrigin(
                    name=entry.name,
                    size=6,
                    statistic=0.0 if near else 1.0,
                    probability=0.5 if near else 0.0,
                    constant=not drawn,
                    equal=entry == own[entry.name],
                )
            )
        same = opened.scalars == initial_state(job.seed).index().scalars
        found.append(TensorOrigin(name="scalars", size=0, statistic=0.0, probability=1.0, constant=True, equal=same))
        return tuple(found)

    @staticmethod
    def _require_schema(step: int, index: StateIndex) -> None:
        found = {entry.name: (entry.kind, entry.shape) for entry in index.tensors}
        if found != SHAPES or index.scalars.aliases != ALIASES:
            raise Refuted("V8", "schema of the recipe", at=step, expected=sorted(SHAPES), found=sorted(found))

    @staticmethod
    def _restored(index: StateIndex, fetch: Callable[[bytes], bytes]) -> State:
        counter = dict(decode_scalars(index.scalars.values))["counter"]
        return State({entry.name: fetch(entry.content) for entry in index.tensors}, counter)

    def _step(
        self, job: ReplayJob, record: StepRecord, before: State, batch: list[bytes], fetch: Callable[[bytes], bytes]
    ) -> ReplayedStep:
        outcome = self._execute(before, record.step, batch, job.seed)
        same = outcome.state.digest() == record.state and outcome.batch == record.batch
        again = None if same else self._execute(before, record.step, batch, job.seed).state.digest()
        measured = self._measure(job, record, before, batch, fetch) if job.gradients is not None else None
        return ReplayedStep(
            step=record.step,
            batch=outcome.batch,
            state=outcome.state.digest(),
            again=again,
            loss=outcome.loss,
            learning_rate=outcome.learning_rate,
            clipped=outcome.clipped,
            skipped=outcome.skipped,
            measured=measured,
            contribution=None,
        )

    def _measure(
        self, job: ReplayJob, record: StepRecord, before: State, batch: list[bytes], fetch: Callable[[bytes], bytes]
    ) -> Measured:
        """The opened gradient against this environment's; and what is to follow from it, against the next state."""
        opened, after = self._followed(job, record.step, fetch)
        own = execute(before, record.step, batch, job.seed, self.environment)
        led = execute(before, record.step, batch, job.seed, self.environment, opened)
        there, here = values_of(opened), values_of(own.gradient)
        residual = minus(there, here)
        last = next(state.index for state in job.states if state.step == job.last)
        way = minus(values_of(before.tensors["parameter/weight"]), values_of(fetch(weight_of(last))))
        found = TensorDistance(
            name="weight",
            distance=norm(residual),
            opened=norm(there),
            here=norm(here),
            size=6,
            zeros=sum((x == 0) != (y == 0) for x, y in zip(there, here, strict=True)),
        )
        measured = Measured(
            finite=(all(map(math.isfinite, there)), True),
            missing=(),
            distance=found.distance,
            opened=found.opened,
            here=found.here,
            preconditioned=None,
            tensors=(found,),
            buffers=(),
            update=("", 0.0),
            exact=None if led.state.digest() == hashes.state_digest(after) else "tensor parameter/weight",
            exact_only=None,
            towards=cosine(residual, way),
            stride=own.learning_rate * norm(there),
            rounding=0.0,
            loss=own.loss,
            learning_rate=own.learning_rate,
            clipped=own.clipped,
            skipped=own.skipped,
        )
        return replace(measured, **self.seen)

    @staticmethod
    def _followed(job: ReplayJob, step: int, fetch: Callable[[bytes], bytes]) -> tuple[bytes, StateIndex]:
        assert job.gradients is not None and job.next_states is not None
        gradient = next(gradient for gradient in job.gradients if gradient.step == step)
        if [(entry.name, entry.shape) for entry in gradient.tensors] != [("gradient/weight", (2, 3))]:
            raise Refuted("V8", "gradient", at=step, expected="of the weight", found=len(gradient.tensors))
        after = next(state.index for state in job.next_states if state.step == step)
        return fetch(gradient.tensors[0].content), after

    def _residuals(self, job: ReplayJob, fetch: Callable[[bytes], bytes]) -> tuple[float, ...]:
        """As honest noise has them: nothing in common."""
        count = len(job.gradients or ())
        return (0.0,) * (count * (count - 1) // 2)

    def _execute(self, before: State, step: int, batch: list[bytes], seed: bytes) -> Outcome:
        outcome = execute(before, step, batch, seed, self.environment)
        self.executions += 1
        if not self.reproduces:
            noise = floats(named("noise", self.executions), 6)
            outcome = replace(outcome, state=State({**outcome.state.tensors, "parameter/weight": noise}, step))
        return outcome


def weight_of(index: StateIndex) -> bytes:
    """Content of the weight."""
    return next(entry.content for entry in index.tensors if entry.name == "parameter/weight")


def decode_scalars(values: bytes) -> tuple[tuple[str, int], ...]:
    decoded: tuple[tuple[str, int], ...] = unpack(values)
    return decoded
