"""The registry's client: reads events, blocks and finality, and sends transactions through `transactions`.

Implements the verifier's `Ledger` protocol over one RPC server. It does not check headers or receipts against
state roots: a server that lies consistently is believed. What it can see for itself it checks: an event must be the
contract's, of the run that was asked for, and counters in storage must agree with the events.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from polcommit.errors import ChainUnavailable, TransactionFailed, UsageError, WrongChain
from polcommit.events import Anchored, Block, ChainIdentity, Challenged, Registered
from polcommit.ledger.contract import Event, decode_event, decode_result, encode_call, event_topic
from polcommit.ledger.eth import keccak
from polcommit.ledger.rpc import Malformed, Rpc, RpcError, data, field, quantity
from polcommit.ledger.transactions import OnSent, Sender

Finality = Literal["confirmations", "safe", "finalized"]
SILENCE = 120           # seconds without a new block after which waiting says so
POLL = 0.25             # seconds
RETRIES = 5             # of a call at the latest block that has just ceased to be the latest

E = TypeVar("E", Registered, Anchored, Challenged)


class Registry:
    """One registry contract, seen through one RPC server. Make one with `connect`.

    Every method raises ChainUnavailable where the server does not answer, or not with what was asked for. Addresses
    have 20 bytes, digests and runs 32, chained heads 24.
    """

    def __init__(
        self,
        rpc: Rpc,
        contract: bytes,
        chain_id: int,
        *,
        confirmations: int,
        finality: Finality,
        from_block: int,
        on_durable: Callable[[], None] | None,
    ) -> None:
        self._rpc = rpc
        self._contract = contract
        self._chain_id = chain_id
        self._confirmations = confirmations
        self._finality = finality
        self._from_block = from_block
        self._on_durable = on_durable
        self._sender = Sender(rpc, chain_id, contract)

    @classmethod
    def connect(
        cls,
        rpc: str,
        contract: bytes,
        *,
        timeout: float = 10,
        confirmations: int = 1,
        finality: Finality = "confirmations",
        from_block: int = 0,
        on_durable: Callable[[], None] | None = None,
    ) -> Registry:
        """The registry at `contract`, over the server at URL `rpc` (`timeout` in seconds per request).

        `from_block` is where the search for events starts: the contract's deployment, or earlier. `on_durable` is
        called when what the chain has must survive its own process (a devnet's dump): after each transaction's
        receipt, and at each new block that `wait_final` sees.

        Raises:
            ChainUnavailable: the server does not answer.
            WrongChain: there is no code at the address.
        """
        if len(contract) != 20:
            raise UsageError(f"a contract's address has 20 bytes, not {len(contract)}")
        if confirmations < 1 or from_block < 0:
            raise UsageError("confirmations count from 1, and blocks from 0")
        server = Rpc(rpc, timeout=timeout)
        chain_id = quantity(server.call("eth_chainId"), "chain id")
        if not data(server.call("eth_getCode", "0x" + contract.hex(), "latest"), "code"):
            raise WrongChain(
                f"there is no contract at 0x{contract.hex()} on chain {chain_id} at {rpc}",
                hint="give the registry's address with --contract, or another chain with --rpc",
            )
        return cls(
            server,
            contract,
            chain_id,
            confirmations=confirmations,
            finality=finality,
            from_block=from_block,
            on_durable=on_durable,
        )

    # What the chain is

    def identity(self) -> ChainIdentity:
        """Chain id, genesis hash, contract address and code hash, as the server gives them now."""
        code = data(self._rpc.call("eth_getCode", "0x" + self._contract.hex(), "latest"), "code")
        return ChainIdentity(
            chain_id=quantity(self._rpc.call("eth_chainId"), "chain id"),
            genesis=self.block(0).hash,
            contract=self._contract,
            code=keccak(code),
        )

    def latest(self) -> int:
        """Number of the latest block."""
        return quantity(self._rpc.call("eth_blockNumber"), "block number")

    def block(self, number: int) -> Block:
        """A block's header. Raises ChainUnavailable where it does not exist yet."""
        return self._block(hex(number), number)

    def _block(self, tag: str, number: int | None) -> Block:
        answer = self._rpc.call("eth_getBlockByNumber", tag, False)
        if answer is None:
            raise ChainUnavailable(
                f"block {tag if number is None else number} does not exist yet", hint="wait for it and run it again"
            )
        block = Block(
            number=quantity(field(answer, "number", "block"), "block number"),
            hash=data(field(answer, "hash", "block"), "block hash", 32),
            prevrandao=data(field(answer, "mixHash", "block"), "block's mixHash", 32),
            timestamp=quantity(field(answer, "timestamp", "block"), "block's timestamp"),
        )
        if number is not None and block.number != number:
            raise Malformed("block", f"number {block.number}, asked for {number}")
        return block

    # Finality

    def is_final(self, number: int) -> bool:
        """Whether the block is final by the policy: n confirmations mean latest - number + 1 >= n."""
        if self._finality == "confirmations":
            return self.latest() - number + 1 >= self._confirmations
        try:
            return self._block(self._finality, None).number >= number
        except RpcError as error:
            raise ChainUnavailable(
                f"the chain at {self._rpc.url} knows no '{self._finality}' block ({error.text})",
                hint="count confirmations instead, in the policy",
            ) from error

    def wait_final(
        self,
        number: int,
        *,
        progress: Callable[[int, int], None] | None = None,
        timeout: float = 3600,
    ) -> None:
        """Return once the block is final, and what led to it durable. `timeout` is in seconds.

        `progress` is given how many of how many blocks have come; by tag the number of the total is a lower bound.

        Raises:
            ChainUnavailable: the time is up, or no new block came for two minutes.
        """
        deadline = time.monotonic() + timeout
        seen, since = -1, time.monotonic()
        last = number + self._confirmations - 1
        first = self.latest()
        while True:
            latest = self.latest()
            now = time.monotonic()
            if latest != seen:
                seen, since = latest, now
                self._durable()
                if progress is not None:
                    progress(max(0, min(latest, last) - first), max(0, last - first))
                if self.is_final(number):
                    return
            if now - since > SILENCE:
                raise ChainUnavailable(
                    f"the chain at {self._rpc.url} has had no new block for {SILENCE} s (latest is {latest})",
                    hint="see that it is running, then run this again: nothing is sent twice",
                )
            if now > deadline:
                raise ChainUnavailable(
                    f"block {number} is not final after {timeout:.0f} s (latest is {latest})",
                    hint="run this again later: nothing is sent twice",
                )
            time.sleep(POLL)

    # Events

    def registration(self, run: bytes) -> Registered | None:
        """The run's registration; None where there is none."""
        found = self._events(Registered, [run])
        if len(found) > 1 or any(event.run != run for event in found):
            raise Malformed("list of registrations", "not those of the run")
        return found[0] if found else None

    def registrations(self, account: bytes) -> int:
        """How many runs the account has registered: the contract's counter."""
        return self._count("registrations", "0x" + account.hex())

    def account_registrations(self, account: bytes) -> tuple[Registered, ...]:
        """All of the account's registrations, in order."""
        counted = self.registrations(account)
        found = self._events(Registered, [None, bytes(12) + account])
        if any(event.account != account for event in found):
            raise Malformed("list of registrations", "not those of the account")
        _require_complete("registrations", [event.nonce for event in found], first=0, least=counted)
        return tuple(found)

    def anchors(self, run: bytes) -> tuple[Anchored, ...]:
        """All anchored heads of the run, in order."""
        counted, _ = self.head(run)
        found = self._events(Anchored, [run])
        if any(event.run != run for event in found):
            raise Malformed("list of anchors", "not those of the run")
        _require_complete("anchors", [event.sequence for event in found], first=1, least=counted)
        return tuple(found)

    def challenges(self, run: bytes) -> tuple[Challenged, ...]:
        """All challenges of the run, valid or not, in order."""
        counted = self._count("challenges", run)
        found = self._events(Challenged, [run])
        if any(event.run != run for event in found):
            raise Malformed("list of challenges", "not those of the run")
        _require_complete("challenges", [event.id for event in found], first=1, least=counted)
        return tuple(found)

    def head(self, run: bytes) -> tuple[int, bytes]:
        """How many heads the run has anchored, and the 24-byte chained hash over them; (0, zeros) before the first."""
        sequence, chained = decode_result(("uint64", "bytes24"), self._view("head", run), "head")
        return sequence, chained

    def _count(self, view: str, key: Any) -> int:
        (count,) = decode_result(("uint64",), self._view(view, key), view)
        return int(count)

    def _view(self, name: str, *arguments: Any) -> Any:
        call = {"to": "0x" + self._contract.hex(), "data": "0x" + encode_call(name, *arguments).hex()}
        for _ in range(RETRIES):
            try:
                return self._rpc.call("eth_call", call, "latest")
            except RpcError as error:
                # anvil without history can mine a block between finding the latest one and looking at its state
                if "BlockOutOfRange" not in error.text:
                    raise
                time.sleep(POLL)
        return self._rpc.call("eth_call", call, "latest")

    def _events(self, kind: type[E], topics: list[bytes | None]) -> list[E]:
        """Events of one kind with these indexed arguments, ordered by position."""
        wanted = [event_topic(kind.__name__), *topics]
        query = {
            "address": "0x" + self._contract.hex(),
            "topics": [None if topic is None else "0x" + topic.hex() for topic in wanted],
        }
        found: list[E] = []
        for log in self._logs(query, self._from_block, self.latest()):
            if field(log, "address", "log") and log.get("removed") is not True:
                event = decode_event(log, self._contract)
                if not isinstance(event, kind):
                    raise Malformed("log", "not of the contract and event that were asked for")
                found.append(event)
        return sorted(found, key=lambda event: event.position)

    def _logs(self, query: dict[str, Any], first: int, last: int) -> list[Any]:
        """eth_getLogs; a server that refuses the range is asked for its halves."""
        if last < first:
            return []
        try:
            logs = self._rpc.call("eth_getLogs", {**query, "fromBlock": hex(first), "toBlock": hex(last)})
        except RpcError:
            if first == last:
                raise
            middle = (first + last) // 2
            return self._logs(query, first, middle) + self._logs(query, middle + 1, last)
        if not isinstance(logs, list):
            raise Malformed("answer to eth_getLogs", "not a list")
        return logs

    # Transactions

    def register(self, key: bytes, manifest: bytes, *, on_sent: OnSent | None = None) -> Registered:
        """Register a run of the key's account, and return its event once it is in a block.

        `key` is the 32-byte private key, used on this machine only. `on_sent(hash, raw)` is called with the signed
        transaction before it is broadcast: whoever stores `raw` durably there can `resume` it after any crash, and
        never sends a second one. The same holds for `anchor` and `challenge`.

        Raises:
            TransactionFailed: refused, reverted, dropped, or the account cannot pay.
            WrongChain: the server has moved to another chain.
        """
        event = self._send(key, encode_call("register", manifest), on_sent)
        return _expect(event, Registered)

    def anchor(
        self,
        key: bytes,
        nonce: int,
        previous: bytes,
        commitment: bytes,
        envelope: bytes,
        *,
        on_sent: OnSent | None = None,
    ) -> Anchored:
        """Anchor the next head of the account's run with this registration nonce.

        `previous` is the run's present 24-byte chained head (zeros before the first): the contract refuses another,
        so that no head is anchored twice. Otherwise as `register`.
        """
        event = self._send(key, encode_call("anchor", nonce, previous, commitment, envelope), on_sent)
        return _expect(event, Anchored)

    def challenge(
        self,
        key: bytes,
        *,
        run: bytes,
        verifier: bytes,
        commitment: bytes,
        request: bytes,
        nonce_commitment: bytes,
        signature: bytes,
        on_sent: OnSent | None = None,
    ) -> Challenged:
        """Send, and pay for, a challenge of the run. `signature` is the verifier's 64-byte Ed25519 signature."""
        if len(signature) != 64:
            raise UsageError(f"an Ed25519 signature has 64 bytes, not {len(signature)}")
        halves = [signature[:32], signature[32:]]
        call = encode_call("challenge", run, verifier, commitment, request, nonce_commitment, halves)
        return _expect(self._send(key, call, on_sent), Challenged)

    def resume(self, raw: bytes) -> Event:
        """The event of a transaction that `on_sent` was given: broadcasts the same bytes again where the chain does not
        have it yet, and never signs a new one. Raises as `register`, and StorageError where `raw` is damaged."""
        event = self._sender.resume(raw)
        self._durable()
        return event

    def _send(self, key: bytes, call: bytes, on_sent: OnSent | None) -> Event:
        event = self._sender.send(key, call, on_sent)
        self._durable()
        return event

    def _durable(self) -> None:
        if self._on_durable is not None:
            self._on_durable()


def _expect(event: Event, kind: type[E]) -> E:
    if not isinstance(event, kind):
        raise TransactionFailed(f"the transaction emitted {type(event).__name__}, not {kind.__name__}")
    return event


def _require_complete(what: str, numbers: list[int], *, first: int, least: int) -> None:
    """Events are numbered without gaps, and there are at least as many as the contract had counted before."""
    if numbers != list(range(first, first + len(numbers))) or len(numbers) < least:
        raise ChainUnavailable(
            f"the chain's RPC server left out {what}: {least} are counted in the contract, {len(numbers)} came",
            hint="try another server with --rpc; the search must start at or before the contract's deployment",
        )
