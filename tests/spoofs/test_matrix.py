"""The table: what is accepted stands out, what was not tried says why, and nothing is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from trials import FewDigits

from polcommit.recipes.digits import Digits
from polcommit.spoofs.catalogue import find_spoof
from polcommit.spoofs.measure import matrix, matrix_page, matrix_plot, matrix_tables
from polcommit.spoofs.measure.matrix import Plan
from polcommit.spoofs.measure.matrix_page import PLAIN
from polcommit.storage import files

PLAN = Plan(recipe=FewDigits(), spoofs=tuple(map(find_spoof, ("splice", "same-model-later"))), seeds=2)


def kept(out: Path, spoof: str, opponent: str, *outcomes: str, **more: Any) -> None:
    for seed, outcome in enumerate(outcomes):
        path = PLAN.path(out, spoof, opponent, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        cell = {"spoof": spoof, "opponent": opponent, "seed": seed, "outcome": outcome, "why": "V10: loss at step 3"}
        files.write_atomic(path, json.dumps(cell | more).encode())


def row(table: str, spoof: str) -> list[str]:
    line = next(line for line in table.splitlines() if f"`{spoof}`" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_is_accepted_stands_in_bold(tmp_path: Path) -> None:
    kept(tmp_path, "splice", "registered", "rejected", "accepted", cost=0.5, seconds=2.0)
    result = matrix.collect(PLAN, tmp_path)
    found = row(matrix_page.markdown(result), "splice")
    assert found[3:] == ["**1 accepted**, 1 rejected", "", "V10: loss", "50 %, 2 s"]
    assert matrix_page.succeeded(result) == ["splice"]


def test_what_registration_alone_stops_is_marked(tmp_path: Path) -> None:
    kept(tmp_path, "same-model-later", "registered", "rejected", "rejected")
    kept(tmp_path, "same-model-later", "post hoc", "missed", "missed", verdict="accepted")
    kept(tmp_path, "splice", "registered", "missed", "rejected", verdict="accepted")
    kept(tmp_path, "splice", "post hoc", "missed", "missed", verdict="accepted")
    result = matrix.collect(PLAN, tmp_path)
    assert "`same-model-later` † " in matrix_page.markdown(result)
    assert row(matrix_page.markdown(result), "same-model-later")[4] == "**2 accepted**, not at W_T"
    assert "`splice` | " in matrix_page.markdown(result), "which registration does not stop either"


def test_what_an_accepted_run_is_worth_does_not_hide_that_it_was_accepted(tmp_path: Path) -> None:
    kept(tmp_path, "splice", "registered", "missed", verdict="accepted")
    kept(tmp_path, "same-model-later", "post hoc", "missed", "missed", verdict="accepted")
    result = matrix.collect(PLAN, tmp_path)
    assert row(matrix_page.markdown(result), "same-model-later")[4] == "**2 accepted**, not at W_T"
    assert matrix_page.succeeded(result) == ["splice", "same-model-later"]


def test_what_one_recipe_lacks_is_tried_on_another(tmp_path: Path) -> None:
    kept(tmp_path, "splice", "registered", "not tried", "not tried")
    kept(tmp_path, "splice", PLAIN, "rejected", **{"every interval": "rejected"})
    kept(tmp_path, "same-model-later", "registered", "rejected")
    result = matrix.collect(PLAN, tmp_path)
    other = replace(PLAN, recipe=Digits(steps=5), spoofs=(find_spoof("splice"),))
    path = other.path(tmp_path, "splice", "registered", 0)
    path.parent.mkdir(parents=True)
    files.write_atomic(path, json.dumps({"outcome": "rejected", "why": "V10: loss"}).encode())
    found = matrix_page.instead(result, matrix.collect(other, tmp_path))
    assert not matrix_page.untried(found)
    line = next(line for line in matrix_page.markdown(found).splitlines() if "`splice`" in line)
    assert "`splice` (digits, 5 steps)" in line and "1 rejected" in line and "not either: 0 of 1" in line


def test_what_was_tried_on_nobody_is_named(tmp_path: Path) -> None:
    kept(tmp_path, "splice", "registered", "not tried", "not tried")
    kept(tmp_path, "same-model-later", "post hoc", "rejected", "not tried")
    assert matrix_page.untried(matrix.collect(PLAN, tmp_path)) == ["splice"]


def test_an_attack_that_does_not_fool_plain_pol_either_says_so(tmp_path: Path) -> None:
    kept(tmp_path, "splice", PLAIN, "rejected", "missed", **{"every interval": "rejected"})
    assert row(matrix_page.markdown(matrix.collect(PLAN, tmp_path)), "splice")[2] == "not either: 0 of 2"
    kept(tmp_path / "other", "splice", PLAIN, "accepted", "rejected", **{"every interval": "rejected"})
    assert row(matrix_page.markdown(matrix.collect(PLAN, tmp_path / "other")), "splice")[2] == "1, 0 of 2"


def test_what_was_not_tried_says_why(tmp_path: Path) -> None:
    for opponent in matrix.OPPONENTS:
        kept(tmp_path, "splice", opponent, "not tried", "not tried", why="no room")
    assert row(matrix_page.markdown(matrix.collect(PLAN, tmp_path)), "splice")[2:5] == ["not tried: no room"] * 3


def test_an_error_is_no_outcome(tmp_path: Path) -> None:
    """It is shown, it is not kept, and the trial is done again."""
    failed = [{"spoof": "splice", "opponent": "registered", "seed": 0, "outcome": "error", "why": "no chain"}]
    result = matrix.collect(PLAN, tmp_path, failed)
    assert row(matrix_page.markdown(result), "splice")[3] == "1 error"
    assert len(list(matrix._tasks(PLAN, tmp_path))) == len(matrix.OPPONENTS) * PLAN.seeds
    assert not list(tmp_path.iterdir())


def test_another_recipe_or_draw_has_cells_of_its_own(tmp_path: Path) -> None:
    keys = {PLAN.key, Plan(recipe=FewDigits(steps=9)).key, Plan(recipe=FewDigits(), count=3).key}
    assert len(keys) == 3


# --- the tables of the page -----------------------------------------------------------------------------------


def test_every_table_has_more_than_an_epoch_and_the_data_that_it_names(tmp_path: Path) -> None:
    """Or spoofs about a sample's second appearance could not be tried."""
    for table in matrix_tables.tables(tmp_path):
        epoch = len(table.short.source()) // table.short.batch
        assert 1 <= epoch < table.short.steps, table.name
        assert table.data is None or Path(table.data).is_relative_to(tmp_path)
        assert table.plain.steps > table.short.steps


