"""polcommit plan, as a user has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shell import assert_one_line, ok, polcommit

from polcommit import planning

ASKED = ("--detect", 0.99, "--fraction", 0.05, "--steps", 78000, "--keep", 100)


def test_both_intervals_between_kept_states_are_printed() -> None:
    lines = ok(polcommit("plan", *ASKED)).out.splitlines()
    assert " ".join(lines[0].split()) == "draw: 90 of 78000 steps, and 2 with the largest displacements"
    text = "\n".join(lines)
    for expected in (
        "3900 forged of 78000 with probability 0.9901", "1 forged of 78000 with probability 0.0012",
        "re-executes 92 steps (0.118 %)", "scores contributions of 8 steps: the work of about 11 steps (0.0137 %)",
        "in all 104 steps (0.133 %)", "in all 288 steps (0.369 %), each 3 times, in another environment",
        "in all 483 steps (0.62 %), each 5 times, where that takes a follow-up",
        "prover, keep 100:", "prover, keep 25:", "keeps 781 full states",
        "re-executes 10000 steps (12.8 %): 5 times 10 in each epoch of 390", "with small updates with probability 0",
    ):  # fmt: skip
        assert expected in text


def test_the_documents_show_what_it_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "soundness.md").read_text()
    printed = ok(polcommit("plan", *ASKED)).out
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in page


def test_one_step_alone_is_scored_by_nothing() -> None:
    assert "scores" not in ok(polcommit("plan", "--steps", 1)).out


def test_json_holds_what_the_library_says() -> None:
    found = json.loads(ok(polcommit("plan", *ASKED, "--json")).out)
    known = planning.plan(78000, detect=0.99, fraction=0.05, keeps=(100, 25))
    assert (found["draw"], found["forged"], found["probability"]) == (known.drawn, known.forged, known.probability)
    for name, effort in (
        ("same environment", known.same), ("another environment", known.elsewhere), ("follow-up", known.follow_up),
    ):  # fmt: skip
        assert found["verifier"][name] == {
            "steps": effort.executed,
            "share": effort.executed / 78000,
            "counted": effort.counted,
            "contributions": {
                "scored": 8, "passes": effort.passes, "steps": effort.scoring, "share": effort.scoring / 78000,
            },
            "total": {"steps": effort.total, "share": effort.total / 78000},
        }  # fmt: skip
    assert [each["keep"] for each in found["prover"]] == [100, 25]
    for each, regeneration in zip(found["prover"], known.prover, strict=True):
        assert each["kept states"] == regeneration.kept
        assert each["same environment"]["expected"]["steps"] == regeneration.expected + regeneration.looking
        assert each["same environment"]["worst"]["steps"] == regeneration.worst + regeneration.looking
        beyond = regeneration.beyond_expected + regeneration.looking
        assert each["another environment"]["expected"]["share"] == beyond / 78000
        assert each["another environment"]["worst"]["steps"] == regeneration.beyond_worst + regeneration.looking
    assert found["top-q"]["share"] == 10000 / 78000
    assert found["top-q"]["probability"] == {"forged at random": known.top_q.uniform, "blindfold": 0.0}


def test_what_no_run_may_have_is_not_compared() -> None:
    """At 25 steps, a run of 100 million would keep more states than a run may have."""
    found = json.loads(ok(polcommit("plan", "--steps", 10**8, "--keep", 1000, "--json")).out)
    assert [each["keep"] for each in found["prover"]] == [1000]
    assert_one_line(polcommit("plan", "--steps", 10**8, "--keep", 95), 2, "keep 95")
    ok(polcommit("plan", "--steps", 10**8, "--keep", 96))


def test_steps_are_enough_to_ask_for() -> None:
    """The other defaults fit a run of any length."""
    for steps, keeps in ((1, [1]), (20, [20]), (40, [40, 25]), (300, [50, 25])):
        found = json.loads(ok(polcommit("plan", "--steps", steps, "--json")).out)
        assert [each["keep"] for each in found["prover"]] == keeps


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--steps"),
        (("--steps",), "--steps"),
        (("--steps", "many"), "--steps"),
        (("--steps", 300, "--strategy", "random"), "--strategy"),
        (("--steps", 0), "0 steps"),
        (("--steps", -300), "-300 steps"),
        (("--steps", 1 << 40), "1099511627776 steps"),
        (("--steps", 300, "--fraction", 0), "fraction 0"),
        (("--steps", 300, "--fraction", "nan"), "fraction nan"),
        (("--steps", 300, "--fraction", -0.1), "fraction -0.1"),
        (("--steps", 300, "--fraction", 1.5), "fraction 1.5"),
        (("--steps", 300, "--fraction", "5%"), "--fraction"),
        (("--steps", 300, "--detect", 1), "detect with probability 1"),
        (("--steps", 300, "--detect", 0), "detect with probability 0"),
        (("--steps", 300, "--detect", "inf"), "detect with probability inf"),
        (("--steps", 300, "--keep", 301), "keep 301"),
        (("--steps", 300, "--keep", 0), "keep 0"),
        (("--steps", 300, "--keep", -25), "keep -25"),
        (("--steps", 300, "--top-q", 0), "top-q 0"),
        (("--steps", 300, "--interval", 391), "interval 391"),
        (("--steps", 300, "--epoch-steps", 301), "epoch of 301"),
        (("--steps", 300, "--epoch-steps", 0), "epoch of 0"),
    ],
)
def test_bad_input_is_named(words: tuple[object, ...], named: str) -> None:
    """And followed by a hint that belongs to this command."""
    found = polcommit("plan", *words)
    assert_one_line(found, 2, named)
    said = found.err.splitlines()[-1]
    assert said.startswith("hint: ") and ("--help" not in said or "'polcommit plan --help'" in said)
