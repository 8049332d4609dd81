"""Runs that nobody's beacon began: post hoc ones, which choose their own seed and W_0, and runs that continue another.

What is tested of a post hoc run is less, and its verdict says so; a child's verdict is no better than its parent's.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from world import Ask, Registered, World, at_home, one_process, train

from polcommit.encoding import decode, encode
from polcommit.errors import ChainUnavailable, Contradiction, PolcommitError, StorageError, UsageError
from polcommit.ledger.registry import Registry
from polcommit.recipes.digits import Digits
from polcommit.records import Receipt, Verdict
from polcommit.session import record as recording
from polcommit.session import register as registering
from polcommit.session.anchor import anchor
from polcommit.session.challenge import Verifier
from polcommit.session.initial import Initial
from polcommit.session.parents import FoundParent, find_parent
from polcommit.session.record import record
from polcommit.session.run import load_run, require_registration
from polcommit.session.status import damage, summary
from polcommit.signing import sign_verdict
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.stored import write_once
from polcommit.training.environment import set_determinism
from polcommit.training.loading import Loader
from polcommit.training.replay import Engine

RECIPE = Digits(steps=8, batch=4, width=4)
BOB = "bob"


def terms(world: World) -> registering.Terms:
    card = world.card(BOB)
    cards = [(other.signing, other.recipient or b"") for other in map(world.card, ("vera", "victor"))]
    return registering.Terms(
        prover=card.signing,
        account=card.account,
        verifiers=registering.eligible(cards, steps=1000, samples=1 << 40),
        keep=4,
        clear_openings=True,
        key=BOB,
    )


def prepared(world: World, name: str, parent: FoundParent | None = None, recipe: Digits = RECIPE) -> RunFolder:
    """A post hoc run, made."""
    path = world.root / name
    return registering.prepare(path, recipe, terms(world), world.connection(BOB), post_hoc=True, parent=parent)


def registered(world: World, name: str, parent: FoundParent) -> RunFolder:
    """A run with a beacon, from another's final state."""
    path = world.root / name
    registering.register(path, RECIPE, terms(world), world.connection(BOB), world.account(BOB), parent=parent)
    return RunFolder.open(path)


def put(world: World, folder: RunFolder) -> Registered:
    """Anchor what was recorded; the run's id is known then."""
    anchor(folder, world.connection(BOB), world.signing(BOB), world.account(BOB))
    run = require_registration(folder).registered.run
    return Registered(folder.path.name, BOB, folder.path, folder.path, run)


def trained(world: World, folder: RunFolder, initial: Initial | None = None) -> Registered:
    """Recorded from beginning to end, and anchored."""
    with record(folder.path, self_check="off", initial=initial) as run:
        for batch in run:
            run.step(batch)
    return put(world, folder)


def lenient(verifier: Verifier, *, trusted: tuple[bytes, ...] = ()) -> Verifier:
    """One whose policy does not want runs to be registered before training."""
    policy = verifier.connection.policy
    relaxed = replace(policy, registered=False, trusted=policy.trusted | {*trusted})
    return replace(verifier, connection=replace(verifier.connection, policy=relaxed))


def verdict(world: World, run: Registered, name: str = "vera", verifier: Verifier | None = None) -> Verdict:
    """What comes of two drawn steps, for a lenient verifier unless one is given."""
    asked = verifier or lenient(world.verifier(name))
    out = world.root / f"{run.name} by {name}.polcommit"
    with one_process():
        announced = world.announce(asked, name, run.id, Ask(count=2, clear_openings=True))
        return world.settle(run, asked, announced, out).verdict


def rejected_at_origin(found: Verdict, what: str) -> None:
    assert (found.verdict, found.findings[0].check, dict(found.checks)["V12"]) == ("rejected", "V12", "failed")
    assert what in found.findings[0].what


def own_initial(seed: int = 1) -> dict[str, torch.Tensor]:
    """A W_0 with the recipe's distribution, as evenly as it can be spread, so that no test of it fails by chance."""
    engine = Engine(RECIPE, bytes(32))
    generator = torch.Generator().manual_seed(seed)
    given = {}
    for name, tensor in engine.initial().tensors.items():
        kind, _, plain = name.partition("/")
        values = tensor.clone()
        if kind == "parameter" and "norm" not in plain:
            weight = engine.state.model.get_parameter(plain.rpartition(".")[0] + ".weight")
            count, bound = values.numel(), weight[0].numel() ** -0.5
            spread = bound * ((torch.arange(count) + 0.5) / count * 2 - 1)
            values = spread[torch.randperm(count, generator=generator)].reshape(values.shape)
        given[plain] = values
    return given