def test_a_table_becomes_a_section_that_says_what_was_tried(tmp_path: Path) -> None:
    kept(tmp_path, "splice", "registered", "rejected", "rejected")
    kept(tmp_path, "same-model-later", "registered", "not tried", "not tried")
    result = matrix_page.beside(matrix.collect(PLAN, tmp_path), matrix.collect(PLAN, tmp_path))
    text = matrix_tables.section(result)
    assert f"on {PLAN.recipe.steps} steps of `{result['recipe']['name']}`" in text
    assert "Tried on no recipe: `same-model-later`" in text and "2 rejected" in text


def test_colours_tell_arrived_from_accepted_and_from_not_tried() -> None:
    def cells(*outcomes: str) -> list[dict[str, Any]]:
        return [{"outcome": outcome, "why": ""} for outcome in outcomes]

    assert matrix_plot.colour_of(cells("accepted", "accepted"), "outcome") == matrix_plot.FOOLED
    assert matrix_plot.colour_of(cells("accepted", "rejected"), "outcome") == matrix_plot.HALF
    assert matrix_plot.colour_of(cells("rejected", "missed"), "outcome") == matrix_plot.MISSED
    assert matrix_plot.colour_of([{"outcome": "missed", "verdict": "accepted", "why": ""}], "outcome") == (
        matrix_plot.MISSED
    )
    assert matrix_plot.colour_of(cells("inconclusive"), "outcome") == matrix_plot.STOPPED
    assert matrix_plot.colour_of(cells("not tried"), "outcome") == matrix_plot.NOTHING
    assert matrix_plot.colour_of([], "outcome") == matrix_plot.NOTHING
