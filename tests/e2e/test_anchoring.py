"""What an anchor rests on: a state that can be had again, and a root that two implementations agree on."""

from __future__ import annotations

import pytest
from world import Recording, World, one_process

from polcommit.errors import StorageError
from polcommit.recipes.gpt import Gpt
from polcommit.session import anchor as anchoring
from polcommit.session.answer import Options
from polcommit.session.challenge import Ask
from polcommit.session.recipes import run_recipe
from polcommit.spoofs.attacks.structural import InfinitesimalUpdate
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.opponent.stage import open_stage
from polcommit.training.replay import Engine


def test_a_state_that_an_interruption_left_unkept_is_regenerated(world: World) -> None:
    """Killed between kept states: what was recorded can be anchored, and the rest recorded and anchored after it."""
    run = world.runs["killed"]
    Recording(world, run, 0).kill_at(6)
    steps = run.folder.states.steps()
    found = world.cli(run.prover, "anchor", run.path, "--json").require(0).json
    assert found["steps"] in (5, 6) and found["steps"] not in steps and not found["final"]
    assert found["steps"] in run.folder.states.steps()
    world.cli(run.prover, "status", run.path, "--check").require(0)
    Recording(world, run, 0).finish()
    assert world.cli(run.prover, "anchor", run.path, "--json").require(0).json["final"]


def test_nothing_is_sent_where_pymerkle_finds_another_root(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An anchor is irreversible: the second opinion comes before the signature."""
    run = world.runs["doubted"]
    Recording(world, run, 0).finish()

    def differs(leaf_data: object, expected: bytes) -> None:
        raise StorageError("pymerkle computes another root")

    with monkeypatch.context() as patch:
        patch.setattr(anchoring, "confirm_root", differs)
        with pytest.raises(StorageError, match="another root"):
            world.anchor(run)
    assert run.folder.anchors.sequences() == ()
    assert world.connection(run.prover).ledger.anchors(run.id) == ()
    assert world.anchor(run).new


def test_a_made_up_path_of_a_transformer_is_rejected(world: World) -> None:
    """Infinitesimal updates to stolen weights, for AdamW, accumulation and clipping as for anything else."""
    run = world.runs["forged gpt"]
    recipe = Gpt.from_configuration(run.folder.settings.configuration)
    stolen = Engine(recipe, b"another's seed".ljust(32)).initial().tensors
    with open_stage(run.folder, run_recipe(run.folder), stolen, Meter()) as stage:
        InfinitesimalUpdate().forge(stage)
        stage.finish()
    world.anchor(run)
    vera = world.verifier("vera")
    announced = world.announce(vera, "vera", run.id, Ask(count=2))
    with one_process():
        out, options = world.root / "evidence of a forged gpt", Options(follow_up=False)
        verdict = world.settle(run, vera, announced, out, options=options).verdict
    assert verdict.verdict == "rejected" and verdict.findings[0].check == "V10"
