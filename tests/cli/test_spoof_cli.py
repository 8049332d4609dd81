"""polcommit spoof, as a user has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shell import assert_one_line, ok, polcommit

SMALL = ("--set", "steps=6", "--set", "batch=4", "--set", "width=2")


def test_the_list_names_every_family_and_what_the_forger_knows() -> None:
    found = json.loads(ok(polcommit("spoof", "list", "--json")).out)["spoofs"]
    families = list(dict.fromkeys(spoof["family"] for spoof in found))
    assert families[0] == "structurally correct" and {"precedence", "smuggling", "protocol"} <= set(families)
    by_name = {spoof["name"]: spoof for spoof in found}
    assert by_name["replayed-anchor"]["knows"] == ["envelope"] and by_name["replayed-anchor"]["kind"] == "protocol"
    assert by_name["infinitesimal-update"]["kind"] == "states" and len(by_name) == len(found)
    text = ok(polcommit("spoof", "list", "--family", "data")).out
    assert "data-after-anchor" in text and "replayed-anchor" not in text


def test_a_spoof_is_run_against_both(tmp_path: Path) -> None:
    done = polcommit("spoof", "run", "infinitesimal-update", *SMALL, "--json", home=tmp_path)
    assert done.status == 0, done
    found = json.loads(done.out)
    assert found["plain PoL"]["every interval"] in ("accepted", "rejected")
    assert found["polcommit"]["outcome"] == "rejected" and found["polcommit"]["findings"][-1]["check"] == "V10"
    assert (found["polcommit"]["drawn"], found["polcommit"]["steps"]) == (6, 6)
    assert not list(tmp_path.iterdir()), "the user's home is not touched"


def test_what_cannot_be_tried_ends_with_3(tmp_path: Path) -> None:
    done = polcommit("spoof", "run", "forged-scheduler", *SMALL, home=tmp_path)
    assert done.status == 3, done
    assert "not tried: the recipe has no scheduler" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "no-such-attack"), "no spoof 'no-such-attack'"),
        (("run", "replayed-anchor", "--plain"), "attacks the protocol"),
        (("run", "splice", "--set", "steps"), "not NAME=VALUE"),
        (("run", "splice", "--count", "500", *SMALL), "cannot draw 500 of 6 steps"),
        (("list", "--family", "magic"), "no family 'magic'"),
        (("matrix", "--opponent", "nobody", "--out", "x"), "no opponent 'nobody'"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = polcommit("spoof", *arguments, cwd=tmp_path)
    assert said in done.err, done
    assert_one_line(done, 2)


def test_a_matrix_goes_on_where_it_was(tmp_path: Path) -> None:
    """Two spoofs, one trial each; a second time there is nothing to try, and the table is the same."""
    command = ("spoof", "matrix", "--only", "infinitesimal-update", "--only", "replayed-anchor", "--seeds", 1,
               "--opponent", "plain PoL", "--opponent", "registered", *SMALL, "--out", "trials")  # fmt: skip
    first = polcommit(*command, cwd=tmp_path)
    assert first.status == 0, first
    assert "4 of 4" in first.err and "| `replayed-anchor` | precedence | – | 1 rejected |" in first.out
    again = polcommit(*command, cwd=tmp_path)
    assert again.status == 0 and " of " not in again.err and again.out == first.out, again
    rows = json.loads((tmp_path / "trials" / "matrix.json").read_text())["rows"]
    assert [row["cells"]["registered"][0]["outcome"] for row in rows] == ["rejected", "rejected"]
    assert (tmp_path / "trials" / "matrix.md").read_text() == first.out
