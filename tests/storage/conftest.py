"""Fixtures for the storage tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored_samples import make

from polcommit.storage.runfolder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make(tmp_path / "runs" / "digits")
