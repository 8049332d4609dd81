"""Every spoof against plain Proof-of-Learning, and against polcommit with runs registered beforehand and post hoc.

Each cell of the matrix (spoof, opponent, seed, recipe) is a trial of its own, and a file in a folder: what is there is
not tried again, so that an interrupted matrix goes on. A cell says how its trial ended and what ended it; whoever wants
to know whether code that has changed since would do the same gives an empty folder.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polcommit.errors import PolcommitError
from polcommit.recipes.digits import Digits
from polcommit.session.recipes import recipe_name
from polcommit.spoofs.base import PreconditionNotMet, Spoof, TrajectorySpoof
from polcommit.spoofs.catalogue import SPOOFS, find_spoof
from polcommit.spoofs.measure.matrix_page import NOT_THERE, PLAIN, registration_alone
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt
from polcommit.spoofs.opponent.setting import MODES, Setting
from polcommit.spoofs.plain.trial import judge, submit
from polcommit.spoofs.plain.verifier import Terms, narrowed
from polcommit.storage import files
from polcommit.training.environment import set_determinism
from polcommit.training.recipe import Recipe
from polcommit.transcript import configuration_digest

OPPONENTS = (PLAIN, *MODES)
SEEDS = 5
RECIPE = Digits(steps=160, batch=16, width=8)       # as plain PoL's own table: enough steps for a line to be within δ
TERMS = Terms(interval=1, top=5)
CHUNK = 8           # spoofs that share a chain, and a victim

Say = Callable[[str], None]
Cell = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be tried."""

    recipe: Recipe = RECIPE
    spoofs: tuple[type[Spoof], ...] = SPOOFS
    opponents: tuple[str, ...] = OPPONENTS
    seeds: int = SEEDS
    count: int | None = None        # steps that a challenge draws, as for `Setting`
    data: str | None = None
    terms: Terms = TERMS            # of plain PoL

    @property
    def key(self) -> str:
        """Name of the folder for this recipe's cells: trials under other circumstances are other cells."""
        configuration = configuration_digest(self.recipe.configuration()).hex()[:12]
        drawn = Setting(recipe=self.recipe, count=self.count).draws
        terms = "" if self.terms == TERMS else f"-k{self.terms.interval}-q{self.terms.top}-d{self.terms.delta}"
        return f"{recipe_name(self.recipe).replace(':', '.')}-{configuration}-{drawn}{terms}"

    def path(self, out: Path, spoof: str, opponent: str, seed: int) -> Path:
        """Where a cell is kept."""
        return out / self.key / spoof / f"{opponent.replace(' ', '-').lower()}-{seed}.json"


@dataclass(frozen=True, slots=True)
class Task:
    """Trials that one process does in a row, on one chain."""

    plan: Plan
    out: Path
    opponent: str
    seed: int
    names: tuple[str, ...]


# --- trials -------------------------------------------------------------------------------------------------------


def run(plan: Plan, out: Path, *, jobs: int = 1, say: Say = lambda _: None) -> dict[str, Any]:
    """Try whatever `out` does not hold yet, in `jobs` processes; the whole of it, as JSON has it.

    A cell that failed for a reason of its own (no chain, a bug) is in the result as 'error', and tried again next time.
    """
    tasks = list(_tasks(plan, out))
    failed: list[Cell] = []
    done, total = 0, sum(len(task.names) for task in tasks)
    for cells in _cells(tasks, jobs):
        for cell in cells:
            done += 1
            say(f"{done} of {total}: {cell['spoof']}, {cell['opponent']}, seed {cell['seed']}: {cell['outcome']}")
            if cell["outcome"] == "error":
                failed.append(cell)
    return collect(plan, out, failed)


def _tasks(plan: Plan, out: Path) -> Iterator[Task]:
    for opponent in plan.opponents:
        for seed in range(plan.seeds):
            missing = [
                spoof.name for spoof in plan.spoofs if not plan.path(out, spoof.name, opponent, seed).exists()
            ]
            for start in range(0, len(missing), CHUNK):
                yield Task(plan, out, opponent, seed, tuple(missing[start : start + CHUNK]))


def _cells(tasks: Sequence[Task], jobs: int) -> Iterator[list[Cell]]:
    if jobs <= 1:
        yield from map(do, tasks)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for finished in as_completed([pool.submit(do, task) for task in tasks]):
            yield finished.result()


