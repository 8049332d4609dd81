"""polcommit keys: make and show the keys of provers and verifiers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import click

from polcommit.cli.common import FILE, json_option, read_passphrase, say, show
from polcommit.keys import Card, Role, create, default_home, key_id, list_names, load


@click.group(no_args_is_help=False)
def keys() -> None:
    """Make and show keys. They lie in $POLCOMMIT_HOME (default ~/.polcommit), readable by you alone."""


@keys.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["prover", "verifier"]), required=True, help="What the key is for.")
@click.option("--no-passphrase", is_flag=True, help="Leave the files unencrypted: for devnets and tests.")
@click.option("--passphrase-file", type=FILE, help="Read the passphrase from there; default: ask.")
@json_option
def new(name: str, role: str, no_passphrase: bool, passphrase_file: Path | None, as_json: bool) -> None:
    """Make new keys under NAME: Ed25519 to sign, an Ethereum account, and for a verifier X25519 to open envelopes."""
    from polcommit.ledger.accounts import create_keystore

    passphrase = None
    if not no_passphrase:
        passphrase = read_passphrase(passphrase_file, f"new passphrase of '{name}'", confirm=True)
    card = create(default_home(), name, cast(Role, role), passphrase, partial(create_keystore, light=no_passphrase))
    say(f"made {role} '{name}'; give others {default_home() / 'keys' / name / 'public.json'}")
    _show(card, as_json)


@keys.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the keys that there are."""
    found = [load(default_home(), name).card for name in list_names(default_home())]
    if as_json:
        show({"keys": [_fields(card) for card in found]}, True)
    for card in found if not as_json else ():
        click.echo(f"{card.role:<9} {card.name:<20} {card.signing.hex()}  0x{card.account.hex()}")
    if not found:
        say("no keys yet; make one with 'polcommit keys new NAME --role prover'")


@keys.command("show")
@click.argument("name")
@json_option
def show_(name: str, as_json: bool) -> None:
    """Show the public part of the keys under NAME."""
    found = load(default_home(), name)
    for warning in found.warnings:
        say(f"warning: {warning}")
    _show(found.card, as_json)


def _show(card: Card, as_json: bool) -> None:
    show(_fields(card), as_json)


def _fields(card: Card) -> dict[str, str]:
    fields = {"name": card.name, "role": card.role, "signing": card.signing.hex()}
    if card.recipient is not None:
        fields |= {"recipient": card.recipient.hex(), "key id": key_id(card.recipient).hex()}
    fields |= {"account": "0x" + card.account.hex(), "card": str(default_home() / "keys" / card.name / "public.json")}
    return fields
