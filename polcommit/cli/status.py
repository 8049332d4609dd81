"""polcommit status: how a run stands."""

from __future__ import annotations

from pathlib import Path

import click

from polcommit.cli import common
from polcommit.errors import StorageError


@click.command()
@click.argument("run", type=common.FOLDER)
@click.option("--check", is_flag=True, help="Read every file and compare it with what commits to it.")
@common.json_option
def status(run: Path, check: bool, as_json: bool) -> int:
    """Say how the run in folder RUN stands. With --check, exit status 1 means that something is damaged."""
    from polcommit.session import status as looking
    from polcommit.storage.runfolder import RunFolder

    folder = RunFolder.open(run)
    try:
        result = looking.summary(folder)
    except StorageError as error:
        if not check:
            raise
        common.show({"damage": [error.message]}, as_json)
        return 1
    found: list[str] = []
    if check:
        with common.progress("checking") as bar:
            found = list(looking.damage(folder, bar))
        result["damage"] = found
    common.show(result, as_json)
    if result["post hoc"] and result["run"] is None:
        common.say("a post hoc run: it is on no ledger, and has no id, until 'polcommit anchor' registers it")
    if found:
        common.say(f"hint: restore what is damaged from a copy; nothing in {run} was changed")
    return 1 if found else 0
