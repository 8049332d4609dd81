"""Missing, empty, truncated, foreign and tampered files, for every command that reads one."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import World, register
from shell import all_of, assert_one_line, ok, polcommit

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00"
FOREIGN = {
    "empty": b"",
    "one byte": b"\x00",
    "random bytes": secrets.token_bytes(3000),
    "png": PNG,
    "json": b'{"polcommit": [1, 2, 3]}',
    "pickle": pickle.dumps({"state": list(range(100))}),
    "a length and nothing": b"\xff\xff\xff\xff",
    "zeros": bytes(5000),
    "text": "größer als nichts\n".encode() * 20,
    "deep": b"\x91" * 100_000,
}


#: For commands that take seconds; `-m slow` tries everything on everything.
FEW = ("empty", "random bytes", "json")
THOROUGH = pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["few", "all"])


def foreign(folder: Path, few: bool = False, **more: bytes) -> dict[str, Path]:
    """A file of each kind, and the path of none."""
    found = {"missing": folder / "missing", "under a file": folder / "empty" / "x"}
    chosen = {name: FOREIGN[name] for name in FEW} if few else FOREIGN
    for name, content in (chosen | more).items():
        found[name] = folder / name.replace(" ", "-")
        found[name].write_bytes(content)
    return found


def truncated(path: Path, *, least: int = 1, few: bool = False) -> dict[str, bytes]:
    data = path.read_bytes()
    lengths = (least, least + 3, 21 + least, len(data) // 2, len(data) - 1)[3 if few else 0 :]
    return {f"first {length} bytes": data[:length] for length in lengths if length < len(data)}


def flipped(path: Path, *places: float) -> dict[str, bytes]:
    data = path.read_bytes()
    found = {}
    for place in places:
        at = min(int(place * len(data)), len(data) - 1)
        found[f"byte {at} flipped"] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    return found


def named(path: Path) -> str:
    return path.name


# --- files that are read -------------------------------------------------------------------------------------


@THOROUGH
def test_verify_says_that_it_is_no_bundle(world: World, tmp_path: Path, few: bool) -> None:
    others = {"a request": world.request, "an opening": world.opening, "a receipt": world.receipt}
    others["a manifest"] = world.run / "manifest"
    cases = foreign(tmp_path, few) | others

    def check(path: Path) -> None:
        assert_one_line(world("verify", path, "--policy", world.policy), 3, named(path))

    all_of(cases, check)
    assert_one_line(world("verify", tmp_path), 2, str(tmp_path))


@THOROUGH
def test_verify_rejects_a_bundle_that_was_cut_or_changed(world: World, tmp_path: Path, few: bool) -> None:
    bad = truncated(world.evidence, least=21, few=few)
    bad |= flipped(world.evidence, 0, 0.01, 0.99, *(() if few else (0.001, 0.2, 0.5)))
    bad["bytes behind it"] = world.evidence.read_bytes() + b"\x00"
    paths = {}
    for name, data in bad.items():
        paths[name] = tmp_path / name.replace(" ", "-")
        paths[name].write_bytes(data)

    def check(path: Path) -> None:
        result = world("verify", path, "--policy", world.policy)
        if path.read_bytes()[:21] != world.evidence.read_bytes()[:21]:
            assert_one_line(result, 3, named(path))
            return
        assert result.status == 1, str(result)
        assert result.out.startswith("REJECTED") and result.err == "", str(result)

    all_of(paths, check)


@THOROUGH
def test_inspect(world: World, tmp_path: Path, few: bool) -> None:
    cut = truncated(world.request, few=few)
    cut |= {f"bundle, {name}": data for name, data in truncated(world.evidence).items()}
    cut = {name: data for name, data in cut.items() if len(data) < 2000}    # contents behind the record are not shown

    def check(path: Path) -> None:
        assert_one_line(world("inspect", path), 3, named(path))

    all_of(foreign(tmp_path, few, **cut), check)
    assert_one_line(world("inspect", tmp_path), 2, str(tmp_path))
    assert_one_line(world("inspect", world.run / "secret"), 3, "secret")


@THOROUGH
def test_challenge_with_an_opening_that_is_none(world: World, tmp_path: Path, few: bool) -> None:
    cases = foreign(tmp_path, few, **truncated(world.opening, few=few))
    cases |= {"a request": world.request, "a bundle": world.evidence, "a receipt": world.receipt}
    out = tmp_path / "evidence"

    def check(path: Path) -> None:
        assert_one_line(world("challenge", world.id, "--opening", path, "--out", out), 3)

    all_of(cases, check)
    assert not out.exists()
    assert_one_line(world("challenge", world.id, "--opening", tmp_path), 2, str(tmp_path))


def test_challenge_with_an_opening_that_was_changed_does_not_cost_the_draw(world: World, tmp_path: Path) -> None:
    """What does not decrypt is not the prover's answer: no verdict, and the honest opening still counts."""
    out = tmp_path / "evidence"
    for name, data in flipped(world.opening, 0.002, 0.5).items():
        bad = tmp_path / name
        bad.write_bytes(data)
        assert_one_line(world("challenge", world.id, "--opening", bad, "--out", out), 3)
        assert not out.exists()
    pending = world.home / "challenges" / world.id / "2"
    assert (pending / "request").exists() and not (pending / "receipt").exists()


