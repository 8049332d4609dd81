"""polcommit.transcript: identifiers and digests against SHA-256 by hand, and the transcript's own laws."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
import reference
from fakes import named
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit import merkle
from polcommit import transcript as hashes
from polcommit.encoding import digest, encode, unpack
from polcommit.errors import EncodingError, UsageError
from polcommit.records import OpenedLeaf, SampleLeaf, ScalarEntry, StateIndex, TensorEntry, TreeHead
from polcommit.transcript import Transcript

law = settings(deadline=None)
SECRET = bytes(range(32))
CONTRACT, ACCOUNT, RUN = named("contract")[:20], named("account")[:20], named("run")


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


# --- what the contract computes as well -----------------------------------------------------------------------


@pytest.mark.parametrize("nonce", [0, 1, 255, 2**64 - 1])
@pytest.mark.parametrize("chain_id", [1, 31337, 2**63 - 1])
def test_run_ids_are_soliditys(chain_id: int, nonce: int) -> None:
    """sha256(abi.encodePacked("polcommit/v1/run\\x00", uint64, address, address, uint64))."""
    packed = b"polcommit/v1/run\x00" + u64(chain_id) + CONTRACT + ACCOUNT + u64(nonce)
    assert hashes.run_id(chain_id, CONTRACT, ACCOUNT, nonce) == sha256(packed)


def test_vector_run_id() -> None:
    """This value never changes."""
    expected = "53d0f3e883d4d3bf4707e07c7d6cc1bdebfb5729450af799641389449d0766c9"
    found = hashes.run_id(31337, bytes(range(20)), bytes(range(20, 40)), 7).hex()
    assert found == expected


def test_chained_heads_are_soliditys() -> None:
    """bytes24(sha256(abi.encodePacked("polcommit/v1/chain\\x00", run, uint64, bytes24, C, sha256(envelope))))."""
    previous, commitment, envelope = named("previous")[:24], named("C"), b"envelope" * 20
    packed = b"polcommit/v1/chain\x00" + RUN + u64(2) + previous + commitment + sha256(envelope)
    assert hashes.chained_head(RUN, 2, previous, commitment, envelope) == sha256(packed)[:24]


@pytest.mark.parametrize("bad", [-1, 1 << 64])
def test_integers_beyond_64_bits_have_no_hash(bad: int) -> None:
    with pytest.raises(EncodingError):
        hashes.run_id(1, CONTRACT, ACCOUNT, bad)
    with pytest.raises(EncodingError):
        hashes.run_id(bad, CONTRACT, ACCOUNT, 0)


# --- randomness -----------------------------------------------------------------------------------------------


def test_the_beacon_and_the_seeds_by_hand() -> None:
    commitment, prevrandao = named("manifest"), named("prevrandao")
    beacon = hashes.beacon(31337, CONTRACT, RUN, commitment, prevrandao)
    assert beacon == sha256(b"polcommit/v1/beacon\0", u64(31337), CONTRACT, RUN, commitment, prevrandao)
    assert hashes.run_seed(beacon) == sha256(b"polcommit/v1/seed\0", beacon)
    assert hashes.nonce_commitment(bytes(32)) == sha256(b"polcommit/v1/nonce\0", bytes(32))
    drawn = hashes.draw_seed(
        chain_id=31337,
        contract=CONTRACT,
        run=RUN,
        commitment=commitment,
        challenge_id=5,
        request=named("request"),
        nonce=named("nonce"),
        prevrandao=prevrandao,
    )
    where = (u64(31337), CONTRACT, RUN, commitment, u64(5))
    assert drawn == sha256(b"polcommit/v1/draw-seed\0", *where, named("request"), named("nonce"), prevrandao)
    assert hashes.sketch_seed(drawn) == sha256(b"polcommit/v1/sketch-seed\0", drawn)


def test_the_delay_is_four_blocks() -> None:
    """A literal of the protocol, the same in every deployment."""
    assert hashes.DELAY == 4


# --- leaves and digests ---------------------------------------------------------------------------------------


def test_a_salted_leaf_by_hand() -> None:
    salt, record = named("salt"), b"record"
    expected = sha256(b"\x00", b"polcommit/v1/leaf/transcript\0", salt, record)
    assert hashes.salted_leaf("transcript", salt, record) == expected
    assert hashes.salted_leaf("dataset", salt, record) != expected
    leaf = SampleLeaf(index=3, length=4, content=bytes(32))
    assert hashes.sample_leaf(salt, leaf) == sha256(b"\x00", b"polcommit/v1/leaf/dataset\0", salt, encode(leaf))


def test_a_schedules_leaf_by_hand() -> None:
    record = b"\x94\xaepolcommit/rate\x01\x05\xc4\x08" + struct.pack(">d", 0.25)
    assert hashes.schedule_leaf(5, 0.25) == sha256(b"\x00", b"polcommit/v1/leaf/schedule\0", record)
    assert hashes.schedule_hashes(lambda step: step / 4, 2) == [
        hashes.schedule_leaf(1, 0.25),
        hashes.schedule_leaf(2, 0.5),
    ]


def test_a_batchs_digest_depends_on_the_order() -> None:
    a, b = named("a"), named("b")
    assert hashes.samples_digest([a, b]) == sha256(b"polcommit/v1/samples\0", a, b) != hashes.samples_digest([b, a])


def tensor(name: str) -> TensorEntry:
    return TensorEntry(name=name, kind="parameter", dtype="float32", shape=(2,), content=named(name))


SCALARS = ScalarEntry(values=b"\x90", aliases=())
STATE = StateIndex(tensors=(tensor("a"), tensor("b"), tensor("c")), scalars=SCALARS)


def test_a_states_digest_by_hand() -> None:
    leaves = [b"polcommit/v1/leaf/state\0" + encode(part) for part in (*STATE.tensors, STATE.scalars)]
    assert hashes.state_digest(STATE) == sha256(b"polcommit/v1/digest/state\0", u64(4), reference.mth(leaves))


@pytest.mark.parametrize(
    "other",
    [
        replace(STATE, tensors=STATE.tensors[:-1]),
        replace(STATE, tensors=(replace(tensor("a"), shape=(1, 2)), *STATE.tensors[1:])),
        replace(STATE, tensors=(replace(tensor("a"), dtype="int32"), *STATE.tensors[1:])),
        replace(STATE, tensors=(replace(tensor("a"), kind="buffer"), *STATE.tensors[1:])),
        replace(STATE, tensors=(replace(tensor("a"), content=bytes(32)), *STATE.tensors[1:])),
        replace(STATE, scalars=replace(SCALARS, values=b"\x91\xc0")),
        replace(STATE, scalars=replace(SCALARS, aliases=(("d", "a"),))),
    ],
)
def test_anything_else_is_another_state(other: StateIndex) -> None:
    assert hashes.state_digest(other) != hashes.state_digest(STATE)


@pytest.mark.parametrize("tree", ["dataset", "state", "transcript", "schedule"])
def test_a_digest_binds_tree_and_size(tree: str) -> None:
    """A root does not bind its size."""
    head = TreeHead(size=5, root=named("root"))
    assert head.digest(tree) == sha256(b"polcommit/v1/digest/", tree.encode(), b"\0", u64(5), named("root"))
    assert replace(head, size=6).digest(tree) != head.digest(tree)
    with pytest.raises(KeyError):
        head.digest("forest")


# --- the transcript -------------------------------------------------------------------------------------------

records = st.lists(st.binary(max_size=20), min_size=1, max_size=40)


def leaves_of(opened: tuple[OpenedLeaf, ...]) -> dict[int, bytes]:
    return {leaf.index: hashes.salted_leaf("transcript", leaf.salt, leaf.record) for leaf in opened}


@law
@given(records)
def test_heads_grown_one_by_one_equal_those_from_scratch(content: list[bytes]) -> None:
    grown = Transcript(SECRET)
    heads = []
    for record in content:
        grown.append(record)
        heads.append(grown.head())
    whole = Transcript(SECRET, content)
    data = list(whole.leaf_data(len(content)))
    for size, head in enumerate(heads, 1):
        assert head == whole.head(size) == TreeHead(size=size, root=reference.mth(data[:size]))
        assert head == Transcript(SECRET, content[:size]).head()
    assert [whole.record(index) for index in range(len(whole))] == content


@law
@given(records, st.data())
def test_opened_leaves_prove_themselves_in_any_head(content: list[bytes], data: st.DataObject) -> None:
    transcript = Transcript(SECRET, content)
    size = data.draw(st.integers(1, len(content)))
    chosen = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    leaves, proof = transcript.open(chosen, size)
    assert [leaf.index for leaf in leaves] == sorted(chosen)
    merkle.verify_batch(leaves_of(leaves), size, proof, transcript.head(size).root)


@law
@given(records, st.data())
def test_earlier_heads_are_consistent_with_later_ones(content: list[bytes], data: st.DataObject) -> None:
    transcript = Transcript(SECRET, content)
    later = data.draw(st.integers(1, len(content)))
    earlier = data.draw(st.integers(1, later))
    proof = transcript.consistency(earlier, later)
    merkle.verify_consistency(earlier, later, proof, transcript.head(earlier).root, transcript.head(later).root)


def test_a_leaf_that_is_not_there_cannot_be_opened() -> None:
    transcript = Transcript(SECRET, [b"genesis", b"one"])
    with pytest.raises(UsageError):
        transcript.head(3)
    with pytest.raises((UsageError, IndexError)):
        transcript.open([2], 2)


def test_salts_differ_by_index_tree_and_secret() -> None:
    salts = {
        salt(secret, index)
        for salt in (hashes.record_salt, hashes.sample_salt)
        for secret in (SECRET, bytes(32))
        for index in range(50)
    }
    assert len(salts) == 200


def test_equal_records_have_different_leaves() -> None:
    """Two steps with the same record, such as two skipped ones, cannot be told to be equal."""
    leaves, _ = Transcript(SECRET, [b"same"] * 4).open(range(4), 4)
    assert len(set(leaves_of(leaves).values())) == 4


def test_an_opening_says_nothing_about_the_leaves_next_to_it() -> None:
    """What is opened of step 2 is the same, whatever the others hold, but for their hashes in the proof; and those
    cannot be guessed at, for the others' salts follow from the secret alone and none of them is in the opening."""
    opened, proof = Transcript(SECRET, [b"a", b"b", b"c", b"d"]).open([2], 4)
    others, _ = Transcript(SECRET, [b"x", b"y", b"c", b"z"]).open([2], 4)
    assert opened == others
    shown = b"".join((opened[0].salt, opened[0].record, *proof))
    for index in (0, 1, 3):
        salt = hashes.record_salt(SECRET, index)
        assert salt not in shown
        unsalted = merkle.leaf_hash(b"polcommit/v1/leaf/transcript\0" + b"abcd"[index : index + 1])
        assert unsalted not in shown


def test_the_secret_stays_out_of_salts() -> None:
    leaves, _ = Transcript(SECRET, [b"a", b"b"]).open([0, 1], 2)
    assert all(leaf.salt != SECRET for leaf in leaves)


@pytest.mark.parametrize(
    ("steps", "kept", "size", "opened"),
    [
        ((1,), (0,), 2, [0, 1]),
        ((5, 6), (12,), 13, [0, 4, 5, 6, 12]),
        ((3,), (0, 4, 8), 13, [0, 2, 3, 4, 8, 12]),
        ((12,), (12,), 13, [0, 11, 12]),
    ],
)
def test_which_leaves_a_challenge_opens(
    steps: tuple[int, ...], kept: tuple[int, ...], size: int, opened: list[int]
) -> None:
    """Genesis, the last, both of each drawn step, and those of the opened states."""
    assert hashes.opened_leaves(steps, kept, size) == opened


def test_a_records_digest_begins_with_its_tag_and_version() -> None:
    leaf = SampleLeaf(index=1, length=2, content=bytes(32))
    assert unpack(encode(leaf))[:2] == ("polcommit/sample", 1)
    assert digest(leaf) == sha256(b"polcommit/v1/record\0", encode(leaf))
