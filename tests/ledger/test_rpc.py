"""A hostile or broken RPC server: every answer that is not one becomes a ChainUnavailable, and never a traceback."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from polcommit.errors import ChainUnavailable
from polcommit.ledger.contract import event_topic
from polcommit.ledger.registry import Registry
from polcommit.ledger.rpc import Rpc, data, quantity

CONTRACT = b"\x5f" * 20
RUN = b"\x01" * 32
HASH = "0x" + "ab" * 32

Answers = Callable[[str, list[Any]], Any]


class Server:
    """Answers JSON-RPC as `results` says; `raw` instead, where it is set."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {
            "eth_chainId": "0x7a69",
            "eth_getCode": "0x00",
            "eth_blockNumber": "0x10",
            "eth_call": "0x" + "00" * 64,
            "eth_getLogs": [],
        }
        self.raw: tuple[int, bytes] | None = None
        self.calls: list[tuple[str, list[Any]]] = []
        self.url = ""

    def answer(self, body: bytes) -> tuple[int, bytes]:
        request = json.loads(body)
        self.calls.append((request["method"], request["params"]))
        if self.raw is not None:
            return self.raw
        result = self.results.get(request["method"])
        if callable(result):
            result = result(request["params"])
        document = {"jsonrpc": "2.0", "id": request["id"]}
        is_error = isinstance(result, dict) and "code" in result
        return 200, json.dumps({**document, ("error" if is_error else "result"): result}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    fake = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, answer = fake.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        fake.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        http.shutdown()
        thread.join()


@pytest.fixture
def registry(server: Server) -> Registry:
    return Registry.connect(server.url, CONTRACT)


@pytest.mark.parametrize(
    "raw",
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"null"),
        (200, b"{}"),
        (200, b'{"id": 999, "result": "0x1"}'),
        (200, b'{"id": 2, "error": "busy"}'),
        (200, b'{"id": 2, "error": {"message": ["odd"]}}'),
        (200, b"[" * 100_000),
        (200, b'{"id":' * 100_000),
        (500, b'{"id":' * 100_000),
        (200, b"\xff\xfe"),
        (404, b"not found"),
        (500, b"[1]"),
        (429, b'{"id": 2, "error": {"code": -32005, "message": "slow down"}}'),
    ],
)
def test_not_an_answer(server: Server, registry: Registry, raw: tuple[int, bytes]):
    server.raw = raw
    with pytest.raises(ChainUnavailable):
        registry.latest()


def test_an_answer_without_end(server: Server):
    server.raw = (200, b'{"id": 1, "result": "' + b"0" * 10_000 + b'"}')
    with pytest.raises(ChainUnavailable, match="more than 1000 bytes"):
        Rpc(server.url).call("eth_blockNumber", limit=1000)


@pytest.mark.parametrize(
    "value", [None, 16, "", "16", "0x", "0xzz", "-0x1", "0x-1", "0x1_0", "0x 1", "0x" + "f" * 64, {}, []]
)
def test_not_a_quantity(server: Server, registry: Registry, value: Any):
    server.results["eth_blockNumber"] = value
    with pytest.raises(ChainUnavailable):
        registry.latest()


@pytest.mark.parametrize("value", [None, 1, "", "00", "0x0", "0xgg", "0x00 00", "0x" + "é" * 2])
def test_not_bytes(value: Any):
    with pytest.raises(ChainUnavailable):
        data(value, "field")


def test_quantity_and_data():
    assert quantity("0x0", "n") == 0
    assert quantity("0x7a69", "n") == 31337
    assert data("0x", "d") == b""
    assert data("0xAbcd", "d", 2) == b"\xab\xcd"


BLOCK = {"number": "0x5", "hash": HASH, "mixHash": HASH, "timestamp": "0x1"}


@pytest.mark.parametrize(
    "block",
    [
        "0x5",
        [],
        *({k: v for k, v in BLOCK.items() if k != name} for name in BLOCK),
        {**BLOCK, "number": "0x6"},
        {**BLOCK, "hash": "0xab"},
        {**BLOCK, "mixHash": HASH + "00"},
        {**BLOCK, "mixHash": None},
        {**BLOCK, "timestamp": "later"},
    ],
)
def test_not_a_block(server: Server, registry: Registry, block: Any):
    server.results["eth_getBlockByNumber"] = block
    with pytest.raises(ChainUnavailable):
        registry.block(5)


