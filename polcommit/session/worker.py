"""The process that re-executes steps: for self-checks, for the prover's openings, and for the verifier.

    replay BLOBS DEVICE THREADS JOB REPORT SETTINGS steps from opened states and samples
    regenerate BLOBS FOLDER THREADS JOB REPORT      states and samples of the prover's own run
    check FOLDER THREADS once|follow                the run's queue of self-checks
    keep FOLDER THREADS STEP                        a state of the run that was not kept

It trusts its job file, which its parent wrote; the states and samples in it may be hostile, and are only
compared, copied and fed to the recipe that is installed here.
"""

from __future__ import annotations

import json
import select
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from polcommit.encoding import decode, encode
from polcommit.errors import EncodingError, PolcommitError, Refuted
from polcommit.records import StepRecord
from polcommit.replaying import RegenerateJob, ReplayJob, ReplayReport
from polcommit.session.environments import EnvironmentSettings
from polcommit.session.reexecution import Reexecution
from polcommit.session.regenerator import Regenerator, regenerate
from polcommit.storage.blobs import BlobFolder
from polcommit.storage.files import storage_error
from polcommit.storage.journal import read_frames
from polcommit.storage.runfolder import RunFolder
from polcommit.training.environment import fingerprint, require_device, set_determinism
from polcommit.training.loading import Loader
from polcommit.training.recipe import load_recipe

MAX_JOB = 64 << 20


def main(arguments: list[str]) -> int:
    """Run one command; an error is one JSON line on standard output and status 1."""
    verbs: dict[str, Callable[..., None]] = {
        "replay": _replay, "regenerate": _regenerate, "check": _check, "keep": _keep,
    }  # fmt: skip
    return reported(lambda: verbs[arguments[0]](*arguments[1:]))


def reported(work: Callable[[], object]) -> int:
    """Do it, and return the process's exit status; an error is one JSON line on standard output."""
    try:
        work()
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


def _replay(blobs: str, device: str, threads: str, inward: str, outward: str, settings: str = "") -> None:
    chosen = EnvironmentSettings.parse(settings)
    set_determinism(_threads(threads), onednn=chosen.onednn, precision=chosen.precision)
    require_device(device)
    job = decode(Path(inward).read_bytes(), ReplayJob, max_size=MAX_JOB)
    kind = load_recipe(job.recipe)
    replayed = Reexecution(job, BlobFolder(Path(blobs)), _progress)
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
        kept_rates=replayed.kept_rates,
        refuted=replayed.refuted,
        flops=replayed.flops,
        residuals=replayed.residuals,
        rates=replayed.rates,
        span=replayed.span,
        origin=replayed.origin,
        initial_index=replayed.initial_index,
    )
    Path(outward).write_bytes(encode(report))


# --- the prover's side ----------------------------------------------------------------------------------------


def _regenerate(blobs: str, path: str, threads: str, inward: str, outward: str) -> None:
    set_determinism(_threads(threads))
    job = decode(Path(inward).read_bytes(), RegenerateJob, max_size=MAX_JOB)
    out = Path(blobs)
    out.mkdir(parents=True, exist_ok=True)
    report = regenerate(RunFolder.open(Path(path)), job, out, _progress)
    Path(outward).write_bytes(encode(report))


def _keep(path: str, threads: str, step: str) -> None:
    set_determinism(_threads(threads))
    run = RunFolder.open(Path(path))
    regenerator = Regenerator(run, run.environments())
    regenerator.go_to(int(step))
    captured = regenerator.engine.capture()
    run.states.put(int(step), captured.index, captured.content)


def _check(path: str, threads: str, mode: str) -> None:
    """Re-execute queued steps. 'follow' goes on until standard input is closed, and then empties the queue."""
    set_determinism(_threads(threads))
    run = RunFolder.open(Path(path))
    regenerator: Regenerator | None = None
    last = mode == "once"
    while True:
        pending = [step for step in run.checks.pending() if _recorded_here(run, step)]
        for done, step in enumerate(pending):
            regenerator = regenerator or Regenerator(run)
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


def _check_step(run: RunFolder, regenerator: Regenerator, step: int) -> None:
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