def test_challenge_with_an_opening_of_another_run(world: World, tmp_path: Path) -> None:
    assert_one_line(world("challenge", "ab" * 32, "--opening", world.opening), 3, "no challenge 2")


@THOROUGH
def test_a_released_model_that_is_none(world: World, tmp_path: Path, few: bool) -> None:
    cases = foreign(tmp_path, few, cut=b"\x10\x00\x00\x00\x00\x00\x00\x00{}")

    def check(path: Path) -> None:
        status = 3 if not path.is_file() else 2
        for words in (("challenge", world.id, "--count", 1, "--request", tmp_path / "r"), ("verify", world.evidence)):
            result = world(*words, "--policy", world.policy, "--model", path)
            assert_one_line(result, status, named(path))

    all_of(cases, check)
    assert not (tmp_path / "r").exists()


@THOROUGH
def test_respond_to_a_request_that_is_none(world: World, tmp_path: Path, few: bool) -> None:
    out = tmp_path / "opening"
    cases = foreign(tmp_path, few, **truncated(world.request, few=few))
    cases |= {"an opening": world.opening, "a bundle": world.evidence, "a receipt": world.receipt}

    def check(path: Path) -> None:
        assert_one_line(world("respond", world.run, "--request", path, "--out", out), 3, named(path))

    all_of(cases, check)
    assert not out.exists()


def test_respond_to_a_request_that_was_changed(world: World, tmp_path: Path) -> None:
    """Other bytes are another request than the one on the ledger: refused, and nothing is disclosed.

    The last byte is no part of the request: it asks for gradients of the same steps.
    """
    run = world.copy(tmp_path)
    before = sorted(path.name for path in (run / "disclosed").iterdir())
    for name, data in flipped(world.request, 0.1, 0.98).items():
        bad = tmp_path / name
        bad.write_bytes(data)
        result = world("respond", run, "--request", bad, "--out", tmp_path / "opening", "--key", "alice")
        assert_one_line(result, {1, 3})
    assert not (tmp_path / "opening").exists()
    assert sorted(path.name for path in (run / "disclosed").iterdir()) == before


