"""polcommit.merkle and polcommit.tree: known answers, the recursive definition, laws, and one attack a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from pymerkle import InmemoryTree

from polcommit import merkle
from polcommit.errors import ProofError, RootMismatch, UsageError
from polcommit.tree import Tree

# The test machines are shared: how long one example takes says nothing.
law = settings(deadline=None)

some_leaves = st.lists(st.binary(max_size=64), min_size=1, max_size=130)
SIZES = range(1, 34)  # exhaustive up to one past a power of two


def data(size: int) -> list[bytes]:
    return [b"leaf %d" % i for i in range(size)]


def hashes(leaves: Sequence[bytes]) -> list[bytes]:
    return [merkle.leaf_hash(leaf) for leaf in leaves]


@pytest.fixture
def tree7() -> list[bytes]:
    """The leaf hashes of a tree of seven: ragged on the right."""
    return hashes(data(7))


# Known answers


def test_the_empty_root_is_sha256_of_nothing() -> None:
    assert merkle.root([]) == Tree().root() == merkle.EMPTY_ROOT == sha256().digest()


def test_hashes_carry_the_prefixes_of_the_rfc() -> None:
    a, b = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert a == sha256(b"\x00a").digest()
    assert merkle.node_hash(a, b) == sha256(b"\x01" + a + b).digest()


def test_roots_equal_pymerkles() -> None:
    """A second, independent implementation grows the same trees."""
    theirs = InmemoryTree(algorithm="sha256")
    leaves = data(200)
    ours = hashes(leaves)
    for size, leaf in enumerate(leaves, 1):
        theirs.append_entry(leaf)
        assert merkle.root(ours[:size]) == theirs.get_root()


# The recursive definition


@law
@given(leaves=st.lists(st.binary(max_size=64), max_size=130))
def test_root_equals_the_recursive_definition(leaves: list[bytes]) -> None:
    assert merkle.root(hashes(leaves)) == reference.mth(leaves)


@pytest.mark.parametrize("size", SIZES)
def test_inclusion_proofs_equal_the_recursive_definition(size: int) -> None:
    leaves = data(size)
    for index in range(size):
        assert merkle.inclusion_proof(hashes(leaves), index) == reference.path(index, leaves)


@pytest.mark.parametrize("size", SIZES)
def test_consistency_proofs_equal_the_recursive_definition(size: int) -> None:
    leaves = data(size)
    for size1 in range(1, size + 1):
        assert merkle.consistency_proof(hashes(leaves), size1) == reference.proof(size1, leaves)


@pytest.mark.parametrize("size", SIZES)
def test_range_proofs_equal_the_recursive_definition(size: int) -> None:
    leaves = data(size)
    for start in range(size):
        for stop in range(start + 1, size + 1):
            wanted = range(start, stop)
            assert merkle.range_proof(hashes(leaves), start, stop) == reference.batch(wanted, leaves)


@law
@given(leaves=some_leaves, data=st.data())
def test_batch_proofs_equal_the_recursive_definition(leaves: list[bytes], data: DataObject) -> None:
    wanted = data.draw(st.sets(st.integers(0, len(leaves) - 1), min_size=1))
    assert merkle.batch_proof(hashes(leaves), wanted) == reference.batch(wanted, leaves)


# What is proved verifies; the growing tree proves the same


@pytest.mark.parametrize("size", SIZES)
def test_every_inclusion_and_consistency_proof_verifies(size: int) -> None:
    leaves = hashes(data(size))
    root = merkle.root(leaves)
    for index in range(size):
        merkle.verify_inclusion(leaves[index], index, size, merkle.inclusion_proof(leaves, index), root)
        size1 = index + 1
        proof = merkle.consistency_proof(leaves, size1)
        merkle.verify_consistency(size1, size, proof, merkle.root(leaves[:size1]), root)


@law
@given(leaves=some_leaves, data=st.data())
def test_every_batch_proof_verifies(leaves: list[bytes], data: DataObject) -> None:
    tree, size = hashes(leaves), len(leaves)
    wanted = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    merkle.verify_batch({i: tree[i] for i in wanted}, size, merkle.batch_proof(tree, wanted), merkle.root(tree))


@law
@given(leaves=some_leaves, data=st.data())
def test_every_range_proof_verifies(leaves: list[bytes], data: DataObject) -> None:
    tree, size = hashes(leaves), len(leaves)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    merkle.verify_range(tree[start:stop], start, size, merkle.range_proof(tree, start, stop), merkle.root(tree))


def test_a_batch_of_one_holds_the_hashes_of_the_inclusion_proof(tree7: list[bytes]) -> None:
    for index in range(7):
        assert sorted(merkle.batch_proof(tree7, [index])) == sorted(merkle.inclusion_proof(tree7, index))


def test_indices_of_a_batch_are_a_set(tree7: list[bytes]) -> None:
    assert merkle.batch_proof(tree7, [5, 1, 5]) == merkle.batch_proof(tree7, {1, 5})


def test_a_proof_for_every_leaf_is_empty(tree7: list[bytes]) -> None:
    assert merkle.range_proof(tree7, 0, 7) == []
    merkle.verify_range(tree7, 0, 7, [], merkle.root(tree7))


@law
@given(leaves=some_leaves, data=st.data())
def test_the_growing_tree_proves_what_the_functions_prove(leaves: list[bytes], data: DataObject) -> None:
    known = hashes(leaves)
    cut = data.draw(st.integers(0, len(known)))
    tree = Tree(known[:cut])
    for leaf in known[cut:]:
        tree.append(leaf)
    size = data.draw(st.integers(1, len(known)))
    then = known[:size]
    index = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(index + 1, size))
    wanted = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    assert tree.size == len(known)
    assert tree.leaf_hash(index) == known[index]
    assert tree.root(size) == merkle.root(then)
    assert tree.inclusion_proof(index, size) == merkle.inclusion_proof(then, index)
    assert tree.range_proof(index, stop, size) == merkle.range_proof(then, index, stop)
    assert tree.batch_proof(wanted, size) == merkle.batch_proof(then, wanted)
    assert tree.consistency_proof(index + 1, size) == merkle.consistency_proof(then, index + 1)


def test_extending_in_pieces_equals_extending_at_once() -> None:
    known = hashes(data(100))
    tree = Tree()
    for piece in (known[:1], known[1:4], [], known[4:37], known[37:]):
        tree.extend(piece)
    assert [tree.root(size) for size in range(101)] == [merkle.root(known[:size]) for size in range(101)]


def test_a_large_tree_proves_without_hashing_it_again() -> None:
    """A million leaves are within reach; here a hundred thousand, every kind of proof from the grown tree."""
    known = [sha256(i.to_bytes(8, "big")).digest() for i in range(100_000)]
    tree, size = Tree(known), len(known)
    root = tree.root()
    assert root == merkle.root(known)
    wanted = range(17, size, 5_000)
    merkle.verify_batch({i: known[i] for i in wanted}, size, tree.batch_proof(wanted), root)
    merkle.verify_range(known[3:-3], 3, size, tree.range_proof(3, size - 3), root)
    merkle.verify_consistency(77_777, size, tree.consistency_proof(77_777), tree.root(77_777), root)


# Attacks on inclusion


def test_a_node_does_not_pass_for_a_leaf(tree7: list[bytes]) -> None:
    """Second preimage: the hash of an inner node, offered as a leaf hash, proof shortened to match (RFC 9162 §2.1)."""
    node = merkle.node_hash(tree7[0], tree7[1])
    with pytest.raises(ProofError):
        merkle.verify_inclusion(node, 0, 7, merkle.inclusion_proof(tree7, 0)[1:], merkle.root(tree7))


def test_the_data_of_a_node_is_not_the_data_of_a_leaf(tree7: list[bytes]) -> None:
    """Second preimage: the bytes that an inner node hashes, offered as the data of a leaf."""
    assert merkle.leaf_hash(tree7[0] + tree7[1]) != merkle.node_hash(tree7[0], tree7[1])


def test_a_root_does_not_bind_its_size_to_inner_nodes() -> None:
    """Why size and root have to come from one committed digest: under a false size, an inner node passes."""
    leaves = hashes(data(4))
    left, right = merkle.root(leaves[:2]), merkle.root(leaves[2:])
    merkle.verify_inclusion(left, 0, 2, [right], merkle.root(leaves))
    with pytest.raises(ProofError):
        merkle.verify_inclusion(left, 0, 4, [right], merkle.root(leaves))


def test_a_root_does_not_bind_its_size_to_proofs(tree7: list[bytes]) -> None:
    """The same: one inclusion proof verifies under every size that gives it the same shape."""
    proof = merkle.inclusion_proof(tree7, 0)
    for size in (5, 6, 7, 8):
        merkle.verify_inclusion(tree7[0], 0, size, proof, merkle.root(tree7))
    for size in (1, 2, 3, 4, 9):
        with pytest.raises(ProofError):
            merkle.verify_inclusion(tree7[0], 0, size, proof, merkle.root(tree7))


def test_children_do_not_commute(tree7: list[bytes]) -> None:
    """Sorted-pair trees let a leaf move to its sibling's place; this one does not."""
    proof = merkle.inclusion_proof(tree7, 2)
    with pytest.raises(RootMismatch):
        merkle.verify_inclusion(tree7[2], 3, 7, proof, merkle.root(tree7))


