"""Challenges by three files instead of a pipe; interruptions, earlier challenges, budgets, and anchoring once."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from world import Ask, Finished, Registered, World, at_home, ended, one_process, train

from polcommit import transcript as hashes
from polcommit.encoding import digest
from polcommit.ledger.rpc import Rpc
from polcommit.sampling import draw, draws_needed
from polcommit.session.pending import Challenges
from polcommit.session.status import damage


def kill_when(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    """SIGKILL as soon as something is there; it must be before the process ends."""
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert ended(process).status == -signal.SIGKILL


@pytest.fixture(scope="module")
def files(world: World) -> Registered:
    run = world.runs["files"]
    with at_home(world.home("bob")):
        train(run.path)
        world.anchor(run)
    return run


@pytest.fixture(scope="module")
def interrupted(world: World, files: Registered, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Vera's first challenge: her process is killed after the transaction, before anybody was asked."""
    own = Challenges(world.home("vera")).of_run
    request = tmp_path_factory.mktemp("interrupted") / "request"
    process = world.start("vera", "challenge", files.id.hex(), "--count", 3, "--request", request)
    kill_when(process, lambda: any(folder.id is not None for folder in own(files.id)))
    assert not request.exists()
    return files


def drawn(world: World, run: Registered, name: str, number: int, steps: int) -> tuple[int, ...]:
    """The draw of a challenge, computed from the ledger, the request and the nonce alone."""
    folder = Challenges(world.home(name)).find(run.id, number)
    ledger = world.connection(name).ledger
    event = ledger.challenges(run.id)[number - 1]
    chain = ledger.identity()
    seed = hashes.draw_seed(
        chain_id=chain.chain_id,
        contract=chain.contract,
        run=run.id,
        commitment=folder.request.commitment,
        challenge_id=number,
        request=digest(folder.request),
        nonce=folder.nonce,
        prevrandao=ledger.block(event.position.block + 4).prevrandao,
    )
    return draw(seed, folder.request, steps)


class Exchange:
    """Files go between vera and bob; neither sees the other's home."""

    def __init__(self, world: World, run: Registered, folder: Path) -> None:
        self.world, self.run = world, run
        self.request, self.opening, self.receipt, self.out = (
            folder / name for name in ("request", "opening", "receipt", "bundle")
        )

    def ask(self, *how: object) -> Finished:
        return self.world.cli(
            "vera", "challenge", self.run.id.hex(), *how, "--request", self.request, "--json"
        ).require(0)

    def answer(self) -> None:
        self.world.cli(
            "bob", "respond", self.run.path, "--request", self.request, "--out", self.opening, "--json"
        ).require(0)

    def judge(self, status: int) -> dict[str, object]:
        """The verdict; the prover keeps the receipt."""
        command = ("challenge", self.run.id.hex(), "--opening", self.opening, "--receipt", self.receipt)
        done = self.world.cli("vera", *command, "--out", self.out, "--json").require(status)
        self.world.cli("bob", "respond", self.run.path, "--receipt", self.receipt).require(0)
        return done.json


def test_an_unanswered_challenge_holds_up_every_later_verdict(
    world: World, interrupted: Registered, tmp_path: Path
) -> None:
    """Challenge 1 was paid for and never answered: a verifier who draws again until they like it gains nothing."""
    exchange = Exchange(world, interrupted, tmp_path)
    asked = exchange.ask("--detect", 0.6, "--fraction", 0.25)
    wanted = draws_needed(12, 0.25, 0.6)
    assert f"drawing {wanted} of 12 steps" in asked.stderr
    assert "challenge 1 has no verdict yet; finish it with --resume 1" in asked.stderr
    assert asked.json["challenge"] == 2
    exchange.answer()
    found = exchange.judge(3)
    assert found["verdict"] == "inconclusive" and len(found["steps"]) == wanted == len(found["reexecuted"])  # type: ignore[arg-type]
    assert [(f["step"], f["what"]) for f in found["findings"]] == [("V6", "challenge 1 was unanswered")]  # type: ignore[attr-defined]
    assert [earlier["outcome"] for earlier in found["challenges"]] == ["unanswered"]  # type: ignore[attr-defined]


def test_an_interrupted_challenge_is_finished_with_the_same_draw(
    world: World, interrupted: Registered, tmp_path: Path
) -> None:
    """And with it out of the way, verdicts are to be had again."""
    exchange = Exchange(world, interrupted, tmp_path)
    assert exchange.ask("--resume", 1).json["challenge"] == 1
    first = exchange.request.read_bytes()
    assert exchange.ask("--resume", 1).json["challenge"] == 1
    assert exchange.request.read_bytes() == first
    exchange.answer()
    found = exchange.judge(0)
    assert found["verdict"] == "accepted" and found["challenges"] == []
    assert tuple(found["steps"]) == drawn(world, interrupted, "vera", 1, 12)  # type: ignore[arg-type]

    again = world.cli("vera", "challenge", interrupted.id.hex(), "--resume", 1, "--request", exchange.request)
    assert again.require(2).stderr.startswith("polcommit: challenge 1 has its verdict: accepted")

    listed = world.cli("victor", "challenge", interrupted.id.hex(), "--steps", "11,3-4", "--json",
                       "--prover", world.respondent(interrupted), "--out", tmp_path / "victor")  # fmt: skip
    found = listed.require(0).json
    assert found["steps"] == [3, 4, 11] and found["detection"]["probability"] == 0.0
    assert next(earlier["outcome"] for earlier in found["challenges"]) == "accepted"
    assert "unanswered" not in {earlier["outcome"] for earlier in found["challenges"]}
    assert len({earlier["verifier"] for earlier in found["challenges"]} | {found["verifier"]}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["request", "pending", "event"])
