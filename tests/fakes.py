"""A chain in memory, and an honest prover and verifier in pure Python: the tests' stand-ins for web3 and torch.

`MemoryLedger` keeps the contract's rules; what it lets happen can happen on a chain. A run's states are made by
hashing the state and the batch before them, so that re-execution is a pure function, and anything that a prover
changes shows. A cheating prover is a subclass of `Prover`, or an honest opening with something replaced.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from polcommit import prf
from polcommit import transcript as hashes
from polcommit.comparisons import ReleasedModel
from polcommit.draws import Drawn, Screened, resolve
from polcommit.encoding import Record, decode, digest, encode, pack, tag, tagged_hash, unpack
from polcommit.envelopes import make_envelope, open_envelope, purpose_of
from polcommit.errors import EncodingError, Refuted, TransactionFailed, Unavailable
from polcommit.events import Anchored, Block, ChainIdentity, Challenged, Position, Registered
from polcommit.keys import key_id
from polcommit.policy import Policy
from polcommit.profiles import Profile
from polcommit.prover import (
    Parent,
    Run,
    accept_challenge,
    drawn_samples,
    make_disclosure,
    make_openings,
    next_head,
    opened_states,
    require_budget,
)
from polcommit.records import (
    Challenge,
    Disclosure,
    Eligible,
    Evidence,
    Fingerprint,
    GenesisRecord,
    Gradient,
    Manifest,
    OpenedState,
    Openings,
    ParentClaim,
    Receipt,
    Request,
    RevealedHead,
    SampleLeaf,
    ScalarEntry,
    StateIndex,
    Statement,
    StepRecord,
    TensorEntry,
)
from polcommit.replaying import Measured, Rates, ReplayedStep, ReplayJob, ReplayReport, TensorDistance, TensorOrigin
from polcommit.sealing import derive, unseal
from polcommit.signing import challenge_message, public_bytes, sign, sign_statement, sign_verdict
from polcommit.storage.blobs import BlobFolder
from polcommit.transcript import Transcript, configuration_digest
from polcommit.verifier import Verification


def named(*parts: object) -> bytes:
    """32 bytes that are the same in every test run."""
    return sha256("/".join(map(str, parts)).encode()).digest()


# --- the chain ------------------------------------------------------------------------------------------------


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


# --- training, as a pure function -----------------------------------------------------------------------------

Floats = tuple[float, ...]

RECIPE = "fake"
SOURCE = named("source of the recipe")
SHAPES = {
    "buffer/mean": ("buffer", (2,)),
    "optimizer/weight/momentum": ("optimizer", (2, 3)),
    "parameter/weight": ("parameter", (2, 3)),
}
ALIASES = (("parameter/tied", "parameter/weight"),)
SURGE = b"surge"
ENVIRONMENT = Fingerprint(items=(("kernels", "plain"), ("threads", "1")))
ELSEWHERE = Fingerprint(items=(("kernels", "plain"), ("threads", "2")))


@dataclass(frozen=True)
class State:
    """A full training state: little-endian float32 tensors by name, and one counter."""

    tensors: Mapping[str, bytes]
    counter: int

    def index(self) -> StateIndex:
        entries = tuple(
            TensorEntry(
                name=name, kind=SHAPES[name][0], dtype="float32", shape=SHAPES[name][1], content=blake3(data).digest()
            )
            for name, data in sorted(self.tensors.items())
        )
        scalars = ScalarEntry(values=pack((("counter", self.counter),)), aliases=ALIASES)
        return StateIndex(tensors=entries, scalars=scalars)

    def digest(self) -> bytes:
        return hashes.state_digest(self.index())

    def blobs(self) -> dict[bytes, bytes]:
        return {blake3(data).digest(): data for data in self.tensors.values()}


def floats(source: bytes, count: int) -> bytes:
    """So many float32 values that are sixteenths, from hashing."""
    return struct.pack(f"<{count}f", *((byte - 128) / 16 for byte in blake3(source).digest(count)))


def initial_state(seed: bytes) -> State:
    """W_0: of the seed alone, and equal everywhere."""
    sizes = {"buffer/mean": 2, "optimizer/weight/momentum": 6, "parameter/weight": 6}
    return State({name: floats(seed + name.encode(), size) for name, size in sizes.items()}, 0)


@dataclass(frozen=True)
class Outcome:
    """What one step gives."""

    state: State
    batch: bytes
    loss: float
    learning_rate: float
    clipped: bool
    skipped: bool
    gradient: bytes             # of the weight, which is the only one that is trained


def learning_rate(step: int) -> float:
    return 0.1 / step


def execute(
    before: State,
    step: int,
    batch: Sequence[bytes],
    seed: bytes,
    environment: Fingerprint,
    opened: bytes | None = None,
) -> Outcome:
    """One step. Its bits depend on everything that they depend on in training, the environment included.

    Forward and backward give the gradient, which is a little different in each environment; the update is a function
    of the state before and that gradient alone, or of the one that was `opened`. A sample that begins with SURGE moves
    the weights far away, for good: an honest run with a jump in it.
    """
    fed = tagged_hash("batch", prf.step_seed(seed, step, 0).to_bytes(8, "big"), *map(digest_of, batch))
    everything = b"".join(data for _, data in sorted(before.tensors.items()))
    source = named(fed.hex(), everything.hex(), before.counter, learning_rate(step))
    noise = named(source.hex(), digest(environment).hex())
    exact = values_of(floats(source + b"gradient", 6))
    gradient = packed(x * (1 + (byte - 128) / 2**20) for x, byte in zip(exact, noise, strict=False))
    applied = named(source.hex(), (opened or gradient).hex())
    tensors = {name: floats(applied + name.encode(), len(data) // 4) for name, data in before.tensors.items()}
    counter = before.counter + 1 + 1000 * sum(sample.startswith(SURGE) for sample in batch)
    tensors["parameter/weight"] = moved(tensors["parameter/weight"], far(counter))
    return Outcome(
        state=State(tensors, counter),
        batch=fed,
        loss=(source[0] + noise[0] / 2**16) / 256,
        learning_rate=learning_rate(step),
        clipped=source[1] % 2 == 0,
        skipped=False,
        gradient=gradient,
    )


def far(counter: int) -> float:
    """How far the weights were moved by then: 512 for each thousand of steps that were not, and 24 for each hundred."""
    return 512.0 * (counter // 1000) + 24.0 * (counter % 1000 // 100)


def moved(data: bytes, by: float) -> bytes:
    """The same float32 values, all of them further by so much."""
    return packed(value + by for value in values_of(data))


def values_of(data: bytes) -> Floats:
    """Float32 values."""
    return struct.unpack(f"<{len(data) // 4}f", data)


def packed(values: Iterable[float]) -> bytes:
    """The same back."""
    made = tuple(values)
    return struct.pack(f"<{len(made)}f", *made)


def norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(x * x for x in values))


def cosine(a: Floats, b: Floats) -> float:
    length = norm(a) * norm(b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def minus(a: Floats, b: Floats) -> Floats:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def digest_of(sample: bytes) -> bytes:
    return blake3(tag("sample") + sample).digest()


def sketch(index: StateIndex, blobs: Callable[[bytes], bytes], seed: bytes) -> tuple[float, ...]:
    """Sums of the parameters under 64 sign vectors. Sixteenths add up exactly in any order."""
    sums = [0.0] * 64
    weights: list[float] = []
    for entry in index.tensors:
        if entry.kind == "parameter":
            data = blobs(entry.content)
            weights += struct.unpack(f"<{len(data) // 4}f", data)
    for weight, word in zip(weights, prf.words(seed, "sketch", count=len(weights)), strict=True):
        for bit in range(64):
            sums[bit] += weight if word >> bit & 1 else -weight
    return tuple(sums)


class HonestReplayer:
    """Re-executes for real, from the blobs in the folder; implements `polcommit.replaying.Replayer`."""

    def __init__(
        self,
        environment: Fingerprint = ENVIRONMENT,
        *,
        source: bytes = SOURCE,
        reproduces: bool = True,
        seen: Mapping[str, Any] | None = None,
        **told: Any,
    ) -> None:
        """`seen` replaces fields of every comparison in gradient space, `told` fields of the report."""
        self.environment = environment
        self.source = source
        self.reproduces = reproduces
        self.seen = seen or {}
        self.told = told
        self.executions = 0

    def replay(
        self, job: ReplayJob, blobs: Path, progress: Callable[[int, int], None] | None = None
    ) -> ReplayReport:
        report = ReplayReport(
            environment=self.environment,
            recipe_source=self.source,
            initial=initial_state(job.seed).digest(),
            steps=(),
            sketches=(),
            refuted=None,
            flops=1000,
            residuals=(),
            rates=tuple(
                Rates(steps=len(rates), total=math.fsum(rates), squares=math.fsum(rate * rate for rate in rates))
                for first, after in pairwise((*job.epochs, job.last + 1))
                for rates in [[learning_rate(step) for step in range(first, after)]]
            ),
            span=1.0,
            origin=None,
            initial_index=initial_state(job.seed).index(),
        )
        try:
            return replace(self._replayed(job, BlobFolder(blobs), report), **self.told)
        except Refuted as error:
            return replace(report, refuted=(error.check, error.what, error.at, error.expected, error.found))

    def _replayed(self, job: ReplayJob, blobs: BlobFolder, report: ReplayReport) -> ReplayReport:
        def fetch(content: bytes) -> bytes:
            return blobs.path(content).read_bytes()

        states = {state.step: state.index for state in job.states}
        for step, index in states.items():
            self._require_schema(step, index)
        sketches = tuple((step, sketch(states[step], fetch, job.sketch_seed)) for step in job.sketched)
        opened = {sample.index: sample.leaf.content for sample in job.opened}
        steps = []
        for record, indices in zip(job.steps, job.samples, strict=True):
            batch = [fetch(opened[index]) for index in indices]
            before = self._restored(states[record.step - 1], fetch)
            steps.append(self._step(job, record, before, batch, fetch))
        last = values_of(fetch(weight_of(states[job.last])))
        first = fetch(weight_of(states[0])) if 0 in states else initial_state(job.seed).tensors["parameter/weight"]
        return replace(
            report,
            steps=tuple(steps),
            sketches=sketches,
            residuals=self._residuals(job, fetch),
            span=norm(minus(last, values_of(first))),
            origin=self._origin(job, states[0], fetch) if job.origin_seed is not None else None,
        )

    def _origin(self, job: ReplayJob, opened: StateIndex, fetch: Callable[[bytes], bytes]) -> tuple[TensorOrigin, ...]:
        """The weights' distribution is anything up to 8 in magnitude; all else is as the seed has it."""
        own = {entry.name: entry for entry in initial_state(job.seed).index().tensors}
        found = []
        for entry in opened.tensors:
            drawn = entry.kind == "parameter"
            near = drawn and all(abs(value) <= 8 for value in values_of(fetch(entry.content)))
            found.append(
                TensorOrigin(
                    name=entry.name,
                    size=6,
                    statistic=0.0 if near else 1.0,
                    probability=0.5 if near else 0.0,
                    constant=not drawn,
                    equal=entry == own[entry.name],
                )
            )
        same = opened.scalars == initial_state(job.seed).index().scalars
        found.append(TensorOrigin(name="scalars", size=0, statistic=0.0, probability=1.0, constant=True, equal=same))
        return tuple(found)

    @staticmethod
    def _require_schema(step: int, index: StateIndex) -> None:
        found = {entry.name: (entry.kind, entry.shape) for entry in index.tensors}
        if found != SHAPES or index.scalars.aliases != ALIASES:
            raise Refuted("V8", "schema of the recipe", at=step, expected=sorted(SHAPES), found=sorted(found))

    @staticmethod
    def _restored(index: StateIndex, fetch: Callable[[bytes], bytes]) -> State:
        counter = dict(decode_scalars(index.scalars.values))["counter"]
        return State({entry.name: fetch(entry.content) for entry in index.tensors}, counter)

    def _step(
        self, job: ReplayJob, record: StepRecord, before: State, batch: list[bytes], fetch: Callable[[bytes], bytes]
    ) -> ReplayedStep:
        outcome = self._execute(before, record.step, batch, job.seed)
        same = outcome.state.digest() == record.state and outcome.batch == record.batch
        again = None if same else self._execute(before, record.step, batch, job.seed).state.digest()
        measured = self._measure(job, record, before, batch, fetch) if job.gradients is not None else None
        return ReplayedStep(
            step=record.step,
            batch=outcome.batch,
            state=outcome.state.digest(),
            again=again,
            loss=outcome.loss,
            learning_rate=outcome.learning_rate,
            clipped=outcome.clipped,
            skipped=outcome.skipped,
            measured=measured,
            contribution=None,
        )

    def _measure(
        self, job: ReplayJob, record: StepRecord, before: State, batch: list[bytes], fetch: Callable[[bytes], bytes]
    ) -> Measured:
        """The opened gradient against this environment's; and what is to follow from it, against the next state."""
        opened, after = self._followed(job, record.step, fetch)
        own = execute(before, record.step, batch, job.seed, self.environment)
        led = execute(before, record.step, batch, job.seed, self.environment, opened)
        there, here = values_of(opened), values_of(own.gradient)
        residual = minus(there, here)
        last = next(state.index for state in job.states if state.step == job.last)
        way = minus(values_of(before.tensors["parameter/weight"]), values_of(fetch(weight_of(last))))
        found = TensorDistance(
            name="weight",
            distance=norm(residual),
            opened=norm(there),
            here=norm(here),
            size=6,
            zeros=sum((x == 0) != (y == 0) for x, y in zip(there, here, strict=True)),
        )
        measured = Measured(
            finite=(all(map(math.isfinite, there)), True),
            missing=(),
            distance=found.distance,
            opened=found.opened,
            here=found.here,
            preconditioned=None,
            tensors=(found,),
            buffers=(),
            update=("", 0.0),
            exact=None if led.state.digest() == hashes.state_digest(after) else "tensor parameter/weight",
            exact_only=None,
            towards=cosine(residual, way),
            stride=own.learning_rate * norm(there),
            loss=own.loss,
            learning_rate=own.learning_rate,
            clipped=own.clipped,
            skipped=own.skipped,
        )
        return replace(measured, **self.seen)

    @staticmethod
    def _followed(job: ReplayJob, step: int, fetch: Callable[[bytes], bytes]) -> tuple[bytes, StateIndex]:
        assert job.gradients is not None and job.next_states is not None
        gradient = next(gradient for gradient in job.gradients if gradient.step == step)
        if [(entry.name, entry.shape) for entry in gradient.tensors] != [("gradient/weight", (2, 3))]:
            raise Refuted("V8", "gradient", at=step, expected="of the weight", found=len(gradient.tensors))
        after = next(state.index for state in job.next_states if state.step == step)
        return fetch(gradient.tensors[0].content), after

    def _residuals(self, job: ReplayJob, fetch: Callable[[bytes], bytes]) -> tuple[float, ...]:
        """As honest noise has them: nothing in common."""
        count = len(job.gradients or ())
        return (0.0,) * (count * (count - 1) // 2)

    def _execute(self, before: State, step: int, batch: list[bytes], seed: bytes) -> Outcome:
        outcome = execute(before, step, batch, seed, self.environment)
        self.executions += 1
        if not self.reproduces:
            noise = floats(named("noise", self.executions), 6)
            outcome = replace(outcome, state=State({**outcome.state.tensors, "parameter/weight": noise}, step))
        return outcome


def weight_of(index: StateIndex) -> bytes:
    """Content of the weight."""
    return next(entry.content for entry in index.tensors if entry.name == "parameter/weight")


def decode_scalars(values: bytes) -> tuple[tuple[str, int], ...]:
    decoded: tuple[tuple[str, int], ...] = unpack(values)
    return decoded


# --- the prover -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opening:
    """What a prover sends: two records, and the contents that they name."""

    disclosure: Disclosure
    openings: Openings
    blobs: Mapping[bytes, bytes]

    def disclosing(self, **changes: Any) -> Opening:
        """The same with other fields in the disclosure."""
        return replace(self, disclosure=replace(self.disclosure, **changes))

    def opening(self, **changes: Any) -> Opening:
        """The same with other fields in the openings."""
        return replace(self, openings=replace(self.openings, **changes))


@dataclass(frozen=True)
class Continued:
    """What a run starts from, where it is another run: what its prover can show of that, and its last state."""

    parent: Parent
    state: State


class Prover:
    """Registers, trains, anchors and answers, honestly. A cheat overrides the method where it lies."""

    steps, batch, samples, keep = 12, 3, 20, 6       # four kept states in two heads: too few for screens

    def __init__(
        self,
        ledger: MemoryLedger,
        *verifiers: Eligible,
        name: str = "prover",
        continues: Continued | None = None,
        **manifest: Any,
    ) -> None:
        """With `seed` in the manifest a post hoc run; with `continues` one that starts from another's last state."""
        self.ledger = ledger
        self.name = name
        self.continues = continues
        if continues is not None:
            statement = continues.parent.claim.head.statement
            manifest = {"parent": (statement.run, statement.head)} | manifest
        self.key = Ed25519PrivateKey.from_private_bytes(named(name, "signing key"))
        self.account = named(name, "account")[:20]
        self.secret = named(name, "run secret")
        self.environment = ENVIRONMENT
        self.environments: list[tuple[int, Fingerprint]] = [(1, ENVIRONMENT)]
        self.contents = [self.content(index) for index in range(self.samples)]
        self.dataset = [
            hashes.sample_leaf(hashes.sample_salt(self.secret, index), self.sample_leaf(index))
            for index in range(self.samples)
        ]
        self.configuration = self.configured()
        self.manifest = replace(self._manifest(verifiers), **manifest)
        self.states: list[State] = []
        self.gradients: list[bytes] = [b""]
        self.heads: list[RevealedHead] = []
        self.receipts: dict[int, bytes] = {}
        self.disclosed: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    @property
    def public(self) -> bytes:
        return public_bytes(self.key)

    def _manifest(self, verifiers: Iterable[Eligible]) -> Manifest:
        return Manifest(
            recipe=RECIPE,
            recipe_source=SOURCE,
            configuration=configuration_digest(self.configuration),
            preprocessing=None,
            dataset=hashes.tree_head(self.dataset),
            schedule=hashes.tree_head(hashes.schedule_hashes(self.rate, self.steps)),
            steps=self.steps,
            batch=self.batch,
            accumulation=1,
            digest_every=1,
            keep=self.keep,
            generator=1,
            order=1,
            environment=self.environment,
            prover=self.public,
            account=self.account,
            verifiers=tuple(sorted(verifiers, key=lambda verifier: verifier.key)),
            clear_openings=True,
            parent=None,
            seed=None,
            confirmations=1,
        )

    # where one could lie

    def content(self, index: int) -> bytes:
        """A raw sample."""
        return f"sample {index} of {self.name}".encode()

    def configured(self) -> tuple[tuple[str, str], ...]:
        return (("accumulation", "1"), ("batch", str(self.batch)), ("steps", str(self.steps)))

    def rate(self, step: int) -> float:
        """The learning rate that is registered."""
        return learning_rate(step)

    def sample_leaf(self, index: int) -> SampleLeaf:
        """What is registered of a sample."""
        content = self.contents[index]
        return SampleLeaf(index=index, length=len(content), content=digest_of(content))

    def first_state(self) -> State:
        """W_0: of a run that continues another its weights and buffers, with a fresh optimizer."""
        fresh = initial_state(self.seed)
        if self.continues is None:
            return fresh
        kept = {name: data for name, data in self.continues.state.tensors.items() if not name.startswith("optimizer/")}
        return State({**fresh.tensors, **kept}, fresh.counter)

    def genesis(self) -> GenesisRecord:
        """Leaf 0."""
        registered = self.manifest.seed is None
        return GenesisRecord(
            run=self.id if registered else None,
            manifest=digest(self.manifest),
            beacon_block=self.registration.position.block + hashes.DELAY if registered else None,
            beacon=self.beacon,
            state=self.states[0].digest(),
            chain_id=self.ledger.chain.chain_id,
            contract=self.ledger.chain.contract,
            account=self.account,
            prover=self.public,
        )

    def indices(self, step: int) -> tuple[int, ...]:
        """The samples that a step takes."""
        return prf.batch_indices(self.seed, step, self.samples, self.batch)

    def execute(self, step: int, fed: list[bytes]) -> Outcome:
        """A step, on the last state."""
        return execute(self.states[-1], step, fed, self.seed, self.environments[-1][1])

    def update(self, step: int, outcome: Outcome) -> State:
        """The state after a step."""
        return outcome.state

    def recorded(self, record: StepRecord) -> StepRecord:
        """What is committed of a step."""
        return record

    def gradient(self, step: int) -> bytes:
        """What is opened as the gradient of a step."""
        return self.gradients[step]

    # a run

    def register(self) -> Prover:
        commitment = hashes.manifest_commitment(derive(self.secret, "blinding/manifest"), self.manifest)
        self.registration = self.ledger.register(self.account, commitment)
        self.id = self.registration.run
        self.ledger.settle()
        self.start()
        return self

    def start(self) -> None:
        """From the beacon on: the seed, W_0 and the genesis record."""
        number = self.registration.position.block + hashes.DELAY
        chain = self.ledger.chain
        self.beacon: bytes | None = hashes.beacon(
            chain.chain_id, chain.contract, self.id, self.registration.manifest, self.ledger.block(number).prevrandao
        )
        chosen = self.manifest.seed
        self.seed = (
            hashes.run_seed(self.beacon) if chosen is None
            else hashes.post_hoc_seed(chosen, self.account, self.public)
        )  # fmt: skip
        if self.manifest.seed is not None:
            self.beacon = None
        self.states = [self.first_state()]
        self.transcript = Transcript(self.secret, [encode(self.genesis())])

    def train(self, steps: int | None = None) -> Prover:
        """So many steps, by default all that are left."""
        done = len(self.states) - 1
        for step in range(done + 1, (self.steps if steps is None else done + steps) + 1):
            indices = self.indices(step)
            fed = [self.contents[index] for index in indices]
            outcome = self.execute(step, fed)
            self.states.append(self.update(step, outcome))
            self.gradients.append(outcome.gradient)
            record = StepRecord(
                step=step,
                samples=hashes.samples_digest(self.dataset[index] for index in indices),
                batch=outcome.batch,
                state=self.states[-1].digest(),
                loss=outcome.loss,
                learning_rate=self.rate(step),
                clipped=outcome.clipped,
                skipped=outcome.skipped,
                environment=len(self.environments) - 1,
            )
            self.transcript.append(encode(self.recorded(record)))
        return self

    @property
    def run(self) -> Run:
        return Run(
            id=self.id,
            manifest=self.manifest,
            secret=self.secret,
            seed=self.seed,
            transcript=self.transcript,
            heads=tuple(self.heads),
            environments=tuple(self.environments),
            configuration=self.configuration,
            learning_rate=self.rate,
            dataset=self.dataset,
            contents=lambda index: (self.sample_leaf(index).content, self.sample_leaf(index).length),
            receipts=self.receipts,
            parent=self.continues.parent if self.continues is not None else None,
        )

    def anchor(self, **changes: Any) -> Anchored:
        """The next head, with `changes` in what is stated about it."""
        head = next_head(self.run, self.key)
        if changes:
            head = sign_statement(self.key, replace(head.statement, **changes), head.blinding)
        return self.send(head)

    def send(self, head: RevealedHead) -> Anchored:
        envelope = make_envelope(head, self.manifest, self.ledger.chain, self.key)
        event = self.put(head.commitment, envelope)
        self.heads.append(head)
        return event

    def put(self, commitment: bytes, envelope: bytes) -> Anchored:
        """Anchor any bytes at all."""
        previous = self.ledger.heads.get(self.id, bytes(24))
        return self.ledger.anchor(self.account, self.registration.nonce, previous, commitment, envelope)

    def accept(self, challenge: Challenge) -> Drawn:
        """What an honest prover does before it opens anything."""
        return accept_challenge(self.run, self.ledger, self.ledger.chain, challenge, self.disclosed)

    def respond(self, challenge: Challenge) -> Opening:
        drawn = self.accept(challenge)
        drawn = self.screened(challenge, drawn, self.sketches(drawn))
        require_budget(self.run, challenge, drawn, self.disclosed)
        self.disclosed[challenge.id] = (challenge.request.verifier, drawn.challenged)
        return self.open(challenge, drawn)

    def sketches(self, drawn: Drawn) -> dict[int, Floats]:
        """Of all states up to the challenged head."""
        seed = hashes.sketch_seed(drawn.seed)
        return {
            step: sketch(self.states[step].index(), self.states[step].blobs().__getitem__, seed)
            for step in range(drawn.kept[-1] + 1)
        }

    def screened(self, challenge: Challenge, drawn: Drawn, sketches: Mapping[int, tuple[float, ...]]) -> Drawn:
        """The draw, with what the sketches add. `sketches` of all states."""
        screened = Screened(
            challenge.request,
            self.manifest,
            seed=drawn.seed,
            last=drawn.kept[-1],
            records={step: decode(self.transcript.record(step), StepRecord) for step in drawn.kept if step},
            sketches={step: sketches[step] for step in drawn.kept},
        )
        return drawn.with_added(screened.over(drawn.steps, sketches))

    def open(self, challenge: Challenge, drawn: Drawn) -> Opening:
        """An opening of these steps, whether or not they are what the challenge draws."""
        sketches = self.sketches(drawn)
        drawn = self.screened(challenge, drawn, sketches)
        states = {step: self.states[step] for step in {*opened_states(drawn), *drawn.kept}}
        blobs: dict[bytes, bytes] = {}
        for state in states.values():
            blobs |= state.blobs()
        run = self.run
        for index in drawn_samples(run, drawn):
            blobs[self.sample_leaf(index).content] = self.contents[index]
        follow_up = self.follow_up(drawn, blobs) if challenge.gradients else None
        indices = {step: state.index() for step, state in states.items()}
        openings = make_openings(run, drawn, indices, sketches, follow_up)
        return Opening(make_disclosure(run, challenge, drawn), openings, blobs)

    def follow_up(
        self, drawn: Drawn, blobs: dict[bytes, bytes]
    ) -> tuple[tuple[Gradient, ...], tuple[OpenedState, ...]]:
        """Gradients and next states of the challenged steps; their bytes go to `blobs`."""
        gradients = []
        for step in drawn.challenged:
            data = self.gradient(step)
            content = blake3(data).digest()
            blobs |= {content: data} | self.states[step].blobs()
            entry = TensorEntry(
                name="gradient/weight", kind="gradient", dtype="float32", shape=(2, 3), content=content
            )
            gradients.append(Gradient(step=step, tensors=(entry,)))
        after = tuple(OpenedState(step=step, index=self.states[step].index()) for step in drawn.challenged)
        return tuple(gradients), after

    def continued(self, receipt: Receipt) -> Continued:
        """What a child of this run can show, with that verdict."""
        claim = ParentClaim(head=self.heads[-1], receipt=encode(receipt))
        return Continued(Parent(claim=claim, state=self.states[-1].index()), self.states[-1])

    def draw(self, challenge: Challenge) -> Drawn:
        """The draw of a challenge that an honest prover need not accept."""
        events = self.ledger.challenges(self.id)
        event = next(event for event in events if event.id == challenge.id)
        statements = self.statements
        return resolve(self.ledger, self.ledger.chain, self.manifest, challenge, event, statements)

    @property
    def statements(self) -> tuple[Statement, ...]:
        return tuple(head.statement for head in self.heads)

    def model(self, **changes: tuple[str, tuple[int, ...], bytes] | None) -> ReleasedModel:
        """The last state as a model file would show it; None leaves a tensor out."""
        entries = {entry.name: entry for entry in self.states[-1].index().tensors if entry.kind != "optimizer"}
        tensors: dict[str, Any] = {
            name.split("/", 1)[1]: (entry.dtype, entry.shape, entry.content) for name, entry in entries.items()
        }
        kept = {name: value for name, value in (tensors | changes).items() if value is not None}
        return ReleasedModel(digest=named("model file", sorted(kept)), tensors=kept)


# --- the verifier ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verifier:
    """Keys of one who challenges."""

    name: str = "verifier"
    key: Ed25519PrivateKey = field(init=False)
    recipient: X25519PrivateKey = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Ed25519PrivateKey.from_private_bytes(named(self.name, "signing key")))
        object.__setattr__(self, "recipient", X25519PrivateKey.from_private_bytes(named(self.name, "recipient")))

    @property
    def public(self) -> bytes:
        return public_bytes(self.key)

    def eligible(self, *, steps: int = 100, samples: int = 1000) -> Eligible:
        """How a manifest names this verifier."""
        recipient = self.recipient.public_key().public_bytes_raw()
        return Eligible(key=self.public, recipient=recipient, steps=steps, samples=samples)

    def unsealed(self, chain: ChainIdentity, anchor: Anchored) -> RevealedHead:
        """What this verifier finds in the envelope on the ledger. Raises SealBroken."""
        envelope = open_envelope(anchor)
        me = key_id(self.recipient.public_key().public_bytes_raw())
        purpose = purpose_of("anchor", chain, anchor.run, anchor.sequence, envelope.prover, me)
        sealed = next(sealed for sealed in envelope.sealed if sealed.recipient == me[:8])
        return decode(unseal(sealed.ciphertext, self.recipient, purpose), RevealedHead)

    def request(
        self, anchor: Anchored, count: int = 4, *, steps: tuple[int, ...] = (), strategy: str = "random"
    ) -> Request:
        return Request(
            run=anchor.run,
            commitment=anchor.commitment,
            verifier=self.public,
            strategy="list" if steps else strategy,
            count=len(steps) or count,
            steps=steps,
            clear_openings=False,
        )

    def announce(self, ledger: MemoryLedger, request: Request, nonce: bytes = named("nonce")) -> Challenged:
        """Send the challenge, and pay for it."""
        content = {
            "commitment": request.commitment,
            "request": digest(request),
            "nonce_commitment": hashes.nonce_commitment(nonce),
        }
        chain = ledger.chain
        message = challenge_message(chain_id=chain.chain_id, contract=chain.contract, run=request.run, **content)
        signature = sign(self.key, "sign/challenge", message)
        return ledger.challenge(request.run, verifier=self.public, signature=signature, **content)

    def challenge(
        self,
        ledger: MemoryLedger,
        anchor: Anchored,
        count: int = 4,
        *,
        steps: tuple[int, ...] = (),
        nonce: str = "nonce",
        gradients: bool = False,
        strategy: str = "random",
    ) -> Challenge:
        """Announce a challenge, and wait until its draw is fixed."""
        request = self.request(anchor, count, steps=steps, strategy=strategy)
        event = self.announce(ledger, request, named(nonce))
        ledger.settle()
        return Challenge(
            request=request, nonce=named(nonce), id=event.id, block=event.position.block, gradients=gradients
        )

    def verify(
        self,
        ledger: MemoryLedger,
        challenge: Challenge,
        attested: RevealedHead,
        opening: Opening,
        *,
        policy: Policy | None = None,
        replayer: HonestReplayer | None = None,
        model: ReleasedModel | None = None,
        profiles: tuple[Profile, ...] = (),
        demanded: tuple[Profile, ...] = (),
        trusted: frozenset[bytes] = frozenset(),
    ) -> Verification:
        """All steps over what the prover sent, as far as they go."""
        verification = Verification(
            policy=policy or policy_for(ledger),
            ledger=ledger,
            replayer=replayer or HonestReplayer(),
            challenge=challenge,
            attested=attested,
            model=model,
            profiles=profiles,
            demanded=demanded,
            trusted=trusted,
        )
        if not verification.take_disclosure(encode(opening.disclosure)):
            return verification
        due = verification.take_openings(encode(opening.openings))
        if due is None:
            return verification
        with tempfile.TemporaryDirectory() as folder:
            try:
                BlobFolder(Path(folder)).receive([opening.blobs[blob.content] for blob in due], due)
            except EncodingError as error:
                what = "contents of states and samples"
                verification.reject(Refuted("V8", what, expected="as committed", found=error))
                return verification
            verification.take_blobs(Path(folder))
        return verification

    def signed(self, verification: Verification) -> Receipt:
        return sign_verdict(self.key, verification.verdict(self.public))


