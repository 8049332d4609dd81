"""The same on an accelerator: hashed through the host, re-executed bit for bit. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mixed import SEED, Mixed

from polcommit.training.environment import fingerprint, set_determinism
from polcommit.training.loading import Loader
from polcommit.training.randomness import exact_dropout, step_context
from polcommit.training.replay import Engine
from polcommit.training.tree import tensor_content

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    set_determinism()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", [{}, {"autocast": True}, {"optimizer": "sgd", "schedule": "pure", "scaler": True}])
def test_a_step_from_the_middle_comes_out_the_same(options: dict[str, Any]) -> None:
    recipe = Mixed(device="cuda", **options)
    engine = Engine(recipe, SEED)
    engine.initial()
    *first, last = Loader(recipe, SEED, 1, 5, workers=2)
    for batch in first:
        engine.step(batch)
    kept = engine.capture()
    bytes_of = {entry.name: bytes(kept.content(entry)) for entry in kept.index.tensors}
    result = engine.step(last)
    again, captured = Engine(recipe, SEED).replay(kept.index, lambda entry: bytes_of[entry.name], last)
    assert again == result and captured.index == engine.capture().index


def test_w0_hashes_and_masks_are_those_of_the_cpu() -> None:
    assert Engine(Mixed(device="cuda"), SEED).initial().index == Engine(Mixed(), SEED).initial().index
    x = torch.arange(1000, dtype=torch.float32)
    assert tensor_content(x.cuda()) == tensor_content(x)
    masks = []
    for device in ("cpu", "cuda"):
        with step_context(SEED, 1, 0):
            masks.append(exact_dropout(torch.ones(1000, device=device), 0.3).cpu())
    assert masks[0].equal(masks[1])


def test_the_fingerprint_names_the_device() -> None:
    assert dict(fingerprint("cuda").items)["device"] == torch.cuda.get_device_name()
