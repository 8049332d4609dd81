"""The fingerprint of an environment, and the settings that make bits repeat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from polcommit.encoding import digest
from polcommit.errors import UsageError
from polcommit.training.environment import fingerprint, set_determinism


@pytest.fixture(autouse=True)
def settings_given_back() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    torch.set_flush_denormal(False)


def test_a_fingerprint_repeats_and_says_what_it_must() -> None:
    found = fingerprint()
    assert found == fingerprint() and len(digest(found)) == 32
    assert {"torch", "torch git", "torch build", "aten instruction set", "processor", "threads", "device"} <= dict(
        found.items
    ).keys()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("threads", lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
        ("deterministic algorithms", lambda: torch.use_deterministic_algorithms(
            not torch.are_deterministic_algorithms_enabled())),
        ("float32 matmul precision", lambda: torch.set_float32_matmul_precision("high")),
        ("default dtype", lambda: torch.set_default_dtype(torch.float64)),
        ("flush subnormals", lambda: torch.set_flush_denormal(True)),
    ],
)  # fmt: skip
def test_it_differs_with_each_setting(name: str, change: object) -> None:
    before = fingerprint()
    change()  # type: ignore[operator]
    assert [item[0] for item in before.difference(fingerprint())] == [name]


def test_variables_that_choose_kernels_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert before.difference(fingerprint()) == (("variable ONEDNN_MAX_CPU_ISA", "", "AVX2"),)


def test_determinism_is_switched_on() -> None:
    set_determinism(1)
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    with pytest.raises(UsageError, match="0 threads"):
        set_determinism(0)
