"""JSON-RPC over HTTP, with the standard library alone, and strict parsing of what comes back.

The server is trusted with nothing here: an answer that is missing, too large, of another shape or of another
length raises `ChainUnavailable`, never a KeyError. What a well-formed answer *says* is not checked: a server
that lies consistently is found out by asking another one.
"""

from __future__ import annotations

import http.client
import json
import string
import urllib.error
import urllib.parse
import urllib.request
from itertools import accumulate, count
from typing import Any

from polcommit.errors import ChainUnavailable, UsageError

START_HINT = "start the local one with 'polcommit devnet start', or give another with --rpc"
MAX_ANSWER = 256 * 2**20    # bytes; a page of logs is far below, and nothing larger is ever asked of a foreign server
MAX_DEPTH = 100             # of nested objects and lists; a block or a list of logs has five
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class RpcError(ChainUnavailable):
    """The server answered with a JSON-RPC error: its code, message and data (hex, where a call reverted)."""

    def __init__(self, url: str, method: str, error: dict[str, Any]) -> None:
        self.code = error.get("code")
        self.text = _one_line(error.get("message"))
        self.data = _revert_data(error.get("data"))
        super().__init__(f"the chain at {url} refused {method} ({self.text or 'no reason given'})")


class Rpc:
    """One JSON-RPC server. `timeout` is in seconds, per request."""

    def __init__(self, url: str, *, timeout: float = 10) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:      # an unclosed bracket, a port that is none
            usable = False
        if not usable:
            raise UsageError(f"'{url}' is not the address of an RPC server", hint="give one like http://127.0.0.1:8545")
        self.url = url
        self._timeout = timeout
        self._ids = count(1)
        # A proxy from the environment cannot reach this machine's own ports.
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        handlers = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(*handlers)

    def call(self, method: str, *params: Any, limit: int = MAX_ANSWER) -> Any:
        """The `result` of one call; None where the server says null. `limit` bounds the answer, in bytes.

        Raises:
            RpcError: the server refused.
            ChainUnavailable: no answer, or not a JSON-RPC answer to this call.
        """
        number = next(self._ids)
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
        answer = self._post(json.dumps(request).encode(), limit)
        if _depth(answer) > MAX_DEPTH:
            raise self._malformed(method, "nested too deeply")
        try:
            document = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise self._malformed(method, "not JSON") from error
        if not isinstance(document, dict) or document.get("id") not in (number, None):
            raise self._malformed(method, "not a JSON-RPC answer to this call")
        if document.get("error") is not None:
            failure = document["error"]
            raise RpcError(self.url, method, failure if isinstance(failure, dict) else {"message": str(failure)})
        if "result" not in document or document.get("id") is None:
            raise self._malformed(method, "neither result nor error")
        return document["result"]

    def _post(self, body: bytes, limit: int) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - the constructor admits http and https only
            self.url, data=body, headers={"Content-Type": "application/json", "User-Agent": "polcommit"}
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                answer: bytes = response.read(limit + 1)
        except urllib.error.HTTPError as error:
            # Many servers send JSON-RPC errors with a 4xx status: let the caller see those.
            with error:
                answer = self._body(error, limit)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(_reason(error)) from error
        if len(answer) > limit:
            raise ChainUnavailable(f"the chain at {self.url} sent more than {limit} bytes")
        return answer

    def _body(self, error: urllib.error.HTTPError, limit: int) -> bytes:
        try:
            answer = error.read(limit + 1)
            if _depth(answer) <= MAX_DEPTH and isinstance(json.loads(answer), dict):
                return answer
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            pass
        raise self._unreachable(f"HTTP {error.code}") from error

    def _malformed(self, method: str, why: str) -> ChainUnavailable:
        return ChainUnavailable(
            f"the chain at {self.url} answered {method} with something else ({why})", hint=START_HINT
        )

    def _unreachable(self, why: str) -> ChainUnavailable:
        return ChainUnavailable(f"cannot reach the chain at {self.url} ({why})", hint=START_HINT)


class Malformed(ChainUnavailable):
    """A field of an answer is missing or has another shape."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"the chain's RPC server sent a malformed {what} ({why})", hint="try another server with --rpc"
        )


def field(answer: Any, name: str, what: str) -> Any:
    """`answer[name]`, where `answer` is an object that has it and it is not null."""
    if not isinstance(answer, dict):
        raise Malformed(what, "not an object")
    if answer.get(name) is None:
        raise Malformed(what, f"no {name}")
    return answer[name]


def quantity(value: Any, what: str, *, below: int = 2**63) -> int:
    """A JSON-RPC quantity: '0x' and hex digits, at most `below` - 1."""
    try:
        if not isinstance(value, str) or not value.startswith("0x") or not 3 <= len(value) <= 66:
            raise ValueError
        if not set(value[2:]) <= set(string.hexdigits):     # int() takes signs, underscores and white space
            raise ValueError
        number = int(value[2:], 16)
    except ValueError:
        raise Malformed(what, f"not a quantity: {_one_line(value)}") from None
    if not 0 <= number < below:
        raise Malformed(what, f"out of range: {number}")
    return number


def data(value: Any, what: str, length: int | None = None) -> bytes:
    """JSON-RPC bytes: '0x' and an even number of hex digits; exactly `length` bytes where that is given."""
    try:
        if not isinstance(value, str) or not value.startswith("0x") or not value.isascii():
            raise ValueError
        found = bytes.fromhex(value[2:])
        if 2 * len(found) != len(value) - 2:    # fromhex skips white space
            raise ValueError
    except ValueError:
        raise Malformed(what, f"not bytes: {_one_line(value)}") from None
    if length is not None and len(found) != length:
        raise Malformed(what, f"{len(found)} bytes, not {length}")
    return found


def _revert_data(value: Any) -> bytes:
    """The revert data of an error: some servers wrap it in an object."""
    if isinstance(value, dict):
        value = value.get("data")
    try:
        return data(value, "revert data")
    except Malformed:
        return b""


def _depth(text: bytes) -> int:
    """How deep JSON nests, at most: brackets inside strings count too. Not left to the parser, for how deep a recursion
    Python bears depends on what else the process has imported."""
    brackets = text.translate(None, delete=_NO_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)


def _one_line(value: Any) -> str:
    text = " ".join(str(value or "").split())
    return text if len(text) <= 200 else text[:197] + "..."


def _reason(error: Exception) -> str:
    """What went wrong, without the wrappers: 'connection refused', 'timed out'."""
    cause: Any = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return (_one_line(cause) or type(cause).__name__).lower()
