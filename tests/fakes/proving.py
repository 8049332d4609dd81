"""An honest prover. One that cheats is a subclass of `Prover`, or an honest opening with something replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes.chain import MemoryLedger, named
from fakes.training import (
    ENVIRONMENT,
    RECIPE,
    SOURCE,
    Floats,
    Outcome,
    State,
    digest_of,
    execute,
    initial_state,
    learning_rate,
    sketch,
)
from polcommit import prf
from polcommit import transcript as hashes
from polcommit.comparisons import ReleasedModel
from polcommit.draws import Drawn, Screened, resolve
from polcommit.encoding import decode, digest, encode
from polcommit.envelopes import make_envelope
from polcommit.events import Anchored
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
    Fingerprint,
    GenesisRecord,
    Gradient,
    Manifest,
    OpenedState,
    Openings,
    ParentClaim,
    Receipt,
    RevealedHead,
    SampleLeaf,
    Statement,
    StepRecord,
    TensorEntry,
)
from polcommit.sealing import derive
from polcommit.signing import public_bytes, sign_statement
from polcommit.transcript import Transcript, configuration_digest


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
