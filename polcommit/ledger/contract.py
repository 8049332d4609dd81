"""The registry's ABI in Python: calls to bytes, logs to events, revert data to sentences. No I/O.

Everything is checked against the packaged ABI's selectors and fixed layouts; what does not fit raises `Malformed`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from polcommit.events import Anchored, Challenged, Position, Registered
from polcommit.ledger.artifacts import registry_artifact
from polcommit.ledger.eth import DecodingError, abi, keccak
from polcommit.ledger.rpc import Malformed, data, field, quantity

Event = Registered | Anchored | Challenged


@cache
def _entries(kind: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """name -> (signature, argument types), of the ABI's functions, events or errors."""
    found = {}
    for entry in registry_artifact().abi:
        if entry["type"] == kind:
            types = tuple(argument["type"] for argument in entry["inputs"])
            found[entry["name"]] = (f"{entry['name']}({','.join(types)})", types)
    return found


@cache
def event_topic(name: str) -> bytes:
    """topic 0 of an event's logs: keccak-256 of its signature."""
    return keccak(text=_entries("event")[name][0])


def encode_call(name: str, *arguments: Any) -> bytes:
    """Calldata: selector and ABI-encoded arguments. Raises a ValueError or TypeError of eth_abi's for wrong ones."""
    signature, types = _entries("function")[name]
    return keccak(text=signature)[:4] + abi.encode(types, arguments)


def decode_result(types: tuple[str, ...], answer: Any, what: str) -> tuple[Any, ...]:
    """The values that a view returned."""
    return _decode(types, data(answer, what), what)


def explain_revert(revert: bytes) -> str | None:
    """A custom error of the registry, in words; None where it is not one."""
    for name, (signature, types) in _entries("error").items():
        if revert[:4] == keccak(text=signature)[:4]:
            try:
                return _SENTENCES[name].format(*(_show(value) for value in abi.decode(types, revert[4:])))
            except (DecodingError, ValueError, OverflowError):
                return None
    return None


_SENTENCES = {
    "NotRegistered": "account {0} has not registered a run with nonce {1}",
    "HeadMoved": "the head of run {0} is {1}, not {2}: this anchor, or another, was sent already",
    "NothingAnchored": "run {0} has no anchored head that could be challenged",
}


def decode_event(log: Any, contract: bytes) -> Event | None:
    """The registry's event in a log of an RPC answer; None where the log is another contract's.

    Raises:
        Malformed: a field is missing or has a wrong length.
    """
    if data(field(log, "address", "log"), "log address", 20) != contract:
        return None
    topics = field(log, "topics", "log")
    if not isinstance(topics, list) or not topics:
        raise Malformed("log", "no topics")
    words = [data(topic, "log topic", 32) for topic in topics]
    body = data(field(log, "data", "log"), "log data")
    position = _position(log)
    for name, build in (("Registered", _registered), ("Anchored", _anchored), ("Challenged", _challenged)):
        if words[0] == event_topic(name):
            return build(words, body, position)
    raise Malformed("log", "not an event of the registry")


def _position(log: Any) -> Position:
    return Position(
        block=quantity(field(log, "blockNumber", "log"), "log's block number"),
        log_index=quantity(field(log, "logIndex", "log"), "log index"),
        block_hash=data(field(log, "blockHash", "log"), "log's block hash", 32),
        transaction=data(field(log, "transactionHash", "log"), "log's transaction", 32),
    )


def _registered(topics: list[bytes], body: bytes, position: Position) -> Registered:
    run, account = _topics(topics, 2, "Registered event")
    if any(account[:12]):
        raise Malformed("Registered event", "account of more than 20 bytes")
    nonce, manifest = _decode(("uint64", "bytes32"), body, "Registered event")
    return Registered(run=run, account=account[12:], nonce=nonce, manifest=manifest, position=position)


def _anchored(topics: list[bytes], body: bytes, position: Position) -> Anchored:
    run, sequence = _topics(topics, 2, "Anchored event")
    commitment, envelope = _decode(("bytes32", "bytes"), body, "Anchored event")
    return Anchored(
        run=run, sequence=_uint64(sequence), commitment=commitment, envelope=envelope, position=position
    )


def _challenged(topics: list[bytes], body: bytes, position: Position) -> Challenged:
    run, number, verifier = _topics(topics, 3, "Challenged event")
    commitment, request, nonce, signature = _decode(
        ("bytes32", "bytes32", "bytes32", "bytes32[2]"), body, "Challenged event"
    )
    return Challenged(
        run=run,
        id=_uint64(number),
        verifier=verifier,
        commitment=commitment,
        request=request,
        nonce_commitment=nonce,
        signature=b"".join(signature),
        position=position,
    )


def _topics(topics: list[bytes], count: int, what: str) -> list[bytes]:
    if len(topics) != 1 + count:
        raise Malformed(what, f"{len(topics)} topics, not {1 + count}")
    return topics[1:]


def _uint64(word: bytes) -> int:
    number = int.from_bytes(word)
    if number >= 2**64:
        raise Malformed("event", "counter of more than 64 bits")
    return number


def _decode(types: tuple[str, ...], body: bytes, what: str) -> tuple[Any, ...]:
    try:
        values = abi.decode(types, body)
    except (DecodingError, ValueError, OverflowError) as error:
        raise Malformed(what, "not the ABI encoding of its fields") from error
    # eth_abi reads past nothing, but ignores what follows and accepts odd offsets: there is one encoding.
    if abi.encode(types, values) != body:
        raise Malformed(what, "not the one ABI encoding of its fields")
    return values


def _show(value: Any) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
