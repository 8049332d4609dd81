"""The frozen types that are hashed, signed or sent (spec §3 to §6).

A record that exists is valid in itself: types, lengths and ranges were checked. Whether it is *true* is the
verifier's business. How it becomes bytes is `polcommit.encoding`'s; nothing else packs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polcommit.encoding import Bytes8, Bytes20, Bytes32, Bytes64, Record, digest, tagged_hash, u64
from polcommit.errors import EncodingError

Float64 = float

# Limits of version 1: a verifier computes the order of the data from what a manifest claims, before it knows better.
MAX_SAMPLES = 1 << 26
MAX_STEPS = 1 << 32
MAX_KEPT = 1 << 20


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise EncodingError(message)


# --- trees ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead(Record):
    """Size and root of a Merkle tree. A root does not bind its size, so the two are committed to together."""

    size: int
    root: Bytes32

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(self.size >= 0, f"a tree of {self.size} leaves")

    def digest(self, tree: str) -> bytes:
        """H(tag ‖ u64 size ‖ root); `tree` is 'dataset', 'state', 'transcript' or 'schedule'."""
        return tagged_hash(f"digest/{tree}", u64(self.size), self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedLeaf(Record):
    """A leaf of a salted tree: its data is tag ‖ salt ‖ record, so the leaf hash is always computed, never taken."""

    index: int
    salt: Bytes32
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLeaf(Record):
    """What the dataset tree holds of raw sample `index` (spec §3.2)."""

    TAG: ClassVar[str] = "sample"
    index: int
    length: int             # bytes of the sample's encoding
    content: Bytes32        # BLAKE3 of the tag 'sample' and the sample's encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate(Record):
    """A leaf of the schedule tree: the learning rate of step t, at leaf t - 1."""

    TAG: ClassVar[str] = "rate"
    step: int
    learning_rate: Float64


# --- the full training state ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry(Record):
    """One tensor of a full training state; a leaf of the state tree (spec §3.3)."""

    TAG: ClassVar[str] = "tensor"
    name: str               # unique in the state, e.g. 'parameter/conv1.weight', 'optimizer/conv1.weight/exp_avg'
    kind: str               # 'parameter', 'buffer', 'optimizer' or 'other'
    dtype: str              # torch's name without 'torch.', e.g. 'float32'
    shape: tuple[int, ...]
    content: Bytes32        # BLAKE3 of the raw little-endian bytes in C order

    KINDS: ClassVar[frozenset[str]] = frozenset({"parameter", "buffer", "optimizer", "other"})

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(self.kind in self.KINDS, f"{self.name}: kind {self.kind!r}")
        _require(all(0 <= extent < 1 << 48 for extent in self.shape), f"{self.name}: shape {self.shape}")
        _require(len(self.shape) <= 16, f"{self.name}: {len(self.shape)} dimensions")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarEntry(Record):
    """The one leaf that holds everything of a state that is not a tensor, and which names share storage."""

    TAG: ClassVar[str] = "scalars"
    values: bytes                               # canonical encoding of the tree of scalars
    aliases: tuple[tuple[str, str], ...]        # (alias, name of the entry that holds the data), sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class StateIndex(Record):
    """Everything of a full training state but the tensors' bytes. Its digest is what a step commits to."""

    TAG: ClassVar[str] = "state"
    tensors: tuple[TensorEntry, ...]            # sorted by name, names unique
    scalars: ScalarEntry

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        names = [entry.name for entry in self.tensors]
        _require(names == sorted(set(names)), "tensors of a state are sorted by name, and unique")