@contextmanager
def failing(kind: type, name: str, error: PolcommitError) -> Iterator[None]:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, fails)
        yield


# --- post hoc -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(world: World) -> Registered:
    """A post hoc run of the recipe's own W_0, anchored half-way and at its end."""
    folder = prepared(world, "post hoc")
    with at_home(world.home(BOB)):
        train(folder.path, die_in=5)
        put(world, folder)
        train(folder.path)
        return put(world, folder)


@pytest.fixture(scope="module")
def judged(world: World, plain: Registered) -> tuple[Receipt, Receipt]:
    """What vera says of it under the default policy, and then under a lenient one."""
    assert verdict(world, plain, verifier=world.verifier("vera")).verdict == "inconclusive"
    assert verdict(world, plain).verdict == "accepted"
    first, second = plain.folder.receipts()
    return first, second


def test_a_post_hoc_run_is_accepted_where_the_policy_allows_it(judged: tuple[Receipt, Receipt]) -> None:
    for receipt in judged:
        assert receipt.verdict.registered is False
        assert dict(receipt.verdict.checks)["V12"] == "passed"
    (finding,) = judged[0].verdict.findings
    assert (finding.check, finding.what) == ("V5", "registered before training")
    assert judged[1].verdict.findings == ()


def test_a_third_party_s_own_policy_decides(world: World, plain: Registered, judged: tuple[Receipt, Receipt]) -> None:
    evidence = world.root / "post hoc by vera.polcommit"
    allowing = world.reader("allowing post hoc", trusted=["vera"], demand="[demand]\nregistered = false\n")
    assert world.cli(allowing, "verify", evidence, "--json").require(0).json["verdict"] == "accepted"
    wanting = world.reader("wanting registration", trusted=["vera"])
    assert world.cli(wanting, "verify", evidence, "--json").require(3).json["verdict"] == "inconclusive"


def test_it_is_registered_once_by_its_first_anchor(world: World, plain: Registered) -> None:
    ledger = world.connection(BOB).ledger
    own = [event for event in ledger.account_registrations(world.card(BOB).account) if event.run == plain.id]
    assert len(own) == 1 and [event.sequence for event in ledger.anchors(plain.id)] == [1, 2]
    found = ledger.registration(plain.id)
    assert found is not None and found.position < ledger.anchors(plain.id)[0].position
    genesis = load_run(plain.folder).transcript
    assert require_registration(plain.folder).beacon is None and len(genesis) == RECIPE.steps + 1
    said = summary(plain.folder)
    assert (said["registered"], said["post hoc"], said["run"]) == (False, True, plain.id.hex())
    assert not list(damage(plain.folder))


@pytest.mark.parametrize("where", ["before the head is sent", "before the registration is noted"])
def test_an_interrupted_anchor_does_not_register_twice(world: World, where: str) -> None:
    folder = prepared(world, f"interrupted {where}")
    train(folder.path)
    ledger, account = world.connection(BOB).ledger, world.card(BOB).account
    before = ledger.registrations(account)
    kind, name = (Registry, "anchor") if "head" in where else (RunFolder, "write_registration")
    with failing(kind, name, ChainUnavailable("the line is dead")), pytest.raises(ChainUnavailable, match="line is"):
        put(world, folder)
    assert ledger.registrations(account) == before + 1
    first = ledger.account_registrations(account)[-1].run
    assert put(world, folder).id == first
    assert ledger.registrations(account) == before + 1


def test_nothing_is_sent_for_a_run_that_could_not_be_anchored(world: World) -> None:
    """No step yet, another account, a damaged folder: found out before the registration, which cannot be taken back."""
    folder = prepared(world, "not to be sent")
    connection, signing, account = world.connection(BOB), world.signing(BOB), world.account(BOB)
    before = connection.ledger.registrations(world.card(BOB).account)
    with pytest.raises(UsageError, match="nothing was recorded"):
        anchor(folder, connection, signing, account)
    train(folder.path)
    with pytest.raises(UsageError, match="is not the run's"):
        anchor(folder, connection, signing, world.account("mallory"))
    elsewhere = replace(folder.place, contract=b"\1" * 20)
    kept = (folder.path / "place").read_bytes()
    (folder.path / "place").write_bytes(encode(elsewhere))
    with pytest.raises(StorageError, match="not of the registered run"):
        anchor(folder, connection, signing, account)
    (folder.path / "place").write_bytes(kept)
    assert folder.registration_pending is None
    assert connection.ledger.registrations(world.card(BOB).account) == before
    assert put(world, folder).folder.anchors.sequences() == (1,)


