"""Re-execution in this process: the worker's own code, without starting a process and loading torch once more.

For what is done many times over and is not about processes: spoofs, and tests. The environment is this process's, so
what a process is given before torch starts (an instruction set) cannot be had; threads and kernels are put back.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence

import torch

from polcommit.errors import Unavailable
from polcommit.session import processes, worker
from polcommit.session.environments import EnvironmentSettings


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Workers run in this process, as long as this lasts."""
    held = processes.RUNNER.set(_run)
    try:
        yield
    finally:
        processes.RUNNER.reset(held)


@contextlib.contextmanager
def in_processes() -> Iterator[None]:
    """Workers are processes of their own again, as long as this lasts."""
    held = processes.RUNNER.set(None)
    try:
        yield
    finally:
        processes.RUNNER.reset(held)


def _run(arguments: Sequence[str], settings: EnvironmentSettings | None) -> tuple[int, str]:
    """The worker's exit status, and what it wrote to standard output."""
    capability = settings.capability if settings is not None else None
    if capability is not None and capability != os.environ.get("ATEN_CPU_CAPABILITY"):
        raise Unavailable(
            f"instruction set {capability!r} cannot be chosen once torch runs",
            hint="re-execute in processes of their own",
        )
    threads, onednn = torch.get_num_threads(), torch._C._get_mkldnn_enabled()
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            return worker.main(list(arguments)), said.getvalue()
    finally:
        torch.set_num_threads(threads)
        torch._C._set_mkldnn_enabled(onednn)
