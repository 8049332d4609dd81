"""No byte of a bundle lies outside checked structure.

Twice over: bytes are changed as they are, and values are changed in the decoded records with everything recomputed
that takes no key: digests, lengths, leaf hashes. The second is done by three holders: one who leaves the verifier's
signature as it was, one who signs with a key of their own, and one who has the verifier's key. The last may say what
only the verifier knows; what the ledger, the prover's signatures and re-execution say, not even that one can change.
"""

from __future__ import annotations

import dataclasses
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from world import InThisProcess, Registered, World

from polcommit import transcript as hashes
from polcommit.encoding import Record, decode, digest, encode, tag
from polcommit.errors import EncodingError, PolcommitError
from polcommit.evidence import Judgement, Replay, judge
from polcommit.opening import Blob, opening_blobs
from polcommit.policy import Policy, parse
from polcommit.records import Challenge, Evidence, GenesisRecord, Receipt, StepRecord, Verdict
from polcommit.session import bundle
from polcommit.signing import public_bytes, sign_verdict
from polcommit.verifier import Verification

Path_ = tuple[str | int, ...]       # where a value stands in a record
SEED = 20
#: What a verdict says on the word of its verifier, as long as it hangs together: nobody else knows.
WORD = {
    "software": "names what the verifier ran",
    "flags": "are what the verifier found odd in sketches that nobody else has; they refute nothing",
    "work": "has the operations that the verifier counted; its steps and samples have to be the run's",
    "fraction": "is the share of forged steps that the verifier's policy names; `probability` has to follow from it",
    "devnet": "is the verifier's policy's; a reader has a policy of their own",
    "registrations": "may have grown since, so a lower count passes",
}


class Remembered:
    """A ledger that asks the chain once for each thing."""

    def __init__(self, ledger: object) -> None:
        self._ledger = ledger
        self._known: dict[tuple[object, ...], object] = {}

    def __getattr__(self, name: str) -> Callable[..., object]:
        def ask(*arguments: object) -> object:
            key = (name, *arguments)
            if key not in self._known:
                self._known[key] = getattr(self._ledger, name)(*arguments)
            return self._known[key]

        return ask


@dataclass
class Subject:
    """A bundle that is accepted, and all that it takes to judge another."""

    path: Path
    whole: bytes
    evidence: Evidence
    blobs_at: int
    policy: Policy
    ledger: Any
    blobs: Path
    key: Ed25519PrivateKey          # the verifier's own
    other: Ed25519PrivateKey        # anybody's
    replayer: InThisProcess
    checked: frozenset[int] = frozenset()       # kept states whose sketches the challenge compares

    def judge(self, evidence: Evidence, replay: Replay | None = None) -> Judgement | PolcommitError:
        """The judgement, or why there is none. Any error but ours goes through."""
        try:
            return judge(evidence, self.policy, self.ledger, replay)
        except PolcommitError as error:
            return error

    def replay(self, challenge: Challenge, evidence: Evidence) -> Verdict:
        """As `verify --replay` does it."""
        assert evidence.disclosure is not None and evidence.openings is not None
        own = Verification(
            policy=self.policy,
            ledger=self.ledger,
            replayer=self.replayer,
            challenge=challenge,
            attested=evidence.disclosure.heads[-1],
        )
        if own.take_disclosure(encode(evidence.disclosure)) and own.take_openings(encode(evidence.openings)):
            own.take_blobs(self.blobs)
            assert own.established is not None
            self.checked = frozenset(own.established.draw.opened_kept)
        return own.verdict(evidence.receipt.verdict.verifier)

    def stale(self, evidence: Evidence) -> Evidence:
        """Digests recomputed, the verifier's signature as it was."""
        verdict = _digests(evidence)
        return dataclasses.replace(evidence, receipt=dataclasses.replace(evidence.receipt, verdict=verdict))

    def signed(self, evidence: Evidence, key: Ed25519PrivateKey) -> Evidence:
        """Digests recomputed, and signed with this key."""
        verdict = dataclasses.replace(_digests(evidence), verifier=public_bytes(key))
        return dataclasses.replace(evidence, receipt=sign_verdict(key, verdict))


def _digests(evidence: Evidence) -> Verdict:
    assert evidence.disclosure is not None and evidence.openings is not None
    return dataclasses.replace(
        evidence.receipt.verdict, disclosure=digest(evidence.disclosure), openings=digest(evidence.openings)
    )


