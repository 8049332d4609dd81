"""Run in a process of its own: `record` or `replay` FOLDER THREADS, every variant, and print what came out as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mixed

from polcommit.training.environment import set_determinism
from polcommit.training.loading import Loader, batch_from_encoded, encoded_sample
from polcommit.training.replay import Engine

VARIANTS: dict[str, dict[str, object]] = {
    "adamw": {},
    "adamw in bf16 autocast": {"autocast": True},
    "sgd with an epoch-wise schedule": {"optimizer": "sgd", "schedule": "epoch", "accumulation": 4},
    "sgd with a gradient scaler": {"optimizer": "sgd", "schedule": "pure", "scaler": True, "clip": None},
    "channels last": {"channels_last": True, "accumulation": 1},
}
KEPT = 16           # the state after this step is kept; an epoch has 6 steps
LAST = 19
Lines = dict[str, list[str]]


def record(folder: Path) -> Lines:
    """Steps 1 to LAST with two workers."""
    lines: Lines = {}
    for name, options in VARIANTS.items():
        recipe = mixed.Mixed(**options)  # type: ignore[arg-type]
        engine = Engine(recipe, mixed.SEED)
        engine.initial()
        lines[name] = []
        for batch in Loader(recipe, mixed.SEED, 1, LAST, workers=2):
            result = engine.step(batch)
            captured = engine.capture()
            if batch.step == KEPT:
                mixed.write_state(folder / name, captured)
            if batch.step > KEPT:
                lines[name].append(mixed.result_line(result, batch.digest, captured.index))
    return lines


def replay(folder: Path) -> dict[str, Lines]:
    """From the kept state to LAST, with no worker, with three, and from opened samples."""
    ways = ("0", "3", "opened")
    return {how: {name: _again(folder / name, how, options) for name, options in VARIANTS.items()} for how in ways}


def _again(folder: Path, how: str, options: dict[str, object]) -> list[str]:
    recipe = mixed.Mixed(**options)  # type: ignore[arg-type]
    engine = Engine(recipe, mixed.SEED)
    engine.restore(*mixed.read_state(folder))
    workers = int(how) if how.isdigit() else 0
    lines = []
    for batch in Loader(recipe, mixed.SEED, KEPT + 1, LAST, workers=workers):
        if how == "opened":
            opened = [encoded_sample(recipe.source(), index) for index in batch.indices]
            again = batch_from_encoded(recipe, mixed.SEED, batch.step, opened, batch.indices)
            assert (again.digest, again.contents) == (batch.digest, batch.contents)
            batch = again
        result = engine.step(batch)
        lines.append(mixed.result_line(result, batch.digest, engine.capture().index))
    return lines


if __name__ == "__main__":
    verb, where, threads = sys.argv[1:]
    set_determinism(int(threads))
    json.dump({"record": record, "replay": replay}[verb](Path(where)), sys.stdout)