def registered_log(**changed: Any) -> dict[str, Any]:
    log = {
        "address": "0x" + CONTRACT.hex(),
        "topics": ["0x" + event_topic("Registered").hex(), "0x" + RUN.hex(), "0x" + "00" * 12 + "aa" * 20],
        "data": "0x" + "00" * 32 + "bb" * 32,
        "blockNumber": "0x5",
        "blockHash": HASH,
        "transactionHash": HASH,
        "logIndex": "0x0",
    }
    return {**log, **changed}


def test_a_log_that_is_right(server: Server, registry: Registry):
    server.results["eth_getLogs"] = [registered_log()]
    found = registry.registration(RUN)
    assert found is not None
    assert (found.account, found.manifest, found.position.block) == (b"\xaa" * 20, b"\xbb" * 32, 5)


@pytest.mark.parametrize(
    "logs",
    [
        None,
        {},
        ["log"],
        [registered_log(), registered_log(logIndex="0x1")],
        *([registered_log(**{name: None})] for name in registered_log()),
        [registered_log(address="0x" + "00" * 20)],
        [registered_log(topics=[])],
        [registered_log(topics=["0x" + event_topic("Anchored").hex(), *registered_log()["topics"][1:]])],
        [registered_log(topics=[HASH])],
        [registered_log(topics=registered_log()["topics"][:2])],
        [registered_log(topics=[*registered_log()["topics"][:2], HASH])],
        [registered_log(topics=[registered_log()["topics"][0], HASH, registered_log()["topics"][2]])],
        [registered_log(data="0x")],
        [registered_log(data=registered_log()["data"] + "00")],
        [registered_log(data="0x" + "ff" * 64)],
        [registered_log(blockHash="0x00")],
        [registered_log(logIndex=0)],
    ],
)
def test_not_the_logs_that_were_asked_for(server: Server, registry: Registry, logs: Any):
    server.results["eth_getLogs"] = logs
    with pytest.raises(ChainUnavailable):
        registry.registration(RUN)


def test_a_log_that_a_reorganisation_removed_is_passed_over(server: Server, registry: Registry):
    server.results["eth_getLogs"] = [registered_log(removed=True)]
    assert registry.registration(RUN) is None


def test_events_left_out_are_noticed(server: Server, registry: Registry):
    """The contract says two challenges; the server shows none."""
    server.results["eth_call"] = "0x" + (2).to_bytes(32).hex()
    with pytest.raises(ChainUnavailable, match="left out challenges: 2 are counted in the contract, 0 came"):
        registry.challenges(RUN)


def test_a_server_that_takes_small_ranges_only(server: Server, registry: Registry):
    def logs(params: list[Any]) -> Any:
        first, last = int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)
        if last - first >= 4:
            return {"code": -32005, "message": "block range too large"}
        return [registered_log()] if first <= 5 <= last else []

    server.results["eth_getLogs"] = logs
    assert registry.registration(RUN) is not None


def test_a_server_that_refuses_logs_altogether(server: Server, registry: Registry):
    server.results["eth_getLogs"] = {"code": -32601, "message": "not here"}
    with pytest.raises(ChainUnavailable, match="refused eth_getLogs \\(not here\\)"):
        registry.registration(RUN)
    assert len(server.calls) < 20


def test_a_tag_that_the_chain_does_not_know(server: Server):
    server.results["eth_getBlockByNumber"] = {"code": -32602, "message": "unknown tag"}
    registry = Registry.connect(server.url, CONTRACT, finality="safe")
    with pytest.raises(ChainUnavailable, match="knows no 'safe' block"):
        registry.is_final(1)


def test_importing_the_client_leaves_the_recursion_limit():
    """py_ecc raises it to 100,000, with which deep JSON crashes the interpreter."""
    assert sys.getrecursionlimit() < 10_000
