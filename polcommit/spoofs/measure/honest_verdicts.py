"""Honest runs through all of polcommit: registered, recorded, anchored, challenged, and judged by a verifier.

On a chain of its own for each, with keys as provers and verifiers have them, in the environment that recorded it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.setting import MODES, Setting
from polcommit.training.environment import set_determinism
from polcommit.training.recipe import Recipe

DRAWN = 10          # steps of each challenge


def verdicts(runs: Sequence[tuple[Recipe, str | None]], *, drawn: int = DRAWN, jobs: int = 1) -> dict[str, Any]:
    """Verdicts on recipes, each with the path of its data: of every four, two are post hoc, and two are taken up again.

    `why` has what the verdicts found that are not 'accepted'.
    """
    asked = [
        (recipe, data, MODES[number % 2], number // 2 % 2 == 1, drawn) for number, (recipe, data) in enumerate(runs)
    ]
    if jobs <= 1:
        found = [verdict_on(*each) for each in asked]
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(verdict_on, *zip(*asked, strict=True)))
    return {
        "drawn": drawn, "runs": len(found),
        "accepted": sum(each["why"] is None for each in found),
        "resumed": sum(each["resumed"] for each in found),
        "post hoc": sum(each["mode"] == "post hoc" for each in found),
        "flags": dict(sorted(Counter(name for each in found for name in each["flags"]).items())),
        "why": [each["why"] for each in found if each["why"] is not None],
    }  # fmt: skip


def verdict_on(recipe: Recipe, data: str | None, mode: str, resumed: bool, drawn: int) -> dict[str, Any]:
    """What a verifier says of one honest run; 'why' is None if it is accepted, bit for bit."""
    set_determinism(1)
    with Arena.open(Setting(recipe=recipe, mode=mode, count=drawn, data=data)) as arena:
        party = arena.party("honest")
        folder = arena.new_run(party)
        if resumed:
            arena.train(folder, recipe.steps // 2)
        arena.train(folder)
        verdict = arena.verdict(party, folder, arena.anchor(party, folder))
    ended = None if (verdict.verdict, verdict.basis) == ("accepted", "bit-exact") else verdict.verdict
    if ended and verdict.findings:
        ended += f": {verdict.findings[0].check}: {verdict.findings[0].what}"
    return {"mode": mode, "resumed": resumed, "flags": [flag.screen for flag in verdict.flags], "why": ended}
