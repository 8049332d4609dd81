"""Self-checks: some steps re-executed in a second process, so that a prover learns early what it cannot reproduce.

'I cannot reproduce it' counts as failed when a challenge comes.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from typing import IO, Literal

import torch

from polcommit.records import StateIndex, TensorEntry
from polcommit.session.processes import command, reported_error, worker_environment
from polcommit.session.run import drop_extra_states
from polcommit.storage.runfolder import RunFolder
from polcommit.training.recipe import Recipe

CHECKED_AT_START = 3            # steps that are always re-executed, from the first
CHECK_BUDGET = 0.01             # share of training time for random self-checks

SelfCheck = Literal["auto", "beside", "before-anchor", "off"]


def _room() -> SelfCheck:
    """Two processes whose threads share processors wait for one another far longer than they compute."""
    beside = len(os.sched_getaffinity(0)) >= 2 * torch.get_num_threads()
    return "beside" if beside else "before-anchor"


class SelfChecks:
    """Re-execution of some steps in a second process while training runs, so that a prover learns early.

    Always the first steps, the first after each epoch's boundary and after a resume; others at random, within
    the budget. The state before a checked step is kept for it, and removed when it is not due by itself.
    """

    def __init__(self, run: RunFolder, recipe: Recipe, mode: SelfCheck) -> None:
        self._run, self._recipe = run, recipe
        self._mode = _room() if mode == "auto" else mode
        self._epoch = max(1, run.manifest.dataset.size // run.manifest.batch)
        self._chosen: set[int] = set(range(1, CHECKED_AT_START + 1))
        self._extra: set[int] = set()           # states that are kept for a check only
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._random = random.SystemRandom()

    def resumed(self, step: int) -> None:
        """The step after this one is checked."""
        self._chosen.add(step + 1)

    def _wanted(self, step: int) -> bool:
        at_boundary = step > 1 and (step - 1) % self._epoch == 0
        return step in self._chosen or at_boundary or self._random.random() < CHECK_BUDGET

    def after(self, step: int, index: StateIndex, content: Callable[[TensorEntry], memoryview]) -> None:
        """Step `step` is committed: have it checked if it was chosen, and choose whether the next one is."""
        if self._mode == "off":
            return
        if step and step in self._chosen and (step - 1) in self._run.states.steps():
            self._run.checks.add(step)
            self._start()
        self._chosen.discard(step)
        if step < self._recipe.steps and self._wanted(step + 1):
            self._chosen.add(step + 1)
            if step not in self._run.states.steps():
                self._run.states.put(step, index, content)
                self._extra.add(step)
        self._poll()

    def _start(self) -> None:
        if self._mode != "beside" or self._child is not None:
            return
        threads = torch.get_num_threads()
        self._errors = tempfile.TemporaryFile()     # noqa: SIM115  (as long as the process lives)
        self._output = tempfile.TemporaryFile()     # noqa: SIM115  (likewise)
        self._child = subprocess.Popen(
            command("check", str(self._run.path), str(threads), "follow"),
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._errors,
            env=worker_environment(threads),
        )

    def _poll(self) -> None:
        done = self._extra & {step - 1 for step in self._run.checks.done()} if self._extra else set()
        for step in done:
            self._run.states.remove(step)
        self._extra -= done
        if self._child is not None and self._child.poll() is not None:
            self._report()

    def finish(self) -> None:
        """Wait until everything that was queued has been checked."""
        if self._child is not None:
            self._close_pipe()
            self._report()
        self._poll()
        drop_extra_states(self._run)

    def stop(self) -> None:
        """End the process without waiting for its checks; they stay queued."""
        if self._child is not None:
            self._child.kill()
            self._close_pipe()
            self._child.wait()
            for file in (self._output, self._errors):
                if file is not None:
                    file.close()

    def _close_pipe(self) -> None:
        assert self._child is not None and self._child.stdin is not None
        self._child.stdin.close()

    def _report(self) -> None:
        """Once the process has ended, or its pipe is closed: raise what it found."""
        assert self._child is not None and self._errors is not None and self._output is not None
        status = self._child.wait()
        self._close_pipe()
        self._child = None
        with self._output, self._errors:
            if status != 0:
                raise reported_error(self._output, self._errors, status)