# --- all of it ------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A chain, a prover with a finished run of 12 steps in two heads, and a verifier who challenges it."""

    ledger: MemoryLedger
    prover: Prover
    verifier: Verifier
    anchor: Anchored = field(init=False)        # the last one

    def challenge(self, count: int = 4, **options: Any) -> Challenge:
        return self.verifier.challenge(self.ledger, self.anchor, count, **options)

    def verify(self, challenge: Challenge, opening: Opening, **options: Any) -> Verification:
        """The verifier's own view: the head is what the ledger's envelope holds."""
        attested = options.pop("attested", None) or self.verifier.unsealed(self.ledger.chain, self.anchor)
        return self.verifier.verify(self.ledger, challenge, attested, opening, **options)

    def evidence(self, verification: Verification, *, clear: bool = False) -> Evidence:
        """The bundle, with its signed verdict."""
        openings = verification.openings if clear else None
        receipt = self.verifier.signed(verification)
        return Evidence(receipt=receipt, disclosure=verification.disclosure, openings=openings)


def scene(cheat: type[Prover] = Prover, *, heads: Sequence[int] = (5, 7), **options: Any) -> Scene:
    """A run by this prover, anchored after so many steps each."""
    ledger = options.pop("ledger", None) or MemoryLedger()
    verifier = options.pop("verifier", None) or Verifier()
    eligible = options.pop("eligible", None) or (verifier.eligible(), Verifier("another verifier").eligible())
    prover = cheat(ledger, *eligible, **options).register()
    staged = Scene(ledger, prover, verifier)
    for steps in heads:
        staged.anchor = prover.train(steps).anchor()
    return staged


def changed(record: Any, **fields: Any) -> Any:
    """`dataclasses.replace` into nested records: `changed(e, receipt__verdict__size=3)`."""
    for path, value in fields.items():
        name, _, rest = path.partition("__")
        new = changed(getattr(record, name), **{rest: value}) if rest else value
        record = replace(record, **{name: new})
    return record


def parts_of(record: Record) -> dict[str, Any]:
    """A record's fields by name."""
    return {entry.name: getattr(record, entry.name) for entry in dataclasses.fields(record)}  # type: ignore[arg-type]

