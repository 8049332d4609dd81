"""What gradients that are zero by structure are worth to a forger, and why they are compared element by element.

A row of an embedding that is not in the batch has no gradient. Adam divides by the root of the second moment: a
gradient of 1e-7 where all others were zero moves a weight by a whole learning rate, and is nothing as a share of the
gradient. Here the forger leaves everything else as it is, and moves a transformer's embedding towards a stolen one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from polcommit.recipes.gpt import Gpt, Transformer
from polcommit.spoofs.bending import PUSH
from polcommit.spoofs.measure.opened import Memory, open_step
from polcommit.training.loading import FetchedBatch, Loader
from polcommit.training.measure import OpenedStep, measure
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.state import TrainingState

STEPS = 300
EVERY = 50          # steps between those that are opened and compared, besides the last
EMBEDDING = "embedding.weight"
WORDS = 40          # different bytes in the text: the rows of all others never have a gradient


@dataclass(frozen=True, kw_only=True)
class Untied(Gpt):
    """`gpt` with an output matrix of its own: where it is tied, every row of the embedding has a gradient."""

    steps: int = STEPS
    batch: int = 4
    accumulation: int = 1
    layers: int = 1
    heads: int = 2
    width: int = 16
    context: int = 16
    dropout: float = 0.0
    tied: bool = False
    weight_decay: float = 0.0

    def build(self) -> TrainingState:
        """As `gpt`; AdamW over all parameters, at a constant rate."""
        model = Transformer(self.layers, self.heads, self.width, self.context, self.dropout, tied=self.tied)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.peak, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        return TrainingState(model=model, optimizer=optimizer)

    def learning_rate(self, t: int) -> float:
        """The peak."""
        return self.peak


def push_zeros(gradient: torch.Tensor, weights: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """The gradient, with ±PUSH towards `goal` wherever it is zero."""
    return torch.where(gradient == 0, PUSH * torch.sign(weights - goal), gradient)


def moved_embeddings(steps: int = STEPS) -> dict[str, Any]:
    """Train with and without the push, and say how near the embedding came, and what a comparison sees of it."""
    with TemporaryDirectory(prefix="polcommit-") as folder:
        text = Path(folder) / "text"
        text.write_bytes(_text())
        recipe = Untied(steps=steps, text=text)
        goal = _embedding(_trained(recipe, _seed("victim")))
        pushed, compared = _pushed(recipe, goal)
        honest = _embedding(_trained(recipe, _seed("forger")))
        start = Engine(recipe, _seed("forger"))
        start.initial()
        away = _embedding(start) - goal
    unseen = [row for row in range(len(goal)) if row not in set(_text())]
    return {
        "steps": steps, "push": PUSH, "unseen": len(unseen), "rows": len(goal),
        "honest": float((honest - goal).norm() / away.norm()), "pushed": float((pushed - goal).norm() / away.norm()),
        "honest, unseen": float((honest - goal)[unseen].norm() / away[unseen].norm()),
        "pushed, unseen": float((pushed - goal)[unseen].norm() / away[unseen].norm()),
        "gradient": max(found["gradient"] for found in compared),
        "preconditioned": max(found["preconditioned"] for found in compared),
        "zeros": min(found["zeros"] for found in compared), "elements": goal.numel(),
    }  # fmt: skip


def _pushed(recipe: Recipe, goal: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, float]]]:
    engine, memory, compared = Engine(recipe, _seed("forger")), Memory(), []
    engine.initial()

    def bend(engine: Engine, batch: FetchedBatch) -> None:
        weights = engine.state.model.get_parameter(EMBEDDING)
        assert weights.grad is not None
        weights.grad = push_zeros(weights.grad, weights.detach(), goal)

    for batch in Loader(recipe, engine.seed, 1, recipe.steps):
        opening = open_step(engine, memory, batch, bend)
        if batch.step % EVERY == 0 or batch.step == recipe.steps:
            other = Engine(recipe, engine.seed)
            opened = OpenedStep(
                step=batch.step, before=opening.before, gradient=opening.gradient, after=opening.after,
                last=opening.after, fetch=memory.fetch,
            )  # fmt: skip
            found, _ = measure(other, opened, batch)
            assert found.preconditioned is not None
            compared.append({
                "gradient": found.distance / min(found.opened, found.here),
                "preconditioned": found.preconditioned[0] / found.preconditioned[1],
                "zeros": next(tensor.zeros for tensor in found.tensors if tensor.name == EMBEDDING),
            })  # fmt: skip
        memory = replace(memory, held={})
    return _embedding(engine), compared


def _trained(recipe: Recipe, seed: bytes) -> Engine:
    engine = Engine(recipe, seed)
    engine.initial()
    for batch in Loader(recipe, seed, 1, recipe.steps):
        engine.step(batch)
    return engine


def _embedding(engine: Engine) -> torch.Tensor:
    return engine.state.model.get_parameter(EMBEDDING).detach().clone()


def _text() -> bytes:
    """Some kilobytes of WORDS different bytes."""
    stream = b"".join(sha256(f"polcommit zeros {number}".encode()).digest() for number in range(200))
    return bytes(32 + byte % WORDS for byte in stream)


def _seed(who: str) -> bytes:
    return sha256(f"polcommit zeros: {who}".encode()).digest()
