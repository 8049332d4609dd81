"""A chain that is not there, is another, was reset or killed; a policy that says something else; no money."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import World, free_port, new_keys, register, require_anvil, start_devnet
from shell import all_of, assert_one_line, ok, polcommit

from polcommit.ledger.registry import Registry
from polcommit.ledger.rpc import Rpc

#: Makes a contract with one byte of code, which is not the registry.
OTHER_CONTRACT = "0x600160005360016000f3"


def chain_commands(world: World, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Every command that asks the chain."""
    return {
        "register": ("register", tmp_path / "new", "--recipe", "digits"),
        "anchor": ("anchor", world.run),
        "challenge": ("challenge", world.id, "--count", 1, "--request", tmp_path / "request"),
        "opening": ("challenge", world.id, "--opening", world.opening, "--out", tmp_path / "evidence"),
        "respond": ("respond", world.run, "--request", world.request, "--out", tmp_path / "opening"),
        "verify": ("verify", world.evidence),
    }


def some(world: World, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Of those, the ones that are quick: all of them connect in the same way."""
    commands = chain_commands(world, tmp_path)
    return {name: commands[name] for name in ("anchor", "verify")}


def nothing_written(tmp_path: Path) -> None:
    assert not [name for name in ("new", "request", "evidence", "opening") if (tmp_path / name).exists()]


# --- another server --------------------------------------------------------------------------------------------


def test_nobody_answers(world: World, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    def check(words: tuple[object, ...]) -> None:
        result = world(*words, "--rpc", url)
        assert_one_line(result, 3, f"cannot reach the chain at {url} (connection refused)")
        assert "polcommit devnet start" in result.err

    all_of(chain_commands(world, tmp_path), check)
    nothing_written(tmp_path)


@pytest.mark.parametrize("url", ["", "8545", "ftp://127.0.0.1", "http://", "http://[::1", "http://127.0.0.1:99999"])
def test_addresses_that_are_none(world: World, url: str) -> None:
    assert_one_line(world("verify", world.evidence, "--rpc", url), 2, f"'{url}'")


def test_a_server_that_talks_something_else(world: World, tmp_path: Path) -> None:

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answers_for[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    answers_for = {
        "/html": (200, b"<html>hello</html>"),
        "/404": (404, b"not here"),
        "/empty": (200, b""),
        "/list": (200, b"[]"),
        "/null": (200, b'{"jsonrpc": "2.0", "id": 1, "result": null}'),
        "/number": (200, b'{"jsonrpc": "2.0", "id": 1, "result": 31337}'),
        "/error": (200, b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no\\nservice. Sorry."}}'),
        "/deep": (200, b"[" * 100_000),
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        cases = {path: base + path for path in answers_for}
        all_of(cases, lambda url: assert_one_line(world("verify", world.evidence, "--rpc", url), 3))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A second devnet: the same chain id and contract address, another genesis."""
    require_anvil()
    home, port = tmp_path_factory.mktemp("other") / "home", free_port()
    start_devnet(home, port)
    yield home, f"http://127.0.0.1:{port}"
    ok(polcommit("devnet", "stop", home=home))


def test_another_chain(world: World, other: tuple[Path, str], tmp_path: Path) -> None:
    def check(words: tuple[object, ...]) -> None:
        assert_one_line(world(*words, "--rpc", other[1]), 3, "genesis block is ")

    all_of(some(world, tmp_path), check)
    nothing_written(tmp_path)


def test_the_evidence_of_another_chain_is_no_evidence_here(world: World, other: tuple[Path, str]) -> None:
    result = polcommit("verify", world.evidence, home=other[0])
    assert result.status == 1 and "V2" in result.out, str(result)


def test_an_address_without_code(world: World, tmp_path: Path) -> None:
    def check(words: tuple[object, ...]) -> None:
        result = world(*words, "--contract", "0x" + "12" * 20)
        assert_one_line(result, 3, "there is no contract at 0x1212")

    all_of(some(world, tmp_path), check)
    nothing_written(tmp_path)
    for bad in ("0x12", "registry", "0x" + "zz" * 20):
        assert_one_line(world("verify", world.evidence, "--contract", bad), 2, bad)


def test_a_contract_with_other_code(world: World, tmp_path: Path) -> None:
    rpc = Rpc(world.rpc)
    sender = rpc.call("eth_accounts")[0]
    sent = rpc.call("eth_sendTransaction", {"from": sender, "data": OTHER_CONTRACT, "gas": "0x20000"})
    rpc.call("evm_mine")
    address = rpc.call("eth_getTransactionReceipt", sent)["contractAddress"]
    assert rpc.call("eth_getCode", address, "latest") != "0x"

    def check(words: tuple[object, ...]) -> None:
        assert_one_line(world(*words, "--contract", address), 3, "which the policy does not list")

    all_of(some(world, tmp_path), check)
    nothing_written(tmp_path)


# --- the policy ------------------------------------------------------------------------------------------------


def edited(world: World, old: str, new: str) -> str:
    text = world.policy.read_text()
    lines = [line for line in text.splitlines() if line.startswith(old)]
    assert len(lines) == 1, old
    return text.replace(lines[0], new)


def test_a_policy_for_something_else(world: World, tmp_path: Path) -> None:
    zeros = "00" * 32
    for name, old, new, contains in (
        ("chain id", "id = ", "id = 1", "chain id is 31337, the policy says 1"),
        ("genesis", "genesis = ", f'genesis = "0x{zeros}"', "genesis block is "),
        ("code", "code = ", f'code = ["0x{zeros}"]', "which the policy does not list"),
        ("codes", "code = ", "code = []", "which the policy does not list"),
    ):
        policy = tmp_path / f"{name}.toml"
        policy.write_text(edited(world, old, new))
        assert_one_line(world("verify", world.evidence, "--policy", policy), 3, contains)


@pytest.mark.parametrize(
    ("old", "new", "contains"),
    [
        ("[chain]", "[chains]", "[chains]"),
        ("[verifiers]", "[chain]", "TOML"),
        ("id = ", "", "'id'"),
        ("id = ", "id = true", "'id'"),
        ("id = ", "id = -4", "at least 1"),
        ("genesis = ", 'genesis = "0x12"', "'genesis'"),
        ("contract = ", "contract = 12", "'contract'"),
        ("code = ", 'code = "0x12"', "'code'"),
        ("code = ", 'code = ["zz"]', "'code'"),
        ("rpc = ", 'rpc = ["a", "b"]', "'rpc'"),
        ("confirmations = ", "confirmations = 0", "confirmations"),
        ("confirmations = ", "confirmations = 1.5", "'confirmations'"),
        ("confirmations = ", 'finality = "soon"', "'soon'"),
        ("devnet = ", 'devnet = "yes"', "'devnet'"),
        ("devnet = ", "colour = 4", "'colour'"),
        ("trusted = ", 'trusted = ["ab"]', "'trusted'"),
        ("trusted = ", "trusted = []\n[demand]\nprobability = 1.0", "probability"),
        ("trusted = ", "trusted = []\n[demand]\nfraction = nan", "fraction"),
        ("trusted = ", "trusted = []\n[demand]\nregistered = 1", "'registered'"),
    ],
)
def test_a_policy_that_is_malformed(world: World, tmp_path: Path, old: str, new: str, contains: str) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(edited(world, old, new))
    result = polcommit("verify", world.evidence, home=world.home, env={"POLCOMMIT_POLICY": str(policy)})
    assert_one_line(result, 2, contains)
    assert "policy.toml" in result.err


def test_a_policy_that_is_missing(world: World, tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert_one_line(world("verify", world.evidence, "--policy", missing), 2, str(missing))
    assert_one_line(world("verify", world.evidence, env={"POLCOMMIT_POLICY": str(missing)}), 2, str(missing))
    nowhere = polcommit("verify", world.evidence, home=tmp_path)
    assert_one_line(nowhere, 2, "no policy")
    assert "polcommit devnet start" in nowhere.err
    without = tmp_path / "no-rpc.toml"
    without.write_text(edited(world, "rpc = ", ""))
    assert_one_line(world("verify", world.evidence, "--policy", without), 3, "names no RPC server")
    ok(world("verify", world.evidence, "--policy", without, "--rpc", world.rpc))


def test_the_home_folders_own_policy_comes_before_the_devnets(world: World, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(world.policy.read_text())
    ok(polcommit("verify", world.evidence, home=tmp_path))


# --- money -----------------------------------------------------------------------------------------------------


def test_an_account_that_cannot_pay(world: World, tmp_path: Path) -> None:
    """On a chain that is not the local devnet nobody gives it ether; what was prepared stays, and is sent later."""
    home, run = tmp_path / "home", tmp_path / "run"
    new_keys(home)
    policy = home / "policy.toml"
    policy.write_text(edited(world, "devnet = ", "devnet = false"))
    account = json.loads((home / "keys" / "alice" / "public.json").read_text())["account"]
    first = register(home, run)
    assert_one_line(first, 3, f"account {account} cannot pay for the transaction")
    assert "has 0.000000 ether, needs up to 0." in first.err and "--account" in first.err
    ok(world("devnet", "fund", account))
    done = json.loads(ok(register(home, run, "--json")).out)
    assert json.loads(ok(polcommit("status", run, "--json", home=home)).out)["run"] == done["run"]


# --- killed, moved and reset -----------------------------------------------------------------------------------


def test_what_was_reported_survives_a_killed_chain(world: World) -> None:
    found = json.loads(ok(world("verify", world.evidence, "--policy", world.policy, "--json")).out)
    assert (found["verdict"], found["draw"], found["sequence"]) == ("accepted", "ledger", 1)
    registry = Registry.connect(world.rpc, bytes.fromhex(found["anchor"]["contract"][2:]))
    assert len(registry.anchors(bytes.fromhex(world.id))) == 1
    ok(world("status", world.run, "--check"))


def test_a_chain_that_was_begun_anew(world: World, tmp_path: Path) -> None:
    """Same port, same chain id, same contract address, and nothing of what was there."""
    ok(world("status", world.run, "--check"))
    home = tmp_path / "home"
    shutil.copytree(world.home, home)
    for name in ("state.json.gz", "devnet.json"):
        (home / "devnet" / name).unlink()
    ok(world("devnet", "stop"))
    start_devnet(home, world.port)
    try:
        before = {path: path.read_bytes() for path in sorted(world.run.rglob("*")) if path.is_file()}
        for words, status, contains in (
            (("anchor", world.run), 3, "head 1 is not on this chain"),
            (("challenge", world.id, "--count", 1, "--prover", "true"), 2, "no anchored head on this chain"),
            (("challenge", world.id, "--opening", world.opening), 3, "is not on this chain"),
            (("respond", world.run, "--request", world.request, "--out", tmp_path / "o"), {1, 3}, "challenge"),
        ):
            assert_one_line(polcommit(*words, home=home), status, contains)
        rejected = polcommit("verify", world.evidence, home=home)
        assert rejected.status == 1 and "V2" in rejected.out, str(rejected)
        lock = world.run / "lock"
        assert {path: path.read_bytes() for path in before if path != lock} == {
            path: data for path, data in before.items() if path != lock
        }
    finally:
        ok(polcommit("devnet", "stop", home=home))
        start_devnet(world.home, world.port)
    ok(world("anchor", world.run))        # back on its own chain


# --- the devnet itself -----------------------------------------------------------------------------------------


def test_devnet_commands(world: World, tmp_path: Path) -> None:
    assert "not running" in ok(polcommit("devnet", "status", home=tmp_path)).err
    assert "not running" in ok(polcommit("devnet", "stop", home=tmp_path)).err
    assert_one_line(polcommit("devnet", "fund", "0x" + "12" * 20, home=tmp_path), 3, "the devnet is not running")
    assert_one_line(polcommit("devnet", "start", "--port", world.port, home=tmp_path), 3, f"port {world.port}")
    for words in (("--port", 70000), ("--block-time", 0), ("--block-time", "soon")):
        assert_one_line(polcommit("devnet", "start", *words, home=tmp_path), 2, str(words[0]))
    assert_one_line(world("devnet", "fund", "alice"), 2, "'alice'")
    assert_one_line(world("devnet", "fund", "0x" + "12" * 20, "--ether", -1), 2, "--ether")
    env = {"POLCOMMIT_ANVIL": "/nowhere/anvil"}
    assert_one_line(polcommit("devnet", "start", "--port", free_port(), home=tmp_path, env=env), 3, "/nowhere/anvil")
    env = {"POLCOMMIT_ANVIL": "/bin/false"}
    result = polcommit("devnet", "start", "--port", free_port(), home=tmp_path, env=env)
    assert_one_line(result, 3, "anvil ended at once")
    (tmp_path / "file").write_bytes(b"")
    assert_one_line(polcommit("devnet", "start", home=tmp_path / "file"), 3, "file")


def test_a_devnet_whose_dump_is_damaged(world: World, tmp_path: Path) -> None:
    dump = (world.home / "devnet" / "state.json.gz").read_bytes()
    folder = tmp_path / "devnet"
    folder.mkdir()
    for data in (b"", dump[: len(dump) // 2], dump[:1000] + b"\x00\x00" + dump[1002:], b"{}"):
        (folder / "state.json.gz").write_bytes(data)
        result = polcommit("devnet", "start", "--port", free_port(), home=tmp_path)
        assert_one_line(result, 3, "state.json.gz is damaged")
        assert (folder / "state.json.gz").read_bytes() == data
        assert ok(polcommit("devnet", "status", home=tmp_path)).out.startswith("running: False")
