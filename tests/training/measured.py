"""Steps recorded with their gradients in one process, and measured in another.

    python measured.py record FOLDER SETTINGS           honest steps of each variant, everything opened
    python measured.py measure FOLDER SETTINGS ...      what other environments make of them, as JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mixed
import torch

from polcommit.encoding import Record, decode, encode
from polcommit.recipes.digits import Digits
from polcommit.recipes.gpt import Gpt
from polcommit.records import Gradient, StateIndex, TensorEntry
from polcommit.replaying import Measured
from polcommit.session.environments import EnvironmentSettings
from polcommit.training.environment import set_determinism
from polcommit.training.loading import FetchedBatch, Loader
from polcommit.training.measure import OpenedStep, measure
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.residuals import Residuals
from polcommit.training.step import GRADIENT, gradient_entries, gradients
from polcommit.training.tree import raw_bytes, tensor_content

SEED = bytes(range(32))
TEXT = Path(__file__).parents[2] / "LICENSE"
RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": lambda: Digits(steps=30, batch=32),
    "gpt": lambda: Gpt(steps=30, batch=8, layers=2, context=32, text=TEXT),
    "mixed": lambda: mixed.Mixed(native_dropout=False, scaler=True),
}
STEPS = (1, 2, 6, 12)       # of those that are opened; the last is W_T


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening(Record):
    """One step, opened: indices and a gradient."""

    step: int
    before: StateIndex
    gradient: Gradient
    after: StateIndex


class Blobs:
    """Contents by digest, in memory or in a folder."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def put(self, tensor: torch.Tensor) -> bytes:
        data = bytes(raw_bytes(tensor))
        found = tensor_content(tensor)
        self.held[found] = data
        return found

    def fetch(self, entry: TensorEntry) -> bytes:
        return self.held[entry.content]


def opened_run(recipe: Recipe, steps: tuple[int, ...], blobs: Blobs) -> tuple[list[Opening], StateIndex]:
    """Honest steps from W_0, opened; and the state after the last of them."""
    engine = Engine(recipe, SEED)
    before = _kept(engine.initial(), blobs)
    openings = []
    for batch in Loader(recipe, SEED, 1, max(steps)):
        entries: tuple[TensorEntry, ...] = ()

        def take() -> None:
            nonlocal entries
            found = gradients(engine.state.model)
            entries = gradient_entries(found)
            for gradient in found.values():
                blobs.put(gradient)

        engine.step(batch, between=take)
        after = _kept(engine.capture(), blobs)
        if batch.step in steps:
            gradient = Gradient(step=batch.step, tensors=entries)
            openings.append(Opening(step=batch.step, before=before, gradient=gradient, after=after))
        before = after
    return openings, before


def _kept(captured: Any, blobs: Blobs) -> StateIndex:
    for tensor in captured.tensors.values():
        blobs.put(tensor)
    index: StateIndex = captured.index
    return index


def batch_of(recipe: Recipe, step: int) -> FetchedBatch:
    return next(iter(Loader(recipe, SEED, step, step)))


def measured(
    engine: Engine, opening: Opening, last: StateIndex, blobs: Blobs
) -> tuple[Measured, dict[str, torch.Tensor]]:
    opened = OpenedStep(
        step=opening.step,
        before=opening.before,
        gradient=opening.gradient,
        after=opening.after,
        last=last,
        fetch=blobs.fetch,
    )
    return measure(engine, opened, batch_of(engine.recipe, opening.step))


def forged(opening: Opening, blobs: Blobs, **changes: Mapping[str, torch.Tensor]) -> Opening:
    """The opening with other tensors, by entry name: `gradient=`, `before=` or `after=`."""
    for part, tensors in changes.items():
        whole = getattr(opening, part)
        entries = tuple(
            replace(entry, content=blobs.put(tensors[entry.name])) if entry.name in tensors else entry
            for entry in whole.tensors
        )
        opening = replace(opening, **{part: replace(whole, tensors=entries)})
    return opening


def opened(opening: Opening, part: str, name: str, blobs: Blobs) -> torch.Tensor:
    """A writable copy of an opened tensor."""
    entry = next(entry for entry in getattr(opening, part).tensors if entry.name == name)
    dtype = getattr(torch, entry.dtype)
    return torch.frombuffer(bytearray(blobs.held[entry.content]), dtype=dtype).reshape(entry.shape).clone()


def main(verb: str, where: str, *settings: str) -> None:
    folder = Path(where)
    if verb == "record":
        choose(settings[0])
        blobs = Blobs()
        for name, make in RECIPES.items():
            openings, last = opened_run(make(), STEPS, blobs)
            for opening in openings:
                (folder / f"{name}.{opening.step}").write_bytes(encode(opening))
            (folder / f"{name}.last").write_bytes(encode(last))
        for digest, data in blobs.held.items():
            (folder / digest.hex()).write_bytes(data)
        return
    found = {}
    for text in settings:
        choose(text)
        found[text] = {name: _measured(folder, name, make()) for name, make in RECIPES.items()}
    json.dump(found, sys.stdout)


def choose(text: str) -> None:
    """What of an environment can be chosen in a process that runs."""
    chosen = EnvironmentSettings.parse(text)
    set_determinism(chosen.threads, onednn=chosen.onednn, precision=chosen.precision)


def _measured(folder: Path, name: str, recipe: Recipe) -> dict[str, Any]:
    blobs = Blobs()
    blobs.held = {bytes.fromhex(path.name): path.read_bytes() for path in folder.iterdir() if len(path.name) == 64}
    last = decode((folder / f"{name}.last").read_bytes(), StateIndex)
    engine = Engine(recipe, SEED)
    steps: list[dict[str, Any]] = []
    with Residuals(len(STEPS)) as residuals:
        for step in STEPS:
            opening = decode((folder / f"{name}.{step}").read_bytes(), Opening)
            found, residual = measured(engine, opening, last, blobs)
            residuals.add(engine.state.model, residual)
            steps.append(_summary(found))
        cosines = residuals.cosines()
    return {"steps": steps, "cosines": cosines}


def _summary(found: Measured) -> dict[str, Any]:
    names = [name for name in Measured.__dataclass_fields__ if name not in ("tensors", "buffers")]
    values = {name: getattr(found, name) for name in names}
    zeros = sum(tensor.zeros for tensor in found.tensors)
    buffers = max((b.distance / max(b.here, 1e-30) for b in found.buffers if b.here), default=0.0)
    worst = max(found.tensors, key=lambda t: t.distance / max(min(t.opened, t.here), 1e-30))
    ratio = worst.distance / max(min(worst.opened, worst.here), 1e-30)
    return values | {"zeros": zeros, "buffers": buffers, "worst tensor": [worst.name, ratio]}


assert GRADIENT == "gradient/"      # the names that tests write out

if __name__ == "__main__":
    main(*sys.argv[1:])