def test_another_leaf_with_another_leafs_proof(tree7: list[bytes]) -> None:
    with pytest.raises(RootMismatch) as raised:
        merkle.verify_inclusion(tree7[1], 0, 7, merkle.inclusion_proof(tree7, 0), merkle.root(tree7))
    assert raised.value.expected == merkle.root(tree7)
    assert raised.value.computed is not None
    assert raised.value.computed.hex() in str(raised.value)


def test_hashes_of_the_proof_in_another_order(tree7: list[bytes]) -> None:
    with pytest.raises(RootMismatch):
        merkle.verify_inclusion(tree7[0], 0, 7, merkle.inclusion_proof(tree7, 0)[::-1], merkle.root(tree7))


# Attacks on any proof: its length, the lengths of its hashes, positions that are none


def inclusion_case(proof_of: Callable[[list[bytes]], list[Any]]) -> None:
    leaves = hashes(data(7))
    root = merkle.root(leaves)
    merkle.verify_inclusion(leaves[3], 3, 7, proof_of(merkle.inclusion_proof(leaves, 3)), root)


def consistency_case(proof_of: Callable[[list[bytes]], list[Any]]) -> None:
    leaves = hashes(data(7))
    root1, root2 = merkle.root(leaves[:3]), merkle.root(leaves)
    merkle.verify_consistency(3, 7, proof_of(merkle.consistency_proof(leaves, 3)), root1, root2)


