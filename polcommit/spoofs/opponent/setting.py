"""What a trial of a spoof is about: the recipe, the kind of run, how much is challenged; and who takes part in it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from polcommit.errors import Unavailable, UsageError
from polcommit.events import Anchored
from polcommit.ledger.accounts import address_of
from polcommit.ledger.devnet import Devnet
from polcommit.ledger.registry import Registry
from polcommit.records import Challenge, Receipt
from polcommit.sampling import draws_needed
from polcommit.session.challenge import Verifier
from polcommit.session.connection import Connection, load_policy
from polcommit.session.pending import ChallengeFolder
from polcommit.signing import public_bytes
from polcommit.spoofs.shelf import room_for, state_sizes
from polcommit.storage.runfolder import RunFolder
from polcommit.training.recipe import Recipe
from polcommit.training.schema import schema

MODES = ("registered", "post hoc")
BLOCK_TIME = 0.1        # seconds, the least that the devnet takes: trials wait for blocks
EVERY_STEP = 200        # runs of at most so many steps are challenged whole: a spoof is not let off by the draw
FRACTION, DETECTION = 0.05, 0.99        # of longer ones, so many steps are drawn as meet that with that probability
PORT_TRIES = 5
LEAST_MEMORY = 4 << 30  # bytes free where /dev/shm is used
RUNS = 4                # whole runs that a trial may write, what is opened of them included
VICTIM = "victim"       # name of the party whose runs stay when a trial is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One cell's circumstances. `seed` is of the forger's own choices; beacons and keys are fresh in every trial."""

    recipe: Recipe
    mode: str = "registered"        # of MODES
    seed: int = 0
    count: int | None = None        # steps to draw; None: all of a short run, else DETECTION of FRACTION
    processes: bool = False         # re-execute in processes of their own, as the commands do
    data: str | None = None         # where the recipe's data lies on this machine

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"mode {self.mode!r}", hint=f"one of: {', '.join(MODES)}")
        if self.count is not None and not 1 <= self.count <= self.recipe.steps:
            raise UsageError(f"cannot draw {self.count} of {self.recipe.steps} steps")

    @property
    def draws(self) -> int:
        """How many steps a challenge draws."""
        if self.count is not None:
            return self.count
        steps = self.recipe.steps
        return steps if steps <= EVERY_STEP else draws_needed(steps, FRACTION, DETECTION)

    @property
    def keep(self) -> int:
        """Steps between kept states: enough of them for the screens to run."""
        return max(1, self.recipe.steps // 10)

    @property
    def post_hoc(self) -> bool:
        """Whether runs are registered only before their first anchor."""
        return self.mode == "post hoc"


@dataclass(frozen=True)
class Party:
    """A prover, or a forger: keys of its own, in memory."""

    name: str
    key: Ed25519PrivateKey
    account_key: bytes

    @cached_property
    def public(self) -> bytes:
        """Ed25519 key that statements are signed with."""
        return public_bytes(self.key)

    @cached_property
    def account(self) -> bytes:
        """20 bytes."""
        return address_of(self.account_key)


@dataclass(frozen=True, slots=True)
class Announced:
    """A challenge whose event is on the ledger."""

    verifier: Verifier
    folder: ChallengeFolder
    challenge: Challenge

    @property
    def evidence(self) -> Path:
        """Where its bundle goes."""
        return self.folder.path.with_name(f"{self.folder.path.name}.polcommit")


@dataclass(frozen=True)
class Victim:
    """An honest run: registered, trained, anchored, challenged in full, accepted. Its verifier has seen all of it."""

    party: Party
    folder: RunFolder
    anchored: Anchored
    receipt: Receipt
    evidence: Path                          # the bundle, with openings in clear
    stolen: Mapping[str, torch.Tensor]      # W_T by entry name: what was released


def new_party(name: str, connection: Connection) -> Party:
    """Fresh keys, and ether for transactions."""
    party = Party(name, Ed25519PrivateKey.generate(), secrets.token_bytes(32))
    connection.fund(party.account, lambda _: None)
    return party


def new_verifier(connection: Connection) -> Verifier:
    """Fresh keys for one who challenges, and ether."""
    account_key = secrets.token_bytes(32)
    connection.fund(address_of(account_key), lambda _: None)
    return Verifier(connection, Ed25519PrivateKey.generate(), X25519PrivateKey.generate(), account_key)


@contextmanager
def devnet(folder: Path) -> Iterator[Connection]:
    """A real chain of one's own, with quick blocks, stopped at the end; the user's own devnet is not touched."""
    chain = Devnet(folder)
    for left in reversed(range(PORT_TRIES)):
        try:
            info = chain.start(port=_free_port(), block_time=BLOCK_TIME)
            break
        except Unavailable:     # somebody else was quicker to take the port
            if not left:
                raise
    try:
        policy = load_policy(info.policy)
        assert policy.rpc is not None       # the devnet has written it
        ledger = Registry.connect(policy.rpc, policy.contract, confirmations=policy.confirmations)
        policy.require_chain(ledger.identity())
        yield Connection(policy=policy, ledger=ledger, devnet=chain)
    finally:
        chain.stop()


def demanding(connection: Connection, setting: Setting) -> Connection:
    """The connection of a verifier of this kind of runs: post hoc ones are accepted only by who asks for no better."""
    return replace(connection, policy=replace(connection.policy, registered=not setting.post_hoc))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- where it is written --------------------------------------------------------------------------------------------


def scratch(recipe: Recipe) -> str | None:
    """Memory, where there is plenty: what is here for seconds need not outlive a power failure. None: as usual."""
    memory = Path("/dev/shm")  # noqa: S108  (a random name of our own is made below it)
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        return None
    needed, free = room_for(RUNS * (recipe.steps + 1), state_sizes(schema(recipe.build)), memory)
    return str(memory) if free >= max(LEAST_MEMORY, needed) else None


@contextmanager
def cleared(home: Path) -> Iterator[None]:
    """Remove the runs and openings that come into an arena's folder meanwhile, but for the victim's.

    Forgers' runs hold every state: those of a few trials would fill a disk.
    """
    before = set(home.iterdir())
    try:
        yield
    finally:
        for path in set(home.iterdir()) - before:
            if path.name.startswith(("run-", "opened-")) and not path.name.endswith(f"-{VICTIM}"):
                shutil.rmtree(path, ignore_errors=True)
