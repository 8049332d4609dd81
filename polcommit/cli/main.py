"""The command `polcommit`: its groups, loaded when used, and what becomes of errors.

Exit status: 0 accepted or done, 1 rejected, 2 usage, 3 could not be checked, or could not be done.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback

import click
from click.shell_completion import shell_complete

from polcommit import __version__
from polcommit.errors import MissingExtra, PolcommitError, Unavailable, UsageError

_COMMANDS = {
    "anchor": "Put the head of a recorded run on the ledger.",
    "calibrate": "Measure the noise between two environments, and write a noise profile.",
    "challenge": "Draw steps of a run, have them opened, re-execute them, and give a verdict.",
    "demo": "Watch the whole of it: train, commit, challenge, accept; and reject two forgeries.",
    "devnet": "Start, stop or look at the local chain.",
    "inspect": "Show what is in a file of polcommit's.",
    "keys": "Make and show keys.",
    "plan": "Say how many steps a challenge takes, what it costs, and what it buys.",
    "record": "Train a registered run with its recipe, or go on with it.",
    "register": "Register a run before training.",
    "respond": "Answer a challenge, as the prover.",
    "spoof": "Run attacks on training runs, against plain Proof-of-Learning and against polcommit.",
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


@click.group(cls=_Lazy, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
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
        sys.exit(_invoke(sys.argv[1:]))
    except (click.exceptions.Abort, KeyboardInterrupt, EOFError):
        click.echo("polcommit: interrupted", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  (the last line of defence: no traceback unless asked for)
        if debug:
            traceback.print_exc()
        sys.exit(report(_explained(error)))


def _invoke(arguments: list[str]) -> int:
    """Run the command that is asked for; its exit status. Click's own `main` would make a closed pipe a status of 1."""
    completing = os.environ.get("_POLCOMMIT_COMPLETE")
    if completing:
        return shell_complete(main, {}, "polcommit", "_POLCOMMIT_COMPLETE", completing)
    try:
        with main.make_context("polcommit", list(arguments)) as context:
            status = main.invoke(context)
    except click.exceptions.Exit as ended:
        status = ended.exit_code
    except BrokenPipeError:
        _discard_output()
        raise
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
            raise
    return status if isinstance(status, int) else 0


def _discard_output() -> None:
    """What is still to be written has nowhere to go: without this the interpreter would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explained(error: Exception) -> PolcommitError:
    """The error of ours that says what another one means to the user."""
    if isinstance(error, PolcommitError):
        return error
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else _command_path(sys.argv[1:])
        return UsageError(_sentence(error.format_message()), hint=f"see '{path} --help'")
    if isinstance(error, click.ClickException):
        return Unavailable(_sentence(error.format_message()))
    if isinstance(error, BrokenPipeError):
        return Unavailable("whoever was to read the output has gone away before all of it was written")
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            reason = f"disk full ({reason})"
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return Unavailable(where + reason, hint="nothing recorded is lost; mend this and run the same command again")
    if isinstance(error, ImportError):
        extra = "recipes" if (error.name or "").startswith("sklearn") else "torch"
        return MissingExtra(extra, f"what is asked for ({_one_line(str(error))})")
    return Unavailable(
        f"internal error: {_one_line(repr(error))}",
        hint="run it again with 'polcommit --debug ...' and report what it prints",
    )


def _command_path(arguments: list[str]) -> str:
    """The command that was asked for, where click does not say which: an option without its argument."""
    name = next((word for word in arguments if not word.startswith("-")), "")
    return f"polcommit {name}" if name in _COMMANDS else "polcommit"


def _sentence(text: str) -> str:
    """One of click's messages, as ours are written: lower case, no full stop."""
    text = _one_line(text).rstrip(".")
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    run()
