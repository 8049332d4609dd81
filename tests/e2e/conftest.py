"""One chain for all end-to-end tests, people with homes of their own, and their runs, registered together.

A registration waits for a later block; all of them wait for it at the same time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from unsteady import Unsteady
from world import HERE, Ask, Finished, Registered, World, at_home, ended, free_port, one_process, train

from polcommit.ledger.anvil import npm_binary
from polcommit.ledger.devnet import Devnet
from polcommit.recipes.digits import Digits
from polcommit.recipes.gpt import Gpt
from polcommit.session import register as registering
from polcommit.session import registration
from polcommit.session.connection import Connection
from polcommit.session.record import record
from polcommit.storage.runfolder import RunFolder
from polcommit.training.recipe import Recipe

CONTRACTS = Path(__file__).parents[2] / "contracts"
GPT = {
    "steps": 24, "batch": 4, "accumulation": 2, "layers": 2, "heads": 2, "width": 16, "context": 16, "warm_up": 4,
    "dropout": 0.1, "clip": 0.5, "autocast": "true",
}  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A run to be registered in this process."""

    name: str
    prover: str
    recipe: Recipe
    keep: int = 4
    budget: int = 1000
    data: Path | None = None


def tiny(steps: int = 12) -> Digits:
    """Real digits, in batches and layers so small that bundles of it can be taken apart byte by byte."""
    return Digits(steps=steps, batch=4, width=4)


def small_gpt(text: Path) -> Gpt:
    """A transformer of two layers, over a text."""
    return Gpt(steps=8, batch=4, accumulation=2, layers=2, heads=2, width=16, context=16, warm_up=2, text=text)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if npm_binary(CONTRACTS / "node_modules") is None and shutil.which("anvil") is None:
        pytest.skip("no anvil: run scripts/node-setup")
    made = World(tmp_path_factory.mktemp("world"))
    home = made.home("operator")
    home.mkdir(parents=True)
    started = made.cli("operator", "devnet", "start", "--port", free_port(), "--block-time", 0.25, "--json").require(0)
    made.rpc = started.json["rpc"]
    made.chain = Devnet(home / "devnet")
    try:
        for name in ("alice", "bob", "carol", "mallory"):
            made.person(name, "prover")
        for name in ("vera", "victor", "eve"):      # eve is eligible for no run
            made.person(name, "verifier")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(HERE))   # workers import the recipes of these tests by name
            _register(made)
            yield made
    finally:
        made.cli("operator", "devnet", "stop").require(0)


def _register(world: World) -> None:
    """Every run of these tests: two by the command, the others here, each prover's one after another."""
    rows = world.root / "rows.txt"
    rows.write_text("".join(f"{i % 16} {i * 7 % 16} {i * 5 % 13} {i * 3 % 11} {i % 2}\n" for i in range(40)))
    text = world.root / "text.txt"
    text.write_text("".join(f"On day {i} the ledger said {i * i % 97}, and nobody could take it back.\n"
                            for i in range(60)))  # fmt: skip
    plans = {
        "bob": [
            Planned("small", "bob", tiny()),
            Planned("files", "bob", tiny()),
            Planned("budget", "bob", tiny(), budget=4),
            Planned("epochs", "bob", Digits(steps=12, batch=64)),
            Planned("unsteady", "bob", Unsteady(rows=rows), data=rows),
            Planned("killed", "bob", tiny(), keep=50),
            Planned("doubted", "bob", tiny(), keep=50),
            Planned("digits-elsewhere", "bob", Digits(steps=24)),
            Planned("gpt-elsewhere", "bob", Gpt(steps=12, text=text), data=text),
        ],
        "mallory": [
            Planned("forged", "mallory", tiny()),
            Planned("copied", "mallory", tiny()),
            Planned("stripped", "mallory", tiny()),
            Planned("momentum", "mallory", tiny(), keep=1),
            Planned("forged gpt", "mallory", small_gpt(text), data=text),
        ],
    }
    cards = [str(world.home(name) / "keys" / name / "public.json") for name in ("vera", "victor")]
    named = ["--verifier", cards[0], "--verifier", cards[1], "--allow-clear-openings", "--json"]
    sets = [word for name, value in GPT.items() for word in ("--set", f"{name}={value}")]
    commands = {
        "main": world.start("alice", "register", world.root / "main", "--recipe", "digits", "--steps", 300, *named),
        "gpt": world.start("carol", "register", world.root / "gpt", "--recipe", "gpt", "--data", text, "--keep", 8,
                           *sets, *named),
    }  # fmt: skip
    prepared = {name: (world.connection(name), world.account(name)) for name in plans}
    folders = {plan.name: _prepared(world, prepared[name][0], plan) for name in plans for plan in plans[name]}
    with ThreadPoolExecutor() as pool:      # accounts do not wait for one another
        sent = pool.map(lambda item: [
            registration.send(folders[plan.name], *prepared[item[0]]) for plan in item[1]
        ], plans.items())  # fmt: skip
    for (prover, own), events in zip(plans.items(), sent, strict=True):
        for plan, event in zip(own, events, strict=True):
            registration.await_beacon(folders[plan.name], prepared[prover][0], event)
            world.runs[plan.name] = _keep(world, plan.name, prover, event.run)
    for name, process in commands.items():
        done: Finished = ended(process).require(0)
        prover = "alice" if name == "main" else "carol"
        world.runs[name] = _keep(world, name, prover, bytes.fromhex(done.json["run"]))


def _prepared(world: World, connection: Connection, plan: Planned) -> RunFolder:
    card = world.card(plan.prover)
    cards = [(other.signing, other.recipient or b"") for other in map(world.card, ("vera", "victor"))]
    terms = registering.Terms(
        prover=card.signing,
        account=card.account,
        verifiers=registering.eligible(cards, steps=plan.budget, samples=1 << 40),
        keep=plan.keep,
        clear_openings=True,
        data=str(plan.data) if plan.data is not None else None,
        key=plan.prover,
    )
    return registering.prepare(world.root / plan.name, plan.recipe, terms, connection)


def _keep(world: World, name: str, prover: str, run: bytes) -> Registered:
    pristine = world.root / "pristine" / name
    shutil.copytree(world.root / name, pristine)
    return Registered(name, prover, world.root / name, pristine, run)


@pytest.fixture(scope="session")
def small(world: World) -> Registered:
    """A short run of bob's, anchored half-way and at its end, answered to victor and then, in clear, to vera."""
    run = world.runs["small"]
    half = world.root / "half"
    with at_home(world.home("bob")):
        with record(run.path, self_check="off") as recorded:
            for batch in recorded:
                recorded.step(batch)
                if batch.step == 6:
                    break
        world.anchor(run)
        train(run.path, die_in=12)
        shutil.copytree(run.path, half)
        train(run.path)
        world.anchor(run)
    victor, vera = world.verifier("victor"), world.verifier("vera")
    first = world.announce(victor, "victor", run.id, Ask(strategy="list", steps=(2, 9)))
    second = world.announce(vera, "vera", run.id, Ask(count=3, clear_openings=True))
    with one_process():
        assert world.settle(run, victor, first, world.root / "victor.polcommit").verdict.verdict == "accepted"
        assert world.settle(run, vera, second, world.root / "vera.polcommit").verdict.verdict == "accepted"
    return run