def test_commands_say_what_a_post_hoc_run_is_before_its_anchor(world: World) -> None:
    path = world.root / "by command"
    card = world.home("vera") / "keys" / "vera" / "public.json"
    made = ("--recipe", "digits", "--steps", 6, "--batch", 4, "--set", "width=4", "--verifier", card)
    done = world.cli(BOB, "register", path, *made, "--post-hoc", "--json").require(0)
    assert done.json == {"run": None, "folder": str(path), "post hoc": True} and "nothing was sent" in done.stderr
    again = world.cli(BOB, "register", path, *made, "--post-hoc").require(3)
    assert "already holds a run" in again.stderr
    shown = world.cli(BOB, "status", path, "--check", "--json").require(0)
    assert (shown.json["run"], shown.json["registered"], shown.json["post hoc"]) == (None, False, True)
    assert "polcommit anchor" in shown.stderr and shown.json["damage"] == []
    for command in (("respond", "--print-run", path), ("challenge", path, "--count", 1)):
        said = world.cli(BOB, *command).require(3)
        assert "never anchored" in said.stderr and "hint: " in said.stderr
    assert "seed" in world.cli(BOB, "inspect", path / "manifest").require(0).stdout
    world.cli(BOB, "record", path, "--self-check", "off", "--json").require(0)
    anchored = world.cli(BOB, "anchor", path, "--json").require(0)
    assert anchored.json["final"] and "post hoc" in anchored.stderr
    assert world.cli(BOB, "respond", "--print-run", path).require(0).stdout.strip() == anchored.json["run"]


def test_an_unfinished_registration_is_not_finished_as_another_kind(world: World) -> None:
    folder = prepared(world, "of another kind")
    with pytest.raises(StorageError, match="already holds a run"):
        registering.register(folder.path, RECIPE, terms(world), world.connection(BOB), world.account(BOB))
    assert folder.registration_pending is None


# --- a W_0 of one's own -------------------------------------------------------------------------------------------


def test_a_w0_of_the_recipe_s_distribution_is_accepted(world: World) -> None:
    folder, initial = prepared(world, "own W_0"), own_initial()
    with pytest.raises(Interrupted), record(folder.path, self_check="off", initial=initial) as run:
        for batch in run:
            run.step(batch)
            if batch.step == 3:
                raise Interrupted
    with pytest.raises(UsageError, match="another W_0"):
        record(folder.path, initial=own_initial(2))
    record(folder.path, self_check="off", initial=initial).close()      # the same script, run again
    assert train(folder.path) == RECIPE.steps
    found = verdict(world, put(world, folder))
    assert (found.verdict, dict(found.checks)["V12"]) == ("accepted", "passed")


class Interrupted(Exception):
    """What a recording dies of here."""


def test_trained_weights_do_not_pass_for_a_w0(world: World) -> None:
    """Norms and buffers as the recipe sets them, the rest stolen: it is the distribution that gives them away."""
    set_determinism()
    recipe = replace(RECIPE, steps=200, batch=64)
    engine = Engine(recipe, b"victim".ljust(32))
    engine.initial()
    for batch in Loader(recipe, engine.seed, 1, recipe.steps):
        engine.step(batch)
    stolen = {name: tensor for name, tensor in engine.state.model.state_dict().items() if "norm" not in name}
    run = trained(world, prepared(world, "stolen W_0"), own_initial() | stolen)
    rejected_at_origin(verdict(world, run), "parameter/")


def test_one_changed_constant_of_w0_is_enough(world: World) -> None:
    initial = own_initial()
    initial["norm1.weight"][2] = 1.0 + 2**-20
    run = trained(world, prepared(world, "changed constant"), initial)
    rejected_at_origin(verdict(world, run), "parameter/norm1.weight of W_0")