@THOROUGH
def test_respond_with_a_receipt_that_is_none(world: World, tmp_path: Path, few: bool) -> None:
    run = world.copy(tmp_path)
    cases = foreign(tmp_path, few, **truncated(world.receipt, few=few))
    cases |= {"an opening": world.opening, "a bundle": world.evidence, "a request": world.request}
    before = (run / "receipts" / "1").read_bytes()

    def check(path: Path) -> None:
        assert_one_line(world("respond", run, "--receipt", path), 3, named(path))

    all_of(cases, check)
    for name, data in flipped(world.receipt, 0.2, 0.6, 0.999).items():
        (tmp_path / name).write_bytes(data)
        assert_one_line(world("respond", run, "--receipt", tmp_path / name), {2, 3})
    assert (run / "receipts" / "1").read_bytes() == before


def test_respond_on_a_pipe_that_carries_something_else(world: World) -> None:
    for name in FEW:
        assert_one_line(world("respond", world.run, "--stdio", input=FOREIGN[name]), 3, "standard input")


@THOROUGH
def test_register_with_a_card_that_is_none(world: World, tmp_path: Path, few: bool) -> None:
    card = world.home / "keys" / "vera" / "public.json"
    more = {"cut": card.read_bytes()[:-3], "twice": card.read_bytes() * 2}
    more["with more"] = json.dumps(json.loads(card.read_text()) | {"more": 1}).encode()
    more["short key"] = json.dumps(json.loads(card.read_text()) | {"signing": "ab"}).encode()
    cases = foreign(tmp_path, few, **more) | {"folder": tmp_path}

    def check(path: Path) -> None:
        assert_one_line(register(world.home, tmp_path / "run", "--verifier", path), 2, named(path))

    all_of(cases, check)
    prover = world.home / "keys" / "alice" / "public.json"
    for card in (prover, "alice"):
        assert_one_line(register(world.home, tmp_path / "run", "--verifier", card), 2, "prover's card")
    assert not (tmp_path / "run").exists()


@THOROUGH
def test_a_policy_that_is_no_file_of_ours(world: World, tmp_path: Path, few: bool) -> None:
    def check(path: Path) -> None:
        assert_one_line(world("verify", world.evidence, "--policy", path), 2, named(path))

    all_of(foreign(tmp_path, few, nested=b"x = " + b"[" * 50_000, long=b"x = " + b"9" * 10_000), check)


@THOROUGH
def test_a_keystore_that_is_none(world: World, tmp_path: Path, few: bool) -> None:
    good = world.home / "keys" / "alice" / "account.json"
    huge = json.loads(good.read_text())
    huge["crypto"]["kdfparams"]["n"] = 2**40
    more = {"card": (good.parent / "public.json").read_bytes(), "huge": json.dumps(huge).encode()}
    cases = foreign(tmp_path, few, **truncated(good, few=few), **more)
    env = {"POLCOMMIT_PASSPHRASE": "x"}

    def check(path: Path) -> None:
        assert_one_line(world("anchor", world.run, "--account", path, env=env), 3)

    all_of(cases, check)


# --- folders ---------------------------------------------------------------------------------------------------

FOLDERS = ("anchor", "record", "status", "respond", "challenge")


