"""The process that re-executes steps: for self-checks, for the prover's openings, and for the verifier.

    replay BLOBS DEVICE THREADS JOB REPORT          steps from opened states and samples
    regenerate BLOBS FOLDER THREADS JOB REPORT      states and samples of the prover's own run
    check FOLDER THREADS once|follow                the run's queue of self-checks
    keep FOLDER THREADS STEP                        a state of the run that was not kept

It trusts its job file, which its parent wrote; the states and samples in it may be hostile, and are only
compared, copied and fed to the recipe that is installed here.
"""

from __future__ import annotations

import json
import re
import select
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from polcommit.encoding import decode, encode
from polcommit.errors import DataChanged, EncodingError, NotReproducible, PolcommitError, Refuted, StorageError
from polcommit.records import GenesisRecord, OpenedState, StateIndex, StepRecord, TensorEntry
from polcommit.replaying import RegenerateJob, RegenerateReport, ReplayedStep, ReplayJob, ReplayReport
from polcommit.session.recipes import run_recipe
from polcommit.storage.blobs import BlobFolder
from polcommit.storage.files import storage_error
from polcommit.storage.journal import read_frames
from polcommit.storage.runfolder import RunFolder
from polcommit.training.environment import fingerprint, require_device, set_determinism
from polcommit.training.loading import FetchedBatch, Loader, batch_from_encoded, encoded_sample
from polcommit.training.recipe import Recipe, load_recipe
from polcommit.training.replay import Engine, first_difference
from polcommit.training.sketch import sketch_state
from polcommit.training.tree import sample_content
from polcommit.transcript import run_seed, state_digest

#: What a failure says that is about this machine, and not about what the prover opened.
_OWN_LIMITS = re.compile(r"memory|alloc|no space|thread|cuda error|cublas|cudnn|device-side|interrupted")
MAX_JOB = 64 << 20


def main(arguments: list[str]) -> int:
    """Run one command; an error is one JSON line on standard output and status 1."""
    verbs: dict[str, Callable[..., None]] = {
        "replay": _replay, "regenerate": _regenerate, "check": _check, "keep": _keep,
    }  # fmt: skip
    try:
        verbs[arguments[0]](*arguments[1:])
    except OSError as error:
        return _failed(storage_error(error, "using", Path(error.filename or tempfile.gettempdir())))
    except PolcommitError as error:
        return _failed(error)
    return 0


def _failed(error: PolcommitError) -> int:
    said = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    print(json.dumps(said), flush=True)  # noqa: T201  (standard output is how the parent is told)
    return 1


def _progress(done: int, total: int) -> None:
    print(f"progress {done} {total}", flush=True)  # noqa: T201  (as above)


def _threads(text: str) -> int | None:
    return int(text) or None


# --- the verifier's side --------------------------------------------------------------------------------------


def _replay(blobs: str, device: str, threads: str, inward: str, outward: str) -> None:
    set_determinism(_threads(threads))
    require_device(device)
    job = decode(Path(inward).read_bytes(), ReplayJob, max_size=MAX_JOB)
    kind = load_recipe(job.recipe)
    replayed = _Replayed(job, BlobFolder(Path(blobs)))
    try:
        replayed.run(kind.from_configuration(job.configuration, device=device))
    except Refuted as error:
        replayed.refuted = (error.check, error.what, error.at, error.expected, error.found)
    except EncodingError as error:
        replayed.refuted = ("V8", "opened configuration, state or sample", None, "canonical", str(error)[:500])
    report = ReplayReport(
        environment=fingerprint(device),
        recipe_source=kind.source_digest(),
        initial=replayed.initial,
        steps=tuple(replayed.steps),
        sketches=tuple(replayed.sketches),
        refuted=replayed.refuted,
    )
    Path(outward).write_bytes(encode(report))


