"""Zeros of structure under Adam: what a push there moves, and that it shows."""

from __future__ import annotations

import torch

from polcommit.spoofs.bending import PUSH
from polcommit.spoofs.measure.zeros import moved_embeddings, push_zeros


def test_a_push_moves_what_training_does_not_and_shows_element_by_element() -> None:
    found = moved_embeddings(steps=50)
    assert found["honest, unseen"] == 1.0, "rows that are in no batch stay where they are"
    assert found["pushed, unseen"] < 0.95
    assert found["gradient"] < 1e-4, "nothing, as a share of the gradient"
    assert found["zeros"] >= 0.8 * found["unseen"] * 16


def test_only_zeros_are_pushed_and_towards_the_goal() -> None:
    gradient, weights = torch.tensor([0.0, 0.5, 0.0]), torch.tensor([1.0, 1.0, -1.0])
    pushed = push_zeros(gradient, weights, torch.zeros(3))
    torch.testing.assert_close(pushed, torch.tensor([PUSH, 0.5, -PUSH]))
