"""What the numbered steps have established of a challenged head so far: filled in order, by V2 to V7 (spec §6.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeVar

from polcommit import prf
from polcommit.draws import Drawn
from polcommit.encoding import Record, decode
from polcommit.errors import EncodingError, Refuted
from polcommit.events import Anchored, Registered
from polcommit.records import (
    Challenge,
    EarlierChallenge,
    GenesisRecord,
    Manifest,
    OpenedLeaf,
    Statement,
    StepRecord,
    Verdict,
)

R = TypeVar("R", bound=Record)


@dataclass(slots=True)
class Established:
    """What the steps have established so far; filled in order."""

    challenge: Challenge
    anchor: Anchored
    registration: Registered
    manifest: Manifest
    statement: Statement
    genesis: GenesisRecord | None = None
    seed: bytes = b""                               # of the run
    drawn: Drawn | None = None
    records: dict[int, StepRecord] | None = None    # opened leaves but the genesis
    samples: dict[int, bytes] | None = None         # dataset index -> leaf hash, of the drawn steps
    parent: Verdict | None = None                   # on the run that this one starts from, signed; not yet believed
    parent_state: bytes | None = None               # committed digest of that run's last state
    earlier: tuple[EarlierChallenge, ...] = ()
    verdicts: tuple[Verdict, ...] = ()              # of the earlier challenges that were answered

    def state(self, step: int) -> bytes:
        """The committed digest of the full state after `step`, whose leaf was opened."""
        assert self.genesis is not None and self.records is not None
        return self.genesis.state if step == 0 else self.records[step].state

    @property
    def draw(self) -> Drawn:
        """The draw, once V6 has established it; the steps that the sketches add are the prover's word until V11."""
        assert self.drawn is not None
        return self.drawn

    @property
    def registered(self) -> bool:
        """Whether data, order and W_0 were fixed before the beacon: of this run, and of all that it starts from."""
        return self.manifest.seed is None and (self.parent is None or self.parent.registered)

    def batch(self, step: int) -> tuple[int, ...]:
        """Dataset indices of the samples of a step, in order."""
        return prf.batch_indices(self.seed, step, self.manifest.dataset.size, self.manifest.batch)


def environment_epoch(statement: Statement, step: int) -> int:
    """Index of the environment epoch that a step falls in."""
    return sum(1 for first, _ in statement.environments if first <= step) - 1


def pack_float(value: float) -> bytes:
    """The bytes of a float64: compared instead of the value, so that NaN equals itself and 0.0 is not -0.0."""
    return struct.pack(">d", value)


def opened_record(leaf: OpenedLeaf, kind: type[R], check: str) -> R:
    """The record of an opened leaf. Raises Refuted: it is none of this kind."""
    try:
        return decode(leaf.record, kind)
    except EncodingError as error:
        raise Refuted(check, "record", at=leaf.index, expected=f"a {kind.__name__}", found=error) from error
