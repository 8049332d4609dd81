"""The command `polcommit`: its groups, loaded when used, and what becomes of errors.

Exit status: 0 accepted or done, 1 rejected, 2 usage, 3 could not be checked, or could not be done.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback

import click

from polcommit import __version__
from polcommit.errors import PolcommitError

_COMMANDS = {
    "anchor": "Put the head of a recorded run on the ledger.",
    "challenge": "Draw steps of a run, have them opened, re-execute them, and give a verdict.",
    "demo": "Watch the whole of it: train, commit, challenge, accept; and reject two forgeries.",
    "devnet": "Start, stop or look at the local chain.",
    "inspect": "Show what is in a file of polcommit's.",
    "keys": "Make and show keys.",
    "record": "Train a registered run with its recipe, or go on with it.",
    "register": "Register a run before training.",
    "respond": "Answer a challenge, as the prover.",
    "status": "Say how a run stands, and check its folder.",
    "verify": "Check an evidence bundle, as a third party.",
}


class _Lazy(click.Group):
    """Subcommands live in modules of their own name, imported when one is used: `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"polcommit.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command


    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="polcommit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Commit to a training run step by step, timestamp it on a chain, and have drawn steps re-executed.

    Exit status: 0 accepted or done, 1 rejected, 2 usage, 3 could not be checked or done.
    """


def report(error: PolcommitError) -> int:
    """Say what failed, and what to do, on standard error; returns the exit status."""
    message = str(error) if not getattr(error, "message", None) else error.message
    click.echo(f"polcommit: {_one_line(message)}", err=True)
    if getattr(error, "hint", None):
        click.echo(f"hint: {_one_line(error.hint or '')}", err=True)
    return error.exit_status


def _one_line(text: str) -> str:
    return " ".join(text.split())


def run() -> None:
    """Entry point. Every error ends in one line, a hint where there is something to do, and a status."""
    debug = "--debug" in sys.argv[1:]
    try:
        status = main.main(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        click.echo("polcommit: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
        click.echo(f"polcommit: {_one_line(error.format_message())}", err=True)
        sys.exit(error.exit_code if isinstance(error, click.UsageError) else 3)
    except PolcommitError as error:
        if debug:
            traceback.print_exc()
        sys.exit(report(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(3)
    except OSError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"polcommit: {_one_line(str(error))}", err=True)
        click.echo("hint: nothing recorded is lost; mend this and run the same command again", err=True)
        sys.exit(3)
    except Exception as error:  # noqa: BLE001  (the last line of defence: no traceback unless asked for)
        if debug:
            traceback.print_exc()
        click.echo(f"polcommit: internal error: {_one_line(repr(error))}", err=True)
        click.echo("hint: run it again with 'polcommit --debug ...' and report what it prints", err=True)
        sys.exit(3)


if __name__ == "__main__":
    run()
