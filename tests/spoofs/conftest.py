"""Deterministic kernels on one thread, as every session sets them before it trains; and where temporary files go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from polcommit.training.environment import set_determinism


@pytest.fixture(autouse=True)
def _determinism() -> Iterator[None]:
    threads = torch.get_num_threads()
    set_determinism(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Chosen before an arena is opened: that has temporary files go into its own folder, which is gone with it."""
    tmp_path_factory.getbasetemp()
