"""Without torch: what needs it says which extra, and everything else works."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import World
from shell import Result, assert_one_line, ok

#: As if none of what the extras bring were installed, in this process and in its children.
HIDE = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Hidden)
"""


@pytest.fixture
def without(world: World, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a command without these modules."""

    def run(names: set[str], *words: object) -> Result:
        folder = tmp_path / "hidden"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(HIDE.format(names=names))
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        return world(*words, env={"PYTHONPATH": path}, cwd=tmp_path)

    return run


EXTRAS = {"torch", "numpy", "safetensors", "sklearn"}


@pytest.mark.parametrize("names", [EXTRAS, {"safetensors"}], ids=["all of it", "a part"])
def test_what_trains_or_re_executes_names_the_extra(without, world: World, tmp_path: Path, names: set[str]) -> None:  # type: ignore[no-untyped-def]
    for words in (
        ("register", "new", "--recipe", "digits"),
        ("record", world.run),
        ("challenge", world.id, "--count", 1, "--prover", "true"),
        ("challenge", world.id, "--opening", world.opening),
        ("respond", world.run, "--request", world.request, "--out", "opening"),
        ("verify", world.evidence, "--replay"),
        ("status", world.run, "--check"),
        ("demo",),
    ):
        result = without(names, *words)
        assert_one_line(result, 2, "'torch' extra")
        assert "pip install 'polcommit[torch]'" in result.err
    assert not (tmp_path / "new").exists() and not (tmp_path / "opening").exists()


def test_the_data_of_a_recipe_is_an_extra_too(without) -> None:  # type: ignore[no-untyped-def]
    assert_one_line(without({"sklearn"}, "register", "new", "--recipe", "digits"), 2, "'recipes' extra")


def test_everything_else_works_without(without, world: World, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = world.copy(tmp_path)
    (run / "anchors" / "1.anchored").unlink()       # as if killed before it was noted
    request = tmp_path / "request"
    for words in (
        ("anchor", run),
        ("status", run),
        ("verify", world.evidence, "--policy", world.policy),
        ("inspect", world.evidence),
        ("keys", "list"),
        ("keys", "new", "core", "--role", "prover", "--no-passphrase"),
        ("devnet", "status"),
        ("respond", run, "--receipt", world.receipt),
        ("challenge", world.id, "--count", 1, "--request", request),
    ):
        assert isinstance(json.loads(ok(without(EXTRAS, *words, "--json")).out), dict)
    assert request.exists()
    shutil.rmtree(world.home / "keys" / "core")
