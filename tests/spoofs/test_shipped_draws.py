"""Honest draws under the profiles that ship: judged by the verifier's own tests, and kept as they are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from polcommit.profiles import Profile
from polcommit.session.noise import shipped
from polcommit.spoofs.measure import shipped_draws
from polcommit.training.environment import set_determinism


@pytest.fixture
def digits() -> Profile:
    set_determinism(1)
    return next(profile for profile in shipped() if profile.name == "digits-cpu")


def test_an_honest_draw_passes_and_is_not_made_again(
    digits: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(shipped_draws.draws(digits, None, 2, tmp_path))
    assert [each["why"] for each in found] == [None, None] and all(each["distance"] > 0 for each in found)
    monkeypatch.setattr(shipped_draws, "draw", None)
    assert list(shipped_draws.draws(digits, None, 2, tmp_path)) == found


def test_under_a_profile_without_room_it_is_refuted(digits: Profile, tmp_path: Path) -> None:
    tight = replace(digits, alpha=1e-12)
    found = list(shipped_draws.draws(tight, None, 1, tmp_path))
    assert "V10: gradient" in found[0]["why"]
    summed = shipped_draws.summary(found, tight)
    assert (summed["draws"], summed["rejected"]) == (1, 1)
    assert "| 1 | 4 of 8 | 1 |" in shipped_draws.section({"profiles": {"digits-cpu": summed}})


def test_every_shipped_profile_has_a_size() -> None:
    assert {profile.name for profile in shipped()} == shipped_draws.SIZES.keys()
