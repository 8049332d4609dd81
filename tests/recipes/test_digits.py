"""The recipe `digits`: real data, learns, and re-executes."""

from __future__ import annotations

import sys

import pytest

from polcommit.errors import MissingExtra
from polcommit.recipes import digits
from polcommit.recipes.digits import Digits
from polcommit.training.loading import Loader
from polcommit.training.replay import Engine

SEED = bytes(range(32))


def test_it_learns_to_read_and_re_executes() -> None:
    recipe = Digits()
    engine = Engine(recipe, SEED)
    engine.initial()
    assert recipe.evaluate(engine.state) < 0.3
    for batch in Loader(recipe, SEED, 1, recipe.steps - 1):
        engine.step(batch)
    assert recipe.evaluate(engine.state) > 0.9
    kept = engine.capture()
    bytes_of = {entry.name: bytes(kept.content(entry)) for entry in kept.index.tensors}
    (last,) = Loader(recipe, SEED, recipe.steps, recipe.steps)
    result = engine.step(last)
    other = Engine(recipe, SEED)
    again, captured = other.replay(kept.index, lambda entry: bytes_of[entry.name], last)
    assert again == result and captured.index == engine.capture().index


def test_the_held_out_digits_are_not_among_the_samples() -> None:
    source = Digits().source()
    assert len(source) == 1500
    image, label = source[0]
    assert image.shape == (8, 8) and image.dtype == "uint8" and image.max() <= 16 and label in range(10)


def test_shifts_move_the_image_by_at_most_that_much() -> None:
    recipe = Digits(shift=2)
    image, label = recipe.source()[3]
    shapes = {tuple(recipe.transform((image, label))[0].shape) for _ in range(20)}
    assert shapes == {(1, 8, 8)}
    plain, _ = Digits(shift=0).transform((image, label))
    assert plain[0].mul(16).to(dtype=plain.dtype).numpy().astype("uint8").tolist() == image.tolist()


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._digits.cache_clear()
    with pytest.raises(MissingExtra, match="needs the 'recipes' extra") as caught:
        Digits().source()
    assert caught.value.hint == "pip install 'polcommit[recipes]'"
    digits._digits.cache_clear()
