"""The recipe `gpt`: over any text, learns, clips, accumulates, and re-executes with its scheduler."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from polcommit.errors import EncodingError, UsageError
from polcommit.recipes import gpt as module
from polcommit.recipes.gpt import Blocks, Gpt
from polcommit.training.loading import Loader
from polcommit.training.replay import Engine

SEED = bytes(range(32))
TEXT = Path(module.__file__)


@pytest.mark.parametrize("autocast", [False, True])
def test_it_learns_and_re_executes(autocast: bool) -> None:
    recipe = Gpt(text=TEXT, steps=40, warm_up=5, layers=2, width=32, heads=2, context=32, autocast=autocast)
    engine = Engine(recipe, SEED)
    engine.initial()
    results = []
    for batch in Loader(recipe, SEED, 1, 40):
        if batch.step == 30:
            kept = engine.capture()
            bytes_of = {entry.name: bytes(kept.content(entry)) for entry in kept.index.tensors}
        results.append(engine.step(batch))
        if batch.step == 30:
            after, middle = engine.capture().index, batch
    assert abs(results[0].loss - math.log(256)) < 0.2 and results[-1].loss < 3.9
    assert results[0].clipped and [r.learning_rate for r in results] == [recipe.learning_rate(t) for t in range(1, 41)]
    again, captured = Engine(recipe, SEED).replay(kept.index, lambda entry: bytes_of[entry.name], middle)
    assert again == results[29] and captured.index == after
    assert after.scalars.aliases == (("parameter/head.weight", "parameter/embedding.weight"),)


def test_attention_looks_back_only() -> None:
    engine = Engine(Gpt(layers=2, context=16), SEED)
    engine.initial()
    model = engine.state.model.eval()
    tokens = torch.arange(16)[None]
    later = tokens.clone()
    later[0, 9:] = 200
    with torch.no_grad():
        first, second = model(tokens), model(later)
    assert first[0, :9].equal(second[0, :9]) and not first[0, 9:].equal(second[0, 9:])


def test_blocks_cover_the_text_and_share_one_byte(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(11)))
    blocks = Blocks(tmp_path / "text", 3)
    assert [blocks[i].tolist() for i in range(len(blocks))] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    with pytest.raises(IndexError):
        blocks[3]


def test_a_text_that_is_missing_or_short(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a text"):
        Gpt().source()
    with pytest.raises(UsageError, match="cannot read the text"):
        Gpt(text=tmp_path / "no").source()
    (tmp_path / "text").write_bytes(b"abc")
    with pytest.raises(UsageError, match="has 3 bytes, fewer than context"):
        Gpt(text=tmp_path / "text").source()


@pytest.mark.parametrize("change", [{"layers": 10**9}, {"width": 65}, {"context": 0}, {"warm_up": -1}])
def test_a_configuration_that_asks_for_too_much_is_refused(change: dict[str, Any]) -> None:
    """It comes from the prover: nothing is built from it before it was found reasonable."""
    pairs = dict(Gpt().configuration()) | {name: str(value) for name, value in change.items()}
    with pytest.raises(EncodingError):
        Gpt.from_configuration(tuple(sorted(pairs.items())))
    with pytest.raises(UsageError):
        Gpt(**change)


def test_where_the_text_lies_is_no_configuration() -> None:
    assert Gpt(text="a").configuration() == Gpt(text="b").configuration()
    assert Gpt.from_configuration(Gpt(peak=1e-4).configuration(), text="a") == Gpt(peak=1e-4, text="a")