def do(task: Task) -> list[Cell]:
    """Try the spoofs of a task, one after the other, and keep each cell."""
    set_determinism(1)
    if task.opponent == PLAIN:
        return [_kept(task, name, lambda: _against_plain(task, name)) for name in task.names]  # noqa: B023
    setting = Setting(
        recipe=task.plan.recipe, mode=task.opponent, seed=task.seed, count=task.plan.count, data=task.plan.data
    )
    try:
        with Arena.open(setting) as arena:
            return [_kept(task, name, lambda: _attempt(arena, name)) for name in task.names]  # noqa: B023
    except PolcommitError as error:     # the chain did not start, or was lost
        return [_cell(task, name, {"outcome": "error", "why": error.message}) for name in task.names]


def _kept(task: Task, name: str, trial: Callable[[], Mapping[str, Any]]) -> Cell:
    try:
        found = trial()
    except PreconditionNotMet as error:
        found = {"outcome": "not tried", "why": error.message}
    except Exception as error:  # noqa: BLE001  (one trial's bug is not the other hundreds')
        return _cell(task, name, {"outcome": "error", "why": f"{type(error).__name__}: {error}"[:500]})
    cell = _cell(task, name, found)
    path = task.plan.path(task.out, name, task.opponent, task.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, json.dumps(cell).encode(), exist_ok=True)
    return cell


def _cell(task: Task, name: str, found: Mapping[str, Any]) -> Cell:
    return {"spoof": name, "opponent": task.opponent, "seed": task.seed, **found}


def _against_plain(task: Task, name: str) -> Mapping[str, Any]:
    return plain_trial(find_spoof(name), task.plan.recipe, task.seed, task.plan.terms)


def _attempt(arena: Arena, name: str) -> Mapping[str, Any]:
    attempt: Attempt = arena.try_out(find_spoof(name)())
    return attempt.plain()


def plain_trial(kind: type[Spoof], recipe: Recipe, seed: int, terms: Terms = TERMS) -> Mapping[str, Any]:
    """Against plain PoL: 'outcome' for the Q largest updates of each epoch, and 'every interval', of one log.

    What is not met here is an outcome, 'not tried', as well.
    """
    set_determinism(1)
    try:
        return _plain(kind, recipe, seed, terms)
    except PreconditionNotMet as error:
        return {"outcome": "not tried", "why": error.message}


def _plain(kind: type[Spoof], recipe: Recipe, seed: int, terms: Terms) -> Mapping[str, Any]:
    if not issubclass(kind, TrajectorySpoof):
        raise PreconditionNotMet(NOT_THERE)
    made = submit(kind(), recipe, seed, terms)
    every = judge(made, replace(terms, top=None))
    top = judge(made, terms, narrowed(every.report, made.log, recipe, terms))
    findings = top.report.findings or every.report.findings
    return {
        "outcome": _ending(top.fooled, top.accepted),
        "every interval": _ending(every.fooled, every.accepted),
        "why": findings[0] if findings else "nothing was found",
        "cost": made.cost,
        "seconds": made.seconds,
        "reached": top.reached.l2,
        "notes": dict(top.notes),
    }


def _ending(fooled: bool, accepted: bool) -> str:
    return "accepted" if fooled else "missed" if accepted else "rejected"


# --- the table ----------------------------------------------------------------------------------------------------


def collect(plan: Plan, out: Path, failed: Iterable[Cell] = ()) -> dict[str, Any]:
    """Everything that `out` holds of a plan, as JSON has it: a row for each spoof, with its cells."""
    wrong = {(cell["spoof"], cell["opponent"], cell["seed"]): cell for cell in failed}
    rows = []
    for spoof in plan.spoofs:
        cells: dict[str, list[Cell]] = {}
        for opponent in plan.opponents:
            cells[opponent] = []
            for seed in range(plan.seeds):
                path = plan.path(out, spoof.name, opponent, seed)
                if path.exists():
                    cells[opponent].append(json.loads(path.read_text("utf-8")))
                elif (spoof.name, opponent, seed) in wrong:
                    cells[opponent].append(wrong[spoof.name, opponent, seed])
        rows.append(
            {
                "spoof": spoof.name, "family": spoof.family, "title": spoof.title, "source": spoof.source,
                "goal": spoof.goal, "registration alone stops it": registration_alone(cells), "cells": cells,
            }
        )  # fmt: skip
    setting = Setting(recipe=plan.recipe, count=plan.count)
    return {
        "recipe": {"name": recipe_name(plan.recipe), **dict(plan.recipe.configuration())},
        "seeds": plan.seeds,
        "drawn": setting.draws,
        "plain": {"interval": plan.terms.interval, "top": plan.terms.top, "delta": plan.terms.delta},
        "rows": rows,
    }
