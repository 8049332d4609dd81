"""Figures of docs/: bytes that repeat, sections between markers, and nothing that names a machine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from polcommit.errors import MissingExtra, StorageError, UsageError
from polcommit.spoofs.measure import figures

PAGE = "# Page\n\nbefore\n\n<!-- part:begin -->\nold\n<!-- part:end -->\n\nafter\n"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path


def test_json_comes_back_with_machine_and_versions(docs: Path) -> None:
    path = figures.write_json("part-1", {"rate": 0.1, "rows": [1, 2]}, docs)
    found = figures.read_json("part-1", docs)
    assert found == json.loads(path.read_text()) and path == docs / "figures" / "part-1.json"
    assert (found["rate"], found["rows"]) == (0.1, [1, 2])
    assert found["machine"]["cores"] >= 1 and found["machine"]["processor"]
    assert found["versions"]["polcommit"] and "torch" in found["versions"]
    again = path.read_bytes()
    figures.write_json("part-1", {"rate": 0.1, "rows": [1, 2]}, docs)
    assert path.read_bytes() == again


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), b"x"], ids=["nan", "inf", "object", "bytes"])
def test_what_json_cannot_hold_is_not_written(docs: Path, value: object) -> None:
    with pytest.raises(UsageError, match="'part'"):
        figures.write_json("part", {"value": value}, docs)
    assert not (docs / "figures").exists()


def test_a_folder_of_this_machine_is_not_written(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for text in ("/home/somebody", "in /home/somebody/data.bin"):
        with pytest.raises(UsageError, match="/home/somebody"):
            figures.write_json("part", {"data": text}, docs)
        with pytest.raises(UsageError, match="/home/somebody"):
            figures.insert_section("page.md", "part", text, docs)
    assert (docs / "page.md").read_text() == PAGE
    figures.write_json("part", {"data": "/home/somebodyelse and leaf/home/somebody"}, docs)


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "a/b", "a.", "-a"])
def test_names_of_figures(docs: Path, name: str) -> None:
    with pytest.raises(UsageError, match="figure"):
        figures.write_json(name, {}, docs)


def test_a_figure_that_is_not_there(docs: Path) -> None:
    with pytest.raises(StorageError):
        figures.read_json("part", docs)


def test_only_the_section_changes(docs: Path) -> None:
    for text in ("new\n\nlines", "newer"):
        figures.insert_section("page.md", "part", text, docs)
        assert (docs / "page.md").read_text() == PAGE.replace("\nold\n", f"\n\n{text}\n\n")


@pytest.mark.parametrize(
    "page",
    [
        "nothing",
        "<!-- part:begin -->",
        "<!-- part:end --> <!-- part:begin -->",
        PAGE + PAGE,
    ],
)
def test_a_page_without_one_place_stays_as_it_is(docs: Path, page: str) -> None:
    (docs / "page.md").write_text(page)
    with pytest.raises(UsageError, match="section 'part'"):
        figures.insert_section("page.md", "part", "new", docs)
    assert (docs / "page.md").read_text() == page


def test_the_page_of_the_figures_has_its_places() -> None:
    """What scripts/soundness fills exists in the checkout."""
    text = (figures.docs_folder() / "soundness.md").read_text()
    assert text.count("<!-- detection:begin -->") == text.count("<!-- detection:end -->") == 1


def test_tables() -> None:
    assert figures.table(["a", "b"], [[1, "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"
    with pytest.raises(UsageError, match="3 cells"):
        figures.table(["a", "b"], [[1, 2, 3]])


def test_shares_and_paragraphs() -> None:
    assert (figures.share(0.128205), figures.share(0.05), figures.share(1)) == ("12.8 %", "5 %", "100 %")
    assert max(map(len, figures.paragraph("some-thing " * 40).splitlines())) <= 120


def test_plots_repeat_byte_for_byte(docs: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the 'soundness' extra")
    drawn = []
    for _ in range(2):
        with figures.plot("part", panels=2, docs=docs) as (left, right):
            left.plot([1, 2], [3, 4], label="measured")
            left.legend()
            right.bar(["a", "b"], [1, 2])
        drawn.append((docs / "figures" / "part.svg").read_bytes())
    assert drawn[0] == drawn[1]
    text = drawn[0].decode()
    assert "measured" in text and "<dc:date>" not in text and str(docs) not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_a_plot_that_fails_writes_nothing(docs: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the 'soundness' extra")
    with pytest.raises(ZeroDivisionError), figures.plot("part", docs=docs) as (axes,):
        axes.plot([1 / 0])
    assert not (docs / "figures").exists()


def test_without_matplotlib_the_extra_is_named(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match="soundness"), figures.plot("part", docs=docs):
        pass
