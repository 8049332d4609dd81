"""The matrix of spoofs as a picture: a line for each spoof, a column for each opponent, a panel for each recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polcommit.spoofs.measure import figures
from polcommit.spoofs.measure.matrix_page import NOT_THERE, PLAIN, accepted
from polcommit.spoofs.opponent.setting import MODES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Column, opponent, and which of a cell's outcomes counts.
COLUMNS = (
    ("plain PoL, top-Q", PLAIN, "outcome"), ("plain PoL, every step", PLAIN, "every interval"),
    *((f"polcommit, {mode}", mode, "outcome") for mode in MODES),
)  # fmt: skip
FOOLED, HALF, MISSED, STOPPED, NOTHING = "#b2182b", "#ef8a62", "#fddbc7", "#4393c3", "#eeeeee"


def draw_matrix(results: Sequence[Mapping[str, Any]], docs: Path | None = None) -> None:
    """Write docs/figures/matrix.svg: what fools whom, of results over the same spoofs."""
    rows = results[0]["rows"]
    with figures.plot("matrix", panels=len(results), size=(4.6, 0.19 * len(rows) + 2.2), docs=docs) as axes:
        for panel, result in zip(axes, results, strict=True):
            _draw(panel, result)
        _legend(axes[0])


def _draw(panel: Axes, result: Mapping[str, Any]) -> None:
    names = [row["spoof"] for row in result["rows"]]
    for line, row in enumerate(result["rows"]):
        for place, (_, opponent, key) in enumerate(COLUMNS):
            colour = colour_of([cell for cell in row["cells"].get(opponent, ()) if cell["outcome"] != "error"], key)
            panel.barh(line, 0.92, left=place + 0.04, height=0.86, color=colour)
    panel.set_yticks(range(len(names)), names, fontsize=7)
    panel.set_xticks([place + 0.5 for place in range(len(COLUMNS))], [name for name, *_ in COLUMNS], rotation=30,
                     ha="right", fontsize=8)  # fmt: skip
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(visible=False)
    panel.set_title(result["recipe"]["name"])


def colour_of(cells: Sequence[Mapping[str, Any]], key: str) -> str:
    """Of a column's trials: how many of them were accepted, and whether that was worth anything."""
    tried = [cell for cell in cells if cell["outcome"] != "not tried"]
    if not tried or any(cell["why"] == NOT_THERE for cell in tried):
        return NOTHING
    full = sum(cell.get(key) == "accepted" for cell in tried)
    if full:
        return FOOLED if full == len(tried) else HALF
    missed = any(cell.get(key) == "missed" or (key == "outcome" and accepted(cell)) for cell in tried)
    return MISSED if missed else STOPPED


def _legend(panel: Axes) -> None:
    from matplotlib.patches import Patch

    meanings = (
        (FOOLED, "accepted in every trial, at W_T"), (HALF, "in some"), (MISSED, "accepted, not at W_T"),
        (STOPPED, "not accepted"), (NOTHING, "not tried, or nothing there to attack"),
    )  # fmt: skip
    panel.figure.legend(
        handles=[Patch(color=colour, label=text) for colour, text in meanings], loc="outside lower center",
        ncols=len(meanings), fontsize=8,
    )  # fmt: skip
