"""What a chain tells: identity, blocks and the registry's events, as plain frozen types.

Every implementation of the verifier's `Ledger` protocol (the web3 client, the tests' in-memory ledger)
speaks in these. They carry no judgement: whether a chain is the right one, or a block final enough, is
decided where the policy is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainIdentity:
    """Which chain and contract answered."""

    chain_id: int           # EIP-155, below 2**63
    genesis: bytes          # 32 bytes: hash of block 0
    contract: bytes         # 20 bytes
    code: bytes             # 32 bytes: keccak-256 of the deployed code (EXTCODEHASH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The part of a header that the protocol uses."""

    number: int
    hash: bytes             # 32 bytes; identifies the block, is never a source of randomness
    prevrandao: bytes       # 32 bytes: the header's mixHash since the Merge (EIP-4399)
    timestamp: int          # seconds since 1970; never used for order


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Position:
    """Where a log stands. Order claims by this, never by time: successive blocks can share a timestamp."""

    block: int
    log_index: int
    block_hash: bytes       # 32 bytes
    transaction: bytes      # 32 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """`Registered(run, account, nonce, manifest)`."""

    run: bytes              # 32 bytes
    account: bytes          # 20 bytes
    nonce: int              # the contract's count of this account's earlier registrations
    manifest: bytes         # 32 bytes: the hiding commitment to the manifest
    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """`Anchored(run, sequence, commitment, envelope)`."""

    run: bytes
    sequence: int           # 1 for the first head of the run, then rising by one
    commitment: bytes       # 32 bytes: C
    envelope: bytes
    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenged:
    """`Challenged(run, id, verifier, commitment, request, nonceCommitment, signature)`."""

    run: bytes
    id: int                 # 1 for the first challenge of the run, then rising by one
    verifier: bytes         # 32 bytes: Ed25519 public key
    commitment: bytes       # 32 bytes: C of the challenged head
    request: bytes          # 32 bytes: digest of the request
    nonce_commitment: bytes  # 32 bytes
    signature: bytes        # 64 bytes: Ed25519; not checked by the contract
    position: Position
