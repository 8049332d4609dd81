"""The verifier's side of a re-execution: opened states and samples, fed to the recipe that is installed here.

What was opened may be hostile. A state or gradient is compared with what the recipe itself builds before a byte of it
is used, and its bytes with their digests; whatever the recipe's own code makes of the values is a finding, unless this
machine was not up to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from polcommit.comparisons import LEAST_CONTRIBUTIONS
from polcommit.errors import NotReproducible, PolcommitError, Refuted
from polcommit.records import StateIndex, TensorEntry
from polcommit.replaying import Rates, ReplayedStep, ReplayJob, TensorOrigin
from polcommit.storage.blobs import BlobFolder
from polcommit.training.contribution import contribution, parameters_of
from polcommit.training.loading import FetchedBatch, batch_from_encoded
from polcommit.training.measure import OpenedStep, measure, opened_parameters, span
from polcommit.training.origin import tensor_origins
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.residuals import Residuals
from polcommit.training.sketch import sketch_state
from polcommit.transcript import state_digest

#: What a failure says that is about this machine, and not about what the prover opened.
_OWN_LIMITS = re.compile(r"memory|alloc|no space|thread|cuda error|cublas|cudnn|device-side|interrupted")

Progress = Callable[[int, int], None]

MAX_RATES = 1 << 22     # steps of a run whose schedule is gone through


class Reexecution:
    """The re-execution of a job's steps, and what it saw so far."""

    def __init__(self, job: ReplayJob, blobs: BlobFolder, progress: Progress) -> None:
        self.job, self.blobs, self._progress = job, blobs, progress
        self._states = {state.step: state.index for state in job.states}
        self._contents = {sample.index: sample.leaf.content for sample in job.opened}
        self._batches: dict[int, FetchedBatch] = {}
        self.initial = bytes(32)
        self.initial_index: StateIndex | None = None
        self.steps: list[ReplayedStep] = []
        self.sketches: list[tuple[int, tuple[float, ...]]] = []
        self.refuted: tuple[str, str, int | None, str, str] | None = None
        self.flops: int | None = None
        self.residuals: tuple[float, ...] = ()
        self.rates: tuple[Rates, ...] = ()
        self.kept_rates: tuple[float, ...] = ()
        self.span: float | None = None
        self.origin: tuple[TensorOrigin, ...] | None = None

    def run(self, recipe: Recipe) -> None:
        """Everything. Raises Refuted or EncodingError at the first contradiction in what was opened."""
        job = self.job
        engine = Engine(recipe, job.seed)
        self.initial_index = engine.initial().index
        self.initial = state_digest(self.initial_index)
        for step in job.sketched:
            engine.schema.check(self._state(step, "sketched state"))
            self.sketches.append((step, sketch_state(self._states[step], self._fetch, job.sketch_seed)))
        self.rates = rates_of(recipe, job.epochs, job.last)
        self.kept_rates = tuple(recipe.learning_rate(step) for step in job.kept)
        self._ends(engine, recipe)      # the engine holds W_0 as the recipe makes it
        with Residuals(len(job.steps) if job.gradients is not None else 0) as residuals:
            for position, record in enumerate(job.steps):
                self._progress(position, len(job.steps))
                with _findings(record.step):
                    self.steps.append(self._step(engine, position, residuals))
            self.residuals = residuals.cosines()

    def _ends(self, engine: Engine, recipe: Recipe) -> None:
        """Where the run begins and ends: the distance, and the distribution of W_0."""
        job = self.job
        if job.last in self._states:
            last = self._states[job.last]
            engine.schema.check(last)
            if 0 in self._states:
                engine.schema.check(self._states[0])
                self.span = span(opened_parameters(last, self._fetch), opened_parameters(self._states[0], self._fetch))
            else:       # V12 says that the run begins there
                own = {name: tensor.detach() for name, tensor in engine.capture().tensors.items()}
                self.span = span(opened_parameters(last, self._fetch), own)
        if job.origin_seed is not None:
            first = self._state(0, "state that the run begins with")
            engine.schema.check(first)
            assert self.initial_index is not None
            self.origin = tensor_origins(recipe, first, self._fetch, self.initial_index, job.origin_seed)

    def _step(self, engine: Engine, position: int, residuals: Residuals) -> ReplayedStep:
        """One step from the opened state before it; where it differs from what is committed, once more."""
        record = self.job.steps[position]
        before = self._state(record.step - 1, "state before the step")
        batch = self._batch(engine, position)
        if position == 0:
            self.flops = engine.flops(before, self._fetch, batch)
        result, captured = engine.replay(before, self._fetch, batch)
        state = state_digest(captured.index)
        same = state == record.state and batch.digest == record.batch
        again = None if same else state_digest(engine.replay(before, self._fetch, batch)[1].index)
        measured = None
        if self.job.gradients is not None:
            measured, residual = measure(engine, self._opened(record.step, before), batch)
            residuals.add(engine.state.model, residual)
        return ReplayedStep(
            step=record.step,
            batch=batch.digest,
            state=state,
            again=again,
            loss=result.loss,
            learning_rate=result.learning_rate,
            clipped=result.clipped,
            skipped=result.skipped,
            measured=measured,
            contribution=self._contribution(engine, position, before),
        )

    def _contribution(self, engine: Engine, position: int, before: StateIndex) -> tuple[float, float] | None:
        """What the update, as it is in the engine now, does for its own batch and for the next step's.

        Of the first steps only, which are drawn ones: four passes over a batch each, they would more than double the
        cost of a challenge of many steps.
        """
        count = len(self.job.steps)
        if count < 2 or position >= LEAST_CONTRIBUTIONS:
            return None
        other = self._batch(engine, (position + 1) % count)
        try:
            own = self._batch(engine, position)
            found = contribution(engine, parameters_of(before, self._fetch), own, other)
        except NotReproducible:     # it decides nothing, so it refutes nothing either
            return None
        return found.own, found.other

    # what was opened

    def _state(self, step: int, what: str) -> StateIndex:
        if step not in self._states:
            raise Refuted("V8", what, at=step, expected="an opened state", found="none")
        return self._states[step]

    def _opened(self, step: int, before: StateIndex) -> OpenedStep:
        gradient = next((found for found in self.job.gradients or () if found.step == step), None)
        after = next((found.index for found in self.job.next_states or () if found.step == step), None)
        if gradient is None or after is None:
            raise Refuted("V8", "gradient and next state", at=step, expected="both opened", found="not both")
        return OpenedStep(
            step=step,
            before=before,
            gradient=gradient,
            after=after,
            last=self._state(self.job.last, "last state"),
            fetch=self._fetch,
        )

    def _fetch(self, entry: TensorEntry) -> bytes:
        return self.blobs.path(entry.content).read_bytes()

    def _batch(self, engine: Engine, position: int) -> FetchedBatch:
        """The batch of a step, made once; the last two are held."""
        step = self.job.steps[position].step
        if step not in self._batches:
            with _findings(step):
                encoded = [self.blobs.path(self._contents[i]).read_bytes() for i in self.job.samples[position]]
                made = _made(engine.recipe, self.job.seed, step, encoded, self.job.samples[position])
            self._batches = dict(list(self._batches.items())[-1:]) | {step: made}
        return self._batches[step]