@pytest.fixture(scope="module")
def subject(world: World, small: Registered, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Vera's bundle: two heads, an earlier challenge, states and samples in clear."""
    reader = world.reader("reading vera", trusted=["vera"])
    found = bundle.read(world.root / "vera.polcommit")
    blobs = tmp_path_factory.mktemp("blobs")
    found.extract(blobs)
    made = Subject(
        path=found.path,
        whole=found.path.read_bytes(),
        evidence=found.evidence,
        blobs_at=found.blobs_at,
        policy=parse((world.home(reader) / "policy.toml").read_text()),
        ledger=Remembered(world.connection("vera").ledger),
        blobs=blobs,
        key=world.signing("vera"),
        other=Ed25519PrivateKey.generate(),
        replayer=InThisProcess(),
    )
    disclosure = made.evidence.disclosure
    assert disclosure is not None and len(disclosure.heads) == 2 and len(disclosure.receipts) == 1
    for replay in (None, made.replay):
        judgement = made.judge(made.evidence, replay)
        assert isinstance(judgement, Judgement) and judgement.verdict == "accepted", judgement
    return made


def refused(found: Judgement | PolcommitError) -> bool:
    return isinstance(found, PolcommitError) or found.verdict != "accepted"


# --- bytes, as they are -------------------------------------------------------------------------------------------


def flipped(subject: Subject, position: int, bit: int, folder: Path) -> str | None:
    """What says no to a bundle with this bit changed; None if nothing does."""
    changed = folder / "changed"
    data = bytearray(subject.whole)
    data[position] ^= 1 << bit
    changed.write_bytes(data)
    try:
        found = bundle.read(changed)
        judgement = judge(found.evidence, subject.policy, subject.ledger)
        if judgement.verdict != "accepted":
            return judgement.verdict
        found.extract(folder / "blobs")
    except PolcommitError as error:
        return type(error).__name__
    return None


def positions(subject: Subject, stride: int) -> Iterator[int]:
    """Magic and length byte by byte, the record every `stride` bytes from a random one on, 300 bytes of the blobs."""
    chance = random.Random()
    yield from range(29)
    yield from range(29 + chance.randrange(stride), subject.blobs_at, stride)
    yield from (chance.randrange(subject.blobs_at, subject.path.stat().st_size) for _ in range(300))
    yield subject.path.stat().st_size - 1


def test_no_bit_of_the_file_can_be_changed(subject: Subject, tmp_path: Path) -> None:
    chance = random.Random()
    said: Counter[str | None] = Counter()
    for position in positions(subject, 127):
        outcome = flipped(subject, position, chance.randrange(8), tmp_path)
        assert outcome is not None, f"byte {position} of {subject.blobs_at} and more"
        said[outcome] += 1
    assert said["Refuted"] > 100 and said["rejected"] > 20, said       # both ways of noticing were met


@pytest.mark.slow
def test_no_byte_of_the_record_can_be_changed(subject: Subject, tmp_path: Path) -> None:
    for position in positions(subject, 1):
        assert flipped(subject, position, position % 8, tmp_path) is not None, f"byte {position}"


def test_nothing_can_be_cut_off_or_appended(subject: Subject, tmp_path: Path) -> None:
    whole = subject.path.read_bytes()
    chance = random.Random()
    ends = [0, 1, 20, 21, 28, 29, 30, subject.blobs_at - 1, subject.blobs_at, len(whole) - 1]
    for data in [whole + b"\0", *(whole[:end] for end in [*ends, *(chance.randrange(len(whole)) for _ in range(50))])]:
        changed = tmp_path / "changed"
        changed.write_bytes(data)
        with pytest.raises(PolcommitError):
            bundle.read(changed).extract(tmp_path / "blobs")


# --- values, with what hangs on them recomputed -------------------------------------------------------------------


def values(value: object, at: Path_ = ()) -> Iterator[tuple[Path_, object]]:
    """Every leaf of a tree of records and tuples, and where it stands."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from values(getattr(value, field.name), (*at, field.name))
    elif isinstance(value, tuple):
        yield at, value
        for position, item in enumerate(value):
            yield from values(item, (*at, position))
    else:
        yield at, value


def others(value: object, chance: random.Random) -> Iterator[object]:
    """Values of the same kind that are close to this one."""
    match value:
        case bool():
            yield not value
        case int():
            yield value + chance.choice((-1, 1))
        case float():
            yield struct.unpack(">d", _flipped(struct.pack(">d", value), 7))[0]
        case bytes() if value:
            yield _flipped(value, chance.randrange(len(value)))
        case str() if value:
            yield value[:-1] + chr(ord(value[-1]) ^ 1)
            yield "other"       # where only some words may stand
        case tuple():
            yield from ((value[:-1], (*value, value[-1])) if value else (
                (b"x",), ((bytes(32), bytes(32)),), (("x", "y"),)
            ))  # fmt: skip
        case None:
            yield from (bytes(32), (), 7, (bytes(32), bytes(32)))
        case _:
            yield value + value[:0] + type(value)(b"x" if isinstance(value, bytes) else "x")  # type: ignore


def _flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def put(record: Any, at: Path_, value: object) -> Any:
    """The record with another value there. Raises EncodingError where there cannot be such a record."""
    if not at:
        return value
    first, *rest = at
    if isinstance(first, int):
        return (*record[:first], put(record[first], tuple(rest), value), *record[first + 1 :])
    return dataclasses.replace(record, **{first: put(getattr(record, first), tuple(rest), value)})


def look(record: Any, at: Path_) -> Any:
    for step in at:
        record = record[step] if isinstance(step, int) else getattr(record, step)
    return record


def changes(record: Record, chance: random.Random) -> Iterator[tuple[Path_, Any]]:
    """The record with one value changed, for every value; none that cannot exist."""
    for at, value in values(record):
        for other in others(value, chance):
            try:
                made = put(record, at, other)
                encode(made)
            except (EncodingError, TypeError, AttributeError):
                continue
            if made != record:
                yield at, made


def with_nested(
    part: Any, kind: type[Record], places: list[Path_], chance: random.Random
) -> Iterator[tuple[Path_, Any]]:
    """Records that stand encoded in another record: changed inside, and encoded again."""
    for place in places:
        for at, made in changes(decode(look(part, place), kind), chance):
            yield (*place, *at), put(part, place, encode(made))


def test_the_public_part_convinces_nobody_once_it_is_changed(subject: Subject) -> None:
    """Whoever holds the bundle, and were it with the verifier's key: ledger and prover's signatures say no."""
    chance = random.Random(SEED)
    disclosure = subject.evidence.disclosure
    assert disclosure is not None
    leaves: list[Path_] = [("leaves", n, "record") for n in range(1, len(disclosure.leaves))]
    receipts: list[Path_] = [("receipts", n) for n in range(len(disclosure.receipts))]
    met: Counter[str] = Counter()
    for made in (
        changes(disclosure, chance),
        with_nested(disclosure, GenesisRecord, [("leaves", 0, "record")], chance),
        with_nested(disclosure, StepRecord, leaves, chance),
        with_nested(disclosure, Receipt, receipts, chance),
    ):
        for at, changed in made:
            evidence = dataclasses.replace(subject.evidence, disclosure=changed)
            for holder in (subject.stale(evidence), subject.signed(evidence, subject.other),
                           subject.signed(evidence, subject.key)):  # fmt: skip
                assert refused(subject.judge(holder)), at
            met[str(at[0])] += 1
    assert met.keys() == {field.name for field in dataclasses.fields(disclosure)} - {"parent"}      # there is none
    assert sum(met.values()) > 400


def test_a_changed_verdict_convinces_nobody(subject: Subject) -> None:
    """Not with a stale signature, and not with another key; with the verifier's own only where it is its word."""
    chance = random.Random(SEED)
    verdict = subject.evidence.receipt.verdict
    met: set[str] = set()
    for at, changed in changes(verdict, chance):
        field = str(at[0])
        met.add(field)
        receipt = subject.evidence.receipt
        stale = dataclasses.replace(subject.evidence, receipt=dataclasses.replace(receipt, verdict=changed))
        assert refused(subject.judge(stale)), at
        own = dataclasses.replace(changed, verifier=public_bytes(subject.other))
        assert refused(subject.judge(dataclasses.replace(stale, receipt=sign_verdict(subject.other, own)))), at
        again = subject.judge(dataclasses.replace(stale, receipt=sign_verdict(subject.key, changed)))
        if field in WORD:
            continue
        assert refused(again), at
    fixed = {field.name for field in dataclasses.fields(Verdict)} - met
    # there is no other word for the verdict; no accepted one has findings, and this one no tolerances
    assert fixed == {"verdict", "findings", "tolerated", "distances", "profiles", "reach"}
    for position in range(64):
        signature = _flipped(subject.evidence.receipt.signature, position)
        receipt = dataclasses.replace(subject.evidence.receipt, signature=signature)
        assert refused(subject.judge(dataclasses.replace(subject.evidence, receipt=receipt)))


def test_openings_stand_against_re_execution_only_as_they_were(subject: Subject) -> None:
    """To whoever has no trusted key, the digest in the verdict binds them; to whoever has, re-execution does."""
    chance = random.Random(SEED)
    openings = subject.evidence.openings
    assert openings is not None
    met: set[tuple[str | int, ...]] = set()
    for at, changed in changes(openings, chance):
        kind = tuple(step for step in at if isinstance(step, str))
        often = ("states", "index", "tensors")
        if kind[:3] == often and kind in met and chance.random() > 0.05:
            continue        # hundreds of tensors, all alike: a twentieth of them, after each field was met
        met.add(kind)
        evidence = dataclasses.replace(subject.evidence, openings=changed)
        assert refused(subject.judge(subject.stale(evidence))), at
        assert refused(subject.judge(evidence)), at     # with the old digest, too
        if len(met) < 40 or chance.random() < 0.1:
            assert refused(subject.judge(subject.signed(evidence, subject.other))), at
        if at[:1] == ("sketches",) and len(at) == 4 and openings.sketches[int(at[1])].step not in subject.checked:
            continue        # a kept state that this challenge did not open: its sketch is on two signatures alone
        assert refused(subject.judge(subject.signed(evidence, subject.key), subject.replay)), at
    names = {kind[-1] for kind in met}
    assert names >= {
        "configuration", "step", "name", "kind", "dtype", "shape", "content", "values", "aliases", "index", "salt",
        "length", "sketches", "samples", "states", "gradients", "next_states",
    }  # fmt: skip
    assert subject.replayer.runs == 1, "nothing but what was committed to may come as far as re-execution"


# --- bytes of states and samples, with digests recomputed all the way up ------------------------------------------


def test_contents_lead_up_to_what_is_signed(subject: Subject) -> None:
    """100 bytes of the blobs, each changed, with content digests, state digests, leaves and proofs' leaves redone."""
    chance = random.Random()
    openings, disclosure = subject.evidence.openings, subject.evidence.disclosure
    assert openings is not None and disclosure is not None
    due = [blob for blob in opening_blobs(openings) if blob.length]
    sizes = [blob.length for blob in due]
    checks: Counter[str] = Counter()
    for blob in chance.choices(due, sizes, k=100):
        data = (subject.blobs / blob.content.hex()).read_bytes()
        other = blake3(blob.prefix + _flipped(data, chance.randrange(len(data)))).digest()
        below = recomputed(openings, blob, other)
        evidence = dataclasses.replace(subject.evidence, openings=below)
        assert refused(subject.judge(subject.stale(evidence)))
        found = subject.judge(subject.signed(evidence, subject.key), subject.replay)
        assert refused(found)
        assert isinstance(found, Judgement)
        checks[found.findings[0].check] += 1
        above = dataclasses.replace(evidence, disclosure=carried_up(disclosure, below))
        for holder in (subject.stale(above), subject.signed(above, subject.other), subject.signed(above, subject.key)):
            found = subject.judge(holder)
            assert refused(found)
        assert isinstance(found, Judgement)
        checks[found.findings[0].check] += 1
    assert checks.keys() <= {"V4", "V5", "V7", "V8", "V9"} and checks["V8"] and checks["V5"], checks


def recomputed(openings: Any, blob: Blob, content: bytes) -> Any:
    """Wherever the blob is mentioned, the digest of its changed bytes."""
    def entry(found: Any) -> Any:
        same = found.content == blob.content
        return dataclasses.replace(found, content=content) if same else found

    if blob.prefix == tag("sample"):
        samples = (dataclasses.replace(sample, leaf=entry(sample.leaf)) for sample in openings.samples)
        return dataclasses.replace(openings, samples=tuple(samples))
    states = []
    for state in openings.states:
        index = dataclasses.replace(state.index, tensors=tuple(map(entry, state.index.tensors)))
        states.append(dataclasses.replace(state, index=index))
    return dataclasses.replace(openings, states=tuple(states))


def carried_up(disclosure: Any, openings: Any) -> Any:
    """State digests into the step records, sample leaves into their hashes: everything below the signed root."""
    states = {state.step: hashes.state_digest(state.index) for state in openings.states}
    hashed = dict(zip(sorted(sample.index for sample in openings.samples), disclosure.sample_hashes, strict=True))
    hashed |= {sample.index: hashes.sample_leaf(sample.salt, sample.leaf) for sample in openings.samples}
    leaves = []
    for leaf in disclosure.leaves:
        record = decode(leaf.record, StepRecord if leaf.index else GenesisRecord)
        record = dataclasses.replace(record, state=states.get(leaf.index, record.state))
        leaves.append(dataclasses.replace(leaf, record=encode(record)))
    return dataclasses.replace(
        disclosure, leaves=tuple(leaves), sample_hashes=tuple(hashed[index] for index in sorted(hashed))
    )
