"""Which spoofs fool plain Proof-of-Learning: every one of them, over seeds, with what it cost.

Each log is made once, under terms with Q = 5 that the forger knows, and then checked twice: the Q largest updates of
each epoch, and every interval. An attack that fools neither is in the table like the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from polcommit.recipes.digits import Digits
from polcommit.spoofs.base import PreconditionNotMet, TrajectorySpoof
from polcommit.spoofs.catalogue import SPOOFS
from polcommit.spoofs.measure import figures
from polcommit.spoofs.plain.prover import Honest
from polcommit.spoofs.plain.trial import PlainResult, judge, reference_distances, submit, victim
from polcommit.spoofs.plain.verifier import Terms, narrowed
from polcommit.training.environment import set_determinism
from polcommit.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECIPE = Digits(steps=160, batch=16, width=8)       # 93 steps an epoch; more steps than δ needs on a straight line
TERMS = Terms(interval=1, top=5)
SEEDS = range(5)
LEAST = 1e-6        # of distances that are drawn: an axis of powers has no 0


def measure(recipe: Recipe, seeds: Sequence[int], terms: Terms) -> dict[str, Any]:
    """A table of every trajectory spoof, as what JSON holds."""
    spoofs: list[type[TrajectorySpoof]] = [Honest, *(spoof for spoof in SPOOFS if issubclass(spoof, TrajectorySpoof))]
    reference = reference_distances(recipe)
    return {
        "recipe": {"name": type(recipe).__name__, **dict(recipe.configuration())},
        "terms": {"interval": terms.interval, "top": terms.top, "delta": terms.delta, "metrics": list(terms.metrics)},
        "seeds": list(seeds),
        "reference": reference.by_metric(),
        "honest_seconds": [round(victim(recipe, seed)[1], 3) for seed in seeds],
        "rows": [_row(spoof, recipe, seeds, terms) for spoof in spoofs],
    }


def _row(spoof: type[TrajectorySpoof], recipe: Recipe, seeds: Sequence[int], terms: Terms) -> dict[str, Any]:
    row: dict[str, Any] = {"spoof": spoof.name, "family": spoof.family, "goal": spoof.goal, "tried": len(seeds)}
    try:
        pairs = list(_results(spoof, recipe, seeds, terms))
    except PreconditionNotMet as error:
        return {**row, "tried": 0, "not tried": error.message}
    top, every = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {
        **row,
        "fools top-Q": sum(result.fooled for result in top),
        "fools every interval": sum(result.fooled for result in every),
        "accepted by top-Q": sum(result.accepted for result in top),
        "accepted by every interval": sum(result.accepted for result in every),
        "largest distance, top-Q": [_number(result.report.largest) for result in top],
        "largest distance, every interval": [_number(result.report.largest) for result in every],
        "distance from W_T": [_number(result.reached.l2) for result in top],
        "cost": [_number(result.cost) for result in top],
        "seconds": [round(result.seconds, 3) for result in top],
        "finding": next((result.report.findings[0] for result in every if result.report.findings), None),
        "notes": [{name: _number(value) for name, value in result.notes.items()} for result in top],
    }


def _results(
    spoof: type[TrajectorySpoof], recipe: Recipe, seeds: Sequence[int], terms: Terms
) -> Iterator[tuple[PlainResult, PlainResult]]:
    for seed in seeds:
        made = submit(spoof(), recipe, seed, terms)
        every = judge(made, replace(terms, top=None))
        yield judge(made, terms, narrowed(every.report, made.log, recipe, terms)), every


def _number(value: float | bool | str) -> float | bool | str:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value


def markdown(result: dict[str, Any]) -> str:
    """The table, for a page."""
    rows = []
    for row in result["rows"]:
        if not row["tried"]:
            rows.append((f"`{row['spoof']}`", row["family"], "not tried: " + row["not tried"], "", "", ""))
            continue
        tried = row["tried"]
        cost = f"{figures.share(sum(row['cost']) / tried)}, {sum(row['seconds']) / tried:.2g} s"
        rows.append(
            (
                f"`{row['spoof']}`", row["family"], f"{row['fools top-Q']} of {tried}",
                f"{row['fools every interval']} of {tried}", cost, _what_stopped(row),
            )
        )  # fmt: skip
    header = ("spoof", "family", "fools top-Q", "fools every interval", "cost", "first finding in every interval")
    return figures.table(header, rows)


def _what_stopped(row: dict[str, Any]) -> str:
    return "" if row["finding"] is None else str(row["finding"])


def draw_distances(panel: Axes, result: dict[str, Any]) -> None:
    """The largest distance that each trial's verifier met, on a line for each spoof, and the δ that it accepts."""
    rows = [row for row in result["rows"] if row["tried"]]
    for key, label, marker, size, colour in (
        ("every interval", "every step", "s", 36, "#9ecae1"), ("top-Q", "top-Q", "x", 18, "#b2182b"),
    ):  # fmt: skip
        found = [(line, row[f"largest distance, {key}"]) for line, row in enumerate(rows)]
        lines = [line for line, distances in found for _ in distances]
        values = [max(float(distance), LEAST) for _, distances in found for distance in distances]
        panel.scatter(values, lines, marker=marker, s=size, color=colour, label=label)
    panel.axvline(result["terms"]["delta"], color="black", linewidth=1, label="δ")
    panel.set_xscale("log")
    panel.set_yticks(range(len(rows)), [row["spoof"] for row in rows], fontsize=7)
    panel.invert_yaxis()
    panel.set_xlabel("largest distance, in units of d_ref")
    panel.legend(fontsize=8)


def section(result: dict[str, Any]) -> str:
    """The table and the plot, as they stand in docs/soundness.md."""
    words = (
        f"The largest distance that each log's verifier met, {len(result['seeds'])} trials a line; logs left of δ "
        f"pass. Below {LEAST:g}, bit for bit equal included, stands as {LEAST:g}."
    )
    recipe, terms = result["recipe"], result["terms"]
    what = (
        f"`digits` with {recipe['steps']} steps of {recipe['batch']}, width {recipe['width']}, a checkpoint every "
        f"{terms['interval']}, Q = {terms['top']}, δ = {terms['delta']:g}, {len(result['seeds'])} trials of each. "
        f"Distances are in the metrics {', '.join(map(str, terms['metrics']))}, over those between independent "
        "trainings; the first finding is that of the first trial that has one. `honest` is honest training."
    )
    picture = "![Largest distance of each trial, by spoof](figures/plain.svg)"
    return f"{figures.paragraph(what)}\n\n{markdown(result)}\n\n{picture}\n\n{figures.paragraph(words)}"


def main() -> None:
    """Measure, and write docs/figures/plain.json, its plot, and the section 'plain' of docs/soundness.md."""
    set_determinism(1)
    result = measure(RECIPE, SEEDS, TERMS)
    figures.write_json("plain", result)
    figures.insert_section("soundness.md", "plain", section(result))
    with figures.plot("plain", size=(7.5, 6.0)) as (panel,):
        draw_distances(panel, result)


if __name__ == "__main__":
    main()