def _made(recipe: Recipe, seed: bytes, step: int, encoded: list[bytes], indices: tuple[int, ...]) -> FetchedBatch:
    try:
        return batch_from_encoded(recipe, seed, step, encoded, indices)
    except PolcommitError:
        raise
    except Exception as error:  # the recipe's own code, on samples that a prover chose
        raise NotReproducible(f"step {step}: its samples do not make a batch: {error!r}"[:500]) from error


@contextmanager
def _findings(step: int) -> Iterator[None]:
    """A recipe that fails on what was opened is a finding about it, unless this machine was not up to the step."""
    try:
        yield
    except NotReproducible as error:
        if _OWN_LIMITS.search(error.message.lower()):
            raise
        found = error.message[:500]
        raise Refuted("V10", "re-execution", at=step, expected="a step that runs", found=found) from error


def rates_of(recipe: Recipe, epochs: Sequence[int], last: int) -> tuple[Rates, ...]:
    """The learning rates of steps 1 to `last`, epoch by epoch; none of a run that is too long to go through."""
    if last > MAX_RATES:
        return ()
    found = []
    for first, after in pairwise((*epochs, last + 1)):
        rates = [recipe.learning_rate(step) for step in range(first, after)]
        squares = math.fsum(rate * rate for rate in rates)
        found.append(Rates(steps=after - first, total=math.fsum(rates), squares=squares))
    return tuple(found)
