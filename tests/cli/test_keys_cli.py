"""Keys and passphrases: from a file, the environment or a terminal, never from a pipe that carries something else."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import World
from eth_account import Account
from shell import assert_one_line, environment, ok, polcommit

SECRET = "correct horse"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encrypted keys and one that is not."""
    home = tmp_path_factory.mktemp("keys") / "home"
    env = {"POLCOMMIT_PASSPHRASE": SECRET}
    ok(polcommit("keys", "new", "alice", "--role", "prover", home=home, env=env))
    ok(polcommit("keys", "new", "vera", "--role", "verifier", home=home, env=env))
    ok(polcommit("keys", "new", "carl", "--role", "prover", "--no-passphrase", home=home))
    return home


@pytest.fixture
def copied(home: Path, world: World, tmp_path: Path) -> dict[str, object]:
    """Options for commands of somebody with these keys and the world's chain; nothing shared is damaged."""
    shutil.copytree(home, tmp_path / "home")
    return {"home": tmp_path / "home", "env": {"POLCOMMIT_POLICY": str(world.policy)}}


def test_private_files_are_for_their_owner_alone(home: Path) -> None:
    for name in ("alice", "vera", "carl"):
        folder = home / "keys" / name
        assert folder.stat().st_mode & 0o777 == 0o700
        files = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        private = {"signing.pem", "account.json"} | ({"hpke.pem"} if name == "vera" else set())
        assert files == dict.fromkeys(private, 0o600) | {"public.json": 0o644}
        encrypted = b"ENCRYPTED" in (folder / "signing.pem").read_bytes()
        assert encrypted == (name != "carl")


@pytest.mark.parametrize(("name", "passphrase"), [("alice", SECRET), ("carl", "")])
def test_the_account_is_a_standard_keystore(home: Path, name: str, passphrase: str) -> None:
    keystore = json.loads((home / "keys" / name / "account.json").read_text())
    shown = json.loads(ok(polcommit("keys", "show", name, "--json", home=home)).out)
    key = Account.decrypt(keystore, passphrase)
    assert Account.from_key(key).address.lower() == shown["account"]
    assert "0x" + keystore["address"] == shown["account"]


def test_the_list_names_all_of_them(home: Path) -> None:
    listed = json.loads(ok(polcommit("keys", "list", "--json", home=home)).out)["keys"]
    assert [(key["name"], key["role"]) for key in listed] == [
        ("alice", "prover"), ("carl", "prover"), ("vera", "verifier"),
    ]  # fmt: skip
    assert ok(polcommit("keys", "list", home=home)).out.count("\n") == 3
    nobody = ok(polcommit("keys", "list", home=home / "other"))
    assert nobody.out == "" and "no keys yet" in nobody.err


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "ü", "a b", "x" * 65])
def test_bad_names(home: Path, name: str) -> None:
    words = ("--role", "prover", "--no-passphrase", "--", name)
    assert_one_line(polcommit("keys", "new", *words, home=home), 2, f"'{name}'")
    assert_one_line(polcommit("keys", "show", "--", name, home=home), 2, f"'{name}'")


def test_a_key_is_never_overwritten(home: Path) -> None:
    before = {path: path.read_bytes() for path in (home / "keys" / "carl").iterdir()}
    words = ("keys", "new", "carl", "--role", "verifier", "--no-passphrase")
    assert_one_line(polcommit(*words, home=home), 2, "exists already")
    assert {path: path.read_bytes() for path in (home / "keys" / "carl").iterdir()} == before


def test_without_a_terminal_nothing_is_asked(home: Path, tmp_path: Path) -> None:
    """And what lies on standard input is not taken for a passphrase."""
    result = polcommit("keys", "new", "dora", "--role", "prover", home=home, input=b"a secret\na secret\n")
    assert_one_line(result, 3, "new passphrase of 'dora'")
    assert "--passphrase-file" in result.err
    empty = tmp_path / "empty"
    empty.write_bytes(b"\n")
    words = ("keys", "new", "dora", "--role", "prover", "--passphrase-file")
    assert_one_line(polcommit(*words, empty, home=home), 2, "empty")
    assert_one_line(polcommit(*words, tmp_path / "missing", home=home), 3, "missing")
    assert_one_line(polcommit(*words, tmp_path, home=home), 2, str(tmp_path))
    empty.write_bytes(b"\xff\xfe")
    assert_one_line(polcommit(*words, empty, home=home), 3, "not text")
    assert not (home / "keys" / "dora").exists()
    assert not [path for path in (home / "keys").iterdir() if path.name.startswith(".")]


