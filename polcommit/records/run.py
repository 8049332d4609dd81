"""A run: what is fixed before it, what is committed of each step, and what is anchored (spec §4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polcommit.encoding import Bytes8, Bytes20, Bytes32, Bytes64, Record, digest, tagged_hash
from polcommit.records.trees import TreeHead, require

# Limits of version 1: a verifier computes the order of the data from what a manifest claims, before it knows better.
MAX_SAMPLES = 1 << 26
MAX_STEPS = 1 << 32
MAX_KEPT = 1 << 20
MAX_VERIFIERS = 32      # each has a ciphertext in every envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint(Record):
    """What bits depend on: versions, device, kernels, threads, flags (spec §3.6). Pairs sorted by name."""

    TAG: ClassVar[str] = "fingerprint"
    items: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        names = [name for name, _ in self.items]
        require(names == sorted(set(names)), "items of a fingerprint are sorted by name, and unique")

    @property
    def threads(self) -> int | None:
        """The number of threads that it names; None where it names none."""
        text = dict(self.items).get("threads", "")
        return int(text) if text.isascii() and text.isdigit() and 0 < int(text) <= 4096 else None

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
        require(self.steps >= 0 and self.samples >= 0, "a disclosure budget is not negative")


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
    seed: Bytes32 | None                # of a post hoc run: its own choice, where a registered run has its beacon
    confirmations: int                  # finality that the prover waits for: that many blocks, or 0 for 'finalized'

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        for name in ("steps", "batch", "accumulation", "keep"):
            require(getattr(self, name) >= 1, f"{name} {getattr(self, name)}: must be at least 1")
        require(self.batch % self.accumulation == 0, f"{self.accumulation} micro-batches do not divide {self.batch}")
        require(self.digest_every == 1, f"digest_every {self.digest_every}: only 1 is supported")
        require(self.generator == 1 and self.order == 1, "unknown version of the generator or of the order")
        require(self.dataset.size <= MAX_SAMPLES, f"{self.dataset.size} samples, more than {MAX_SAMPLES}")
        require(self.steps <= MAX_STEPS, f"{self.steps} steps, more than {MAX_STEPS}")
        require(self.steps // self.keep <= MAX_KEPT, f"keep {self.keep}: more than {MAX_KEPT} kept states")
        require(self.dataset.size >= self.batch, f"{self.dataset.size} samples do not fill a batch of {self.batch}")
        require(self.schedule.size == self.steps, f"a schedule of {self.schedule.size} for {self.steps} steps")
        require(self.confirmations >= 0, "confirmations are not negative")
        require(len(self.verifiers) <= MAX_VERIFIERS, f"{len(self.verifiers)} verifiers, more than {MAX_VERIFIERS}")
        keys = [verifier.key for verifier in self.verifiers]
        require(keys == sorted(set(keys)), "verifiers are sorted by key, and unique")
        recipients = {verifier.recipient for verifier in self.verifiers}
        require(len(recipients) == len(keys), "no two verifiers share a recipient key")

    @property
    def from_beacon(self) -> bool:
        """Whether the ledger's beacon fixes W_0: the run was registered beforehand, and continues no other."""
        return self.seed is None and self.parent is None

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
    loss: float
    learning_rate: float
    clipped: bool
    skipped: bool                   # the scaler skipped the update
    environment: int                # epoch: index into the statement's list of fingerprints

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        require(self.step >= 1, f"step {self.step}: steps count from 1")
        require(self.environment >= 0, f"environment epoch {self.environment}")


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
        require(2 <= self.size <= MAX_STEPS + 1, "a head covers at least one step, and no more than can be planned")
        require((self.previous is None) == (self.sequence == 1), "only the first head has no previous one")
        starts = [first for first, _ in self.environments]
        require(bool(starts) and starts[0] == 1, "the first environment epoch begins at step 1")
        require(starts == sorted(set(starts)), "environment epochs are in rising order")
        require(list(self.recipients) == sorted(set(self.recipients)), "recipients are sorted, and unique")

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