def test_what_is_given_must_be_the_recipe_s_model(world: World, tmp_path: Path) -> None:
    folder = prepared(world, "wrong W_0")
    good = own_initial()
    cases = {
        "lacks 'out.bias'": {name: tensor for name, tensor in good.items() if name != "out.bias"},
        "holds 'head.bias', which": good | {"head.bias": torch.zeros(1)},
        r"parameter/out.bias of W_0 is float32 \(9,\), the recipe's model has float32 \(10,\)": good
        | {"out.bias": torch.zeros(9)},
        "parameter/out.bias of W_0 is float64": good | {"out.bias": torch.zeros(10, dtype=torch.float64)},
    }
    for message, given in cases.items():
        with pytest.raises(UsageError, match=message):
            record(folder.path, initial=given)
    (tmp_path / "notes").write_text("no tensors")
    with pytest.raises(UsageError, match="not a safetensors file"):
        record(folder.path, initial=tmp_path / "notes")
    with pytest.raises(StorageError, match="missing"):
        record(folder.path, initial=tmp_path / "missing")
    save_file(good, tmp_path / "W_0.safetensors")
    with record(folder.path, self_check="off", initial=tmp_path / "W_0.safetensors") as run:
        assert all(torch.equal(run.model.state_dict()[name], tensor) for name, tensor in good.items())


def test_a_beacon_s_w0_cannot_be_given(world: World, tmp_path: Path) -> None:
    pristine = shutil.copytree(world.runs["small"].pristine, tmp_path / "run")
    with pytest.raises(UsageError, match="follows from its beacon"):
        record(pristine, initial=own_initial())
    save_file(own_initial(), tmp_path / "W_0.safetensors")
    done = world.cli(BOB, "record", pristine, "--initial", tmp_path / "W_0.safetensors").require(2)
    assert "follows from its beacon" in done.stderr and "--post-hoc" in done.stderr


# --- parents ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def child(world: World, small: Registered) -> Registered:
    """A registered run from the final state of a registered one, which victor and vera have accepted."""
    folder = registered(world, "child", find_parent(small.path, world.root))
    return trained(world, folder)


def test_a_registered_child_of_a_registered_parent_is_accepted(world: World, child: Registered) -> None:
    """By who signed the parent's verdict, and by whoever trusts them."""
    assert verdict(world, child, "victor", world.verifier("victor")).verdict == "accepted"
    trusting = lenient(world.verifier("vera"), trusted=(world.card("victor").signing,))
    found = verdict(world, child, "vera", trusting)
    assert (found.verdict, found.registered, found.basis) == ("accepted", True, "bit-exact")
    assert found.parent is not None and not list(damage(child.folder))
    assert summary(child.folder)["parent"] == world.runs["small"].id.hex()


def test_it_begins_with_the_parent_s_parameters_and_a_fresh_optimizer(child: Registered, small: Registered) -> None:
    last = {entry.name: entry for entry in small.folder.states.get(12).tensors}
    first = child.folder.states.get(0).tensors
    assert {entry.name for entry in first} == {name for name, entry in last.items() if entry.kind != "optimizer"}
    assert all(entry == last[entry.name] for entry in first)


def test_a_parent_s_verdict_by_a_stranger_is_inconclusive(world: World, child: Registered) -> None:
    found = verdict(world, child, "vera")
    (finding,) = found.findings
    assert (found.verdict, finding.check, finding.what) == ("inconclusive", "V12", "verdict on the parent run")
    assert finding.found == world.card("victor").signing.hex()


@pytest.mark.parametrize("outcome", ["rejected", "inconclusive"])
def test_a_parent_that_was_not_accepted_makes_its_child_inconclusive(
    world: World, child: Registered, outcome: str
) -> None:
    """The prover may show another verdict on the same head: it has to be an accepted one."""
    victor = world.verifier("victor")
    shown, path = child.folder.parent.read().claim.receipt, child.path / "parent" / "receipt"
    accepted = decode(shown, Receipt).verdict
    other = sign_verdict(victor.key, replace(accepted, verdict=outcome, basis="none"))
    write_once(path, encode(other), replace=True)
    found = verdict(world, child, "victor", victor)
    write_once(path, shown, replace=True)
    assert found.verdict == "inconclusive"
    assert [(finding.check, finding.found) for finding in found.findings] == [("V12", outcome)]


def test_a_child_of_a_post_hoc_parent_is_not_registered(
    world: World, plain: Registered, judged: tuple[Receipt, Receipt]
) -> None:
    """Registering the child does not launder the parent."""
    folder = registered(world, "laundered", find_parent(plain.path, world.root))
    assert folder.manifest.seed is None
    found = verdict(world, trained(world, folder))
    assert (found.verdict, found.registered) == ("accepted", False)


