"""What a run folder stores besides the protocol's records, and the encodings of it (not part of the protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polcommit.encoding import Bytes20, Bytes32, Record
from polcommit.errors import EncodingError
from polcommit.events import Position, Registered
from polcommit.records import Fingerprint, ParentClaim, StateIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The run's registration as it stands on the ledger, and the beacon that followed from it.

    A post hoc run is registered only before its first anchor, and has no beacon.
    """

    chain_id: int
    contract: bytes             # 20 bytes
    registered: Registered
    beacon_block: int | None            # number of the block whose prevrandao went into the beacon
    beacon_block_hash: bytes | None     # 32 bytes; identifies that block
    beacon: bytes | None                # 32 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParent:
    """What is kept of the run that this one starts from; its parameters and buffers lie in the tensor store."""

    claim: ParentClaim
    state: StateIndex           # its final state


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Record):
    """The chain and contract that a post hoc run will be anchored on: what its genesis record names."""

    TAG: ClassVar[str] = "place"
    chain_id: int
    contract: Bytes20

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require_unsigned(self, "chain_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch(Record):
    """An environment epoch: steps from `first` on ran under this fingerprint."""

    TAG: ClassVar[str] = "epoch"
    first: int
    fingerprint: Fingerprint

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require_unsigned(self, "first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosed(Record):
    """What was opened to a verifier in one challenge; written before a byte of it is sent."""

    TAG: ClassVar[str] = "disclosed"
    verifier: Bytes32           # Ed25519
    steps: tuple[int, ...]      # rising, unique

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        if list(self.steps) != sorted(set(self.steps)) or any(step < 1 for step in self.steps):
            raise EncodingError(f"Disclosed.steps: {self.steps} do not rise from 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPosition(Record):
    """`events.Position` with an encoding."""

    TAG: ClassVar[str] = "position"
    block: int
    log_index: int
    block_hash: Bytes32
    transaction: Bytes32

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require_unsigned(self, "block", "log_index")

    @classmethod
    def of(cls, position: Position) -> StoredPosition:
        """From the event's type. Raises EncodingError for one that cannot be."""
        return cls(
            block=position.block,
            log_index=position.log_index,
            block_hash=position.block_hash,
            transaction=position.transaction,
        )

    def plain(self) -> Position:
        """As the event's type."""
        return Position(
            block=self.block, log_index=self.log_index, block_hash=self.block_hash, transaction=self.transaction
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRegistration(Record):
    """`Registration` with an encoding."""

    TAG: ClassVar[str] = "registration"
    chain_id: int
    contract: Bytes20
    run: Bytes32
    account: Bytes20
    nonce: int
    manifest: Bytes32
    position: StoredPosition
    beacon_block: int | None
    beacon_block_hash: Bytes32 | None
    beacon: Bytes32 | None

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require_unsigned(self, "chain_id", "nonce", *(["beacon_block"] if self.beacon_block is not None else []))
        if len({value is None for value in (self.beacon_block, self.beacon_block_hash, self.beacon)}) != 1:
            raise EncodingError("StoredRegistration: half of a beacon")

    @classmethod
    def of(cls, registration: Registration) -> StoredRegistration:
        """From the plain type. Raises EncodingError for one that cannot be."""
        event = registration.registered
        return cls(
            chain_id=registration.chain_id,
            contract=registration.contract,
            run=event.run,
            account=event.account,
            nonce=event.nonce,
            manifest=event.manifest,
            position=StoredPosition.of(event.position),
            beacon_block=registration.beacon_block,
            beacon_block_hash=registration.beacon_block_hash,
            beacon=registration.beacon,
        )

    def plain(self) -> Registration:
        """As the plain type."""
        event = Registered(
            run=self.run,
            account=self.account,
            nonce=self.nonce,
            manifest=self.manifest,
            position=self.position.plain(),
        )
        return Registration(
            chain_id=self.chain_id,
            contract=self.contract,
            registered=event,
            beacon_block=self.beacon_block,
            beacon_block_hash=self.beacon_block_hash,
            beacon=self.beacon,
        )


def _require_unsigned(record: Record, *names: str) -> None:
    for name in names:
        if getattr(record, name) < 0:
            raise EncodingError(f"{type(record).__name__}.{name}: {getattr(record, name)} is negative")
