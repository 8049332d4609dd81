"""The process that trains honest runs for a calibration, and follows them in another environment.

    reference BLOBS JOB REPORT SETTINGS     train; keep what a challenge of the sampled steps would open
    follow BLOBS JOB REPORT SETTINGS        from kept states, several steps on: how far the weights drift apart

What it measures is this machine and this recipe. The comparison of single steps is not here: the verifier's own
re-execution does that, on what this process keeps.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch

from polcommit.encoding import Record, decode, encode
from polcommit.errors import NotReproducible
from polcommit.records import (
    Fingerprint,
    Gradient,
    OpenedSample,
    OpenedState,
    SampleLeaf,
    StateIndex,
    StepRecord,
    TensorEntry,
)
from polcommit.replaying import ReplayJob, TensorDistance
from polcommit.session.calibrate import (
    DISTANCES,
    MAX_STRESSED,
    STRESS,
    Drift,
    Followed,
    ReferenceJob,
    ReferenceRun,
)
from polcommit.session.environments import EnvironmentSettings
from polcommit.session.fitting import Stressed
from polcommit.session.recipes import local_values
from polcommit.session.worker import reported
from polcommit.training.environment import fingerprint, require_device, set_determinism
from polcommit.training.loading import FetchedBatch, Loader, batch_from_encoded, encoded_sample
from polcommit.training.optimizers import preconditioner
from polcommit.training.recipe import Recipe, Source, load_recipe
from polcommit.training.replay import Engine
from polcommit.training.residuals import norm, root
from polcommit.training.state import Captured
from polcommit.training.step import GRADIENT, StepResult, gradient_entries, gradients, named_parameters
from polcommit.training.tree import raw_bytes, sample_content
from polcommit.transcript import state_digest

MAX_JOB = 256 << 20


def main(arguments: list[str]) -> int:
    """Run one command; an error is one JSON line on standard output and status 1."""
    verbs: dict[str, Callable[[Path, Path, EnvironmentSettings], Record]] = {"reference": _reference, "follow": _follow}
    verb, blobs, inward, outward, text = arguments

    def work() -> None:
        settings = EnvironmentSettings.parse(text)
        set_determinism(settings.threads, onednn=settings.onednn, precision=settings.precision)
        require_device(settings.device or "cpu")
        Path(outward).write_bytes(encode(verbs[verb](Path(blobs), Path(inward), settings)))

    return reported(work)


# --- honest runs ----------------------------------------------------------------------------------------------


def _reference(blobs: Path, inward: Path, settings: EnvironmentSettings) -> ReferenceRun:
    job = decode(inward.read_bytes(), ReferenceJob, max_size=MAX_JOB)
    kind = load_recipe(job.recipe)
    device = settings.device or "cpu"
    recipe = kind.from_configuration(job.configuration, **local_values(kind, job.data, device))
    blobs.mkdir(parents=True, exist_ok=True)
    training = _Training(recipe, job, blobs)
    training.run()
    claimed = fingerprint(device)
    return ReferenceRun(
        environment=claimed,
        recipe_source=kind.source_digest(),
        honest=_replay_job(training, claimed),
        stressed=tuple(training.stressed),
        starts=job.starts,
        batches=tuple(sorted(training.batches.items())),
        later=tuple(_opened(training.later)),
    )


Gradients = dict[str, torch.Tensor]


class _Enough(Exception):
    """Ends a step between its two halves."""


class _Training:
    """One honest run, and what is kept of it."""

    def __init__(self, recipe: Recipe, job: ReferenceJob, blobs: Path) -> None:
        self.recipe, self.job, self._blobs = recipe, job, blobs
        self.engine = Engine(recipe, job.seed)
        self.source: Source = recipe.source()
        self.states: dict[int, StateIndex] = {}         # 0, before each sampled step and start, and the last
        self.stressed: list[Stressed] = []
        self.later: dict[int, StateIndex] = {}          # some steps after each start
        self.records: list[StepRecord] = []
        self.samples: list[tuple[int, ...]] = []
        self.opened: dict[int, OpenedSample] = {}
        self.gradients: list[Gradient] = []
        self.next_states: dict[int, StateIndex] = {}
        self.batches: dict[int, tuple[int, ...]] = {}   # of the steps that follow a start

    def run(self) -> None:
        """Train from W_0 to the last step."""
        job = self.job
        last = job.steps
        later = {start + distance for start in job.starts for distance in DISTANCES if start + distance <= last}
        followed = {step for start in job.starts for step in range(start + 1, min(start + max(DISTANCES), last) + 1)}
        every = -(-last // MAX_STRESSED)
        self.states[0] = self._write(self.engine.initial())
        for batch in Loader(self.recipe, job.seed, 1, last, source=self.source):
            step = batch.step
            if step in job.sampled or step - 1 in job.starts:
                self.states.setdefault(step - 1, self._write(self.engine.capture()))
            bent = self._stressed_gradient(batch) if step % every == 0 else None
            self._step(batch, bent)
            if step in followed:
                self.batches[step] = batch.indices
                self._open(batch)
            if step in later:
                self.later[step] = self._write(self.engine.capture())
        self.states[last] = self._write(self.engine.capture())

    def _step(self, batch: FetchedBatch, bent: Gradients | None) -> None:
        """Run a step; of a sampled one keep what a challenge of it would open."""
        sampled = batch.step in self.job.sampled
        plain: Gradients = {}

        def between() -> None:
            found = gradients(self.engine.state.model)
            if bent is not None:
                plain.update({name: gradient.detach().to("cpu", copy=True) for name, gradient in found.items()})
            if sampled:
                entries = gradient_entries(found)
                for entry in entries:
                    content = raw_bytes(found[entry.name.removeprefix(GRADIENT)])
                    (self._blobs / entry.content.hex()).write_bytes(content)
                self.gradients.append(Gradient(step=batch.step, tensors=entries))

        result = self.engine.step(batch, between=between)
        if bent is not None:
            self.stressed.append(_apart(self.engine, plain, bent))
        if sampled:
            self._open(batch)
            after = self._write(self.engine.capture())
            self.next_states[batch.step] = after
            self.records.append(_record(batch, result, after))
            self.samples.append(batch.indices)

    def _stressed_gradient(self, batch: FetchedBatch) -> Gradients:
        """The step's gradient where every weight is off by a share of `STRESS`, up or down. The state stays as it is.

        Before the first step too: what `apply` sets up, such as an optimizer's slots, is not touched.
        """
        model, found = self.engine.state.model, Gradients()
        tensors = [*model.parameters(), *model.buffers()]
        kept = [tensor.detach().clone() for tensor in tensors]
        signs = torch.Generator().manual_seed(batch.step)

        def between() -> NoReturn:
            found.update({name: g.detach().to("cpu", copy=True) for name, g in gradients(model).items()})
            raise _Enough

        with torch.no_grad():
            for parameter in model.parameters():
                sign = torch.randint(0, 2, parameter.shape, generator=signs).mul_(2).sub_(1).to(parameter.device)
                if parameter.is_floating_point():
                    parameter.mul_(1 + STRESS * sign)
        try:
            self.engine.step(batch, between=between)
        except _Enough:
            pass
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        return found

    def _open(self, batch: FetchedBatch) -> None:
        for index, (content, length) in zip(batch.indices, batch.contents, strict=True):
            if index in self.opened:
                continue
            data = encoded_sample(self.source, index)
            if sample_content(data) != content:
                raise NotReproducible(f"the recipe is not deterministic: its sample {index} reads differently twice")
            (self._blobs / content.hex()).write_bytes(data)
            leaf = SampleLeaf(index=index, length=length, content=content)
            self.opened[index] = OpenedSample(index=index, salt=bytes(32), leaf=leaf)

    def _write(self, captured: Captured) -> StateIndex:
        for entry in captured.index.tensors:
            target = self._blobs / entry.content.hex()
            if not target.exists():
                target.write_bytes(captured.content(entry))
        return captured.index


def _record(batch: FetchedBatch, result: StepResult, after: StateIndex) -> StepRecord:
    return StepRecord(
        step=batch.step,
        samples=bytes(32),      # there is no data set tree here
        batch=batch.digest,
        state=state_digest(after),
        loss=result.loss,
        learning_rate=result.learning_rate,
        clipped=result.clipped,
        skipped=result.skipped,
        environment=0,
    )


def _replay_job(training: _Training, claimed: Fingerprint) -> ReplayJob:
    job = training.job
    return ReplayJob(
        recipe=job.recipe,
        configuration=job.configuration,
        claimed=claimed,
        seed=job.seed,
        sketch_seed=bytes(32),
        steps=tuple(training.records),
        samples=tuple(training.samples),
        states=tuple(_opened(training.states)),
        sketched=(),
        kept=(),
        opened=tuple(sample for _, sample in sorted(training.opened.items())),
        last=job.steps,
        epochs=(1,),
        gradients=tuple(training.gradients),
        next_states=tuple(_opened(training.next_states)),
        origin_seed=None,
    )


def _apart(engine: Engine, plain: Gradients, bent: Gradients) -> Stressed:
    """How far the two gradients of the step are apart that the engine has just run."""
    model, optimizer = engine.state.model, engine.state.optimizer
    parameters = named_parameters(model)
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    tensors, weighted = [], []
    for name in sorted(plain.keys() & bent.keys() & {n for n, p in parameters.items() if id(p) in settings}):
        there, here = plain[name].double(), bent[name].double()
        zeros = int(((there == 0) != (here == 0)).sum())
        tensors.append(
            TensorDistance(name=name, distance=norm(there - here), opened=norm(there), here=norm(here),
                           size=there.numel(), zeros=zeros)
        )  # fmt: skip
        slots = optimizer.state.get(parameters[name], {})
        scale = preconditioner(slots, settings[id(parameters[name])]) if slots else None
        if scale is not None:
            weighted.append((norm((there - here) * scale), norm(there * scale)))
    return Stressed(
        distance=root(tensor.distance for tensor in tensors),
        norm=min(root(tensor.opened for tensor in tensors), root(tensor.here for tensor in tensors)),
        preconditioned=(root(a for a, _ in weighted), root(b for _, b in weighted)) if weighted else None,
        tensors=tuple(tensors),
    )


def _opened(states: dict[int, StateIndex]) -> Iterator[OpenedState]:
    return (OpenedState(step=step, index=index) for step, index in sorted(states.items()))


# --- several steps on -----------------------------------------------------------------------------------------


def _follow(blobs: Path, inward: Path, settings: EnvironmentSettings) -> Followed:
    run = decode(inward.read_bytes(), ReferenceRun, max_size=MAX_JOB)
    kind = load_recipe(run.honest.recipe)
    device = settings.device or "cpu"
    engine = Engine(kind.from_configuration(run.honest.configuration, device=device), run.honest.seed)
    states = {state.step: state.index for state in run.honest.states}
    later = {state.step: state.index for state in run.later}
    leaves = {sample.index: sample.leaf for sample in run.honest.opened}
    drifts = []

    def fetch(entry: TensorEntry) -> bytes:
        return (blobs / entry.content.hex()).read_bytes()

    for start in run.starts:
        goals = {start + distance: later[start + distance] for distance in DISTANCES if start + distance in later}
        begin = _weights(engine, states[start], fetch)
        there = {step: _weights(engine, index, fetch) for step, index in goals.items()}
        engine.restore(states[start], fetch)
        for step in range(start + 1, max(goals, default=start) + 1):
            indices = dict(run.batches)[step]
            encoded = [(blobs / leaves[index].content.hex()).read_bytes() for index in indices]
            batch = batch_from_encoded(engine.recipe, run.honest.seed, step, encoded, indices)
            engine.step(batch, check_schedule=False)
            if step in goals:
                apart, moved = _norm(_now(engine), there[step]), _norm(begin, there[step])
                drifts.append(Drift(start=start, steps=step - start, apart=apart, moved=moved))
    return Followed(environment=fingerprint(device), drifts=tuple(drifts))


def _weights(engine: Engine, index: StateIndex, fetch: Callable[[TensorEntry], bytes]) -> list[torch.Tensor]:
    engine.restore(index, fetch)
    return _now(engine)


def _now(engine: Engine) -> list[torch.Tensor]:
    return [parameter.detach().double().clone() for parameter in engine.state.model.parameters()]


def _norm(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """‖a − b‖."""
    return math.sqrt(sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
