"""What a verifier found, signed, and the evidence for it (spec §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polcommit.encoding import Bytes20, Bytes32, Bytes64, Record
from polcommit.records.challenge import Disclosure, Openings, Request
from polcommit.records.trees import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Record):
    """What a verification step found: a contradiction, or why it could not be checked."""

    check: str                      # 'V1' to 'V13'
    what: str
    step: int | None
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierChallenge(Record):
    """An earlier challenge of the run on the ledger, by an eligible verifier."""

    id: int
    verifier: Bytes32
    outcome: str                    # a verdict, 'refused', 'not reproduced' or 'unanswered'


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(Record):
    """What the manifest still allows to be disclosed to an eligible verifier, after this challenge."""

    verifier: Bytes32
    steps: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(Record):
    """A log on the chain."""

    block: int
    block_hash: Bytes32
    transaction: Bytes32
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag(Record):
    """What a screen found odd: it adds steps to a challenge, and never rejects a run by itself (V11)."""

    screen: str
    first: int                      # steps from first to last
    last: int
    value: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance(Record):
    """How far a re-executed step's gradient was from the opened one, and how far it may have been (V10)."""

    step: int
    value: float                    # ‖ĝ − g′‖ / min(‖ĝ‖, ‖g′‖)
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Record):
    """The work that a run claims. Nothing bounds what was really spent from below."""

    steps: int
    samples: int
    flops: int | None               # of all steps, from those re-executed; None where none was


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Record):
    """What a verifier found, before it is signed (spec §6)."""

    TAG: ClassVar[str] = "verdict"
    verdict: str                    # 'accepted', 'rejected' or 'inconclusive'
    basis: str                      # 'bit-exact', 'within-tolerance', or 'none'
    chain_id: int
    genesis: Bytes32                # hash of the chain's first block
    contract: Bytes20
    code: Bytes32                   # keccak-256 of the contract's code
    devnet: bool                    # order, time and randomness are the operator's own
    run: Bytes32
    account: Bytes20
    prover: Bytes32 | None          # None where there was no manifest to take it from
    sequence: int
    commitment: Bytes32
    size: int | None                # as are root and final: None where the envelope did not open
    root: Bytes32 | None
    final: bool | None
    registered: bool                # before training, so that data, order and W_0 were fixed before the beacon
    registration: Reference | None
    anchor: Reference
    anchor_time: int                # the block's timestamp, seconds since 1970
    challenge: Reference | None     # as are id, request and nonce: None where it did not come to a challenge
    challenge_id: int | None
    request: Request | None
    nonce: Bytes32 | None
    draw: str                       # 'ledger', or 'none' where it did not come to a challenge
    steps: tuple[int, ...]          # drawn, rising
    added: tuple[int, ...]          # steps added to the drawn ones by the sketches, rising
    reexecuted: tuple[int, ...]     # of all these, the ones that were re-executed bit for bit
    tolerated: tuple[int, ...]      # and the ones whose re-execution in another environment came within tolerance
    fraction: float               # share of forged steps for which `probability` is stated
    probability: float            # that at least one of them would have been drawn
    challenges: tuple[EarlierChallenge, ...]
    registrations: tuple[int, int]  # of the account: registered, and of those anchored
    budgets: tuple[Budget, ...]
    findings: tuple[Finding, ...]
    checks: tuple[tuple[str, str], ...]     # ('V1', 'passed'), ...: 'passed', 'failed', 'flagged', …
    environment: Bytes32 | None     # digest of the fingerprint that re-execution ran under
    model: Bytes32 | None           # digest of the released model's file, where one was compared
    sketched: int                   # kept states whose sketches were compared
    flags: tuple[Flag, ...]         # what the screens found odd
    distances: tuple[Distance, ...]     # of the steps that were compared in gradient space
    profiles: tuple[Bytes32, ...]   # digests of the noise profiles that the tolerances come from
    reach: float | None             # how far those tolerances could have bent the run, in units of ‖W_T − W_0‖
    work: Work | None               # what the run claims
    parent: Bytes32 | None          # digest of the verdict on the run that this one starts from
    disclosure: Bytes32 | None      # digest of the Disclosure
    openings: Bytes32 | None        # digest of the Openings
    verifier: Bytes32
    software: str

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        require(self.verdict in ("accepted", "rejected", "inconclusive"), f"verdict {self.verdict!r}")
        require(not (self.verdict == "accepted" and self.findings), "an accepted run has no findings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Record):
    """A signed verdict. The prover keeps it and includes it in every later opening."""

    TAG: ClassVar[str] = "receipt"
    verdict: Verdict
    signature: Bytes64


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence(Record):
    """A finished bundle: what a third party checks without keys. With openings, their blobs follow it."""

    TAG: ClassVar[str] = "evidence"
    receipt: Receipt
    disclosure: Disclosure | None
    openings: Openings | None
