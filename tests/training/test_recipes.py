"""What a recipe is: its configuration as text, its source digest, its name; and the step that polcommit owns."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed import SEED, Mixed

from polcommit.encoding import pack, tag
from polcommit.errors import EncodingError, Refuted, Unavailable, UsageError
from polcommit.training.loading import Loader
from polcommit.training.recipe import LOCAL, Applied, Recipe, load_recipe
from polcommit.training.replay import Engine
from polcommit.training.state import TrainingState
from polcommit.transcript import configuration_digest


@dataclass(frozen=True, kw_only=True)
class Fields(Recipe):
    rate: float = 0.1
    name: str = "a"
    flag: bool = False
    clip: float | None = None
    data: Path | None = field(default=None, metadata=LOCAL)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"rate": 1 / 3, "name": "ü = b", "flag": True}, {"clip": 1e-300}, {"rate": math.inf, "name": ""},
        {"rate": -0.0, "data": Path("x"), "device": "cuda:1"},
    ],
)  # fmt: skip
def test_a_configuration_comes_back(options: dict[str, Any]) -> None:
    recipe = Fields(steps=7, batch=4, accumulation=2, **options)
    local_values = {name: options[name] for name in ("data", "device") if name in options}
    again = Fields.from_configuration(recipe.configuration(), **local_values)
    assert again == recipe and again.configuration() == recipe.configuration()


def test_the_configuration_is_sorted_text_without_local_fields() -> None:
    assert Fields(steps=7, batch=4, rate=0.1).configuration() == (
        ("accumulation", "1"), ("batch", "4"), ("clip", "none"), ("flag", "false"), ("name", "a"), ("rate", "0.1"),
        ("steps", "7"),
    )  # fmt: skip
    pairs = Fields(steps=7, batch=4).configuration()
    assert configuration_digest(pairs) == hashlib.sha256(tag("configuration") + pack(pairs)).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": "07"}, {"steps": "7.0"}, {"steps": "0"}, {"steps": ""}, {"steps": "1" * 5000}, {"flag": "True"},
        {"rate": "1e-1"}, {"rate": "x"}, {"clip": "None"}, {"accumulation": "3"}, {"more": "1"}, {"rate": None},
        {"steps": "\u0667"},
    ],
)  # fmt: skip
def test_a_foreign_configuration_is_refused(change: dict[str, str | None]) -> None:
    table = dict(Fields(steps=7, batch=4).configuration()) | change
    pairs = tuple(sorted((name, text) for name, text in table.items() if text is not None))
    with pytest.raises(EncodingError):
        Fields.from_configuration(pairs)
    with pytest.raises(EncodingError):
        Fields.from_configuration(pairs[::-1])


def test_unsorted_or_repeated_pairs_are_refused() -> None:
    pairs = Fields(steps=7, batch=4).configuration()
    for other in (pairs[::-1], (*pairs, pairs[-1])):
        with pytest.raises(EncodingError, match="not in its one form"):
            Fields.from_configuration(other)


def test_fields_that_cannot_be_configuration() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Listed(Recipe):
        milestones: list = None  # type: ignore[assignment,type-arg]

    with pytest.raises(UsageError, match=r"field milestones.*neither"):
        Listed(steps=1, batch=1).configuration()
    with pytest.raises(UsageError, match="3 micro-batches do not divide a batch of 4"):
        Fields(steps=1, batch=4, accumulation=3)
    with pytest.raises(UsageError, match="data2"):
        Fields.from_configuration(Fields(steps=7, batch=4).configuration(), data2=1)


def test_the_source_digest_covers_the_module_and_those_it_lists(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "helper_of_recipe.py").write_text("x = 1\n")
    (tmp_path / "some_recipe.py").write_text(
        "from polcommit.training.recipe import Recipe\nfrom dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\nclass R(Recipe):\n    SOURCES = ('helper_of_recipe',)\n"
    )
    recipe = load_recipe("some_recipe:R")
    first = recipe.source_digest()
    sources = tuple((name, (tmp_path / f"{name}.py").read_bytes()) for name in ("helper_of_recipe", "some_recipe"))
    assert first == hashlib.sha256(tag("source") + pack(sources)).digest()
    (tmp_path / "helper_of_recipe.py").write_text("x = 2\n")
    assert recipe.source_digest() != first
    (tmp_path / "helper_of_recipe.py").unlink()
    with pytest.raises(Unavailable, match="no source of module helper_of_recipe"):
        recipe.source_digest()
    sys.modules.pop("some_recipe")


@pytest.mark.parametrize(
    "name", ["nothing", "a.b:C", "mixed:Nothing", "mixed:MixedNet", "x y:C", ":", "mixed:", "..:x", ""]
)
def test_no_such_recipe(name: str) -> None:
    with pytest.raises(UsageError):
        load_recipe(name)


def test_a_recipe_that_cannot_be_imported(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needs_much.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    with pytest.raises(Unavailable, match="needs nothing_of_that_name"):
        load_recipe("needs_much:R")
    with pytest.raises(Unavailable, match="cannot be imported: ZeroDivisionError"):
        load_recipe("breaks:R")


def test_recipes_by_name() -> None:
    assert load_recipe("mixed:Mixed") is Mixed
    assert load_recipe("digits").__name__ == "Digits" and load_recipe("gpt").__name__ == "Gpt"


# --- the step -------------------------------------------------------------------------------------------------


class Wrong(Mixed):
    def learning_rate(self, t: int) -> float:
        return 0.5


def test_a_schedule_that_is_not_the_optimizers_is_told() -> None:
    engine = Engine(Wrong(), SEED)
    engine.initial()
    (batch,) = Loader(engine.recipe, SEED, 1, 1)
    with pytest.raises(UsageError, match=r"learning rate 0.01, but learning_rate\(1\) is 0.5"):
        engine.step(batch)
    engine.initial()
    assert engine.step(batch, check_schedule=False).learning_rate == 0.01


class Overflowing(Mixed):
    """The first step's scaled loss overflows."""

    def loss(self, state: TrainingState, micro_batch: Any, k: int, n: int) -> torch.Tensor:
        loss = super().loss(state, micro_batch, k, n)
        return loss * math.inf if state.counters["applied"] == 0 else loss


