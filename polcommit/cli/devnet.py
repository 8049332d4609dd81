"""polcommit devnet: the local chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from polcommit.cli.common import address, json_option, say, show

if TYPE_CHECKING:
    from polcommit.ledger.devnet import Devnet, DevnetInfo


@click.group(no_args_is_help=False)
def devnet() -> None:
    """A chain on this machine, for trying things out: its order, time and randomness are your own."""


def _devnet() -> Devnet:
    from polcommit.ledger.devnet import Devnet
    from polcommit.session.connection import devnet_folder

    return Devnet(devnet_folder())


def _fields(info: DevnetInfo) -> dict[str, Any]:
    return {
        "running": True,
        "rpc": info.rpc,
        "chain id": info.chain_id,
        "contract": "0x" + info.contract.hex(),
        "block": info.latest,
        "policy": str(info.policy),
        "process": info.pid,
    }


@devnet.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1; default: the last one, else 8545.")
@click.option("--block-time", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds a block.")
@json_option
def start(port: int | None, block_time: float, as_json: bool) -> None:
    """Start the devnet in the background, restored from its last state; the contract is deployed once."""
    info = _devnet().start(port=port or _last_port(), block_time=block_time)
    if info.already_running:
        say("the devnet is running already")
    show(_fields(info), as_json)


def _last_port() -> int:
    """The port that the devnet's policy names, so that copies of the policy stay good."""
    from urllib.parse import urlsplit

    from polcommit.errors import PolcommitError
    from polcommit.session.connection import devnet_folder, load_policy

    policy = devnet_folder() / "policy.toml"
    try:
        return (urlsplit(load_policy(policy).rpc or "").port if policy.exists() else None) or 8545
    except (PolcommitError, ValueError):
        return 8545


@devnet.command()
@json_option
def stop(as_json: bool) -> None:
    """Stop the devnet; its state is kept."""
    stopped = _devnet().stop()
    if not stopped:
        say("the devnet was not running")
    show({"stopped": stopped}, as_json)


@devnet.command()
@json_option
def status(as_json: bool) -> None:
    """Say whether the devnet runs, and where."""
    info = _devnet().status()
    if info is None:
        say("the devnet is not running; start it with 'polcommit devnet start'")
    show(_fields(info) if info is not None else {"running": False}, as_json)


@devnet.command()
@click.argument("account", metavar="ADDRESS")
@click.option("--ether", default=100, show_default=True, type=click.IntRange(1, 10**9), help="Balance to set.")
@json_option
def fund(account: str, ether: int, as_json: bool) -> None:
    """Set the balance of an account on the devnet."""
    found = address(account)
    _devnet().fund(found, ether * 10**18)
    show({"account": "0x" + found.hex(), "ether": ether}, as_json)
