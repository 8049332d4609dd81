"""From a policy to a chain: which file counts, and a connection that was compared with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from polcommit import policy as policies
from polcommit.errors import ChainUnavailable, Superseded, UsageError
from polcommit.keys import default_home
from polcommit.ledger.contract import Event
from polcommit.ledger.devnet import Devnet
from polcommit.ledger.registry import Registry
from polcommit.ledger.transactions import OnSent
from polcommit.policy import Policy
from polcommit.storage import files

MAX_POLICY = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Connection:
    """A chain that is the policy's."""

    policy: Policy
    ledger: Registry
    devnet: Devnet | None       # where the policy's chain is the local one

    def fund(self, account: bytes, say: Say) -> None:
        """On the devnet, see that an account (20 bytes) can pay for transactions. Elsewhere do nothing."""
        if self.devnet is not None and self.devnet.account_needs_funds(account):
            self.devnet.fund(account)
            say(f"gave 0x{account.hex()} some of the devnet's ether")


def once(
    ledger: Registry,
    pending: bytes | None,
    send: Callable[[OnSent], Event],
    store: Callable[[bytes, bool], None],
) -> Event:
    """Have a transaction mined once: the stored one again where there is one, a new one where that was superseded.

    `store(raw, replace)` keeps the signed transaction durably; it is called before anything is sent.
    """
    if pending is not None:
        try:
            return ledger.resume(pending)
        except Superseded:
            pass        # its nonce is used: it can never be mined, so that a new one is no second one
    return send(lambda _, raw: store(raw, pending is not None))


def devnet_folder() -> Path:
    """Where the local devnet keeps its chain and its policy."""
    return default_home() / "devnet"


def find_policy(path: Path | None) -> Path:
    """The policy file that counts: the one given, $POLCOMMIT_POLICY, the home folder's, or the devnet's."""
    named = os.environ.get("POLCOMMIT_POLICY")
    candidates = [path] if path is not None else [Path(named)] if named else []
    candidates = candidates or [default_home() / "policy.toml", devnet_folder() / "policy.toml"]
    for candidate in candidates:
        with files.reported("reading", candidate):
            if candidate.is_file():
                return candidate
    if path is not None or named:
        raise UsageError(f"no policy file at {candidates[0]}", hint="give the path of a policy with --policy")
    raise UsageError(
        "there is no policy that says which chain counts",
        hint="start the local devnet with 'polcommit devnet start', or give a policy with --policy",
    )


def load_policy(path: Path | None) -> Policy:
    """Read the policy that counts. Raises UsageError or StorageError, naming the file."""
    found = find_policy(path)
    try:
        text = files.read(found, MAX_POLICY).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{found} is not text", hint="give the path of a policy with --policy") from error
    try:
        return policies.parse(text, name=str(found))
    except (ValueError, RecursionError) as error:       # what the parser of TOML does not report as its own
        raise UsageError(f"{found} is not a policy: {error}", hint="see docs/spec.md §7 for the entries") from error


def connect(policy: Policy, *, rpc: str | None = None, contract: bytes | None = None) -> Connection:
    """Connect to the policy's chain, and compare it with the policy.

    Raises:
        ChainUnavailable: no answer, or nobody says where to ask.
        WrongChain: another chain, contract or code than the policy's.
    """
    url = policy.rpc if rpc is None else rpc
    if url is None:
        raise ChainUnavailable("the policy names no RPC server of its chain", hint="give one with --rpc URL")
    policy = replace(policy, rpc=url, contract=policy.contract if contract is None else contract)
    devnet = Devnet(devnet_folder()) if policy.devnet else None
    running = devnet.status() if devnet is not None else None
    local = devnet if running is not None and running.rpc == url else None
    ledger = Registry.connect(
        url,
        policy.contract,
        confirmations=policy.confirmations,
        finality=policy.finality,  # type: ignore[arg-type]  # one of the three: the policy was parsed
        from_block=policy.from_block,
        on_durable=local.checkpoint if local is not None else None,
    )
    policy.require_chain(ledger.identity())
    return Connection(policy=policy, ledger=ledger, devnet=local)
