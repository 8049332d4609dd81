"""Many jobs of polcommit's own workers in one process of a given environment.

    python -m polcommit.spoofs.measure.honest_jobs LIST     a JSON list of [module, arguments]

A process for each would mostly load torch. What runs is `session.calibrating` and `session.worker`, as they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from polcommit.errors import Unavailable
from polcommit.session import calibrating, worker
from polcommit.session.environments import EnvironmentSettings
from polcommit.session.processes import worker_environment

_MAINS = {"calibrating": calibrating.main, "worker": worker.main}

Job = tuple[str, Sequence[str]]         # ('calibrating' or 'worker', its arguments)


def run_jobs(jobs: Sequence[Job], settings: EnvironmentSettings, listed: Path) -> None:
    """Run them one after the other, in one process of this environment; `listed` is a file to say them in.

    Raises:
        Unavailable: one of them failed; what the process said is in the message.
    """
    listed.write_text(json.dumps([[name, list(arguments)] for name, arguments in jobs]), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "polcommit.spoofs.measure.honest_jobs", str(listed)],
        env=worker_environment(settings.threads, settings), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no output"]
        raise Unavailable(f"re-execution in '{settings}' ended with status {done.returncode}: {last[0][:300]}")


def main(listed: str) -> int:
    """Run the jobs of a list; stops at the first that fails."""
    for name, arguments in json.loads(Path(listed).read_text("utf-8")):
        status = _MAINS[name](arguments)
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