def test_killed_at_each_step_of_a_challenge(world: World, files: Registered, tmp_path: Path, name: str) -> None:
    """Whatever was durable when it died, the next run of the command goes on from there, and pays once."""
    run, home = files, world.home("vera") / "challenges" / files.id.hex()
    before = len(list(home.glob("*")))
    known = len(world.connection("vera").ledger.challenges(run.id))
    process = world.start("vera", "challenge", run.id.hex(), "--count", 1, "--request", tmp_path / "request")
    kill_when(process, lambda: (home / str(before + 1) / name).exists())
    time.sleep(3)       # a transaction that was on its way is in a block by now
    exchange = Exchange(world, run, tmp_path)
    if name == "request":
        assert len(world.connection("vera").ledger.challenges(run.id)) == known
        exchange.ask("--count", 1)      # nothing was sent: a new one
    else:
        exchange.ask("--resume", known + 1)
    assert len(world.connection("vera").ledger.challenges(run.id)) == known + 1
    exchange.answer()
    assert exchange.judge(0)["verdict"] == "accepted"


def test_who_is_not_eligible_is_told_so(world: World, files: Registered) -> None:
    before = len(world.connection("vera").ledger.challenges(files.id))
    done = world.cli("eve", "challenge", files.id.hex(), "--count", 1, "--prover", world.respondent(files)).require(3)
    assert done.stderr.startswith("polcommit: the anchor is not sealed to this verifier\nhint: ")
    assert len(done.stderr.splitlines()) == 2 and done.stdout == ""
    assert len(world.connection("vera").ledger.challenges(files.id)) == before


@pytest.mark.parametrize(("arguments", "status", "said"), [
    (("--count", 3, "--detect", 0.9, "--prover", "false"), 2, "--count and --detect exclude one another"),
    (("--count", 3), 2, "nobody is there to answer"),
    (("--steps", "0,1", "--prover", "false"), 2, "steps count from 1"),
    (("--steps", "3-13", "--prover", "false"), 2, "the head covers 12 steps"),
    (("--count", 13, "--prover", "false"), 2, "the head covers 12 steps"),
    (("--head", 2, "--count", 3, "--prover", "false"), 2, "has no head 2 on this chain"),
    (("--resume", 99, "--prover", "false"), 3, "no challenge 99 of run"),
])  # fmt: skip
def test_what_cannot_be_asked_for_costs_nothing(
    world: World, files: Registered, arguments: tuple[object, ...], status: int, said: str
) -> None:
    """Nothing is sent, and nothing begun."""
    ledger = world.connection("vera").ledger
    before = len(ledger.challenges(files.id)), len(Challenges(world.home("vera")).of_run(files.id))
    done = world.cli("vera", "challenge", files.id.hex(), *arguments).require(status)
    assert said in done.stderr
    assert (len(ledger.challenges(files.id)), len(Challenges(world.home("vera")).of_run(files.id))) == before


# --- anchoring, once ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def budgeted(world: World) -> Registered:
    """Anchored by a process that was killed between signing and recording, and then by another."""
    run = world.runs["budget"]
    with at_home(world.home("bob")):
        train(run.path)
    pending, position = (run.path / "anchors" / name for name in ("1.pending", "1.anchored"))
    kill_when(world.start("bob", "anchor", run.path), pending.exists)
    assert not position.exists()
    signed = pending.read_bytes()
    done = world.cli("bob", "anchor", run.path, "--json").require(0)
    assert done.json["sent"] and pending.read_bytes() == signed
    return run


def test_no_head_is_ever_anchored_twice(world: World, budgeted: Registered) -> None:
    """Not after kill -9 between signing and recording, and not by running the command again."""
    connection = world.connection("bob")
    assert len(connection.ledger.anchors(budgeted.id)) == 1
    address = "0x" + world.card("bob").account.hex()
    rpc = Rpc(world.rpc)
    before = rpc.call("eth_getTransactionCount", address, "pending")
    done = world.cli("bob", "anchor", budgeted.path, "--json").require(0)
    assert done.json["sent"] is False and "nothing new to anchor" in done.stderr
    assert rpc.call("eth_getTransactionCount", address, "pending") == before
    assert len(connection.ledger.anchors(budgeted.id)) == 1
    assert not list(damage(budgeted.folder))


def test_beyond_its_budget_a_verifier_is_shown_nothing(world: World, budgeted: Registered, tmp_path: Path) -> None:
    """Four steps for each: what is asked beyond that cannot be held against the run, and says nothing for it."""
    vera, victor = world.verifier("vera"), world.verifier("victor")
    first = world.announce(vera, "vera", budgeted.id, Ask(strategy="list", steps=(1, 2, 3, 4)))
    second = world.announce(victor, "victor", budgeted.id, Ask(strategy="list", steps=(5,)))
    third = world.announce(vera, "vera", budgeted.id, Ask(strategy="list", steps=(4, 5)))
    with one_process():
        assert world.settle(budgeted, vera, first, tmp_path / "1").verdict.verdict == "accepted"
        accepted = world.settle(budgeted, victor, second, tmp_path / "2").verdict
        refused = world.settle(budgeted, vera, third, tmp_path / "3").verdict
    assert refused.verdict == "inconclusive" and refused.reexecuted == ()
    (finding,) = refused.findings
    assert (finding.check, finding.what) == ("V6", "disclosure budget exhausted")
    assert "5 steps would be disclosed" in finding.found
    assert accepted.verdict == "accepted"
    left = {budget.verifier: budget.steps for budget in accepted.budgets}
    assert left == {vera.public: 0, victor.public: 3}
