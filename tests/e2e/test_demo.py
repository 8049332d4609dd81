"""The demonstration, as the README's first command runs it, only shorter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_demonstration_accepts_the_honest_run_and_rejects_both_forgeries(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "polcommit.cli.main", "demo", "--folder", str(folder), "--steps", "60", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLCOMMIT_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    honest, interpolated, replayed = json.loads(done.stdout)["runs"]
    assert (honest["verdict"], honest["basis"], honest["checks"]["V13"]) == ("accepted", "bit-exact", "passed")
    assert len(honest["reexecuted"]) == 20 and honest["anchor"]["devnet"]
    assert interpolated["verdict"] == "rejected"
    assert {finding["step"] for finding in interpolated["findings"]} == {"V10"}
    assert replayed["verdict"] == "rejected"
    assert [(finding["step"], finding["what"]) for finding in replayed["findings"]] == [("V3", "outer signature")]
    for run in (honest, interpolated, replayed):
        assert Path(run["evidence"]).is_file()
    assert not _processes_of(folder), "the devnet was left running"


def _processes_of(folder: Path) -> list[str]:
    """Command lines of processes that mention the demonstration's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue        # it has ended meanwhile
        if str(folder) in line:
            found.append(line)
    return found
