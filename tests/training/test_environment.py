"""The fingerprint of an environment, and the settings that make bits repeat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from polcommit.encoding import digest
from polcommit.errors import UsageError
from polcommit.records import Fingerprint
from polcommit.session.environments import (
    AS_CLAIMED,
    EnvironmentSettings,
    claimed_settings,
    has_capability,
    require_capability,
)
from polcommit.session.processes import worker_environment
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
    torch._C._set_mkldnn_enabled(True)


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


def test_kernels_and_precision_can_be_chosen_and_show() -> None:
    before = fingerprint()
    set_determinism(onednn=False)
    items = dict(fingerprint().items)
    assert items["onednn"] == "no" and dict(before.items)["onednn"] == "yes"
    set_determinism(onednn=True, precision="high")
    items = dict(fingerprint().items)
    assert items["onednn"] == "yes" and items["float32 matmul precision"] == "high"
    set_determinism()
    assert dict(fingerprint().items)["float32 matmul precision"] == "highest"


def test_determinism_is_switched_on() -> None:
    set_determinism(1)
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    with pytest.raises(UsageError, match="0 threads"):
        set_determinism(0)


# --- settings of another process ----------------------------------------------------------------------------------


def test_settings_have_one_text() -> None:
    text = "threads=1,onednn=off,capability=avx2,precision=high,device=cpu"
    found = EnvironmentSettings.parse(text)
    assert (found.threads, found.onednn, found.capability, found.precision) == (1, False, "avx2", "high")
    assert str(found) == text and EnvironmentSettings.parse(" onednn = on , threads=12") == EnvironmentSettings(
        threads=12, onednn=True
    )
    assert EnvironmentSettings.parse("") == AS_CLAIMED and str(AS_CLAIMED) == ""


@pytest.mark.parametrize(
    "text",
    ["threads", "threads=", "threads=0", "threads=x", "threads=-1", "threads=99999", "threads=\u0661", "onednn=maybe",
     "capability=sse9", "precision=low", "device=", "cores=1", "threads=1,threads=2", "threads=1,,onednn=on", ","],
)  # fmt: skip
def test_settings_that_make_no_sense_are_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as found:
        EnvironmentSettings.parse(text)
    assert found.value.exit_status == 2 and "\n" not in found.value.message


def test_an_instruction_set_that_is_not_here_is_refused_and_not_taken_over() -> None:
    """torch takes it on trust, and dies of an illegal instruction."""
    absent = next(name for name in ("zvector", "vsx", "avx2", "sve") if not has_capability(name))
    with pytest.raises(UsageError, match=f"no instruction set '{absent}'"):
        require_capability(EnvironmentSettings(capability=absent))
    claimed = Fingerprint(items=(("onednn", "no"), ("threads", "3"), ("variable ATEN_CPU_CAPABILITY", absent)))
    assert claimed_settings(claimed) == EnvironmentSettings(threads=3, onednn=False)
    here = Fingerprint(items=(("onednn", "perhaps"), ("variable ATEN_CPU_CAPABILITY", "default")))
    assert claimed_settings(here) == EnvironmentSettings(capability="default")


def test_settings_beside_one_another_must_agree() -> None:
    settings = EnvironmentSettings.parse("threads=1")
    assert settings.combined(1, "cpu") == settings.combined(None, "cpu") == EnvironmentSettings(threads=1, device="cpu")
    with pytest.raises(UsageError, match="threads 1 in the environment, and 2 beside it"):
        settings.combined(2, None)
    assert settings.over(EnvironmentSettings(threads=4, onednn=True)) == EnvironmentSettings(threads=1, onednn=True)


def test_a_worker_starts_under_the_settings() -> None:
    environment = worker_environment(None, EnvironmentSettings.parse("threads=3,capability=default"))
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["ATEN_CPU_CAPABILITY"] == "default"
    assert worker_environment(2, EnvironmentSettings.parse("threads=3"))["OMP_NUM_THREADS"] == "2"