# --- the run --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint(Record):
    """What bits depend on: versions, device, kernels, threads, flags (spec §3.6). Pairs sorted by name."""

    TAG: ClassVar[str] = "fingerprint"
    items: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        names = [name for name, _ in self.items]
        _require(names == sorted(set(names)), "items of a fingerprint are sorted by name, and unique")

    def difference(self, other: Fingerprint) -> tuple[tuple[str, str, str], ...]:
        """(name, value here, value there) wherever the two differ; '' for a name that one lacks."""
        here, there = dict(self.items), dict(other.items)
        names = sorted(here.keys() | there.keys())
        return tuple(
            (name, here.get(name, ""), there.get(name, "")) for name in names if here.get(name) != there.get(name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Eligible(Record):
    """A verifier that the manifest names, and how much may be disclosed to it over the life of the run."""

    key: Bytes32            # Ed25519: signs challenges and verdicts
    recipient: Bytes32      # X25519: HPKE envelopes and openings are sealed to it
    steps: int              # disclosure budget: distinct challenged steps
    samples: int            # disclosure budget: distinct raw samples

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(self.steps >= 0 and self.samples >= 0, "a disclosure budget is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Record):
    """What is fixed before training begins; committed to on the ledger at registration (spec §4.1)."""

    TAG: ClassVar[str] = "manifest"
    recipe: str                         # name of the recipe that prover and verifier each have installed
    recipe_source: Bytes32              # digest of its source
    configuration: Bytes32              # digest of its hyperparameters
    preprocessing: Bytes32 | None       # digest of a tokenizer or the like, where the recipe has one
    dataset: TreeHead
    schedule: TreeHead                  # the learning rate of every planned step
    steps: int                          # planned
    batch: int                          # samples a step
    accumulation: int                   # micro-batches a step; divides `batch`
    digest_every: int                   # steps a leaf; 1 for now
    keep: int                           # the full state is written every so many steps
    generator: int                      # version of the counter-based generator
    order: int                          # version of the order of the data
    environment: Fingerprint            # at registration
    prover: Bytes32                     # Ed25519
    account: Bytes20
    verifiers: tuple[Eligible, ...]     # sorted by key
    clear_openings: bool                # whether a bundle may hold states and samples in clear
    parent: tuple[Bytes32, Bytes32] | None      # (run, head digest) of the run whose final state this one starts from
    confirmations: int                  # finality that the prover waits for: that many blocks, or 0 for 'finalized'

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        for name in ("steps", "batch", "accumulation", "keep"):
            _require(getattr(self, name) >= 1, f"{name} {getattr(self, name)}: must be at least 1")
        _require(self.batch % self.accumulation == 0, f"{self.accumulation} micro-batches do not divide {self.batch}")
        _require(self.digest_every == 1, f"digest_every {self.digest_every}: only 1 is supported")
        _require(self.generator == 1 and self.order == 1, "unknown version of the generator or of the order")
        _require(self.dataset.size <= MAX_SAMPLES, f"{self.dataset.size} samples, more than {MAX_SAMPLES}")
        _require(self.steps <= MAX_STEPS, f"{self.steps} steps, more than {MAX_STEPS}")
        _require(self.steps // self.keep <= MAX_KEPT, f"keep {self.keep}: more than {MAX_KEPT} kept states")
        _require(self.dataset.size >= self.batch, f"{self.dataset.size} samples do not fill a batch of {self.batch}")
        _require(self.schedule.size == self.steps, f"a schedule of {self.schedule.size} for {self.steps} steps")
        _require(self.confirmations >= 0, "confirmations are not negative")
        keys = [verifier.key for verifier in self.verifiers]
        _require(keys == sorted(set(keys)), "verifiers are sorted by key, and unique")

    def eligible(self, key: bytes) -> Eligible | None:
        """The entry of the verifier with this Ed25519 key."""
        return next((verifier for verifier in self.verifiers if verifier.key == key), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenesisRecord(Record):
    """Leaf 0 of the transcript: everything that was fixed before the first step (spec §4.2)."""

    TAG: ClassVar[str] = "genesis"
    run: Bytes32 | None             # None, as are block and beacon, for a run that was not registered beforehand
    manifest: Bytes32               # digest of the manifest
    beacon_block: int | None
    beacon: Bytes32 | None
    state: Bytes32                  # digest of W_0's full state
    chain_id: int
    contract: Bytes20
    account: Bytes20
    prover: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord(Record):
    """What is committed about step t (spec §4.3). Leaf t of the transcript is this record, salted."""

    TAG: ClassVar[str] = "step"
    step: int                       # 1..T; leaf 0 is the genesis record
    samples: Bytes32                # over the leaf hashes of the batch's raw samples, in order
    batch: Bytes32                  # the batch as fed to the model; compared in the same environment only
    state: Bytes32                  # the full training state after the step
    loss: Float64
    learning_rate: Float64
    clipped: bool
    skipped: bool                   # the scaler skipped the update
    environment: int                # epoch: index into the statement's list of fingerprints

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(self.step >= 1, f"step {self.step}: steps count from 1")
        _require(self.environment >= 0, f"environment epoch {self.environment}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement(Record):
    """What the prover signs about a head of the transcript (spec §4.4)."""

    TAG: ClassVar[str] = "statement"
    run: Bytes32
    sequence: int                               # 1 for the first anchored head
    size: int                                   # leaves, the genesis record included: steps + 1
    root: Bytes32
    genesis: Bytes32                            # digest of the genesis record
    previous: Bytes32 | None                    # head digest of the head before, None for the first
    final: bool
    state: Bytes32                              # the full training state after the last step
    environments: tuple[tuple[int, Bytes32], ...]   # (first step, digest of the fingerprint)
    recipients: tuple[Bytes32, ...]             # key ids, sorted

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(self.size >= 2, "a head covers at least one step")
        _require((self.previous is None) == (self.sequence == 1), "only the first head has no previous one")
        starts = [first for first, _ in self.environments]
        _require(bool(starts) and starts[0] == 1, "the first environment epoch begins at step 1")
        _require(starts == sorted(set(starts)), "environment epochs are in rising order")
        _require(list(self.recipients) == sorted(set(self.recipients)), "recipients are sorted, and unique")

    @property
    def steps(self) -> int:
        """Number of steps that the head covers: leaf 0 is the genesis record."""
        return self.size - 1

    @property
    def head(self) -> bytes:
        """The head's digest, which binds size and root."""
        return TreeHead(size=self.size, root=self.root).digest("transcript")


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealedHead(Record):
    """The signed statement with its blinding: what an envelope seals, and what a bundle reveals."""

    TAG: ClassVar[str] = "head"
    statement: Statement
    signature: Bytes64              # Ed25519 by the prover, over the statement
    blinding: Bytes32

    @property
    def commitment(self) -> bytes:
        """C = SHA256(tag ‖ blinding ‖ head digest ‖ statement digest), as it stands on the ledger."""
        return tagged_hash("commitment", self.blinding, self.statement.head, digest(self.statement))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed(Record):
    """One recipient's ciphertext, and the first bytes of its key id: who is named and cannot open it was cheated."""

    recipient: Bytes8
    ciphertext: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope(Record):
    """What goes to the ledger with C: one HPKE ciphertext per recipient, signed again on the outside."""

    TAG: ClassVar[str] = "envelope"
    prover: Bytes32                 # Ed25519
    sealed: tuple[Sealed, ...]      # in the order of the sorted recipient key ids
    signature: Bytes64              # Ed25519 by the prover, over C, the ciphertexts and where they are anchored


# --- challenge and opening ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Record):
    """What a verifier asks for. Its digest goes to the ledger before anybody knows the draw (spec §5.1)."""

    TAG: ClassVar[str] = "request"
    run: Bytes32
    commitment: Bytes32             # C of the challenged head
    verifier: Bytes32               # Ed25519
    strategy: str                   # 'random' or 'list'
    count: int                      # steps to draw; for 'list' the number listed
    steps: tuple[int, ...]          # for 'list': rising, unique; else empty
    clear_openings: bool            # asks that the bundle may hold states and samples in clear

    STRATEGIES: ClassVar[frozenset[str]] = frozenset({"random", "list"})

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(self.strategy in self.STRATEGIES, f"unknown strategy {self.strategy!r}")
        _require(self.count >= 1, f"a challenge of {self.count} steps")
        listed = list(self.steps)
        _require(listed == sorted(set(listed)) and all(step >= 1 for step in listed), "listed steps rise from 1")
        _require(len(listed) == (self.count if self.strategy == "list" else 0), "count and listed steps disagree")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge(Record):
    """What reaches the prover once the draw is fixed. Everything in it can be checked against the ledger."""

    TAG: ClassVar[str] = "challenge"
    request: Request
    nonce: Bytes32
    id: int
    block: int                      # of the event; the randomness is that of block + 4


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
    learning_rates: tuple[Float64, ...]                 # of the drawn steps
    schedule_proof: tuple[Bytes32, ...]
    sample_hashes: tuple[Bytes32, ...]                  # leaf hashes of the drawn steps' samples, by rising index
    dataset_proof: tuple[Bytes32, ...]
    environments: tuple[Fingerprint, ...]               # one for each epoch of the last statement
    receipts: tuple[bytes, ...]                         # signed verdicts of earlier challenges


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch(Record):
    """A kept state's parameters under 64 random sign vectors drawn with the challenge (spec §5.5)."""

    step: int
    values: tuple[Float64, ...]

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(len(self.values) == 64, f"a sketch has 64 values, not {len(self.values)}")


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
    """Reserved for re-execution in another environment: ĝ of a drawn step, less the tensors' bytes."""

    step: int
    tensors: tuple[TensorEntry, ...]


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
    sketches: tuple[Sketch, ...]                    # of every kept state up to the head, rising
    gradients: tuple[Gradient, ...] | None          # reserved: another environment
    next_states: tuple[OpenedState, ...] | None     # reserved: another environment


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
        _require(self.reason in self.REASONS, f"unknown reason {self.reason!r}")
        _require(len(self.detail) <= 1000, "a refusal's detail is at most 1,000 characters")


# --- verdict and evidence -------------------------------------------------------------------------------------


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
    outcome: str                    # a verdict, or 'unanswered'


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
class Verdict(Record):
    """What a verifier found, before it is signed (spec §6)."""

    TAG: ClassVar[str] = "verdict"
    verdict: str                    # 'accepted', 'rejected' or 'inconclusive'
    basis: str                      # 'bit-exact', or 'none'
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
    draw: str                       # 'ledger' or "verifier's word"
    steps: tuple[int, ...]          # drawn, rising
    reexecuted: tuple[int, ...]     # of those, the ones that were re-executed bit for bit
    fraction: Float64               # share of forged steps for which `probability` is stated
    probability: Float64            # that at least one of them would have been drawn
    challenges: tuple[EarlierChallenge, ...]
    registrations: tuple[int, int]  # of the account: registered, and of those anchored
    budgets: tuple[Budget, ...]
    findings: tuple[Finding, ...]
    checks: tuple[tuple[str, str], ...]     # ('V1', 'passed'), ...: 'passed', 'failed', 'not settled', 'not checked'
    environment: Bytes32 | None     # digest of the fingerprint that re-execution ran under
    model: Bytes32 | None           # digest of the released model's file, where one was compared
    sketched: int                   # kept states whose sketches were compared
    disclosure: Bytes32 | None      # digest of the Disclosure
    openings: Bytes32 | None        # digest of the Openings
    verifier: Bytes32
    software: str

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(self.verdict in ("accepted", "rejected", "inconclusive"), f"verdict {self.verdict!r}")
        _require(not (self.verdict == "accepted" and self.findings), "an accepted run has no findings")


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
