"""polcommit demo: the whole of it, in under a minute."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polcommit.cli import common
from polcommit.cli.present import CHECKED, DEVNET, verdict_json
from polcommit.cli.register import require_torch
from polcommit.errors import UsageError

if TYPE_CHECKING:
    from polcommit.demo import Outcome


@click.command()
@click.option("--folder", type=common.FOLDER, help="Where to put keys, runs and evidence; default: a new one in /tmp.")
@click.option("--steps", default=300, show_default=True, type=click.IntRange(60), help="Steps to train.")
@click.option("--count", default=20, show_default=True, type=click.IntRange(1, 40), help="Steps to challenge.")
@common.json_option
def demo(folder: Path | None, steps: int, count: int, as_json: bool) -> int:
    """Train a model, commit to it, challenge it and accept it; then reject two forgeries of the same model."""
    require_torch("the demonstration")
    from polcommit.demo import Demo, devnet

    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="give a new folder with --folder")
    home = folder or Path(tempfile.mkdtemp(prefix="polcommit-demo-"))
    home.mkdir(parents=True, exist_ok=True)
    with devnet(home) as connection:
        outcomes = Demo(home, connection, common.say, steps=steps, count=count).run()
    _show(outcomes, as_json)
    expected = ["accepted", "rejected", "rejected"]
    return 0 if [outcome.evidence.receipt.verdict.verdict for outcome in outcomes] == expected else 1


def _show(outcomes: list[Outcome], as_json: bool) -> None:
    if as_json:
        runs = [
            {"title": outcome.title, "evidence": str(outcome.path), **verdict_json(outcome.evidence.receipt.verdict)}
            for outcome in outcomes
        ]
        common.show({"runs": runs}, True)
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("what was checked")
    for outcome in outcomes:
        table.add_column(outcome.short)
    for name, text in CHECKED.items():
        row = [dict(outcome.evidence.receipt.verdict.checks)[name] for outcome in outcomes]
        table.add_row(f"{name:<3} {text}", *(_coloured(cell) for cell in row))
    table.add_section()
    table.add_row("verdict", *(_coloured(outcome.evidence.receipt.verdict.verdict) for outcome in outcomes))
    console.print(table)
    for outcome in outcomes:
        for finding in outcome.evidence.receipt.verdict.findings:
            at = f" at step {finding.step}" if finding.step is not None else ""
            console.print(f"{outcome.title}:\n  {finding.check} rejects it: {finding.what}{at}")
    honest = outcomes[0].evidence.receipt.verdict
    console.print(
        f"\n{len(honest.steps)} of {(honest.size or 1) - 1} steps were drawn, and {len(honest.added)} added for their "
        "large displacements; all were re-executed, bit for bit: had "
        f"{honest.fraction:.0%} of the run been forged, the draw would have met one with probability "
        f"{honest.probability:.2f}"
    )
    console.print(DEVNET)
    console.print(f"evidence, keys and runs: {outcomes[0].path.parent}")


def _coloured(text: str) -> str:
    colour = {"passed": "green", "accepted": "bold green", "failed": "bold red", "rejected": "bold red"}.get(text)
    return f"[{colour}]{text}[/{colour}]" if colour else text