def test_a_run_folder_that_is_none(world: World, tmp_path: Path) -> None:
    """Missing, empty, somebody else's, a file in its place, and a registration that was never finished."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    shutil.copytree(world.run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "registration").unlink()
    (tmp_path / "file").write_bytes(b"not a folder")
    more = {"respond": ("--request", world.request, "--out", tmp_path / "o"), "challenge": ("--count", 1)}
    cases = {f"{verb} {name}": (verb, name) for verb in FOLDERS for name in ("missing", "file")}
    cases |= {f"anchor {name}": ("anchor", name) for name in ("empty", "other")}
    cases |= {f"{verb} unfinished": (verb, "unfinished") for verb in FOLDERS if verb != "status"}

    def check(case: tuple[str, str]) -> None:
        verb, name = case
        result = world(verb, tmp_path / name, *more.get(verb, ()))
        usage = name == "file" or (name, verb) == ("missing", "challenge")
        assert_one_line(result, 2 if usage else 3, name)

    all_of(cases, check)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    assert list((tmp_path / "other").iterdir()) == [tmp_path / "other" / "notes.txt"]


def test_register_never_overwrites(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path)
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    assert_one_line(register(world.home, run), 3, "already holds a run")
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before
    (tmp_path / "file").write_bytes(b"mine")
    assert_one_line(register(world.home, tmp_path / "file"), 2, "file")
    assert_one_line(register(world.home, tmp_path / "file" / "run"), 3, "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert_one_line(register(world.home, tmp_path / "other"), 3, "other files")


def slow(words: tuple[str, ...], status: int | set[int], contains: str) -> object:
    return pytest.param(words, status, contains, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("words", "status", "contains"),
    [
        (("--recipe", "chess"), 2, "chess"),
        (("--recipe", "json:JSONDecoder"), 2, "json:JSONDecoder"),
        slow(("--recipe", "no.such.module:Class"), {2, 3}, "no.such.module"),
        slow(("--recipe", "digits:"), {2, 3}, "digits:"),
        (("--recipe", "gpt"), 2, "needs data"),
        (("--recipe", "gpt", "--data", "missing.txt"), {2, 3}, "missing.txt"),
        slow(("--recipe", "gpt", "--data", "."), {2, 3}, "directory"),
        (("--recipe", "digits", "--data", "x"), 2, "data"),
        (("--recipe", "digits", "--set", "peak"), 2, "peak"),
        (("--recipe", "digits", "--set", "=1"), 2, "=1"),
        (("--recipe", "digits", "--set", "colour=red"), 2, "colour"),
        (("--recipe", "digits", "--set", "peak=high"), 2, "'high'"),
        slow(("--recipe", "digits", "--set", "peak=nan"), 2, "peak=nan"),
        slow(("--recipe", "digits", "--set", "width=1.5"), 2, "'1.5'"),
        slow(("--recipe", "digits", "--set", "batch=0"), 2, "batch"),
        (("--recipe", "digits", "--batch", "100000"), 2, "100000"),
        slow(("--recipe", "digits", "--set", "accumulation=7"), 2, "7"),
        (("--recipe", "digits", "--steps", "0"), 2, "--steps"),
        (("--recipe", "digits", "--keep", "0"), 2, "--keep"),
        (("--recipe", "digits", "--budget-steps", "-1"), 2, "--budget-steps"),
        slow(("--recipe", "digits", "--key", "nobody"), 3, "nobody"),
        slow(("--recipe", "digits", "--key", "vera"), 2, "vera"),
        (("--recipe", "digits", "--verifier", "nobody"), 2, "nobody"),
    ],
)
def test_register_with_bad_terms(
    world: World, tmp_path: Path, words: tuple[str, ...], status: int | set[int], contains: str
) -> None:
    assert_one_line(world("register", tmp_path / "run", *words, cwd=tmp_path), status, contains)
    assert not (tmp_path / "run" / "manifest").exists()


def test_an_unfinished_registration_is_finished_as_it_was_begun(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path)
    (run / "registration").unlink()
    assert_one_line(register(world.home, run, "--keep", 6), 2, "--keep")
    assert_one_line(register(world.home, run, "--set", "peak=0.1", "--allow-clear-openings"), 2, "peak")
    ok(world("keys", "new", "another", "--role", "prover", "--no-passphrase"))
    keystore, env = world.home / "keys" / "another" / "account.json", {"POLCOMMIT_PASSPHRASE": ""}
    account = json.loads(keystore.read_text())["address"]
    result = register(world.home, run, "--key", "alice", "--account", keystore, "--allow-clear-openings", env=env)
    assert_one_line(result, 2, f"the account is '0x{account}'")
    shutil.rmtree(keystore.parent)
    done = json.loads(ok(register(world.home, run, "--allow-clear-openings", "--json")).out)
    assert done["run"] == world.id      # the transaction that was sent before
    assert (run / "registration").read_bytes() == (world.run / "registration").read_bytes()


# --- a damaged run folder --------------------------------------------------------------------------------------

FILES = (
    "manifest", "secret", "settings.json", "dataset.leaves", "dataset.contents", "registration", "journal",
    "anchors/1.head", "anchors/1.anchored", "environments/0", "disclosed/1", "receipts/1", "states/4.state",
)  # fmt: skip
DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 4]) + data[len(data) // 3 + 1 :],
    "foreign": lambda data: PNG,
}


def damaged(world: World, folder: Path, file: str, how: str) -> Path:
    run = shutil.copytree(world.run, folder / f"{file.replace('/', '-')}-{how}")
    content = DAMAGE[how]((run / file).read_bytes())
    (run / file).unlink() if content is None else (run / file).write_bytes(content)
    return run


@THOROUGH
def test_status_check_finds_every_damage(world: World, tmp_path: Path, few: bool) -> None:
    """Also in what is rarely read. 1: compared and wrong; 3: so damaged that it cannot even be compared."""
    # which heads are anchored, where, and which challenges are answered, the folder alone cannot know
    optional = {"anchors/1.anchored", "disclosed/1", "receipts/1"}
    ways = ("flipped",) if few else DAMAGE
    pairs = [(file, how) for file in FILES for how in ways if how not in ("missing", "flipped") or file not in optional]
    cases = {f"{file}, {how}": (file, how) for file, how in pairs}

    def check(case: tuple[str, str]) -> None:
        run = damaged(world, tmp_path, *case)
        result = world("status", run, "--check")
        if result.status == 1:
            assert "damage:" in result.out and "Traceback" not in result.err, str(result)
        else:
            assert_one_line(result, 3)

    all_of(cases, check)


@THOROUGH
@pytest.mark.parametrize("verb", ["anchor", "record", "respond"])
def test_nothing_goes_on_from_a_damaged_folder(world: World, tmp_path: Path, verb: str, few: bool) -> None:
    """Flipped bits that no digest of this command covers are what `status --check` is for."""
    needed = {
        "anchor": ("manifest", "secret", "registration", "journal", "anchors/1.head", "dataset.leaves"),
        "record": ("settings.json", "dataset.leaves", "registration", "journal", "states/12.state"),
        "respond": ("secret", "journal", "dataset.contents", "anchors/1.head", "states/8.state"),
    }[verb]
    ways = ("foreign",) if few else tuple(how for how in DAMAGE if how != "flipped")
    if few and verb != "anchor":
        needed = needed[1:4]
    more = ("--request", world.request, "--out", tmp_path / "opening") if verb == "respond" else ()
    cases = {f"{file}, {how}": (file, how) for file in needed for how in ways}
    if verb == "record":        # goes on from a journal that was cut, and makes a missing state again
        for name in ("journal, half", "journal, empty", "states/12.state, missing"):
            cases.pop(name, None)
    if verb == "anchor":
        cases |= {f"{file}, flipped": (file, "flipped") for file in ("manifest", "secret", "journal", "dataset.leaves")}

    def check(case: tuple[str, str]) -> None:
        run = damaged(world, tmp_path, *case)
        before = (run / "journal").read_bytes() if (run / "journal").exists() else None
        if verb == "respond":
            shutil.rmtree(run / "disclosed")
        assert_one_line(world(verb, run, *more), {2, 3})
        assert ((run / "journal").read_bytes() if (run / "journal").exists() else None) == before
        assert not (tmp_path / "opening").exists()

    all_of(cases, check)


# --- files that are written ------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_said_before_anything_is_paid_for(world: World, tmp_path: Path) -> None:
    known = sorted((world.home / "challenges" / world.id).iterdir())
    nowhere = tmp_path / "no" / "such" / "file"
    ask = ("challenge", world.id, "--count", 1)
    for words in (
        (*ask, "--request", nowhere),
        (*ask, "--prover", "true", "--out", nowhere),
        (*ask, "--prover", "true", "--receipt", nowhere),
        ("respond", world.run, "--request", world.request, "--out", nowhere),
    ):
        assert_one_line(world(*words), 3, str(nowhere))
    assert_one_line(world(*ask, "--request", tmp_path), 2, str(tmp_path))
    assert sorted((world.home / "challenges" / world.id).iterdir()) == known


def test_what_may_not_be_read_or_written(world: World, tmp_path: Path) -> None:
    """Root may everything, so root gives that up first."""
    wrap: tuple[str, ...] = ()
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything, and there is no setpriv to give that up")
        wrap = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    run = world.copy(tmp_path)
    locked, sealed = tmp_path / "locked", tmp_path / "sealed"
    locked.write_bytes(world.evidence.read_bytes())
    locked.chmod(0)
    sealed.mkdir()
    (sealed / "x").write_bytes(b"")
    sealed.chmod(0o500)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "keys").mkdir(mode=0)
    ask = ("challenge", world.id, "--count", 1)
    for words in (
        ("verify", locked),
        ("inspect", locked),
        ("respond", run, "--receipt", locked),
        ("respond", run, "--request", locked, "--out", tmp_path / "o"),
        ("challenge", world.id, "--opening", locked),
        ("verify", world.evidence, "--policy", locked),
        ("anchor", run, "--account", locked, "--passphrase-file", locked),
        (*ask, "--request", sealed / "request"),
        (*ask, "--prover", "true", "--out", sealed / "evidence"),
        ("respond", run, "--request", world.request, "--out", sealed / "opening"),
        ("register", sealed / "run", "--recipe", "digits"),
    ):
        assert_one_line(world(*words, wrap=wrap), {2, 3}, "locked" if locked in words else "sealed")
    for words in (("keys", "list"), ("keys", "new", "x", "--role", "prover", "--no-passphrase")):
        assert_one_line(polcommit(*words, home=tmp_path / "home", wrap=wrap), 3, "permission denied")
    for words in (("devnet", "start"), ("devnet", "stop")):
        assert_one_line(polcommit(*words, home=sealed / "home", wrap=wrap), 3, "permission denied")
    (run / "journal").chmod(0)
    for verb in ("status", "anchor", "record"):
        assert_one_line(world(verb, run, wrap=wrap), 3, "journal")
    (tmp_path / "home" / "keys").chmod(0o700)


# --- the prover's command --------------------------------------------------------------------------------------

PYTHON = sys.executable


def test_a_prover_that_does_not_answer(world: World, tmp_path: Path) -> None:
    """Each loses nothing but time: the challenge is the same one, resumed."""
    out = tmp_path / "evidence"
    half = tmp_path / "half"
    half.write_bytes(world.opening.read_bytes()[: world.opening.stat().st_size // 2])
    provers = {
        "no such command": "/nowhere/polcommit respond",
        "exits at once": "true",
        "fails": f"{PYTHON} -c 'import sys; sys.stderr.write(\"polcommit: the GPU is on fire\\n\"); sys.exit(3)'",
        "prints garbage": "echo hello verifier, here is what you wanted to know",
        "hangs up after half": f"cat {half}",
        "closes early": f"{PYTHON} -c 'import sys, os; sys.stdin.buffer.read(4); os.close(1); sys.stdin.buffer.read()'",
        "escape sequences": "printf '\\033[2J\\033[1;1H' 1>&2",
    }
    before = set((world.home / "challenges" / world.id).iterdir())
    for name, command in provers.items():
        # the same challenge again and again: resumed, not paid for anew
        result = world("challenge", world.id, "--resume", 2, "--prover", command, "--out", out)
        assert_one_line(result, 3)
        assert "--resume 2" in result.err or "resume the challenge" in result.err, f"{name}: {result}"
        assert "\x1b" not in result.err
        if name == "fails":
            assert "the GPU is on fire" in result.err.splitlines()[-2]
    assert not out.exists()
    assert set((world.home / "challenges" / world.id).iterdir()) == before


@pytest.mark.parametrize(
    ("words", "status", "contains"),
    [
        (("{id}",), 2, "nobody is there to answer"),
        (("{id}", "--prover", ""), 2, "--prover"),
        (("{id}", "--prover", "'unbalanced"), 2, "--prover"),
        (("{id}", "--prover", "true", "--request", "r", "--count", "1"), 2, "exclude"),
        (("{id}", "--prover", "true", "--opening", "r"), 2, "exclude"),
        (("{id}", "--prover", "true", "--count", "1", "--detect", "0.5"), 2, "exclude"),
        (("{id}", "--prover", "true", "--fraction", "0.5", "--count", "1"), 2, "--fraction"),
        (("{id}", "--prover", "true", "--detect", "2"), 2, "2.0"),
        (("{id}", "--prover", "true", "--detect", "nan"), 2, "nan"),
        (("{id}", "--prover", "true", "--detect", "0.9", "--fraction", "0"), 2, "fraction"),
        (("{id}", "--prover", "true", "--detect", "0.9", "--fraction", "nan"), 2, "fraction"),
        (("{id}", "--prover", "true", "--count", "13"), 2, "12 steps"),
        (("{id}", "--prover", "true", "--steps", "0"), 2, "steps count from 1"),
        (("{id}", "--prover", "true", "--steps", "13"), 2, "12 steps"),
        (("{id}", "--prover", "true", "--steps", "5-3"), 2, "5-3"),
        (("{id}", "--prover", "true", "--steps", "²"), 2, "--steps"),
        (("{id}", "--prover", "true", "--steps", "1,,2"), 2, "--steps"),
        (("{id}", "--prover", "true", "--steps", "1-"), 2, "--steps"),
        (("{id}", "--prover", "true", "--steps", "-4"), 2, "--steps"),
        (("{id}", "--prover", "true", "--steps", "top-q"), 2, "top-q"),
        (("{id}", "--prover", "true", "--steps", "1-99999999999999"), 2, "too many"),
        (("{id}", "--prover", "true", "--count", "1", "--head", "7"), 2, "no head 7"),
        (("{id}", "--prover", "true", "--resume", "1"), 2, "has its verdict"),
        (("{id}", "--prover", "true", "--resume", "77"), 3, "no challenge 77"),
        (("{id}", "--prover", "true", "--count", "1", "--key", "alice"), 2, "alice"),
        (("{id}", "--prover", "true", "--count", "1", "--threads", "0"), 2, "--threads"),
        (("0x1234", "--prover", "true", "--count", "1"), 2, "0x1234"),
        (("zz" * 32, "--prover", "true", "--count", "1"), 2, "zz"),
        (("ab" * 32, "--prover", "true", "--count", "1"), 2, "no anchored head"),
    ],
)
def test_challenge_with_bad_wishes(
    world: World, tmp_path: Path, words: tuple[str, ...], status: int, contains: str
) -> None:
    """Each is answered before a challenge is sent and paid for."""
    before = set((world.home / "challenges" / world.id).iterdir())
    filled = [word.format(id=world.id) for word in words]
    assert_one_line(world("challenge", *filled, cwd=tmp_path), status, contains)
    assert set((world.home / "challenges" / world.id).iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--stdio", "--request", "r", "--out", "o"),
        ("--request", "r"),
        ("--out", "o"),
    ],
)
def test_respond_with_bad_wishes(world: World, words: tuple[str, ...]) -> None:
    assert_one_line(world("respond", world.run, *words), 2, "--request")


def test_a_bundle_whose_verifier_nobody_trusts_can_be_replayed(world: World) -> None:
    policy = world.home / "devnet" / "policy.toml"      # trusts nobody's word
    assert_one_line(world("verify", world.evidence, "--policy", policy), 3, "does not trust")
    result = ok(world("verify", world.evidence, "--replay", "--policy", policy, "--json"))
    assert json.loads(result.out)["verdict"] == "accepted"
