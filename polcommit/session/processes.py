"""Re-execution in a process of its own, with determinism set before torch starts.

The child is `python -m polcommit.session.worker`; jobs and reports are records in files, progress is lines on
its standard output, and an error comes back as one JSON line, raised here as the error it was.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from polcommit import errors
from polcommit.encoding import Record, decode, encode
from polcommit.errors import PolcommitError, Unavailable, UsageError
from polcommit.replaying import RegenerateJob, RegenerateReport, ReplayJob, ReplayReport
from polcommit.session.environments import AS_CLAIMED, EnvironmentSettings, claimed_settings, require_capability
from polcommit.training.installed import installed_recipes

#: Threads that wait for one another sleep instead of spinning. Spinning is quicker on an idle machine, and many times
#: slower on a busy one: a thread that is not scheduled keeps all others burning their share (docs/decisions/0009).
PATIENT = ("OMP_WAIT_POLICY", "PASSIVE")

_PROGRESS = re.compile(r"progress ([0-9]{1,18}) ([0-9]{1,18})\n")

Progress = Callable[[int, int], None]
R = TypeVar("R", bound=Record)
#: What runs a worker's arguments where that is not a process of its own (`inprocess`): to its status and output.
Runner = Callable[[Sequence[str], EnvironmentSettings | None], tuple[int, str]]
RUNNER: ContextVar[Runner | None] = ContextVar("RUNNER", default=None)
MAX_REPORT = 64 << 20
#: Errors that a worker may report; whatever else it says is 'could not be done'.
_KNOWN = ("UsageError", "MissingExtra", "NotReproducible", "DataChanged", "StorageError", "Contradiction")


def worker_environment(threads: int | None, settings: EnvironmentSettings | None = None) -> dict[str, str]:
    """Environment variables for a worker: kernels deterministic, and as many threads as wanted, from the start.

    `settings` may name an instruction set, and threads where `threads` is None; the rest of them the worker sets.
    """
    environment = dict(os.environ)
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    environment["PYTHONHASHSEED"] = "0"
    environment.setdefault(*PATIENT)
    if settings is not None:
        threads = threads if threads is not None else settings.threads
        if settings.capability is not None:
            environment["ATEN_CPU_CAPABILITY"] = settings.capability
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
    return environment


def command(*arguments: str) -> list[str]:
    """The worker's command line."""
    return [sys.executable, "-m", "polcommit.session.worker", *arguments]


def run_worker(
    arguments: Sequence[str],
    *,
    threads: int | None = None,
    settings: EnvironmentSettings | None = None,
    progress: Progress | None = None,
) -> None:
    """Run a worker to its end.

    Raises:
        PolcommitError: what the worker reported; `Unavailable` if it died without a word.
    """
    here = RUNNER.get()
    if here is not None:
        status, said = here(arguments, settings)
        if status != 0:
            raise _reported((said.strip().splitlines() or [""])[-1], status, "")
        return
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=worker_environment(threads, settings),
            text=True,
        )
        try:
            last = _follow(child, progress)
        finally:
            if child.poll() is None:
                child.kill()
            status = child.wait()
        if status != 0:
            stderr.seek(0)
            raise _reported(last, status, stderr.read().decode("utf-8", "replace"))


def _follow(child: subprocess.Popen[str], progress: Progress | None) -> str:
    assert child.stdout is not None
    last = ""
    with child.stdout:
        for line in child.stdout:
            last = line
            told = _PROGRESS.fullmatch(line)        # a recipe may print what it likes
            if progress is not None and told:
                progress(int(told[1]), int(told[2]))
    child.wait()
    return last


