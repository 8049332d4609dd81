"""A run that is honest up to some step, and from there on the straight line to a stolen model: what openings hide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polcommit.events import Anchored
from polcommit.spoofs.base import Stage
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.setting import Party
from polcommit.storage.runfolder import RunFolder


@dataclass(frozen=True, slots=True)
class Spliced:
    """Such a run, recorded and perhaps anchored."""

    party: Party
    folder: RunFolder
    honest: tuple[int, ...]         # steps that re-execute
    forged: tuple[int, ...]
    meter: Meter
    anchored: Anchored | None = None

    @property
    def put(self) -> Anchored:
        """Its anchor."""
        assert self.anchored is not None
        return self.anchored


def spliced(arena: Arena, *, share: float = 0.5, anchor: bool = True, **terms: Any) -> Spliced:
    """A forger's run with this share of its steps honest, at least one; `terms` as for `Arena.new_run`."""
    party, meter, recipe = arena.party(), Meter(), arena.setting.recipe
    folder = arena.new_run(party, **terms)
    last = max(1, min(recipe.steps - 1, round(share * recipe.steps)))
    arena.write(folder, meter, lambda stage: lead(stage, last))
    steps = range(1, recipe.steps + 1)
    put = arena.anchor(party, folder) if anchor else None
    return Spliced(party, folder, tuple(steps[:last]), tuple(steps[last:]), meter, put)


def lead(stage: Stage, honest: int) -> None:
    """Commit steps up to `honest` as they are, and the rest on the line from there to the stolen model."""
    forger = Forger(stage)
    start = forger.weights()
    for batch in stage.batches():
        if batch.step <= honest:
            forger.commit(batch, forger.step(batch))
            start = forger.weights()
            continue
        result = forger.pretend(batch)
        forger.place(start, (batch.step - honest) / (stage.steps - honest))
        forger.commit(batch, result)