def test_a_skipped_update_is_seen_and_a_loss_that_is_not_finite_committed() -> None:
    engine = Engine(Overflowing(scaler=True, schedule="pure", clip=None), SEED)
    before = {e.name: e.content for e in engine.initial().index.tensors}
    first, second = Loader(engine.recipe, SEED, 1, 2)
    result = engine.step(first)
    assert result.skipped and result.loss == math.inf and result.learning_rate == 0.01
    captured = engine.capture()
    after = {e.name: e.content for e in captured.index.tensors}
    assert after["parameter/conv.weight"] == before["parameter/conv.weight"]
    assert engine.state.scaler is not None and engine.state.scaler.get_scale() == 512.0
    other = Engine(engine.recipe, SEED)
    replayed = other.replay(captured.index, captured.content, second)
    assert not replayed[0].skipped and replayed[0] == engine.step(second)
    assert replayed[1].index == engine.capture().index


def test_evaluating_in_between_changes_nothing() -> None:
    runs = []
    for evaluate in (False, True):
        engine = Engine(Mixed(), SEED)
        engine.initial()
        for batch in Loader(engine.recipe, SEED, 1, 3):
            engine.step(batch)
            if evaluate:
                torch.rand(3)
                engine.state.model.eval()
                engine.state.model.norm(torch.ones(1, 8, 2, 2))
        runs.append(engine.capture().index)
    assert runs[0] == runs[1]


def test_the_initial_state_comes_from_the_seed_alone() -> None:
    engine = Engine(Mixed(), SEED)
    first = engine.initial().index
    for batch in Loader(engine.recipe, SEED, 1, 1):
        engine.step(batch)
    torch.manual_seed(9)
    assert engine.initial().index == first == Engine(Mixed(), SEED).initial().index
    assert Engine(Mixed(), bytes(32)).initial().index != first


def test_micro_batches_that_are_too_few() -> None:
    (batch,) = Loader(Mixed(accumulation=4), SEED, 1, 1)
    with pytest.raises(UsageError, match="4 micro-batches instead of 2"):
        Engine(Mixed(), SEED).step(batch)


def test_applied_is_a_plain_record() -> None:
    assert Applied() == Applied(clipped=False) and issubclass(Refuted, Exception)
