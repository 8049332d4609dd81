"""What is hashed, and how: leaves, digests, identifiers, beacon and draw (spec §3), and the transcript itself.

Pure functions over bytes. Nothing here says that a value is true; the verifier recomputes with the same
functions and compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from polcommit import merkle
from polcommit.encoding import digest, encode, pack, tag, tagged_hash, u64
from polcommit.records import (
    Manifest,
    OpenedLeaf,
    Rate,
    SampleLeaf,
    StateIndex,
    TreeHead,
)
from polcommit.sealing import derive
from polcommit.tree import Tree

#: Blocks between the event (registration, challenge) and the one whose randomness counts. A literal of the protocol.
DELAY = 4


# --- identifiers and randomness -------------------------------------------------------------------------------


def run_id(chain_id: int, contract: bytes, account: bytes, nonce: int) -> bytes:
    """The id that the contract computes at registration; `nonce` counts the account's earlier ones."""
    return tagged_hash("run", u64(chain_id), contract, account, u64(nonce))


def chained_head(run: bytes, sequence: int, previous: bytes, commitment: bytes, envelope: bytes) -> bytes:
    """The 24 bytes that the contract stores after an anchor; `previous` is 24 zero bytes before the first."""
    inner = hashlib.sha256(envelope).digest()
    return tagged_hash("chain", run, u64(sequence), previous, commitment, inner)[:24]


def manifest_commitment(blinding: bytes, manifest: Manifest) -> bytes:
    """The hiding commitment to the manifest that `register` puts on the ledger."""
    return tagged_hash("manifest", blinding, digest(manifest))


def beacon(chain_id: int, contract: bytes, run: bytes, commitment: bytes, prevrandao: bytes) -> bytes:
    """The run's randomness: known to nobody before block b + DELAY, b the block of the registration."""
    return tagged_hash("beacon", u64(chain_id), contract, run, commitment, prevrandao)


def run_seed(beacon_value: bytes) -> bytes:
    """The seed of the counter-based generator: W_0, order of the data, sample and step streams."""
    return tagged_hash("seed", beacon_value)


def post_hoc_seed(chosen: bytes, account: bytes, prover: bytes) -> bytes:
    """The same of a post hoc run: from the seed in its manifest, and whose run it is.

    So nobody else's transcript re-executes under a name of one's own: its order and streams are another's.
    """
    return tagged_hash("post-hoc-seed", chosen, account, prover)


def nonce_commitment(nonce: bytes) -> bytes:
    """What stands on the ledger of a verifier's nonce before the draw."""
    return tagged_hash("nonce", nonce)


def draw_seed(
    *,
    chain_id: int,
    contract: bytes,
    run: bytes,
    commitment: bytes,
    challenge_id: int,
    request: bytes,
    nonce: bytes,
    prevrandao: bytes,
) -> bytes:
    """The seed of a draw. Neither side knows it before block c + DELAY, c the block of the challenge."""
    where = (u64(chain_id), contract, run, commitment, u64(challenge_id))
    return tagged_hash("draw-seed", *where, request, nonce, prevrandao)


def sketch_seed(draw: bytes) -> bytes:
    """The seed of the sign vectors of the sketches."""
    return tagged_hash("sketch-seed", draw)


def origin_seed(draw: bytes) -> bytes:
    """The seed of the reference that W_0 of a post hoc run is compared with."""
    return tagged_hash("origin-seed", draw)


# --- leaves and digests ---------------------------------------------------------------------------------------


def salted_leaf(tree: str, salt: bytes, record: bytes) -> bytes:
    """Leaf hash of a salted record: `tree` is 'dataset' or 'transcript', `record` its encoding."""
    return merkle.leaf_hash(leaf_data(tree, salt, record))


def leaf_data(tree: str, salt: bytes, record: bytes) -> bytes:
    """What is hashed for such a leaf: tag ‖ salt ‖ record."""
    return tag(f"leaf/{tree}") + salt + record


def sample_leaf(salt: bytes, leaf: SampleLeaf) -> bytes:
    """Leaf hash of a raw sample."""
    return salted_leaf("dataset", salt, encode(leaf))


