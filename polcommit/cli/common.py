"""Options that several commands share, named once, and how results, progress and passphrases are handled."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polcommit.errors import KeyUnavailable, StorageError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from polcommit.keys import Card
    from polcommit.policy import Policy
    from polcommit.session.connection import Connection
    from polcommit.session.environments import EnvironmentSettings

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


def chain_options(command: F) -> F:
    """--policy, --rpc, --contract."""
    for option in (
        click.option("--contract", metavar="ADDRESS", help="The registry's address, instead of the policy's."),
        click.option("--rpc", metavar="URL", help="RPC server of the policy's chain, instead of the policy's."),
        click.option("--policy", type=FILE, help="Which chain, contract and verifiers count; default: the devnet's."),
    ):
        command = option(command)
    return command


def replay_options(command: F) -> F:
    """--threads, --device, --environment, --recipe."""
    for option in (
        click.option("--recipe", "recipes", multiple=True, metavar="NAME", help="Allow the run's recipe "
                     "'package.module:Class', which you have reviewed; installed ones are allowed."),
        click.option("--environment", "settings", metavar="SETTINGS", default="", callback=_settings, help="What else "
                     "it runs under, like threads=1,onednn=off,capability=avx2; default: as the prover's."),
        click.option("--device", help="Device of the re-execution; default: cpu."),
        click.option("--threads", type=click.IntRange(1, 4096), help="Threads of it; default: the prover's."),
    ):  # fmt: skip
        command = option(command)
    return command


def _settings(context: click.Context, parameter: click.Parameter, text: str) -> EnvironmentSettings:
    from polcommit.session.environments import EnvironmentSettings, require_capability

    found = EnvironmentSettings.parse(text)
    require_capability(found)
    return found


def key_options(command: F) -> F:
    """--key, --account, --passphrase-file."""
    for option in (
        click.option("--passphrase-file", type=FILE, help="Read the passphrase from there; default: ask."),
        click.option("--account", type=FILE, help="Keystore of the Ethereum account that pays, instead of the key's."),
        click.option("--key", metavar="NAME", help="Which key to use; may be left out where there is only one."),
    ):
        command = option(command)
    return command


# --- output ---------------------------------------------------------------------------------------------------


def say(message: str) -> None:
    """A line for people, on standard error."""
    click.echo(message, err=True)


def show(result: dict[str, Any], as_json: bool, text: str | None = None) -> None:
    """The result, on standard output: JSON, or text for people (by default 'name: value' lines)."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif text is not None:
        click.echo(text)
    else:
        width = max((len(name) for name in result), default=0)
        for name, value in result.items():
            click.echo(f"{name + ':':<{width + 1}} {value}")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal; else silence."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def require_writable(*paths: Path | None) -> None:
    """Raises StorageError where a file could not be written, before anything is paid for that would be in it."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise StorageError(f"cannot write {path} ({'a folder' if path.is_dir() else 'no such folder'})")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise StorageError(f"cannot write {path} (permission denied)", hint="choose another place for it")


# --- chain ----------------------------------------------------------------------------------------------------


def connection(
    policy: Path | None, rpc: str | None, contract: str | None, *, remembered: str | None = None
) -> Connection:
    """The policy's chain, compared with the policy; through the RPC server `remembered` where nothing names one."""
    from polcommit.session.connection import connect, load_policy

    found = load_policy(policy)
    where = address(contract) if contract is not None else None
    return connect(found, rpc=rpc if rpc is not None else found.rpc or remembered, contract=where)


def read_policy(policy: Path | None) -> Policy:
    """The policy that counts."""
    from polcommit.session.connection import load_policy

    return load_policy(policy)


def address(text: str) -> bytes:
    """20 bytes from hexadecimal. Raises UsageError."""
    return _hex(text, 20, "an address")


def run_id(text: str) -> bytes:
    """32 bytes from hexadecimal. Raises UsageError."""
    return _hex(text, 32, "a run id")


def _hex(text: str, size: int, what: str) -> bytes:
    try:
        found = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        found = b""
    if len(found) != size:
        raise UsageError(f"{text!r} is not {what}", hint=f"{size} bytes in hexadecimal")
    return found


# --- keys -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A key that was chosen and unlocked."""

    card: Card
    signing: Ed25519PrivateKey
    account: bytes                          # 32 bytes: the Ethereum private key
    recipient: X25519PrivateKey | None


def choose_key(name: str | None, role: str) -> str:
    """The key to use: the one named, or the only one of this role."""
    from polcommit.keys import default_home, list_names, load

    if name is not None:
        return name
    home = default_home()
    names = [other for other in list_names(home) if load(home, other).card.role == role]
    if len(names) != 1:
        hint = f"make one with 'polcommit keys new NAME --role {role}'"
        found = f"there are several: {', '.join(names)}" if names else f"there is no {role}'s key in {home}"
        raise UsageError(found, hint="choose one with --key NAME" if names else hint)
    return names[0]


def unlock(name: str | None, role: str, passphrase_file: Path | None, account: Path | None) -> Unlocked:
    """Choose a key and unlock it; the passphrase comes from the file, $POLCOMMIT_PASSPHRASE, or is asked for."""
    from polcommit.keys import default_home, load
    from polcommit.ledger.accounts import address_of, open_keystore

    keys = load(default_home(), choose_key(name, role))
    if keys.card.role != role:
        raise UsageError(f"key '{keys.card.name}' is a {keys.card.role}'s", hint=f"choose a {role}'s with --key NAME")
    for warning in keys.warnings:
        say(f"warning: {warning}")
    passphrase = read_passphrase(passphrase_file, f"passphrase of '{keys.card.name}'") if keys.encrypted else None
    signing = keys.signing(passphrase)
    if account is None:
        private = keys.account(passphrase, open_keystore)
    else:
        private = open_keystore(_keystore(account), read_passphrase(passphrase_file, f"passphrase of {account}"))
    card = keys.card
    if address_of(private) != card.account and account is None:
        raise KeyUnavailable(f"the keystore of '{card.name}' is another account's", hint="restore it from a copy")
    return Unlocked(card, signing, private, keys.recipient(passphrase) if role == "verifier" else None)


def _keystore(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise KeyUnavailable(f"cannot read the keystore {path} ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise KeyUnavailable(f"{path} is no keystore: {error}", hint="give a standard keystore file") from error
    if not isinstance(found, dict):
        raise KeyUnavailable(f"{path} is no keystore", hint="give a standard keystore file")
    return found


def read_passphrase(path: Path | None, prompt: str, *, confirm: bool = False) -> str:
    """A passphrase from a file's first line, the environment, or the terminal."""
    if path is not None:
        try:
            lines = path.read_text("utf-8").splitlines()
        except OSError as error:
            raise KeyUnavailable(f"cannot read a passphrase from {path} ({reason(error)})") from error
        except UnicodeDecodeError as error:
            raise KeyUnavailable(f"{path} is not text, and no passphrase can be read from it") from error
        return lines[0] if lines else ""
    named = os.environ.get("POLCOMMIT_PASSPHRASE")
    if named is not None:
        return named
    if not _can_ask():
        raise KeyUnavailable(
            f"{prompt} is needed, and there is no terminal to ask on",
            hint="give it with --passphrase-file, or in $POLCOMMIT_PASSPHRASE",
        )
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True))


def _can_ask() -> bool:
    """Whether there is a terminal: standard input may be a pipe with something else in it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin is not None and sys.stdin.isatty()
    return True


def reason(error: OSError) -> str:
    """Why the operating system refused, as our messages are written."""
    return (error.strerror or str(error)).lower()
