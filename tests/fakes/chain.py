"""A chain in memory: it keeps the contract's rules, and what it lets happen can happen on a chain."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from polcommit import transcript as hashes
from polcommit.errors import TransactionFailed, Unavailable
from polcommit.events import Anchored, Block, ChainIdentity, Challenged, Position, Registered
from polcommit.policy import Policy


def named(*parts: object) -> bytes:
    """32 bytes that are the same in every test run."""
    return sha256("/".join(map(str, parts)).encode()).digest()



class MemoryLedger:
    """The registry's rules and events, one transaction a block; implements `polcommit.draws.Ledger`."""

    def __init__(self, seed: str = "chain", *, chain_id: int = 31337, confirmations: int = 1) -> None:
        self.seed = seed
        self.confirmations = confirmations
        self.latest = 0
        self.reached = True                     # whether the chain answers at all
        self.chain = ChainIdentity(
            chain_id=chain_id, genesis=named(seed, "block", 0), contract=named("contract")[:20], code=named("code")
        )
        self.registered: list[Registered] = []
        self.anchored: list[Anchored] = []
        self.challenged: list[Challenged] = []
        self.heads: dict[bytes, bytes] = {}     # run -> chained head, as the contract stores it

    # what is asked of a ledger

    def identity(self) -> ChainIdentity:
        self._answer()
        return self.chain

    def registration(self, run: bytes) -> Registered | None:
        self._answer()
        return next((event for event in self.registered if event.run == run), None)

    def account_registrations(self, account: bytes) -> tuple[Registered, ...]:
        self._answer()
        return tuple(event for event in self.registered if event.account == account)

    def anchors(self, run: bytes) -> tuple[Anchored, ...]:
        self._answer()
        return tuple(event for event in self.anchored if event.run == run)

    def challenges(self, run: bytes) -> tuple[Challenged, ...]:
        self._answer()
        return tuple(event for event in self.challenged if event.run == run)

    def block(self, number: int) -> Block:
        self._answer()
        if number > self.latest:
            raise Unavailable(f"no block {number} yet")
        return Block(
            number=number,
            hash=named(self.seed, "block", number),
            prevrandao=named(self.seed, "random", number),
            timestamp=1_700_000_000 + number // 2,      # successive blocks can share a time
        )

    def is_final(self, number: int) -> bool:
        self._answer()
        return number + self.confirmations - 1 <= self.latest

    def _answer(self) -> None:
        if not self.reached:
            raise Unavailable("no answer")

    # transactions

    def mine(self, blocks: int = 1) -> None:
        self.latest += blocks

    def settle(self) -> None:
        """Mine until the randomness of everything sent so far is final."""
        self.mine(hashes.DELAY + self.confirmations)

    def register(self, account: bytes, manifest: bytes) -> Registered:
        nonce = len(self.account_registrations(account))
        run = hashes.run_id(self.chain.chain_id, self.chain.contract, account, nonce)
        event = Registered(run=run, account=account, nonce=nonce, manifest=manifest, position=self._position())
        self.registered.append(event)
        return event

    def anchor(self, account: bytes, nonce: int, previous: bytes, commitment: bytes, envelope: bytes) -> Anchored:
        """The run follows from the sender: nobody can anchor a head of another's."""
        if nonce >= len(self.account_registrations(account)):
            raise TransactionFailed("NotRegistered")
        run = hashes.run_id(self.chain.chain_id, self.chain.contract, account, nonce)
        if previous != self.heads.get(run, bytes(24)):
            raise TransactionFailed("HeadMoved")
        sequence = len(self.anchors(run)) + 1
        self.heads[run] = hashes.chained_head(run, sequence, previous, commitment, envelope)
        position = self._position()
        event = Anchored(run=run, sequence=sequence, commitment=commitment, envelope=envelope, position=position)
        self.anchored.append(event)
        return event

    def challenge(self, run: bytes, **content: bytes) -> Challenged:
        if run not in self.heads:
            raise TransactionFailed("NothingAnchored")
        number = len(self.challenges(run)) + 1
        event = Challenged(run=run, id=number, **content, position=self._position())
        self.challenged.append(event)
        return event

    def _position(self) -> Position:
        self.mine()
        transaction = named(self.seed, "transaction", self.latest)
        return Position(
            block=self.latest, log_index=0, block_hash=self.block(self.latest).hash, transaction=transaction
        )


def policy_for(ledger: MemoryLedger, *trusted: bytes, **changes: Any) -> Policy:
    """The policy of somebody who means this chain."""
    chain = ledger.chain
    given = {"chain_id": chain.chain_id, "genesis": chain.genesis, "contract": chain.contract, "rpc": None}
    return Policy(**given | {"codes": frozenset({chain.code}), "trusted": frozenset(trusted), **changes})
