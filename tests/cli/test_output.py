"""The result on standard output, everything else on standard error, and help that is quick."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import World
from shell import assert_one_line, environment, ok, polcommit

COMMANDS = [
    (), ("anchor",), ("challenge",), ("demo",), ("devnet",), ("devnet", "start"), ("devnet", "stop"),
    ("devnet", "status"), ("devnet", "fund"), ("inspect",), ("keys",), ("keys", "new"), ("keys", "list"),
    ("keys", "show"), ("plan",), ("calibrate",), ("record",), ("register",), ("respond",), ("spoof",), ("status",),
    ("verify",),
]  # fmt: skip


def test_help_of_every_command_loads_neither_torch_nor_web3() -> None:
    script = (
        "import sys\n"
        "from polcommit.cli.main import main\n"
        f"for words in {COMMANDS!r}:\n"
        "    for flag in ('--help', '-h'):\n"
        "        main.main([*words, flag], prog_name='polcommit', standalone_mode=False)\n"
        "heavy = {'torch', 'web3', 'eth_account', 'eth_abi', 'numpy', 'sklearn'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(None), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("Usage: polcommit") == 2 * len(COMMANDS)


@pytest.mark.parametrize("words", [("--help",), ("challenge", "-h"), ("devnet", "--help"), ("--version",)])
def test_help_is_a_result(words: tuple[str, ...]) -> None:
    result = ok(polcommit(*words))
    assert "polcommit" in result.out
    assert result.err == ""


def test_every_command_is_listed() -> None:
    listed = ok(polcommit("--help")).out
    for words in COMMANDS[1:]:
        assert f"\n  {words[0]} " in listed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "missing command"),
        (("devnet",), "missing command"),
        (("keys",), "missing command"),
        (("frobnicate",), "'frobnicate'"),
        (("keys", "frobnicate"), "'frobnicate'"),
        (("--frobnicate",), "--frobnicate"),
        (("verify", "--frobnicate", "x"), "--frobnicate"),
        (("verify",), "EVIDENCE"),
        (("status", "a", "b"), "b"),
        (("challenge", "ab" * 32, "--count", "many"), "--count"),
        (("keys", "new", "x"), "--role"),
        (("keys", "new", "x", "--role", "king"), "king"),
        (("devnet", "start", "--port", "0"), "--port"),
    ],
)
def test_usage_errors_have_status_2_and_point_to_the_help(words: tuple[str, ...], named: str, tmp_path: Path) -> None:
    result = polcommit(*words, home=tmp_path)
    assert_one_line(result, 2, named)
    assert result.err.splitlines()[-1].startswith("hint: see 'polcommit")


def test_json_of_every_command(world: World, tmp_path: Path) -> None:
    """The other ones made the world."""
    run = world.copy(tmp_path)
    for words in (
        ("keys", "list"),
        ("keys", "show", "vera"),
        ("keys", "new", "json-key", "--role", "prover", "--no-passphrase"),
        ("devnet", "status"),
        ("devnet", "start", "--port", world.port),
        ("devnet", "fund", "0x" + "11" * 20),
        ("status", run),
        ("status", run, "--check"),
        ("inspect", world.evidence),
        ("inspect", world.request),
        ("inspect", world.opening),
        ("inspect", world.receipt),
        ("inspect", run / "manifest"),
        ("anchor", run, "--key", "alice"),
        ("record", run),
        ("respond", run, "--receipt", world.receipt),
        ("verify", world.evidence, "--policy", world.policy),
    ):
        result = ok(world(*words, "--json"))
        assert isinstance(json.loads(result.out), dict), str(result)
    shutil.rmtree(world.home / "keys" / "json-key")


def test_json_of_a_challenge_by_files(world: World, elsewhere: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    done = polcommit("challenge", world.id, "--opening", world.opening, "--out", out, "--json", **elsewhere)
    verdict = json.loads(ok(done).out)
    assert (verdict["verdict"], verdict["basis"], len(verdict["steps"])) == ("accepted", "bit-exact", 2)
    again = json.loads(ok(world("verify", out, "--policy", world.policy, "--json")).out)
    assert (again["verdict"], again["steps"]) == ("accepted", verdict["steps"])


def test_json_of_what_is_rejected(world: World, tmp_path: Path) -> None:
    bad = tmp_path / "evidence"
    bad.write_bytes(world.evidence.read_bytes()[:-1])
    result = world("verify", bad, "--policy", world.policy, "--json")
    assert result.status == 1
    assert json.loads(result.out)["verdict"] == "rejected"
    assert json.loads(result.out)["findings"]


@pytest.mark.parametrize(
    "words",
    [
        ("status", "nowhere"),
        ("verify", "nowhere"),
        ("inspect", "nowhere"),
        ("anchor", "nowhere"),
        ("record", "nowhere"),
        ("respond", "nowhere", "--stdio"),
        ("challenge", "nowhere", "--count", "1"),
        ("keys", "show", "nobody"),
        ("devnet", "fund", "0x12"),
    ],
)
def test_errors_leave_standard_output_empty_with_json_too(words: tuple[str, ...], tmp_path: Path) -> None:
    assert_one_line(polcommit(*words, "--json", home=tmp_path, cwd=tmp_path), {2, 3})


def test_a_reader_that_goes_away_is_no_rejection(world: World) -> None:
    """Closed before anything is written: SIGPIPE's kind of end, but never 0 (not delivered) or 1 (rejected)."""
    words = [sys.executable, "-m", "polcommit.cli.main"]
    for arguments in (["status", str(world.run)], ["inspect", str(world.evidence)], ["--help"]):
        child = subprocess.Popen(
            [*words, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(world.home)
        )
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        said = child.stderr.read().decode()
        child.stderr.close()
        assert child.wait() == 3
        assert said.startswith("polcommit: ") and len(said.splitlines()) == 1, said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_result_that_cannot_be_written_is_not_done(world: World) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "polcommit.cli.main", "status", str(world.run)],
            stdout=full, stderr=subprocess.PIPE, env=environment(world.home), check=False,
        )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.decode().startswith("polcommit: disk full (no space left on device)\n")
    assert "Exception ignored" not in done.stderr.decode()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    quiet = polcommit("status", "nowhere", home=tmp_path, cwd=tmp_path)
    loud = polcommit("--debug", "status", "nowhere", home=tmp_path, cwd=tmp_path)
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err and "StorageError" in loud.err
    assert loud.err.endswith(quiet.err)
    assert loud.status == quiet.status == 3


def test_progress_is_silent_where_there_is_no_terminal(world: World) -> None:
    assert ok(world("status", world.run, "--check")).err == ""
