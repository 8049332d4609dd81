"""Recorded in one process with two workers, re-executed from the middle in another, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fresh
import pytest

HERE = Path(__file__).parent


def run(verb: str, folder: Path, threads: int) -> Any:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    command = [sys.executable, "-W", "error", str(HERE / "fresh.py"), verb, str(folder), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("kept")
    return folder, run("record", folder, 2)


@pytest.fixture(scope="module")
def replayed(recorded: tuple[Path, Any]) -> Any:
    return run("replay", recorded[0], 2)


@pytest.mark.parametrize("how", ["0", "3", "opened"])
@pytest.mark.parametrize("variant", fresh.VARIANTS)
def test_steps_from_the_middle_come_out_the_same(recorded: Any, replayed: Any, variant: str, how: str) -> None:
    """States, batches, losses, learning rates and flags, with other numbers of workers and from opened samples."""
    assert len(recorded[1][variant]) == fresh.LAST - fresh.KEPT
    assert replayed[how][variant] == recorded[1][variant]


def test_the_variants_do_what_they_say(recorded: Any) -> None:
    """Clipping happens, the rates of the epoch-wise schedule stay for an epoch, and losses are not all equal."""
    results = {name: [json.loads(line)[0] for line in lines] for name, lines in recorded[1].items()}
    assert any(result["clipped"] for lines in results.values() for result in lines)
    assert [r["learning_rate"] for r in results["sgd with an epoch-wise schedule"]] == [0.0025, 0.0025, 0.00125]
    assert len({result["loss"] for lines in results.values() for result in lines}) > len(results)
