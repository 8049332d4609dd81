"""polcommit calibrate, as processes: honest steps re-executed in another environment, and what has no profile."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from shell import Result, assert_one_line, ok, polcommit

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from polcommit.profiles import Profile, from_json, to_json
from polcommit.training.installed import BUILT_IN
from polcommit.training.recipe import load_recipe

SMALL = ("digits", "--set", "steps=6", "--set", "batch=16", "--steps", 2, "--runs", 1, "--reference", "threads=2")

NOISY = '''
import os
from dataclasses import dataclass
import torch
from polcommit.training.recipe import Applied, Recipe
from polcommit.training.state import TrainingState

@dataclass(frozen=True, kw_only=True)
class Noisy(Recipe):
    steps: int = 4
    batch: int = 2
    noise: float = 1.0

    def source(self):
        return [float(i) for i in range(8)]

    def transform(self, sample):
        return torch.full((3,), sample)

    def build(self):
        model = torch.nn.Linear(3, 1)
        return TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-3))

    def loss(self, state, micro_batch, k, n):
        nobodys = torch.tensor(list(os.urandom(3)), dtype=torch.float32) / 256
        return state.model(micro_batch * (1 + self.noise * nobodys)).square().mean() / n

    def apply(self, state, t):
        state.optimizer.step()
        return Applied()

    def learning_rate(self, t):
        return 1e-3
'''


def calibrate(*args: object, **options: Any) -> Result:
    return polcommit("calibrate", *args, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference half: six steps of a small run, of which five are kept."""
    folder = tmp_path_factory.mktemp("calibration") / "exported"
    told = json.loads(ok(calibrate(*SMALL, "--export", folder, "--json")).out)
    assert told["reproduces itself"] is True
    assert told["honest steps"] == len({1, 2, 5, 6})
    return folder


def test_the_other_half_may_be_done_elsewhere(exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "noise.json"
    told = json.loads(
        ok(calibrate("digits", "--import", exported, "--against", "threads=1", "-o", output, "--json")).out
    )
    profile = from_json(output.read_text(), "noise.json")
    assert to_json(profile) == output.read_text()
    assert (profile.name, profile.recipe, profile.honest) == ("noise", "digits", 4)
    assert profile.recipe_source == load_recipe("digits").source_digest()
    assert ("threads", "2", "1") in profile.differs
    assert ("batch", "16") in profile.configuration
    assert "steps" not in dict(profile.configuration)
    assert {"torch", "device", "machine"} <= dict(profile.holds).keys()
    assert 0 < profile.alpha == told["alpha"] < 0.5
    assert told["digest_every"] == 1
    assert {bound.name for bound in profile.tensors} == {
        name for name, _ in load_recipe("digits")(steps=6).build().model.named_parameters()
    }
    quantities = {quantity for quantity, _, _ in profile.quantiles}
    assert {"gradient", "gradient of out.weight", "weights after 1 step", "weights after 5 steps"} <= quantities


def test_an_export_of_another_recipe_is_named(exported: Path, tmp_path: Path) -> None:
    result = calibrate("gpt", "--import", exported, "-o", tmp_path / "p.json")
    assert_one_line(result, 2, "is a calibration of recipe 'digits', not 'gpt'")
    (exported / "calibration").rename(exported / "kept")
    try:
        (exported / "calibration").write_bytes((exported / "kept").read_bytes()[:-1])
        assert_one_line(calibrate("digits", "--import", exported, "-o", tmp_path / "p.json"), 2, "no exported calib")
    finally:
        (exported / "kept").rename(exported / "calibration")
    assert not (tmp_path / "p.json").exists()


def test_a_recipe_that_is_not_deterministic_is_named(tmp_path: Path) -> None:
    (tmp_path / "noisy_recipe.py").write_text(NOISY)
    result = calibrate(
        "noisy_recipe:Noisy", "--against", "threads=1", "--runs", 1, "-o", tmp_path / "p.json",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert_one_line(result, 3, "recipe 'noisy_recipe:Noisy' is not deterministic: step ")
    assert not (tmp_path / "p.json").exists()


def test_a_stack_that_does_not_reproduce_itself_is_told_what_a_digest_may_cover(tmp_path: Path) -> None:
    (tmp_path / "noisy_recipe.py").write_text(NOISY)
    output = tmp_path / "p.json"
    result = ok(
        calibrate(
            "noisy_recipe:Noisy", "--set", "noise=1e-05", "--against", "threads=1", "--runs", 1, "-o", output, "--json",
            env={"PYTHONPATH": str(tmp_path)},
        )
    )  # fmt: skip
    told = json.loads(result.out)
    assert told["reproduces itself"] is False
    assert told["digest_every"] == 2        # of the four steps, after 1 and 2 the weights were compared
    assert "warning: the reference does not reproduce itself bit by bit: one digest may cover 2 steps" in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("digits", "-o", "p.json"), "no environment to compare with"),
        (("digits", "--against", "threads=1"), "no place for the profile"),
        (("digits", "--against", "threads=0", "-o", "p.json"), "0 threads"),
        (("digits", "--against", "gpus=1", "-o", "p.json"), "'gpus=1' is no setting"),
        (("digits", "--against", "capability=sse9", "-o", "p.json"), "capability 'sse9' is not known"),
        (("nothing", "--against", "threads=1", "-o", "p.json"), "no recipe 'nothing'"),
        (("digits", "--set", "depth=3", "--against", "threads=1", "-o", "p.json"), "no hyperparameter 'depth'"),
        (("digits", "--set", "batch", "--against", "threads=1", "-o", "p.json"), "--set 'batch'"),
        (("digits", "--train", 301, "--against", "threads=1", "-o", "p.json"), "301 steps of a recipe that has 300"),
        (("digits", "--open", "depth", "--against", "threads=1", "-o", "p.json"), "no hyperparameter 'depth'"),
        (("gpt", "--against", "threads=1", "-o", "p.json"), "recipe gpt needs data"),
        (("digits", "--export", "e", "-o", "p.json"), "--export trains only"),
    ],
)
def test_what_cannot_be_asked_for_is_named(args: tuple[object, ...], message: str, tmp_path: Path) -> None:
    assert_one_line(calibrate(*args, cwd=tmp_path), 2, message)
    assert not list(tmp_path.iterdir())


# --- what ships -----------------------------------------------------------------------------------------------


def shipped() -> dict[str, Profile]:
    folder = resources.files("polcommit.recipes") / "profiles"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".json")]
    return {entry.name: from_json(entry.read_text(encoding="utf-8"), entry.name) for entry in files}


@pytest.mark.parametrize("recipe", ["digits", "gpt", "resnet20-cifar10"])
def test_profiles_ship_for_recipes_as_they_are_installed(recipe: str) -> None:
    found = [profile for profile in shipped().values() if profile.recipe == recipe]
    kind = load_recipe(BUILT_IN[recipe])
    assert found
    for profile in found:
        assert profile.recipe_source == kind.source_digest(), f"{profile.name} is of another source: calibrate anew"
        free = {name for name, one, other in profile.differs if (one, other) == ("*", "*")}
        assert {"threads", "onednn", "aten instruction set"} <= free
        assert "torch" in dict(profile.holds)
        assert profile.honest >= 60
