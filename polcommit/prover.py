"""The prover: heads to anchor, challenges to answer (spec §4.4 to §5.4). Pure: files, chain and torch are passed in.

It opens nothing before it has found the challenge on the ledger for itself and recomputed the draw: what a
verifier sends says only which event to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polcommit import prf
from polcommit import transcript as hashes
from polcommit.draws import Drawn, Ledger, answers, challenge_event, counted_challenges, resolve
from polcommit.encoding import decode, digest
from polcommit.errors import BudgetExhausted, Refuted, UsageError
from polcommit.events import ChainIdentity
from polcommit.keys import key_id
from polcommit.records import (
    Challenge,
    Disclosure,
    Fingerprint,
    GenesisRecord,
    Gradient,
    Manifest,
    OpenedSample,
    OpenedState,
    Openings,
    ParentClaim,
    Receipt,
    RevealedHead,
    SampleLeaf,
    Sketch,
    StateIndex,
    Statement,
    StepRecord,
)
from polcommit.sealing import derive
from polcommit.signing import sign_statement
from polcommit.transcript import Transcript
from polcommit.tree import Tree

#: What was opened so far: challenge id -> (verifier's key, steps).
Disclosed = Mapping[int, tuple[bytes, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The run whose final state this one starts from, as far as its prover can show it."""

    claim: ParentClaim
    state: StateIndex                                   # final state, by its digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as its prover holds it."""

    id: bytes
    manifest: Manifest
    secret: bytes                                       # 32 bytes
    seed: bytes                                         # from the beacon, or the manifest
    transcript: Transcript
    heads: tuple[RevealedHead, ...]                     # anchored, in order
    environments: tuple[tuple[int, Fingerprint], ...]   # (first step, fingerprint) of each epoch
    configuration: tuple[tuple[str, str], ...]
    learning_rate: Callable[[int], float]
    dataset: Sequence[bytes]                            # leaf hashes
    contents: Callable[[int], tuple[bytes, int]]        # BLAKE3 and length of a sample's encoding
    receipts: Mapping[int, bytes]                       # encoded, by challenge id
    parent: Parent | None = None

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return len(self.transcript) - 1

    def batch(self, step: int) -> tuple[int, ...]:
        """Dataset indices of a step's samples."""
        return prf.batch_indices(self.seed, step, self.manifest.dataset.size, self.manifest.batch)


# --- anchoring ------------------------------------------------------------------------------------------------


def next_head(run: Run, key: Ed25519PrivateKey) -> RevealedHead:
    """The signed statement about everything recorded so far.

    Raises:
        UsageError: nothing was recorded since the last head, or the last head was final.
    """
    previous = run.heads[-1].statement if run.heads else None
    if run.steps < 1 or (previous is not None and previous.steps == run.steps):
        raise UsageError("nothing to anchor: no step was recorded since the last head")
    if previous is not None and previous.final:
        raise UsageError("nothing to anchor: the last head was final")
    head = run.transcript.head()
    genesis = decode(run.transcript.record(0), GenesisRecord)
    last = decode(run.transcript.record(run.steps), StepRecord)
    sequence = len(run.heads) + 1
    statement = Statement(
        run=run.id,
        sequence=sequence,
        size=head.size,
        root=head.root,
        genesis=digest(genesis),
        previous=previous.head if previous is not None else None,
        final=run.steps == run.manifest.steps,
        state=last.state,
        environments=tuple(
            (first, digest(fingerprint)) for first, fingerprint in run.environments if first <= run.steps
        ),
        recipients=tuple(sorted(key_id(verifier.recipient) for verifier in run.manifest.verifiers)),
    )
    return sign_statement(key, statement, derive(run.secret, "blinding/head", sequence))


# --- answering a challenge ------------------------------------------------------------------------------------


def accept_challenge(
    run: Run, ledger: Ledger, chain: ChainIdentity, challenge: Challenge, disclosed: Disclosed
) -> Drawn:
    """Find the challenge on the ledger, recompute its draw, and see that the disclosure budget covers it.

    Raises:
        Refuted: there is no such challenge, or it is not by an eligible verifier, or of another head.
        BudgetExhausted: the manifest does not allow this verifier to see that much.
        Unavailable: the block of the randomness is not final yet.
    """
    anchor = next((event for event in ledger.anchors(run.id) if event.commitment == challenge.request.commitment), None)
    if challenge.request.run != run.id or anchor is None or anchor.sequence > len(run.heads):
        found = challenge.request.commitment
        raise Refuted("V6", "challenged head", expected="an anchored head of this run", found=found)
    event = challenge_event(ledger, chain, run.manifest, anchor, challenge)
    statements = tuple(head.statement for head in run.heads[: anchor.sequence])
    drawn = resolve(ledger, chain, run.manifest, challenge, event, statements)
    require_budget(run, challenge, drawn, disclosed)
    return drawn