def range_case(proof_of: Callable[[list[bytes]], list[Any]]) -> None:
    leaves = hashes(data(7))
    root = merkle.root(leaves)
    merkle.verify_range(leaves[2:5], 2, 7, proof_of(merkle.range_proof(leaves, 2, 5)), root)


def batch_case(proof_of: Callable[[list[bytes]], list[Any]]) -> None:
    leaves = hashes(data(7))
    root = merkle.root(leaves)
    merkle.verify_batch({1: leaves[1], 6: leaves[6]}, 7, proof_of(merkle.batch_proof(leaves, {1, 6})), root)


MALFORMED: dict[str, Callable[[list[bytes]], list[Any]]] = {
    "first hash missing": lambda proof: proof[1:],
    "last hash missing": lambda proof: proof[:-1],
    "empty": lambda proof: [],
    "one hash in front": lambda proof: [proof[0], *proof],
    "one hash behind": lambda proof: [*proof, proof[-1]],
    "an empty hash behind": lambda proof: [*proof, b""],
    "a hash one byte short": lambda proof: [proof[0][:-1], *proof[1:]],
    "a hash one byte long": lambda proof: [proof[0] + b"\0", *proof[1:]],
    "two hashes in one": lambda proof: [proof[0] + proof[1], *proof[2:]],
    "a byte moved to its neighbour": lambda proof: [proof[0] + proof[1][:1], proof[1][1:], *proof[2:]],
    "text for a hash": lambda proof: [proof[0].hex()[:32], *proof[1:]],
    "no hash but its absence": lambda proof: [None, *proof[1:]],
}
CASES = [inclusion_case, consistency_case, range_case, batch_case]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_proof_is_rejected(
    case: Callable[..., None], malformed: Callable[[list[bytes]], list[Any]]
) -> None:
    case(list)  # as it is, the proof verifies
    with pytest.raises(ProofError):
        case(malformed)


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_proof_is_rejected_before_anything_is_hashed(
    case: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last hash is the wrong one: who hashes on the way there is caught."""

    def truncated(proof: list[bytes]) -> list[bytes]:
        monkeypatch.setattr(merkle, "sha256", lambda *_: pytest.fail("hashed a malformed proof"))
        return [*proof[:-1], proof[-1][:-1]]

    with pytest.raises(ProofError, match="not 32 bytes"):
        case(truncated)


POSITIONS = [-1, 7, 8, 2**64, True, None, 3.0, "3"]


@pytest.mark.parametrize("index", POSITIONS)
def test_there_is_no_such_leaf(index: Any, tree7: list[bytes]) -> None:
    proof, root = merkle.inclusion_proof(tree7, 3), merkle.root(tree7)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(tree7[3], index, 7, proof, root)
    with pytest.raises(ProofError):
        merkle.verify_batch({index: tree7[3]}, 7, merkle.batch_proof(tree7, [3]), root)
    with pytest.raises(ProofError):
        merkle.verify_range([tree7[3]], index, 7, merkle.range_proof(tree7, 3, 4), root)
    with pytest.raises(UsageError):
        merkle.inclusion_proof(tree7, index)
    with pytest.raises(UsageError):
        merkle.batch_proof(tree7, [1, index])
    with pytest.raises(UsageError):
        merkle.range_proof(tree7, index, 7)
    with pytest.raises(UsageError):
        Tree(tree7).inclusion_proof(index)


@pytest.mark.parametrize("size", [-1, 0, 2**64, True, None, 7.0, "7"])
def test_there_is_no_such_size(size: Any, tree7: list[bytes]) -> None:
    with pytest.raises(ProofError):
        merkle.verify_inclusion(tree7[0], 0, size, merkle.inclusion_proof(tree7, 0), merkle.root(tree7))
    with pytest.raises(ProofError):
        merkle.verify_range(tree7[:1], 0, size, merkle.range_proof(tree7, 0, 1), merkle.root(tree7))
    with pytest.raises(ProofError):
        merkle.verify_consistency(size, 7, [], merkle.root(tree7), merkle.root(tree7))
    with pytest.raises(ProofError):
        merkle.verify_consistency(1, size, [], tree7[0], merkle.root(tree7))
    with pytest.raises(ProofError):
        merkle.verify_consistency(size, size, [], merkle.root(tree7), merkle.root(tree7))


def test_the_largest_size_is_within_bounds() -> None:
    """Sizes are u64: arithmetic at the edge, and no work that grows with a size somebody claims."""
    size = merkle.MAX_SIZE
    leaf = merkle.leaf_hash(b"")
    with pytest.raises(ProofError, match="0 hashes, expected 64"):
        merkle.verify_inclusion(leaf, 0, size, [], leaf)
    with pytest.raises(ProofError, match="0 hashes, expected 64"):
        merkle.verify_range([leaf], 0, size, [], leaf)
    with pytest.raises(RootMismatch):
        merkle.verify_range([leaf], 0, size, [leaf] * 64, leaf)
    with pytest.raises(ProofError, match="expected"):
        merkle.verify_consistency(size - 1, size, [], leaf, leaf)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_leaf_hash_of_another_length(length: int, tree7: list[bytes]) -> None:
    wrong, root = bytes(length), merkle.root(tree7)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(wrong, 0, 7, merkle.inclusion_proof(tree7, 0), root)
    with pytest.raises(ProofError):
        merkle.verify_range([wrong], 0, 7, merkle.range_proof(tree7, 0, 1), root)
    with pytest.raises(ProofError):
        merkle.node_hash(wrong, tree7[0])
    with pytest.raises(UsageError):
        merkle.root([tree7[0], wrong])
    tree = Tree(tree7)
    with pytest.raises(UsageError):
        tree.extend([tree7[0], wrong])
    assert tree.size == 7


@pytest.mark.parametrize("root", [b"", bytes(31), bytes(33), None, "0" * 32])
def test_a_root_of_another_length_or_type(root: Any, tree7: list[bytes]) -> None:
    with pytest.raises(ProofError):
        merkle.verify_inclusion(tree7[0], 0, 7, merkle.inclusion_proof(tree7, 0), root)
    with pytest.raises(ProofError):
        merkle.verify_consistency(4, 7, merkle.consistency_proof(tree7, 4), root, merkle.root(tree7))
    with pytest.raises(ProofError):
        merkle.verify_consistency(7, 7, [], merkle.root(tree7), root)
    with pytest.raises(ProofError):
        merkle.verify_consistency(7, 7, [], root, merkle.root(tree7))


# Attacks on consistency


def test_a_rewritten_history_is_not_consistent(tree7: list[bytes]) -> None:
    """Equivocation: the later tree replaces a leaf of the earlier one."""
    forked = [*tree7[:1], merkle.leaf_hash(b"forged"), *tree7[2:]]
    for size1 in range(2, 7):
        proof = merkle.consistency_proof(forked, size1)
        with pytest.raises(RootMismatch):
            merkle.verify_consistency(size1, 7, proof, merkle.root(tree7[:size1]), merkle.root(forked))


def test_a_shortened_history_is_not_consistent(tree7: list[bytes]) -> None:
    """Roll-back: the roots exchanged, or the sizes."""
    proof, old, new = merkle.consistency_proof(tree7, 4), merkle.root(tree7[:4]), merkle.root(tree7)
    with pytest.raises(ProofError):
        merkle.verify_consistency(4, 7, proof, new, old)
    with pytest.raises(ProofError):
        merkle.verify_consistency(7, 4, proof, new, old)


def test_the_empty_tree_proves_nothing(tree7: list[bytes]) -> None:
    """Every tree extends the empty one, so such a 'proof' would hold for any root."""
    with pytest.raises(ProofError):
        merkle.verify_consistency(0, 7, [], merkle.EMPTY_ROOT, merkle.root(tree7))
    with pytest.raises(ProofError):
        merkle.verify_consistency(0, 0, [], merkle.EMPTY_ROOT, merkle.EMPTY_ROOT)
    with pytest.raises(UsageError):
        merkle.consistency_proof(tree7, 0)
    with pytest.raises(UsageError):
        merkle.consistency_proof(tree7, 8)


def test_equal_sizes_take_equal_roots_and_no_proof(tree7: list[bytes]) -> None:
    root = merkle.root(tree7)
    merkle.verify_consistency(7, 7, [], root, root)
    with pytest.raises(ProofError):
        merkle.verify_consistency(7, 7, [root], root, root)
    with pytest.raises(RootMismatch):
        merkle.verify_consistency(7, 7, [], root, merkle.root(tree7[::-1]))


# Attacks on ranges and batches


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_a_range_does_not_stand_elsewhere(start: int, tree7: list[bytes]) -> None:
    with pytest.raises(ProofError):
        merkle.verify_range(tree7[2:4], start, 7, merkle.range_proof(tree7, 2, 4), merkle.root(tree7))


def test_a_range_keeps_its_order(tree7: list[bytes]) -> None:
    with pytest.raises(RootMismatch):
        merkle.verify_range(tree7[3:1:-1], 2, 7, merkle.range_proof(tree7, 2, 4), merkle.root(tree7))


def test_a_range_neither_loses_nor_gains_a_leaf(tree7: list[bytes]) -> None:
    proof, root = merkle.range_proof(tree7, 2, 5), merkle.root(tree7)
    for leaves in (tree7[2:4], tree7[2:6], tree7[3:5], [*tree7[2:4], tree7[4], tree7[4]]):
        with pytest.raises(ProofError):
            merkle.verify_range(leaves, 2, 7, proof, root)


def test_a_range_does_not_reach_beyond_the_tree(tree7: list[bytes]) -> None:
    with pytest.raises(ProofError):
        merkle.verify_range([*tree7, tree7[6]], 0, 7, [], merkle.root(tree7))
    with pytest.raises(UsageError):
        merkle.range_proof(tree7, 3, 8)


def test_nothing_is_not_a_range(tree7: list[bytes]) -> None:
    """With no leaves the 'proof' would be the root itself."""
    root = merkle.root(tree7)
    with pytest.raises(ProofError):
        merkle.verify_range([], 3, 7, [root], root)
    with pytest.raises(ProofError):
        merkle.verify_batch({}, 7, [root], root)
    with pytest.raises(UsageError):
        merkle.range_proof(tree7, 3, 3)
    with pytest.raises(UsageError):
        merkle.batch_proof(tree7, [])


def test_leaves_of_a_batch_do_not_change_places(tree7: list[bytes]) -> None:
    proof, root = merkle.batch_proof(tree7, {1, 6}), merkle.root(tree7)
    merkle.verify_batch({6: tree7[6], 1: tree7[1]}, 7, proof, root)
    with pytest.raises(RootMismatch):
        merkle.verify_batch({6: tree7[1], 1: tree7[6]}, 7, proof, root)


def test_a_hash_of_the_proof_does_not_pass_for_a_leaf(tree7: list[bytes]) -> None:
    """The boundary between leaves and proof moved: the neighbour's subtree offered as one more leaf."""
    proof = merkle.batch_proof(tree7, {0})  # leaf 1, leaves 2..4, leaves 4..7
    with pytest.raises(ProofError):
        merkle.verify_batch({0: tree7[0], 2: proof[1]}, 7, [proof[0], proof[2]], merkle.root(tree7))


# Laws


@law
@given(size=st.integers(2, 70), data=st.data())
def test_no_flipped_bit_verifies(size: int, data: DataObject) -> None:
    """One bit of the leaf, of any hash of the proof, or of the root."""
    leaves = [merkle.leaf_hash(i.to_bytes(2, "big")) for i in range(size)]
    index = data.draw(st.integers(0, size - 1))
    parts = [leaves[index], *merkle.inclusion_proof(leaves, index), merkle.root(leaves)]
    which = data.draw(st.integers(0, len(parts) - 1))
    bit = data.draw(st.integers(0, 255))
    parts[which] = (int.from_bytes(parts[which], "big") ^ 1 << bit).to_bytes(32, "big")
    with pytest.raises(RootMismatch):
        merkle.verify_inclusion(parts[0], index, size, parts[1:-1], parts[-1])


@law
@given(size=st.integers(2, 70), data=st.data())
def test_no_flipped_bit_of_a_consistency_proof_verifies(size: int, data: DataObject) -> None:
    leaves = [merkle.leaf_hash(i.to_bytes(2, "big")) for i in range(size)]
    size1 = data.draw(st.integers(1, size - 1))
    parts = [merkle.root(leaves[:size1]), *merkle.consistency_proof(leaves, size1), merkle.root(leaves)]
    which = data.draw(st.integers(0, len(parts) - 1))
    bit = data.draw(st.integers(0, 255))
    parts[which] = (int.from_bytes(parts[which], "big") ^ 1 << bit).to_bytes(32, "big")
    with pytest.raises(RootMismatch):
        merkle.verify_consistency(size1, size, parts[1:-1], parts[0], parts[-1])


@law
@given(size=st.integers(2, 70), data=st.data())
def test_a_leaf_verifies_at_its_own_index_only(size: int, data: DataObject) -> None:
    leaves = [merkle.leaf_hash(i.to_bytes(2, "big")) for i in range(size)]
    index = data.draw(st.integers(0, size - 1))
    claimed = data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
    proof, root = merkle.inclusion_proof(leaves, index), merkle.root(leaves)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(leaves[index], claimed, size, proof, root)


@law
@given(size=st.integers(1, 2**64 - 1), data=st.data())
def test_verifiers_answer_any_proof_for_any_size_at_once(size: int, data: DataObject) -> None:
    """Arbitrary positions, sizes and hashes: a ProofError, never another exception, never a pass."""
    index = data.draw(st.integers(-2, 2**64))
    proof = data.draw(st.lists(st.binary(min_size=32, max_size=32), max_size=66))
    leaf, root = bytes(32), bytes(range(32))
    with pytest.raises(ProofError):
        merkle.verify_inclusion(leaf, index, size, proof, root)
    with pytest.raises(ProofError):
        merkle.verify_range([leaf, leaf], index, size, proof, root)
    with pytest.raises(ProofError):
        merkle.verify_consistency(index, size, proof, leaf, root)