class _Replayed:
    """The re-execution of a job's steps, and what it saw so far."""

    def __init__(self, job: ReplayJob, blobs: BlobFolder) -> None:
        self.job, self.blobs = job, blobs
        self.initial = bytes(32)
        self.steps: list[ReplayedStep] = []
        self.sketches: list[tuple[int, tuple[float, ...]]] = []
        self.refuted: tuple[str, str, int | None, str, str] | None = None

    def run(self, recipe: Recipe) -> None:
        """Everything. Raises Refuted or EncodingError at the first contradiction in what was opened."""
        job = self.job
        engine = Engine(recipe, job.seed)
        self.initial = state_digest(engine.initial().index)
        states = {state.step: state.index for state in job.states}
        for step in job.sketched:
            engine.schema.check(states[step])
            self.sketches.append((step, sketch_state(states[step], self._fetch, job.sketch_seed)))
        for position, record in enumerate(job.steps):
            _progress(position, len(job.steps))
            self.steps.append(self._step(engine, record, states[record.step - 1], job.samples[position]))

    def _fetch(self, entry: TensorEntry) -> bytes:
        return self.blobs.path(entry.content).read_bytes()

    def _step(
        self, engine: Engine, record: StepRecord, before: StateIndex, indices: tuple[int, ...]
    ) -> ReplayedStep:
        """One step from the opened state before it; where it differs from what is committed, once more."""
        opened = {sample.index: sample.leaf for sample in self.job.opened}
        encoded = [self.blobs.path(opened[index].content).read_bytes() for index in indices]
        try:
            batch = self._batch(engine, record.step, encoded, indices)
            result, captured = engine.replay(before, self._fetch, batch)
            state = state_digest(captured.index)
            same = state == record.state and batch.digest == record.batch
            again = None if same else state_digest(engine.replay(before, self._fetch, batch)[1].index)
        except NotReproducible as error:
            if _OWN_LIMITS.search(error.message.lower()):
                raise
            found = error.message[:500]
            raise Refuted("V10", "re-execution", at=record.step, expected="a step that runs", found=found) from error
        return ReplayedStep(
            step=record.step,
            batch=batch.digest,
            state=state,
            again=again,
            loss=result.loss,
            learning_rate=result.learning_rate,
            clipped=result.clipped,
            skipped=result.skipped,
        )


    def _batch(self, engine: Engine, step: int, encoded: list[bytes], indices: tuple[int, ...]) -> FetchedBatch:
        try:
            return batch_from_encoded(engine.recipe, self.job.seed, step, encoded, indices)
        except PolcommitError:
            raise
        except Exception as error:
            raise NotReproducible(f"step {step}: its samples do not make a batch: {error!r}"[:500]) from error


# --- the prover's side ----------------------------------------------------------------------------------------


def _regenerate(blobs: str, path: str, threads: str, inward: str, outward: str) -> None:
    set_determinism(_threads(threads))
    job = decode(Path(inward).read_bytes(), RegenerateJob, max_size=MAX_JOB)
    run = RunFolder.open(Path(path))
    regenerator = _Regenerator(run)
    out = Path(blobs)
    out.mkdir(parents=True, exist_ok=True)
    _write_samples(run, regenerator.recipe, job.samples, out)
    states = []
    for done, step in enumerate(job.states):
        _progress(done, len(job.states))
        states.append(OpenedState(step=step, index=regenerator.state(step, out)))
    sketches = tuple((step, regenerator.sketch(step, job.sketch_seed)) for step in job.sketched)
    Path(outward).write_bytes(encode(RegenerateReport(states=tuple(states), sketches=sketches)))


def _write_samples(run: RunFolder, recipe: Recipe, indices: tuple[int, ...], out: Path) -> None:
    contents = run.dataset_contents()
    source = recipe.source()
    for index in indices:
        data = encoded_sample(source, index)
        content, length = contents[index]
        if len(data) != length or sample_content(data) != content:
            raise DataChanged(
                f"dataset[{index}] is not the sample that was registered",
                hint="restore the data set as it was; the run cannot be opened without it",
            )
        (out / content.hex()).write_bytes(data)


def _keep(path: str, threads: str, step: str) -> None:
    set_determinism(_threads(threads))
    run = RunFolder.open(Path(path))
    regenerator = _Regenerator(run)
    regenerator.go_to(int(step))
    captured = regenerator.engine.capture()
    run.states.put(int(step), captured.index, captured.content)


