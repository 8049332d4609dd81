"""docs/spec.md against the code: the byte layout of every record, and the domain tags.

    python tests/test_spec.py --write       writes the appendix's tables again, from the records

What the appendix says in words ('Valid if') is not compared with anything.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from polcommit import profiles, records
from polcommit.encoding import TAGS, Length, Record

SPEC = Path(__file__).parent.parent / "docs" / "spec.md"
APPENDIX = "\n## Appendix: "
HEADING = re.compile(r'<a id="rec-([a-z]+)"></a>\n\n### (\w+)\n\n')
TABLE_HEAD = "| # | field | type | bytes |\n| --- | --- | --- | --- |\n"

INT, TEXT, BYTES, ARRAY = "1–9", "1–5 + UTF-8", "2–5 + n", "1–5 + n × ({})"
SCALARS = {
    int: ("int", INT), bool: ("bool", "1"), str: ("text", TEXT), float: ("float64", "10"), bytes: ("bytes", BYTES),
}  # fmt: skip


def every_record() -> dict[str, type[Record]]:
    """The records that are hashed, signed, sent, or named by a digest, by name."""
    found = [getattr(records, name) for name in records.__all__]
    found += [profiles.Bound, profiles.Spread, profiles.Profile]
    return {kind.__name__: kind for kind in found}


# --- what the code says ---------------------------------------------------------------------------------------


def layout(hint: Any) -> tuple[str, str]:
    """A field's type and its size in bytes, in the appendix's words."""
    if isinstance(hint, type) and issubclass(hint, Record):
        return f"[{hint.__name__}](#rec-{hint.__name__.lower()})", "record"
    if get_origin(hint) is Annotated:
        (length,) = (note for note in get_args(hint)[1:] if isinstance(note, Length))
        return f"bytes {length.size}", str(length.size + 2)       # a bin head of two bytes: none is above 255
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        what, size = layout(next(argument for argument in arguments if argument is not type(None)))
        return f"{what} or nil", size if size in (INT, "1") else f"1, or {size}"
    if get_origin(hint) is tuple and arguments[1:] == (Ellipsis,):
        what, size = layout(arguments[0])
        return f"array of {what}", ARRAY.format(size)
    if get_origin(hint) is tuple:
        parts = [layout(argument) for argument in arguments]
        return f"[{', '.join(what for what, _ in parts)}]", _sum([size for _, size in parts])
    return SCALARS[hint]


def _sum(sizes: list[str]) -> str:
    """The size of a short array: one number where every item has one."""
    if all(size.isdigit() for size in sizes):
        return str(1 + sum(map(int, sizes)))
    return " + ".join(["1", *(size if size.isdigit() or size == "record" else f"({size})" for size in sizes)])


def rows(kind: type[Record]) -> list[str]:
    """The rows of a record's table."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    if kind.TAG is not None:
        tag = f"polcommit/{kind.TAG}"
        assert len(tag) < 32        # a head of one byte
        found = [("tag", f"text `{tag}`", str(len(tag) + 1)), ("version", f"int `{kind.VERSION}`", "1")]
    found += [(f"`{field.name}`", *layout(hints[field.name])) for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return [f"| {number} | {' | '.join(row)} |" for number, row in enumerate(found)]


def head(kind: type[Record]) -> str:
    """The line before the table."""
    items = len(rows(kind))
    header = f"one byte `0x9{items:x}`" if items < 16 else f"three bytes `0xdc{items:04x}`"
    part = "" if kind.TAG is not None else "; a part of other records, without tag"
    return f"Array of {items} items, whose header is {header}{part}."


# --- what the specification says ------------------------------------------------------------------------------


def sections(text: str) -> dict[str, str]:
    """The appendix's sections, by record; each from behind its heading to the next one."""
    appendix = text[text.index(APPENDIX) :]
    found = list(HEADING.finditer(appendix))
    ends = [match.start() for match in found[1:]] + [len(appendix)]
    assert all(anchor == name.lower() for anchor, name in (match.groups() for match in found))
    named = {match[2]: appendix[match.end() : end] for match, end in zip(found, ends, strict=True)}
    assert len(named) == len(found), "a record is there twice"
    return named


def test_every_record_has_a_section_and_no_other_has() -> None:
    assert sections(SPEC.read_text("utf-8")).keys() == every_record().keys()


@pytest.mark.parametrize("name", sorted(every_record()))
def test_a_section_says_what_the_record_is(name: str) -> None:
    kind = every_record()[name]
    first, _, rest = sections(SPEC.read_text("utf-8"))[name].partition("\n\n")
    assert first == head(kind)
    assert rest.startswith(TABLE_HEAD)
    shown = rest.removeprefix(TABLE_HEAD).partition("\n\n")[0].split("\n")
    assert [row for row in shown if row] == rows(kind)


def test_every_record_that_is_named_has_a_section() -> None:
    text = SPEC.read_text("utf-8")
    named = set(re.findall(r"\]\(#rec-(\w+)\)", text))
    assert named <= {name.lower() for name in every_record()}


def test_the_domain_tags_are_all_there() -> None:
    text = SPEC.read_text("utf-8")
    start = text.index("\n### 2.3 ")
    table = text[start : text.index("\n### 2.4 ", start)]
    named = [tag for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for tag in re.findall(r"`([^`<]+)`", row)]
    assert len(named) == len(set(named))
    assert set(named) == TAGS


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (tuple[tuple[int, records.TreeHead], ...], ("array of [int, [TreeHead](#rec-treehead)]",
                                                    "1–5 + n × (1 + (1–9) + record)")),
        (tuple[float, float] | None, ("[float64, float64] or nil", "1, or 21")),
        (bool | None, ("bool or nil", "1")),
    ],
)  # fmt: skip
def test_layouts_in_words(hint: Any, expected: tuple[str, str]) -> None:
    assert layout(hint) == expected


# --- writing it again -----------------------------------------------------------------------------------------


def rewritten(text: str) -> str:
    """The specification with the appendix's tables as the records have them; a missing record's section comes last."""
    found = sections(text)
    for name, kind in every_record().items():
        table = f"{head(kind)}\n\n{TABLE_HEAD}" + "\n".join(rows(kind)) + "\n"
        if name not in found:
            text = text.rstrip("\n") + f'\n\n<a id="rec-{name.lower()}"></a>\n\n### {name}\n\n{table}'
            continue
        written = re.match(r".*?\n\n\| # .*?\n(?=\n|\Z)", found[name], re.DOTALL)
        assert written is not None, f"the section of {name} has no table"
        text = text.replace(f"### {name}\n\n{written[0]}", f"### {name}\n\n{table}")
    return text


def test_what_is_written_again_is_the_same() -> None:
    text = SPEC.read_text("utf-8")
    assert rewritten(text) == text


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    SPEC.write_text(rewritten(SPEC.read_text("utf-8")), "utf-8")
