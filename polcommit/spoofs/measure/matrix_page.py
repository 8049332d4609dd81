"""The matrix of spoofs as a table: what polcommit accepts stands in bold, whatever it was worth to the forger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from polcommit.spoofs.measure import figures
from polcommit.spoofs.opponent.setting import MODES

PLAIN = "plain PoL"
NOT_THERE = "plain PoL has no keys, ledger, draws or openings to attack"
#: What an accepted run is worth to the forger, where that is less than everything.
WORTH = {"missed": ", not at W_T"}

Cell = dict[str, Any]


def succeeded(result: Mapping[str, Any], opponents: Sequence[str] = MODES) -> list[str]:
    """Names of the spoofs that one of these opponents accepted, whatever that was worth to the forger."""
    return [
        row["spoof"]
        for row in result["rows"]
        if any(accepted(cell) for opponent in opponents for cell in row["cells"].get(opponent, ()))
    ]


def untried(result: Mapping[str, Any], opponents: Sequence[str] = MODES) -> list[str]:
    """Names of the spoofs that were tried against none of these opponents: of those nothing can be said."""
    return [
        row["spoof"]
        for row in result["rows"]
        if (cells := [cell for opponent in opponents for cell in row["cells"].get(opponent, ())])
        and all(cell["outcome"] == "not tried" for cell in cells)
    ]


def accepted(cell: Mapping[str, Any]) -> bool:
    """Whether the verifier accepted, whatever that was worth to the forger."""
    return bool(cell.get("verdict", cell["outcome"]) == "accepted")


def markdown(result: Mapping[str, Any]) -> str:
    """The table, for a page: what polcommit accepts stands in bold, '†' says that registration alone stops it."""
    rows = []
    for row in result["rows"]:
        cells = row["cells"]
        mark = " †" if row["registration alone stops it"] else ""
        ended = [_shown(cells.get(mode, ())) for mode in MODES]
        stopped = _common([cell["why"] for mode in MODES for cell in cells.get(mode, ()) if _stopped(cell)])
        took = _mean([cell["seconds"] for mode in MODES for cell in cells.get(mode, ()) if cell.get("cost")])
        cost = _mean([cell["cost"] for mode in MODES for cell in cells.get(mode, ()) if cell.get("cost") is not None])
        rows.append((
            f"`{row['spoof']}`{mark}" + (f" ({row['on']})" if "on" in row else ""), row["family"],
            _fooled(cells.get(PLAIN, ())), *ended, stopped,
            _spent(cost, took),
        ))  # fmt: skip
    header = ("spoof", "family", "fools plain PoL (top-Q, every step)", *MODES, "stopped by", "cost")
    return figures.table(header, rows)


def _stopped(cell: Cell) -> bool:
    return cell["outcome"] in ("rejected", "inconclusive", "refused")


def _shown(cells: Sequence[Cell]) -> str:
    """How the trials in one kind of runs ended: '5 rejected', or '**2 accepted**, not at W_T, 3 rejected'."""
    if not cells:
        return ""
    reasons = {cell["why"] for cell in cells if cell["outcome"] == "not tried"}
    if len(reasons) == 1 and all(cell["outcome"] == "not tried" for cell in cells):
        return f"not tried: {reasons.pop()}"
    counts = Counter((not accepted(cell), cell["outcome"]) for cell in cells)
    return ", ".join(
        f"{count} {outcome}" if other else f"**{count} accepted**{WORTH.get(outcome, '')}"
        for (other, outcome), count in sorted(counts.items())
    )


def _fooled(cells: Sequence[Cell]) -> str:
    tried = [cell for cell in cells if cell["outcome"] in ("accepted", "missed", "rejected")]
    if not tried:
        return "–" if any(cell["why"] == NOT_THERE for cell in cells) else _shown(cells)
    top = sum(cell["outcome"] == "accepted" for cell in tried)
    every = sum(cell["every interval"] == "accepted" for cell in tried)
    return f"{top}, {every} of {len(tried)}" if top or every else f"not either: 0 of {len(tried)}"


def _common(reasons: Sequence[str]) -> str:
    """The most frequent reason, without the step that differs from trial to trial."""
    counts = Counter(reason.partition(" at step")[0] for reason in reasons)
    return counts.most_common(1)[0][0] if counts else ""


def _spent(cost: float | None, seconds: float | None) -> str:
    """Of forging: forward passes as a share of honest training's, and seconds on the machine that tried it."""
    if cost is None:
        return ""
    return figures.share(cost) + (f", {seconds:.2g} s" if seconds is not None else "")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def beside(plain: Mapping[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A result with the cells of another, against plain PoL on a recipe of its own, of the same spoofs."""
    cells = {row["spoof"]: row["cells"] for row in plain["rows"]}
    rows = [{**row, "cells": {**row["cells"], **cells[row["spoof"]]}} for row in result["rows"]]
    return {**result, "rows": rows, "plain": {**plain["plain"], "recipe": plain["recipe"]}}


def instead(result: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A result in which the rows that another has are the other's, but for what plain PoL made of them."""
    name = other["recipe"]["name"]
    rows = {
        row["spoof"]: {**row, "cells": {**row["cells"]}, "on": f"{name}, {other['recipe']['steps']} steps"}
        for row in other["rows"]
    }
    for row in result["rows"]:
        if row["spoof"] in rows and PLAIN in row["cells"]:
            rows[row["spoof"]]["cells"][PLAIN] = row["cells"][PLAIN]
    return {**result, "rows": [rows.get(row["spoof"], row) for row in result["rows"]]}


def registration_alone(cells: Mapping[str, Sequence[Cell]]) -> bool:
    """Whether a run that is not registered beforehand is accepted, whatever that is worth, and another is not."""
    registered, late = ([accepted(cell) for cell in cells.get(mode, ())] for mode in MODES)
    return bool(registered) and not any(registered) and any(late)
