"""What is asked of a prover, and what it answers (spec §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polcommit.encoding import Bytes32, Bytes64, Record
from polcommit.records.run import Fingerprint, Manifest, RevealedHead
from polcommit.records.state import StateIndex, TensorEntry
from polcommit.records.trees import OpenedLeaf, SampleLeaf, require

MAX_DRAWN = 1 << 20     # steps in one challenge; a reader draws before it knows better


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Record):
    """What a verifier asks for. Its digest goes to the ledger before anybody knows the draw (spec §5.1)."""

    TAG: ClassVar[str] = "request"
    run: Bytes32
    commitment: Bytes32             # C of the challenged head
    verifier: Bytes32               # Ed25519
    strategy: str                   # 'random', 'list', 'top-q' or 'mixed' (spec §5.2)
    count: int                      # steps to draw at random; for 'list' the number listed, for 'top-q' Q
    steps: tuple[int, ...]          # for 'list': rising, unique; else empty
    clear_openings: bool            # asks that the bundle may hold states and samples in clear

    STRATEGIES: ClassVar[frozenset[str]] = frozenset({"random", "list", "top-q", "mixed"})

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        require(self.strategy in self.STRATEGIES, f"unknown strategy {self.strategy!r}")
        require(1 <= self.count <= MAX_DRAWN, f"a challenge of {self.count} steps")
        listed = list(self.steps)
        require(listed == sorted(set(listed)) and all(step >= 1 for step in listed), "listed steps rise from 1")
        require(len(listed) == (self.count if self.strategy == "list" else 0), "count and listed steps disagree")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge(Record):
    """What reaches the prover once the draw is fixed. Everything in it can be checked against the ledger."""

    TAG: ClassVar[str] = "challenge"
    request: Request
    nonce: Bytes32
    id: int
    block: int                      # of the event; the randomness is that of block + 4
    gradients: bool                 # the follow-up: the same steps once more, with gradients and the states after


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentClaim(Record):
    """The run whose final state this one starts from: its last head, and a signed verdict on it."""

    head: RevealedHead
    receipt: bytes                  # an encoded Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure(Record):
    """The part of an opening that a third party may see: commitments, leaves and proofs, no data (spec §5.3)."""

    TAG: ClassVar[str] = "disclosure"
    manifest: Manifest
    manifest_blinding: Bytes32
    heads: tuple[RevealedHead, ...]                     # every anchored head, up to the challenged one
    consistency: tuple[tuple[Bytes32, ...], ...]        # between successive heads
    leaves: tuple[OpenedLeaf, ...]                      # of the transcript; see transcript.opened_leaves
    leaves_proof: tuple[Bytes32, ...]
    learning_rates: tuple[float, ...]                 # of the drawn steps
    schedule_proof: tuple[Bytes32, ...]
    sample_hashes: tuple[Bytes32, ...]                  # leaf hashes of the drawn steps' samples, by rising index
    dataset_proof: tuple[Bytes32, ...]
    environments: tuple[Fingerprint, ...]               # one for each epoch of the last statement
    receipts: tuple[bytes, ...]                         # signed verdicts of earlier challenges
    added: tuple[int, ...]                              # steps added to the drawn ones by the sketches, rising
    parent: ParentClaim | None                          # where the manifest names one


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch(Record):
    """A kept state's parameters under 64 random sign vectors drawn with the challenge (spec §5.5)."""

    step: int
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        require(len(self.values) == 64, f"a sketch has 64 values, not {len(self.values)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedState(Record):
    """A full state, less the tensors' bytes, which follow as blobs."""

    step: int                       # the state after that step; 0 is W_0
    index: StateIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSample(Record):
    """A raw sample, less its bytes, which follow as a blob."""

    index: int
    salt: Bytes32
    leaf: SampleLeaf


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient(Record):
    """ĝ of a drawn step, less the tensors' bytes: entries 'gradient/<parameter>', none where there is no gradient."""

    step: int
    tensors: tuple[TensorEntry, ...]

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        names = [entry.name for entry in self.tensors]
        require(names == sorted(set(names)), "tensors of a gradient are sorted by name, and unique")
        require(all(entry.kind == "gradient" for entry in self.tensors), "a gradient's tensors are of kind 'gradient'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Openings(Record):
    """The part of an opening that is for the verifier: hyperparameters, states, samples, sketches (spec §5.4).

    Behind it follow the blobs: each distinct content once, in the order of first mention, states before
    samples; their lengths follow from dtype and shape, or from the sample's leaf.
    """

    TAG: ClassVar[str] = "openings"
    configuration: tuple[tuple[str, str], ...]
    states: tuple[OpenedState, ...]                 # rising: before each drawn step, and the kept ones that are drawn
    samples: tuple[OpenedSample, ...]               # rising index
    sketches: tuple[Sketch, ...]                    # of every kept state, and those in stretches flagged as jumps
    gradients: tuple[Gradient, ...] | None          # of every drawn and added step, where the challenge asks for them
    next_states: tuple[OpenedState, ...] | None     # the states after those steps, likewise
    parent: StateIndex | None                       # the parent's final state, by its digests


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedOpening(Record):
    """The head of an opening on the wire; the encrypted payload follows it."""

    TAG: ClassVar[str] = "opening"
    run: Bytes32
    id: int
    sealed: bytes                   # HPKE to the verifier: an OpeningKey


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningKey(Record):
    """Key and digest of an opening's payload, signed by the prover."""

    TAG: ClassVar[str] = "opening-key"
    key: Bytes32
    payload: Bytes32                # BLAKE3 of the tag 'payload' and the payload in clear
    signature: Bytes64


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Record):
    """The prover's signed word that it does not open."""

    TAG: ClassVar[str] = "refusal"
    run: Bytes32
    id: int
    reason: str                     # 'budget', 'irreproducible' or 'invalid'
    detail: str
    signature: Bytes64

    REASONS: ClassVar[frozenset[str]] = frozenset({"budget", "irreproducible", "invalid"})

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        require(self.reason in self.REASONS, f"unknown reason {self.reason!r}")
        require(len(self.detail) <= 1000, "a refusal's detail is at most 1,000 characters")
