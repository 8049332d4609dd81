"""polcommit record: the three-line loop, for a registered run and its recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import click

from polcommit.cli import common
from polcommit.cli.register import require_torch


@click.command()
@click.argument("run", type=common.FOLDER)
@click.option("--data", metavar="PATH", help="Where the data lies now, if it was moved.")
@click.option("--workers", default=0, show_default=True, type=click.IntRange(0, 256), help="Loader processes.")
@click.option("--self-check", type=click.Choice(["auto", "beside", "before-anchor", "off"]), default="auto",
              show_default=True, help="When some steps are re-executed in a second process.")  # fmt: skip
@click.option("--initial", type=common.FILE, help="Of a post hoc run: begin with the parameters and buffers in this "
              "safetensors file, instead of those that the recipe makes of the run's seed.")  # fmt: skip
@click.option("--rollback", is_flag=True, help="Drop steps that cannot be reproduced and that no anchor covers.")
@common.json_option
def record(
    run: Path, data: str | None, workers: int, self_check: str, initial: Path | None, rollback: bool, as_json: bool
) -> None:
    """Train RUN, which is registered or post hoc, with its recipe; an interrupted run goes on where it stopped."""
    require_torch("recording a run")
    from polcommit.session.record import record as open_run
    from polcommit.session.selfcheck import SelfCheck
    from polcommit.storage.runfolder import RunFolder

    if data is not None:
        folder = RunFolder.open(run)
        folder.write_settings(replace(folder.settings, data=str(Path(data).resolve())))
    check = cast(SelfCheck, self_check)
    with open_run(run, workers=workers, self_check=check, rollback=rollback, initial=initial) as recorded:
        began = recorded.steps_done
        if began == recorded.steps_planned:
            common.say("all steps are recorded already")
        elif began:
            common.say(f"goes on after step {began}")
        loss = None
        with common.progress("recording") as bar:
            for batch in recorded:
                loss = recorded.step(batch)
                bar(batch.step, recorded.steps_planned)
    common.show(
        {"folder": str(run), "steps": recorded.steps_done, "of": recorded.steps_planned, "loss": loss}, as_json
    )
    common.say(f"now anchor it: 'polcommit anchor {run}'")