class _Regenerator:
    """Any state of a recorded run: from the kept state before it, by re-execution, compared step by step."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.recipe = run_recipe(run)
        registration = run.registration
        assert registration is not None
        self.seed = run_seed(registration.beacon)
        self.engine = Engine(self.recipe, self.seed)
        self.source = self.recipe.source()
        frames = enumerate(read_frames(run.journal_path, 1), 1)
        self.records = {step: decode(frame, StepRecord) for step, frame in frames}
        self._at: int | None = None

    def state(self, step: int, out: Path) -> StateIndex:
        """The state after `step`, its bytes written into `out`. Raises NotReproducible."""
        self.go_to(step)
        captured = self.engine.capture()
        for entry in captured.index.tensors:
            target = out / entry.content.hex()
            if not target.exists():
                target.write_bytes(captured.content(entry))
        return captured.index

    def sketch(self, step: int, seed: bytes) -> tuple[float, ...]:
        """Sketch of the kept state after `step`."""
        return sketch_state(self._kept(step), self._fetch, seed)

    def go_to(self, step: int) -> None:
        """Put the state after `step` in place. Raises NotReproducible."""
        kept = self.run.states.latest(step)
        if self._at is None or self._at > step or (kept is not None and kept > self._at):
            if kept is None:
                raise NotReproducible(f"no kept state at or before step {step}", hint="restore the run folder")
            self.restore(kept)
        assert self._at is not None
        if self._at < step:
            for batch in Loader(self.recipe, self.seed, self._at + 1, step, source=self.source):
                self.execute(batch)

    def restore(self, step: int) -> None:
        """Put the kept state after `step` in place."""
        self.engine.restore(self._kept(step), self._fetch)
        self._at = step

    def _kept(self, step: int) -> StateIndex:
        """The kept state after `step`. Raises StorageError: damaged, or not the one that was committed."""
        index = self.run.states.get(step)
        if step in self.records:
            committed = self.records[step].state
        else:
            frame = next(read_frames(self.run.journal_path, step, step + 1))
            committed = decode(frame, StepRecord).state if step else decode(frame, GenesisRecord).state
        if state_digest(index) != committed:
            raise StorageError(
                f"the kept state of step {step} is not the one that was committed", hint="restore it from a copy"
            )
        return index

    def _fetch(self, entry: TensorEntry) -> bytes:
        return self.run.tensors.get(entry)

    def execute(self, batch: FetchedBatch) -> None:
        """One step, compared with the record of it."""
        self.engine.step(batch)
        record = self.records[batch.step]
        index = self.engine.capture().index
        if state_digest(index) != record.state:
            raise NotReproducible(
                f"step {batch.step} does not reproduce: {self._difference(batch.step, index)}",
                hint="a challenge of it would fail; was it recorded on another machine, or with other settings?",
            )
        self._at = batch.step

    def _difference(self, step: int, index: StateIndex) -> str:
        if step in self.run.states.steps():
            return first_difference(self.run.states.get(step), index) or "the record"
        return "the state after it has another digest"


def _check(path: str, threads: str, mode: str) -> None:
    """Re-execute queued steps. 'follow' goes on until standard input is closed, and then empties the queue."""
    set_determinism(_threads(threads))
    run = RunFolder.open(Path(path))
    regenerator: _Regenerator | None = None
    last = mode == "once"
    while True:
        pending = [step for step in run.checks.pending() if _recorded_here(run, step)]
        for done, step in enumerate(pending):
            regenerator = regenerator or _Regenerator(run)
            _check_step(run, regenerator, step)
            _progress(done + 1, len(pending))
        if not pending and last:
            return
        if not last:
            readable, _, _ = select.select([sys.stdin], [], [], 0.2)
            last = bool(readable) and not sys.stdin.readline()


def _recorded_here(run: RunFolder, step: int) -> bool:
    """Whether a step was recorded in an environment like this process's; another's bits are not to be had here."""
    epochs = [epoch for epoch in run.environments() if epoch.first <= step]
    return bool(epochs) and epochs[-1].fingerprint == fingerprint(run.settings.device)


def _check_step(run: RunFolder, regenerator: _Regenerator, step: int) -> None:
    """Re-execute one step from the state before it, which the recording process has kept for this."""
    frame = next(read_frames(run.journal_path, step, step + 1), None)
    if frame is None:       # the journal lost it in a power failure: it will be another step
        run.checks.drop(step - 1)
        return
    regenerator.records[step] = decode(frame, StepRecord)
    regenerator.restore(step - 1)
    for batch in Loader(regenerator.recipe, regenerator.seed, step, step, source=regenerator.source):
        regenerator.execute(batch)
    run.checks.finish(step)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
