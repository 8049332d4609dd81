"""What a reader demands before believing anything: the policy file (spec §7).

It is always the reader's own, never the bundle's: which chain and contract count, how final a block must be,
whose verdicts are taken, and how much detection is enough.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polcommit.errors import Refuted, UsageError, WrongChain
from polcommit.events import ChainIdentity

FINALITY_TAGS = ("safe", "finalized")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A verifier's or third party's own rules."""

    chain_id: int
    genesis: bytes                      # 32 bytes: hash of block 0
    contract: bytes                     # 20 bytes
    codes: frozenset[bytes]             # keccak-256 of each contract code that is accepted at that address
    rpc: str | None
    confirmations: int = 1              # blocks, the event's own included
    finality: str = "confirmations"     # or 'safe' or 'finalized': the chain's own tag
    from_block: int = 0                 # where to begin reading events: the block of the contract's deployment
    devnet: bool = False                # order, time and randomness are the operator's own
    trusted: frozenset[bytes] = frozenset()     # Ed25519 keys of verifiers whose word is taken
    registered: bool = True             # accept only runs registered before training
    fraction: float = 0.05              # share of forged steps for which detection is demanded and stated
    probability: float = 0.0            # least detection probability at that share
    tolerance: bool = True              # accept steps re-executed elsewhere, within the tolerance of a noise profile
    reach: float = 1.0                  # how far tolerances may have bent a run, in units of ‖W_T − W_0‖
    profiles: tuple[str, ...] = ()      # files of noise profiles, besides the shipped ones

    def require_chain(self, found: ChainIdentity) -> None:
        """V2, the reader's own connection: raises WrongChain unless the chain that answers is the policy's."""
        pairs = (
            ("chain id", self.chain_id, found.chain_id),
            ("genesis block", self.genesis.hex(), found.genesis.hex()),
            ("contract", self.contract.hex(), found.contract.hex()),
        )
        for what, expected, answer in pairs:
            if expected != answer:
                raise WrongChain(
                    f"{what} is {answer}, the policy says {expected}",
                    hint="give the RPC server of the policy's chain with --rpc, or the right policy with --policy",
                )
        if found.code not in self.codes:
            raise WrongChain(
                f"the contract at 0x{self.contract.hex()} has code {found.code.hex()}, which the policy does not list",
                hint="it is another contract: do not use it, or list its code hash in the policy after review",
            )

    def require_claimed_chain(self, *, chain_id: int, genesis: bytes, contract: bytes, code: bytes) -> None:
        """V2, what a bundle says of itself: raises Refuted unless it is about the policy's chain and contract."""
        if chain_id != self.chain_id or genesis != self.genesis:
            raise Refuted("V2", "chain", expected=self.chain_id, found=f"{chain_id} with genesis {genesis.hex()}")
        if contract != self.contract:
            raise Refuted("V2", "contract", expected=self.contract, found=contract)
        if code not in self.codes:
            expected = ", ".join(sorted(known.hex() for known in self.codes))
            raise Refuted("V2", "contract code", expected=expected, found=code)


def parse(text: str, *, name: str = "policy") -> Policy:
    """Read a policy from TOML.

    Raises:
        UsageError: not TOML, an unknown or missing entry, or a value of the wrong kind, named.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not TOML: {error}", hint="see docs/spec.md §7 for the entries") from error
    sections = {"chain": dict, "verifiers": dict, "demand": dict, "tolerance": dict}
    for section in document:
        if section not in sections or not isinstance(document[section], dict):
            allowed = ", ".join(f"[{known}]" for known in sections)
            raise UsageError(f"{name}: unknown section [{section}]", hint=f"allowed: {allowed}")
    chain = _Section(f"{name} [chain]", document.get("chain", {}))
    verifiers = _Section(f"{name} [verifiers]", document.get("verifiers", {}))
    demand = _Section(f"{name} [demand]", document.get("demand", {}))
    tolerance = _Section(f"{name} [tolerance]", document.get("tolerance", {}))
    policy = Policy(
        chain_id=chain.take("id", int),
        genesis=chain.hex("genesis", 32),
        contract=chain.hex("contract", 20),
        codes=chain.hexes("code", 32, required=True),
        rpc=chain.take("rpc", str, None),
        confirmations=chain.take("confirmations", int, 1),
        finality=chain.take("finality", str, "confirmations"),
        from_block=chain.take("from_block", int, 0),
        devnet=chain.take("devnet", bool, False),
        trusted=verifiers.hexes("trusted", 32),
        registered=demand.take("registered", bool, True),
        fraction=demand.number("fraction", 0.05),
        probability=demand.number("probability", 0.0),
        tolerance=tolerance.take("accept", bool, True),
        reach=tolerance.number("reach", 1.0),
        profiles=tolerance.texts("profiles"),
    )
    for section_ in (chain, verifiers, demand, tolerance):
        section_.finish()
    _require_ranges(policy, name)
    return policy


def _require_ranges(policy: Policy, name: str) -> None:
    if policy.finality not in ("confirmations", *FINALITY_TAGS):
        raise UsageError(f"{name}: finality {policy.finality!r}", hint="'confirmations', 'safe' or 'finalized'")
    if policy.confirmations < 1 or not 0 < policy.chain_id < 1 << 63 or policy.from_block < 0:
        raise UsageError(f"{name}: id and confirmations are at least 1, from_block at least 0")
    if not 0 < policy.fraction <= 1 or not 0 <= policy.probability < 1:
        raise UsageError(f"{name}: fraction is above 0 and at most 1, probability below 1")
    if not policy.reach > 0:
        raise UsageError(f"{name}: reach {policy.reach}", hint="a share of the way from W_0 to W_T, above 0")


class _Section:
    """One table of the file; what is left over at the end was not understood."""

    def __init__(self, where: str, entries: Mapping[str, Any]) -> None:
        self._where = where
        self._entries = dict(entries)

    def take(self, key: str, kind: type, *default: Any) -> Any:
        if key not in self._entries and default:
            return default[0]
        value = self._entries.pop(key, None)
        if type(value) is not kind:
            raise UsageError(f"{self._where}: '{key}' is {value!r}, not of type {kind.__name__}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._entries.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{self._where}: '{key}' is {value!r}, not a number")
        return float(value)

    def hex(self, key: str, size: int) -> bytes:
        return self._bytes(key, self.take(key, str), size)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise UsageError(f"{self._where}: '{key}' is {values!r}, not a list of texts")
        return tuple(values)

    def hexes(self, key: str, size: int, *, required: bool = False) -> frozenset[bytes]:
        values = self.take(key, list) if required else self.take(key, list, [])
        return frozenset(self._bytes(key, value, size) for value in values)

    def _bytes(self, key: str, value: object, size: int) -> bytes:
        try:
            raw = bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) else b""
        except ValueError:
            raw = b""
        if len(raw) != size:
            raise UsageError(f"{self._where}: '{key}' is {value!r}, not {size} bytes in hexadecimal")
        return raw

    def finish(self) -> None:
        if self._entries:
            raise UsageError(f"{self._where}: unknown entry '{next(iter(self._entries))}'")