def test_passphrase_wrong_missing_and_right(copied: dict[str, object], world: World, tmp_path: Path) -> None:
    env = copied["env"]
    assert isinstance(env, dict)
    words = ("anchor", world.copy(tmp_path), "--key", "alice")
    assert_one_line(polcommit(*words, **copied), 3, "passphrase of 'alice'")    # type: ignore[arg-type]
    wrong = copied | {"env": env | {"POLCOMMIT_PASSPHRASE": "battery staple"}}
    assert_one_line(polcommit(*words, **wrong), 3, "wrong passphrase for")      # type: ignore[arg-type]
    file = tmp_path / "passphrase"
    file.write_text(SECRET + "\nsomething else\n")
    # the right one; then it is the run's account that is another
    given = polcommit(*words, "--passphrase-file", file, **copied)      # type: ignore[arg-type]
    asked = polcommit(*words, **copied | {"env": env | {"POLCOMMIT_PASSPHRASE": SECRET}})   # type: ignore[arg-type]
    for result in (given, asked):
        assert "passphrase" not in result.err
    # a keystore of its own has the same source
    keystore = world.home / "keys" / "alice" / "account.json"
    result = polcommit(*words, "--account", keystore, "--passphrase-file", file, **copied)  # type: ignore[arg-type]
    assert_one_line(result, 3, "wrong passphrase for the Ethereum account")


def test_which_key_when_there_are_several_or_none(copied: dict[str, object], world: World, tmp_path: Path) -> None:
    words = ("register", tmp_path / "new", "--recipe", "digits", "--verifier")
    card = world.home / "keys" / "vera" / "public.json"
    result = polcommit(*words, card, **copied)      # type: ignore[arg-type]
    assert_one_line(result, 2, "there are several: alice, carl")
    assert "--key" in result.err
    nobody = copied | {"home": tmp_path / "nobody"}
    assert_one_line(polcommit(*words, card, **nobody), 2, "no prover's key")    # type: ignore[arg-type]
    result = polcommit("register", tmp_path / "new", "--recipe", "digits", **nobody)    # type: ignore[arg-type]
    assert_one_line(result, 2, "no verifier is named")
    ask = ("challenge", world.id, "--prover", "true", "--count", 1)
    assert_one_line(polcommit(*ask, **nobody), 2, "no verifier's key")  # type: ignore[arg-type]
    assert_one_line(polcommit(*ask, "--key", "carl", **copied), 2, "key 'carl' is a prover's")  # type: ignore[arg-type]
    assert_one_line(polcommit(*ask, "--key", "zoe", **copied), 3, "no key 'zoe'")   # type: ignore[arg-type]
    vera = ("anchor", world.run, "--key", "vera")
    assert_one_line(polcommit(*vera, **copied), 2, "key 'vera' is a verifier's")    # type: ignore[arg-type]


def test_a_verifier_that_the_run_does_not_name(copied: dict[str, object], world: World) -> None:
    env = copied["env"]
    assert isinstance(env, dict)
    ok(polcommit("devnet", "fund", _account(copied["home"], "vera"), home=world.home))
    given = copied | {"env": env | {"POLCOMMIT_PASSPHRASE": SECRET}}
    result = polcommit("challenge", world.id, "--prover", "true", "--count", 1, **given)    # type: ignore[arg-type]
    assert_one_line(result, 3, "not sealed to this verifier")


def _account(home: object, name: str) -> str:
    assert isinstance(home, Path)
    return str(json.loads((home / "keys" / name / "public.json").read_text())["account"])


@pytest.mark.parametrize("file", ["signing.pem", "account.json", "public.json"])
@pytest.mark.parametrize("how", ["missing", "half", "another's"])
def test_damaged_key_files(copied: dict[str, object], world: World, file: str, how: str) -> None:
    home = copied["home"]
    assert isinstance(home, Path)
    path = home / "keys" / "carl" / file
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        other = (world.home / "keys" / "alice" / file).read_bytes()
        contents = {"empty": b"", "half": data[: len(data) // 2], "another's": other, "garbage": bytes(range(256))}
        path.write_bytes(contents[how])
    result = polcommit("anchor", world.run, "--key", "carl", **copied)      # type: ignore[arg-type]
    assert_one_line(result, 3, "carl")


def test_files_that_others_may_read_are_warned_about(copied: dict[str, object]) -> None:
    home = copied["home"]
    assert isinstance(home, Path)
    (home / "keys" / "carl" / "signing.pem").chmod(0o644)
    result = ok(polcommit("keys", "show", "carl", home=home))
    assert "warning: " in result.err and "chmod 600" in result.err


def test_a_terminal_is_asked_twice_and_shows_nothing(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "polcommit.cli.main", "keys", "new", "tess", "--role", "prover"]
    child = subprocess.Popen(
        words, stdin=slave, stdout=subprocess.PIPE, stderr=slave, env=environment(tmp_path), start_new_session=True
    )
    os.close(slave)
    shown = bytearray()

    def listen() -> None:
        while True:
            try:
                data = os.read(master, 1000)
            except OSError:
                return
            before = shown.count(b":")
            shown.extend(data)
            if shown.count(b":") > before and shown.rstrip().endswith(b":"):
                os.write(master, SECRET.encode() + b"\n")

    thread = threading.Thread(target=listen)
    thread.start()
    assert child.stdout is not None
    out = child.stdout.read().decode()
    child.stdout.close()
    assert child.wait(60) == 0, shown.decode()
    thread.join(10)
    os.close(master)
    assert "name:" in out and "passphrase" not in out
    assert b"new passphrase of 'tess'" in shown and SECRET.encode() not in shown
    env = {"POLCOMMIT_PASSPHRASE": SECRET}
    assert b"ENCRYPTED" in (tmp_path / "keys" / "tess" / "signing.pem").read_bytes()
    ok(polcommit("keys", "show", "tess", home=tmp_path, env=env))