def require_budget(
    run: Run, challenge: Challenge, drawn: Drawn, disclosed: Disclosed
) -> None:
    """Raises BudgetExhausted if this opening would show its verifier more steps or samples than the manifest says.

    To be asked again once it is known which steps the sketches add.
    """
    key = challenge.request.verifier
    eligible = run.manifest.eligible(key)
    assert eligible is not None      # challenge_event has seen to it
    steps = set(drawn.challenged)
    for number, (verifier, opened) in disclosed.items():
        if verifier == key and number != challenge.id:
            steps.update(opened)
    samples = {index for step in steps for index in run.batch(step)}
    for what, needed, allowed in (("steps", len(steps), eligible.steps), ("samples", len(samples), eligible.samples)):
        if needed > allowed:
            raise BudgetExhausted(
                f"budget exhausted: {needed} {what} would be disclosed to this verifier, the manifest allows {allowed}",
                hint="ask for fewer steps; the budget was fixed at registration",
            )


def receipts_that_count(
    run: Run, ledger: Ledger, chain: ChainIdentity, before: int
) -> dict[int, bytes]:
    """The stored verdicts that answer a counted challenge with an id below `before`: all that an opening includes.

    A verdict that names another's challenge, or an event that does not count, is nobody's answer.
    """
    counted = counted_challenges(chain, run.manifest, ledger.challenges(run.id))
    found = {}
    for event in counted:
        raw = run.receipts.get(event.id) if event.id < before else None
        if raw is not None and answers(decode(raw, Receipt).verdict, event):
            found[event.id] = raw
    return found


def make_disclosure(run: Run, challenge: Challenge, drawn: Drawn) -> Disclosure:
    """The public part of the opening."""
    heads = _heads_up_to(run, challenge.request.commitment)
    size = heads[-1].statement.size
    leaves, leaves_proof = run.transcript.open(hashes.opened_leaves(drawn.challenged, drawn.kept, size), size)
    indices = drawn_samples(run, drawn)
    rates = hashes.schedule_hashes(run.learning_rate, run.manifest.steps)
    return Disclosure(
        manifest=run.manifest,
        manifest_blinding=derive(run.secret, "blinding/manifest"),
        heads=heads,
        consistency=tuple(
            run.transcript.consistency(before.statement.size, after.statement.size)
            for before, after in pairwise(heads)
        ),
        leaves=leaves,
        leaves_proof=leaves_proof,
        learning_rates=tuple(run.learning_rate(step) for step in drawn.challenged),
        schedule_proof=tuple(Tree(rates).batch_proof([step - 1 for step in drawn.challenged])),
        sample_hashes=tuple(run.dataset[index] for index in indices),
        dataset_proof=tuple(Tree(run.dataset).batch_proof(indices)),
        environments=tuple(fingerprint for _, fingerprint in run.environments)[: len(heads[-1].statement.environments)],
        receipts=tuple(run.receipts[number] for number in sorted(run.receipts) if number < challenge.id),
        added=drawn.added,
        parent=run.parent.claim if run.parent is not None else None,
    )


def drawn_samples(run: Run, drawn: Drawn) -> list[int]:
    """Dataset indices that the challenged steps take, rising."""
    return sorted({index for step in drawn.challenged for index in run.batch(step)})


def opened_states(drawn: Drawn) -> list[int]:
    """Steps whose full state is opened: before each challenged step, and where sketches are checked."""
    return list(drawn.opened)


def make_openings(
    run: Run,
    drawn: Drawn,
    states: Mapping[int, StateIndex],
    sketches: Mapping[int, tuple[float, ...]],
    follow_up: tuple[tuple[Gradient, ...], tuple[OpenedState, ...]] | None = None,
) -> Openings:
    """The private part. `states` are the regenerated or kept states, by step; `sketches` of every kept or fine one.

    `follow_up`: gradients of the challenged steps and the states after them, where the challenge asks for them.
    """
    samples = []
    for index in drawn_samples(run, drawn):
        content, length = run.contents(index)
        leaf = SampleLeaf(index=index, length=length, content=content)
        samples.append(OpenedSample(index=index, salt=hashes.sample_salt(run.secret, index), leaf=leaf))
    return Openings(
        configuration=run.configuration,
        states=tuple(OpenedState(step=step, index=states[step]) for step in opened_states(drawn)),
        samples=tuple(samples),
        sketches=tuple(Sketch(step=step, values=sketches[step]) for step in sorted({*drawn.kept, *drawn.fine})),
        gradients=follow_up[0] if follow_up is not None else None,
        next_states=follow_up[1] if follow_up is not None else None,
        parent=run.parent.state if run.parent is not None else None,
    )


def _heads_up_to(run: Run, commitment: bytes) -> tuple[RevealedHead, ...]:
    for position, head in enumerate(run.heads):
        if head.commitment == commitment:
            return run.heads[: position + 1]
    raise Refuted("V6", "challenged head", expected="an anchored head of this run", found=commitment)