def _reported(line: str, status: int, stderr: str) -> PolcommitError:
    """The error that a worker's last line describes."""
    try:
        said = json.loads(line)
        kind, message, hint = said["error"], said["message"], said["hint"]
    except (ValueError, KeyError, TypeError):
        tail = stderr.strip().splitlines()[-1:] or ["no output"]
        return Unavailable(f"the re-execution process ended with status {status}: {tail[0][:300]}")
    found = getattr(errors, kind, None) if kind in _KNOWN else None
    if found is None or kind in ("MissingExtra", "Contradiction"):
        found = UsageError if kind in ("MissingExtra", "Contradiction") else Unavailable
    result = found(message, hint=hint)
    assert isinstance(result, PolcommitError)
    return result


@dataclass(frozen=True, slots=True)
class ProcessReplayer:
    """The verifier's `Replayer`, in a process that is given the environment wanted; `data` is not needed.

    `threads`, `device` and `settings` override what the steps claim; settings that neither names are this machine's.
    """

    threads: int | None = None
    device: str | None = None           # None: 'cpu', unless the settings name one
    recipes: tuple[str, ...] = ()       # allowed besides the installed ones: 'package.module:Class'
    settings: EnvironmentSettings = AS_CLAIMED

    def replay(self, job: ReplayJob, blobs: Path, progress: Progress | None = None) -> ReplayReport:
        """See `polcommit.replaying.Replayer`.

        The name of the recipe is the prover's: nothing is imported that this side has not installed under that
        name, or allowed.
        """
        if job.recipe not in installed_recipes() and job.recipe not in self.recipes:
            raise Unavailable(
                f"the run names recipe {job.recipe[:200]!r}, which is not installed under that name here",
                hint="review your own copy of it, then allow it with --recipe",
            )
        chosen = self.settings.combined(self.threads, self.device).over(claimed_settings(job.claimed))
        require_capability(chosen)
        device, threads = chosen.device or "cpu", str(chosen.threads or 0)
        arguments = ["replay", str(blobs), device, threads]
        return _with_files(job, ReplayReport, arguments, [str(chosen)], settings=chosen, progress=progress)


def regenerate(
    folder: Path, job: RegenerateJob, blobs: Path, *, progress: Progress | None = None
) -> RegenerateReport:
    """The prover's side: bring back what a challenge asks of the run in `folder`, writing its bytes into `blobs`.

    Each step runs on as many threads as its environment epoch had.

    Raises:
        NotReproducible: this machine does not get the committed digests.
        DataChanged: a sample is no longer what was registered.
    """
    arguments = ["regenerate", str(blobs), str(folder), "0"]
    return _with_files(job, RegenerateReport, arguments, [], settings=None, progress=progress)


def check_recorded(folder: Path, *, threads: int | None, progress: Progress | None = None) -> None:
    """Re-execute the steps of a run that are queued for a self-check, and wait for it."""
    run_worker(["check", str(folder), str(threads or 0), "once"], threads=threads, progress=progress)


def keep_state(folder: Path, step: int, *, threads: int | None) -> None:
    """Regenerate the state after a step of the run in `folder`, and keep it. Raises NotReproducible."""
    run_worker(["keep", str(folder), str(threads or 0), str(step)], threads=threads)


def reported_error(output: IO[bytes], stderr: IO[bytes], status: int) -> PolcommitError:
    """The error of a worker that ran beside us, from the files that it wrote to."""
    texts = []
    for file in (output, stderr):
        file.seek(0)
        texts.append(file.read().decode("utf-8", "replace"))
    return _reported((texts[0].strip().splitlines() or [""])[-1], status, texts[1])


def _with_files(
    job: Record,
    kind: type[R],
    before: list[str],
    after: list[str],
    *,
    settings: EnvironmentSettings | None,
    progress: Progress | None,
) -> R:
    """Run a worker whose arguments are `before`, a file with the job, one for its report, and `after`."""
    with tempfile.TemporaryDirectory(prefix="polcommit-") as folder:
        inward, outward = Path(folder) / "job", Path(folder) / "report"
        inward.write_bytes(encode(job))
        run_worker([*before, str(inward), str(outward), *after], settings=settings, progress=progress)
        return decode(outward.read_bytes(), kind, max_size=MAX_REPORT)