def configuration_digest(pairs: tuple[tuple[str, str], ...]) -> bytes:
    """Digest of a recipe's hyperparameters: (name, text), sorted by name. What the manifest holds of them."""
    return tagged_hash("configuration", pack(pairs))


def schedule_leaf(step: int, learning_rate: float) -> bytes:
    """Leaf hash of the learning rate of a step; leaf `step - 1` of the schedule tree."""
    return merkle.leaf_hash(tag("leaf/schedule") + encode(Rate(step=step, learning_rate=learning_rate)))


def schedule_hashes(learning_rate: Callable[[int], float], steps: int) -> list[bytes]:
    """All leaf hashes of the schedule of steps 1 to `steps`."""
    return [schedule_leaf(step, learning_rate(step)) for step in range(1, steps + 1)]


def tree_head(leaf_hashes: Sequence[bytes]) -> TreeHead:
    """Size and root over leaf hashes."""
    return TreeHead(size=len(leaf_hashes), root=merkle.root(leaf_hashes))


def state_digest(index: StateIndex) -> bytes:
    """Digest of a full training state: one leaf for each tensor, sorted by name, and one for all scalars."""
    leaves = [encode(entry) for entry in index.tensors] + [encode(index.scalars)]
    return tree_head([merkle.leaf_hash(tag("leaf/state") + leaf) for leaf in leaves]).digest("state")


def samples_digest(leaf_hashes: Iterable[bytes]) -> bytes:
    """Digest of a batch's raw samples: their leaf hashes, in order."""
    return tagged_hash("samples", *leaf_hashes)


# --- the transcript -------------------------------------------------------------------------------------------


def record_salt(secret: bytes, index: int) -> bytes:
    """Salt of transcript leaf `index`."""
    return derive(secret, "salt/transcript", index)


def sample_salt(secret: bytes, index: int) -> bytes:
    """Salt of dataset leaf `index`."""
    return derive(secret, "salt/dataset", index)


class Transcript:
    """The prover's transcript: encoded records in, tree heads and opened leaves out. Leaf index = step number."""

    def __init__(self, secret: bytes, records: Iterable[bytes] = ()) -> None:
        self._secret = secret
        self._records: list[bytes] = []
        self._tree = Tree()
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: bytes) -> None:
        """Add the encoding of the next record: the genesis record first, then step 1, 2, …"""
        salt = record_salt(self._secret, len(self._records))
        self._records.append(record)
        self._tree.append(salted_leaf("transcript", salt, record))

    def record(self, index: int) -> bytes:
        """The encoding of record `index`."""
        return self._records[index]

    def head(self, size: int | None = None) -> TreeHead:
        """The head over the first `size` leaves (all of them by default)."""
        size = len(self) if size is None else size
        return TreeHead(size=size, root=self._tree.root(size))

    def leaf_data(self, size: int) -> Iterable[bytes]:
        """What is hashed into the first `size` leaves, for an independent computation of the root."""
        for index in range(size):
            yield leaf_data("transcript", record_salt(self._secret, index), self._records[index])

    def consistency(self, size1: int, size2: int) -> tuple[bytes, ...]:
        """RFC 9162 consistency proof between two sizes."""
        return tuple(self._tree.consistency_proof(size1, size2))

    def open(self, indices: Iterable[int], size: int) -> tuple[tuple[OpenedLeaf, ...], tuple[bytes, ...]]:
        """Leaves and their common inclusion proof in the tree of the first `size` leaves."""
        chosen = sorted(set(indices))
        leaves = tuple(
            OpenedLeaf(index=index, salt=record_salt(self._secret, index), record=self._records[index])
            for index in chosen
        )
        return leaves, tuple(self._tree.batch_proof(chosen, size))


def opened_leaves(steps: Iterable[int], kept: Iterable[int], size: int) -> list[int]:
    """Leaves that a challenge opens: genesis, the last, t - 1 and t of challenged steps, and those of kept states."""
    wanted = {0, size - 1, *kept}
    for step in steps:
        wanted |= {step - 1, step}
    return sorted(wanted)
