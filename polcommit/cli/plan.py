"""polcommit plan: what a challenge costs and buys, before there is a run."""

from __future__ import annotations

from typing import Any

import click

from polcommit.cli import common
from polcommit.planning import EPOCH_STEPS, INTERVAL, TOP_Q, Effort, Plan, Regeneration
from polcommit.planning import plan as planned
from polcommit.records.run import MAX_KEPT

KEEP = 50           # as for 'register'
COMPARED = 25       # shown beside the 'keep' that is asked for


@click.command()
@click.option("--steps", type=int, required=True, help="Steps of the run.")
@click.option("--detect", type=float, default=0.95, show_default=True, metavar="P",
              help="Draw as many as detect, with probability P, …")
@click.option("--fraction", type=float, default=0.05, show_default=True, metavar="F",
              help="… a run with this fraction of its steps forged.")
@click.option("--keep", type=int, help="Steps between the full states that the prover keeps; default: "
              f"{KEEP}, or the whole run. {COMPARED} is shown beside it.")
@click.option("--top-q", "q", type=int, default=TOP_Q, show_default=True,
              help="Intervals of each epoch that top-Q re-executes.")
@click.option("--interval", type=int, help=f"Steps between its checkpoints; default: {INTERVAL}, or the whole epoch.")
@click.option("--epoch-steps", type=int, help=f"Steps of an epoch; default: {EPOCH_STEPS}, or the whole run.")
@common.json_option
def plan(
    steps: int, detect: float, fraction: float, keep: int | None, q: int, interval: int | None,
    epoch_steps: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Say how many random steps detect a forgery, and what they cost verifier and prover, beside top-Q.

    Costs are in training steps and as shares of training. Needs no run, no key and no chain.
    """
    keep = min(KEEP, steps) if keep is None else keep
    comparable = COMPARED <= steps <= COMPARED * MAX_KEPT and keep != COMPARED
    keeps = (keep, COMPARED) if comparable else (keep,)
    found = planned(
        steps, detect=detect, fraction=fraction, keeps=keeps, q=q, interval=interval, epoch_steps=epoch_steps
    )
    common.show(_plain(found), as_json, _text(found))


def _plain(found: Plan) -> dict[str, Any]:
    top = found.top_q
    return {
        "steps": found.steps,
        "fraction": found.fraction,
        "forged": found.forged,
        "asked": found.asked,
        "draw": found.drawn,
        "probability": found.probability,
        "probability of one forged step": found.single,
        "added": found.added,
        "verifier": {
            "same environment": _plain_effort(found, found.same),
            "another environment": _plain_effort(found, found.elsewhere),
            "follow-up": _plain_effort(found, found.follow_up),
        },
        "prover": [_plain_regeneration(found, each) for each in found.prover],
        "top-q": {
            "q": top.q,
            "interval": top.interval,
            "epoch steps": top.epoch_steps,
            **_cost(found, top.executed),
            "probability": {"forged at random": top.uniform, "blindfold": top.blindfold},
        },
    }


def _cost(found: Plan, executed: float) -> dict[str, Any]:
    return {"steps": executed, "share": found.share(executed)}


def _plain_effort(found: Plan, each: Effort) -> dict[str, Any]:
    return {
        **_cost(found, each.executed),
        "counted": each.counted,
        "contributions": {"scored": each.scored, "passes": each.passes, **_cost(found, each.scoring)},
        "total": _cost(found, each.total),
    }


def _plain_regeneration(found: Plan, each: Regeneration) -> dict[str, Any]:
    return {
        "keep": each.keep,
        "kept states": each.kept,
        "same environment": {
            "expected": _cost(found, each.expected + each.looking), "worst": _cost(found, each.worst + each.looking)
        },
        "another environment": {
            "expected": _cost(found, each.beyond_expected + each.looking),
            "worst": _cost(found, each.beyond_worst + each.looking),
        },
    }  # fmt: skip


def _text(found: Plan) -> str:
    top = found.top_q
    lines = [
        ("draw", f"{found.drawn} of {found.steps} steps, and {found.added} with the largest displacements"),
        ("detects", f"{found.forged} forged of {found.steps} with probability {_probability(found.probability)}"),
        *[("", f"1 forged of {found.steps} with probability {_probability(found.single)}")][: found.forged > 1],
        *_verifier(found),
    ]
    for each in found.prover:
        lines += [
            (f"prover, keep {each.keep}", f"keeps {each.kept} full states"),
            ("", f"re-executes {_share(found, each.expected + each.looking)}, "
             f"at worst {_share(found, each.worst + each.looking)}"),
            ("", f"{_share(found, each.beyond_expected + each.looking)}, "
             f"at worst {_share(found, each.beyond_worst + each.looking)}, "
             "for a verifier in another environment"),
        ]  # fmt: skip
    lines += [
        (f"top-{top.q}", f"re-executes {_share(found, top.executed)}: "
         f"{top.q} times {top.interval} in each epoch of {top.epoch_steps}"),
        ("", f"detects {found.forged} forged at random with probability {_probability(top.uniform)}"),
        ("", f"detects {found.forged} with small updates with probability {_probability(top.blindfold)}"),
    ]  # fmt: skip
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name + ':' if name else '':<{width + 1}} {value}" for name, value in lines)


def _verifier(found: Plan) -> list[tuple[str, str]]:
    same, elsewhere, later = found.same, found.elsewhere, found.follow_up
    scoring = f"scores contributions of {same.scored} steps: the work of about {_share(found, same.scoring)}"
    return [
        ("verifier", f"re-executes {_share(found, same.executed)}, one of them once more to count its operations"),
        *[("", scoring)][: same.scored],
        ("", f"in all {_share(found, same.total)}"),
        ("", f"in all {_share(found, elsewhere.total)}, each {elsewhere.times} times, in another environment"),
        ("", f"in all {_share(found, later.total)}, each {later.times} times, where that takes a follow-up"),
    ]


def _share(found: Plan, executed: float) -> str:
    return f"{executed:.0f} steps ({100 * found.share(executed):.3g} %)"


def _probability(value: float) -> str:
    """Four digits; what is that close to certain or impossible is said to be above or below."""
    if value >= 0.99995:
        return "above 0.9999"
    if value < 0.00005:
        return "below 0.0001" if value else "0"
    return f"{value:.4f}"