def test_a_child_that_begins_elsewhere_is_rejected(
    world: World, plain: Registered, judged: tuple[Receipt, Receipt], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(world, "elsewhere", find_parent(plain.path, world.root))
    with pytest.raises(UsageError, match="is the final state of its parent"):
        record(folder.path, initial=own_initial())
    monkeypatch.setattr(recording, "initial_state", lambda run, engine, given: engine.initial())
    rejected_at_origin(verdict(world, trained(world, folder)), "of W_0")


def test_a_parent_in_a_bundle(world: World, small: Registered, tmp_path: Path) -> None:
    """One with states in clear has all of it; for another, index and model of the final state are given beside it."""
    due = find_parent(small.path, tmp_path)
    clear = find_parent(world.root / "vera.polcommit", tmp_path / "work")
    assert clear.named == due.named and clear.stored.state == due.stored.state
    entry = due.stored.state.tensors[0]
    assert bytes(clear.fetch(entry)) == bytes(due.fetch(entry))

    closed, state = world.root / "victor.polcommit", small.path / "states" / "12.state"
    with pytest.raises(UsageError, match="holds no states in clear"):
        find_parent(closed, tmp_path)
    model, other = tmp_path / "model", tmp_path / "other"
    save_file(final_model(small), model)
    save_file(own_initial(), other)
    found = find_parent(closed, tmp_path, state=state, model=model)
    assert prepared(world, "of a bundle", found).manifest.parent == due.named
    with pytest.raises(UsageError, match="is not the parent's final model"):
        prepared(world, "of another model", find_parent(closed, tmp_path, state=state, model=other))
    with pytest.raises(StorageError, match="not the one that the head commits to"):
        find_parent(closed, tmp_path, state=small.path / "states" / "8.state", model=model)


def final_model(run: Registered) -> dict[str, torch.Tensor]:
    engine = Engine(Digits(steps=12, batch=4, width=4), bytes(32))
    engine.restore(run.folder.states.get(12), run.folder.tensors.get)
    return {name: tensor.clone() for name, tensor in engine.state.model.state_dict().items()}


def test_no_child_is_made_of_what_is_no_parent(world: World, small: Registered, tmp_path: Path) -> None:
    """No anchored head, no accepted verdict, another model, a damaged folder, or nothing at all."""
    with pytest.raises(StorageError, match="never anchored"):
        find_parent(prepared(world, "unanchored parent").path, tmp_path)
    with pytest.raises(UsageError, match="has no anchored head"):
        find_parent(small.pristine, tmp_path)
    unread = shutil.copytree(small.path, tmp_path / "unread")
    shutil.rmtree(unread / "receipts")
    with pytest.raises(UsageError, match="no accepted verdict: none"):
        find_parent(unread, tmp_path)
    parent = find_parent(small.path, tmp_path)
    with pytest.raises(UsageError, match=r"running_mean of the parent's final state is float32 \(4,\), of"):
        prepared(world, "wider", parent, replace(RECIPE, width=6))
    with pytest.raises(StorageError, match="no such file"):
        find_parent(tmp_path / "nothing", tmp_path)
    card = world.home("vera") / "keys" / "vera" / "public.json"
    made = ("--recipe", "digits", "--verifier", card, "--parent", tmp_path / "nothing")
    assert "no parent at" in world.cli(BOB, "register", world.root / "none", *made).require(2).stderr


def test_an_unfinished_child_is_not_finished_with_another_parent(
    world: World, small: Registered, plain: Registered, judged: tuple[Receipt, Receipt]
) -> None:
    path, connection = world.root / "unfinished child", world.connection(BOB)
    first = find_parent(small.path, world.root)
    registering.prepare(path, RECIPE, terms(world), connection, parent=first)
    for other in (None, find_parent(plain.path, world.root)):
        with pytest.raises(Contradiction, match="the parent run"):
            registering.register(path, RECIPE, terms(world), connection, world.account(BOB), parent=other)
    assert RunFolder.open(path).registration_pending is None


def test_damage_to_what_is_kept_of_a_parent_is_named(child: Registered, tmp_path: Path) -> None:
    for name in ("head", "receipt", "state"):
        copy = RunFolder.open(shutil.copytree(child.path, tmp_path / name))
        path = copy.path / "parent" / name
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(StorageError, match=str(path)):
            load_run(copy)
        assert any(text.startswith("parent: ") for text in damage(copy))
