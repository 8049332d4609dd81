"""Forgeries, copied anchors, and damage: each is named by the step, or by the line, that finds it."""

from __future__ import annotations

import io
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from world import Ask, InThisProcess, Registered, World, flip, one_process, regenerate_here, train

from polcommit.encoding import decode, encode
from polcommit.envelopes import sealed_digest
from polcommit.errors import PolcommitError
from polcommit.records import Disclosure, Envelope, Openings, Receipt
from polcommit.session import answer as answering
from polcommit.session import bundle, respond
from polcommit.session import challenge as challenging
from polcommit.session.answer import Options, verify_answer
from polcommit.session.challenge import Verifier
from polcommit.session.pending import ChallengeFolder, Challenges
from polcommit.session.recipes import run_recipe
from polcommit.session.run import load_run
from polcommit.session.status import damage, summary
from polcommit.signing import envelope_message, sign
from polcommit.spoofs.attacks.precedence import replay
from polcommit.spoofs.attacks.structural import InfinitesimalUpdate
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.opponent.stage import open_stage
from polcommit.storage.runfolder import RunFolder
from polcommit.training.tree import tensor_from_bytes
from polcommit.verifier import Verification

# --- forgeries ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forged(world: World, small: Registered, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Receipt]:
    """Mallory's forgeries, anchored, challenged together, and answered as well as a forger can."""
    straight, poked = world.runs["forged"], world.runs["momentum"]
    honest = small.folder
    stolen = {
        entry.name: tensor_from_bytes(entry.dtype, entry.shape, memoryview(honest.tensors.get(entry)))
        for entry in honest.states.get(12).tensors
    }
    with open_stage(straight.folder, run_recipe(straight.folder), stolen, Meter()) as stage:
        InfinitesimalUpdate().forge(stage)
        stage.finish()

    def poke(state: Any, step: int) -> None:
        if step == 5:       # training goes on from a momentum that no gradient gave
            for moments in state.optimizer.state.values():
                moments["momentum_buffer"].mul_(-3)
        if step == 9:       # and from running statistics that no batch gave
            with torch.no_grad():
                state.model.get_buffer("norm1.running_mean").add_(1e-3)

    train(poked.path, poke=poke)
    vera, out = world.verifier("vera"), tmp_path_factory.mktemp("forged")
    asked = {}
    for name, run, ask in (
        ("interpolation", straight, Ask(count=3)),
        ("beside", poked, Ask(strategy="list", steps=(4, 6, 10))),
        ("momentum", poked, Ask(strategy="list", steps=(4, 5))),
        ("buffer", poked, Ask(strategy="list", steps=(9,))),
    ):
        if not run.folder.anchors.sequences():
            world.anchor(run)
        asked[name] = (run, world.announce(vera, "vera", run.id, ask))
    with one_process():
        as_it_stands = Options(follow_up=False)     # a forger has no gradients to show
        return {
            name: world.settle(run, vera, announced, out / name, options=as_it_stands)
            for name, (run, announced) in asked.items()
        }


def test_a_made_up_path_to_the_same_weights_is_rejected(forged: dict[str, Receipt]) -> None:
    """Infinitesimal updates: every state is there, and none leads to the next."""
    verdict = forged["interpolation"].verdict
    assert verdict.verdict == "rejected" and verdict.findings[0].check == "V10"
    assert verdict.findings[0].step in verdict.steps and verdict.reexecuted == ()


@pytest.mark.parametrize(("name", "step"), [("momentum", 5), ("buffer", 9)])
def test_a_step_that_smuggles_is_rejected(forged: dict[str, Receipt], name: str, step: int) -> None:
    """The committed state is not what the step gives, were the weights right to the last bit."""
    verdict = forged[name].verdict
    assert (verdict.verdict, verdict.basis) == ("rejected", "none")
    found = [finding for finding in verdict.findings if finding.check == "V10"]
    assert [(finding.what, finding.step) for finding in found] == [("state after the step", step)]


def test_a_forged_step_that_stands_out_is_challenged_without_being_drawn(forged: dict[str, Receipt]) -> None:
    """Steps beside the forged ones are listed; the largest displacement is looked into all the same."""
    verdict = forged["beside"].verdict
    assert verdict.verdict == "rejected" and verdict.steps == (4, 6, 10) and verdict.probability == 0.0
    (finding,) = (finding for finding in verdict.findings if finding.check == "V10")
    assert finding.step == 5 and 5 in verdict.added
    outcomes = [[earlier.outcome for earlier in forged[name].verdict.challenges] for name in ("momentum", "buffer")]
    assert outcomes == [["rejected"], ["rejected", "rejected"]]


def test_an_anchor_sent_again_from_another_account_is_rejected(
    world: World, small: Registered, tmp_path: Path
) -> None:
    copy = world.runs["copied"]
    ledger = world.connection("mallory").ledger
    theirs = ledger.anchors(small.id)[0]
    registration = copy.folder.registration
    assert registration is not None
    replay(ledger, world.account("mallory"), registration.registered, theirs)
    require_rejected_anchor(world, copy, "V3", "outer signature", tmp_path)


def test_an_envelope_stripped_and_signed_again_is_rejected(world: World, small: Registered, tmp_path: Path) -> None:
    """Mallory takes bob's ciphertexts, which she cannot open, and puts her own outer signature on them."""
    run = world.runs["stripped"]
    connection, card = world.connection("mallory"), world.card("mallory")
    theirs = connection.ledger.anchors(small.id)[0]
    registration = run.folder.registration
    assert registration is not None
    stripped = replace(decode(theirs.envelope, Envelope), prover=card.signing)
    chain = connection.ledger.identity()
    message = envelope_message(
        commitment=theirs.commitment,
        sealed_digest=sealed_digest(stripped.sealed),
        run=run.id,
        sequence=1,
        chain_id=chain.chain_id,
        contract=chain.contract,
        account=card.account,
    )
    mine = replace(stripped, signature=sign(world.signing("mallory"), "sign/envelope", message))
    connection.ledger.anchor(
        world.account("mallory"), registration.registered.nonce, bytes(24), theirs.commitment, encode(mine)
    )
    require_rejected_anchor(world, run, "V3", "sealed statement", tmp_path)


def require_rejected_anchor(world: World, run: Registered, check: str, what: str, folder: Path) -> None:
    """By the command, without a challenge: exit 1; and a third party finds the same in the bundle."""
    out = folder / "evidence"
    done = world.cli("vera", "challenge", run.id.hex(), "--count", 3, "--prover", "false", "--out", out, "--json")
    found = done.require(1).json
    assert found["verdict"] == "rejected" and found["challenge"] is None
    assert [(finding["step"], finding["what"]) for finding in found["findings"]] == [(check, what)]
    assert world.connection("vera").ledger.challenges(run.id) == ()
    reader = world.reader("reading rejections", trusted=["vera"])
    assert world.cli(reader, "verify", out, "--json").require(1).json["verdict"] == "rejected"


# --- a prover who opens something else ----------------------------------------------------------------------------


class Dishonest:
    """Bob, with all his keys and files, who changes what he opens; digests and signature are made to fit."""

    def __init__(self, world: World, run: Registered, work: Path) -> None:
        self.world, self.run, self.work = world, run, work
        vera = world.verifier("vera")
        self.vera = vera
        (self.folder,) = Challenges(world.home("vera")).of_run(run.id)
        self.challenge = challenging.announce(vera, self.folder)
        found = bundle.read(world.root / "vera.polcommit")
        found.extract(work)
        assert found.evidence.disclosure is not None and found.evidence.openings is not None
        self.disclosure, self.openings = found.evidence.disclosure, found.evidence.openings

    def verdict(self, disclosure: Disclosure, openings: Openings) -> Receipt:
        """What vera says to this, in a folder of its own, so that her real verdict stays."""
        prover = load_run(self.run.folder)
        chain = self.vera.connection.ledger.identity()
        key = self.world.signing(self.run.prover)
        pieces = respond.sealed_answer(
            prover, chain, key, self.challenge, lambda: respond.payload_of(disclosure, openings, self.work)
        )
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "challenge"
            shutil.copytree(self.folder.path, copy)
            (copy / "receipt").unlink()
            answer = io.BytesIO(b"".join(pieces))
            with one_process():
                return verify_answer(
                    self.vera, ChallengeFolder(copy), self.challenge, answer, Path(folder) / "out", Options()
                )

    def rewritten(self, state: int, name: str, change: Callable[[bytes], bytes]) -> Openings:
        """The openings with one tensor of one state changed, its digest with it, and its bytes in the folder."""
        states = list(self.openings.states)
        position = next(at for at, opened in enumerate(states) if opened.step == state)
        index = states[position].index
        tensors = list(index.tensors)
        at = next(at for at, entry in enumerate(tensors) if entry.name == name)
        data = change((self.work / tensors[at].content.hex()).read_bytes())
        tensors[at] = replace(tensors[at], content=blake3(data).digest())
        (self.work / tensors[at].content.hex()).write_bytes(data)
        states[position] = replace(states[position], index=replace(index, tensors=tuple(tensors)))
        return replace(self.openings, states=tuple(states))


def test_a_state_swapped_when_it_is_opened_is_rejected(world: World, small: Registered, tmp_path: Path) -> None:
    """Momentum, a buffer and a weight: the leaf commits to all of the state, not to the weights alone."""
    bob = Dishonest(world, small, tmp_path)
    assert bob.verdict(bob.disclosure, bob.openings).verdict.verdict == "accepted"
    last = bob.openings.states[-1]
    wanted = ("momentum_buffer", "running_var", "conv1.weight")
    for name in (next(e.name for e in last.index.tensors if e.name.endswith(end)) for end in wanted):
        receipt = bob.verdict(bob.disclosure, bob.rewritten(last.step, name, lambda data: bytes(len(data))))
        (finding,) = receipt.verdict.findings
        assert receipt.verdict.verdict == "rejected"
        assert (finding.check, finding.what, finding.step) == ("V8", "opened state", last.step)


def test_answers_that_say_something_else_are_rejected(world: World, small: Registered, tmp_path: Path) -> None:
    """One of each kind of thing that a prover opens; the finding names the step that it contradicts."""
    bob = Dishonest(world, small, tmp_path)
    shown, opened = bob.disclosure, bob.openings
    sample, sketch = opened.samples[0], opened.sketches[-1]
    cases: list[tuple[str, Disclosure, Openings]] = [
        ("V1", shown, replace(opened, next_states=())),
        ("V3", replace(shown, heads=(shown.heads[0], replace(shown.heads[1], signature=bytes(64)))), opened),
        ("V4", replace(shown, consistency=()), opened),
        ("V5", replace(shown, manifest_blinding=bytes(32)), opened),
        ("V5", shown, replace(opened, configuration=opened.configuration[1:])),
        ("V6", replace(shown, receipts=(b"",)), opened),
        ("V7", replace(shown, learning_rates=(0.5, *shown.learning_rates[1:])), opened),
        ("V8", shown, replace(opened, states=opened.states[1:])),
        ("V8", shown, replace(opened, sketches=(*opened.sketches[:-1], replace(sketch, values=(0.0,) * 64)))),
        ("V9", shown, replace(opened, samples=(replace(sample, salt=bytes(32)), *opened.samples[1:]))),
        ("V9", shown, replace(opened, samples=opened.samples[1:])),
    ]
    for check, disclosure, openings in cases:
        verdict = bob.verdict(disclosure, openings).verdict
        assert verdict.verdict == "rejected" and verdict.findings[0].check == check, (check, verdict.findings)


# --- damage -------------------------------------------------------------------------------------------------------

#: Files, or parts of them, whose change nothing can find: what they say is local, or on the ledger anyway.
LOCAL = {
    "lock": "holds nobody but a process id",
    "checks": "a queue: what is lost is a self-check",
    "registration.pending": "is not looked at again once the registration is there",
    "anchors/1.pending": "likewise, once the head is anchored",
    "anchors/2.pending": "likewise",
    "anchors/1.anchored": "where the head stands: looked up on the ledger again by whoever needs it",
    "anchors/2.anchored": "likewise",
    "disclosed/1": "how much was shown: nothing commits to it",
    "disclosed/2": "likewise",
}
#: Fields of committed-to files that are local or on the ledger, too.
FREE = {
    "settings.json": ("data", "rpc", "contract", "key"),
    "registration": ("position", "beacon_block_hash"),
}


def damaged_copies(
    source: Path, folder: Path, each: int, chance: random.Random
) -> Iterator[tuple[str, int, Path]]:
    """A copy of the run folder with one bit changed: in every kind of file, at `each` random places of each."""
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.stat().st_size)
    tensors = [path for path in files if "tensors" in path.parts]
    chosen = [path for path in files if path not in tensors] + chance.sample(tensors, min(6, len(tensors)))
    for path in chosen:
        name = str(path.relative_to(source))
        for _ in range(each):
            copy = folder / "copy"
            shutil.copytree(source, copy)
            position = chance.randrange(path.stat().st_size)
            flip(copy / name, position, chance.randrange(8))
            yield name, position, copy
            shutil.rmtree(copy)


def said(path: Path) -> list[str]:
    """What `polcommit status --check` says is wrong."""
    try:
        folder = RunFolder.open(path)
        summary(folder)
        return list(damage(folder))
    except PolcommitError as error:
        return [error.message]


def may_go_unnoticed(source: Path, name: str, changed: Path) -> bool:
    """Whether all that differs is local to this machine, or on the ledger."""
    if name.startswith(tuple(LOCAL)):
        return True
    if name == "settings.json":
        before, after = (RunFolder.open(path).settings for path in (source, changed))
        return all(getattr(before, field) == getattr(after, field) for field in ("recipe", "configuration"))
    if name == "registration":
        before, after = (RunFolder.open(path).registration for path in (source, changed))
        assert before is not None and after is not None
        same = [(r.registered.run, r.registered.account, r.registered.nonce, r.registered.manifest, r.beacon,
                 r.beacon_block, r.chain_id, r.contract) for r in (before, after)]  # fmt: skip
        return same[0] == same[1]
    return False


def test_status_finds_every_kind_of_damage(world: World, small: Registered, tmp_path: Path) -> None:
    """A bit in each kind of file of the folder: found, but for what is named above."""
    chance = random.Random()
    assert not said(small.path)
    found = 0
    for name, position, copy in damaged_copies(small.path, tmp_path, 4, chance):
        lines = said(copy)
        assert lines or may_go_unnoticed(small.path, name, copy), f"{name}, byte {position}"
        assert all("\n" not in line for line in lines)
        found += bool(lines)
    assert found > 50


@pytest.mark.parametrize("name", ["journal", "manifest", "states/4.state", "dataset.contents", "anchors/1.head"])
def test_status_says_so_in_one_line_and_ends_with_1(
    world: World, small: Registered, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small.path, copy)
    flip(copy / name, (copy / name).stat().st_size // 2)
    done = world.cli("bob", "status", copy, "--check")
    assert done.status in (1, 3) and "Traceback" not in done.stderr and "internal error" not in done.stderr
    assert done.status == 1 or done.stderr.startswith("polcommit: ")


def test_what_is_damaged_is_never_opened_into_an_acceptance_or_a_rejection(
    world: World, small: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob's disk decays, and he answers from it: the answer is right, or there is none. He is not to be rejected."""
    chance = random.Random()
    (pending,) = Challenges(world.home("vera")).of_run(small.id)
    vera = world.verifier("vera")
    challenge = challenging.announce(vera, pending)
    bob, key = world.connection("bob"), world.signing("bob")
    replayer = InThisProcess()
    monkeypatch.setattr(respond, "regenerate", regenerate_here)     # the worker's own code, in this process
    outcomes = {"answered": 0, "refused": 0}
    for name, position, copy in damaged_copies(small.path, tmp_path, 1, chance):
        if name == "lock" or name.startswith("checks"):
            continue
        blobs = tmp_path / "blobs"
        try:
            answer = b"".join(respond.respond(RunFolder.open(copy), bob, key, challenge, blobs))
        except PolcommitError:
            outcomes["refused"] += 1
        else:
            verdict = verdict_on(world, vera, pending, answer, replayer)
            assert verdict == "accepted", f"{name}, byte {position}: {verdict}"
            # accepted, then, for none of the changed bytes was used
            assert name.startswith((*LOCAL, *FREE, "tensors", "states", "dataset.contents")), (name, position)
            outcomes["answered"] += 1
        shutil.rmtree(blobs, ignore_errors=True)
    assert outcomes["refused"] > 10 and outcomes["answered"] > 0


def verdict_on(world: World, vera: Verifier, pending: ChallengeFolder, answer: bytes, replayer: InThisProcess) -> str:
    """What vera makes of an answer; her own verdict of this challenge stays."""
    verification = Verification(
        policy=vera.connection.policy,
        ledger=vera.connection.ledger,
        replayer=replayer,
        challenge=challenging.announce(vera, pending),
        attested=pending.head,
    )
    with tempfile.TemporaryDirectory() as blobs:
        answering._take_answer(vera, verification, io.BytesIO(answer), Path(blobs), None)
    return verification.verdict(vera.public).verdict


def test_a_damaged_folder_goes_on_as_it_was_or_not_at_all(world: World, small: Registered, tmp_path: Path) -> None:
    """Resumed half-way from a damaged folder: the same journal in the end, to the last bit, or a line that says why."""
    chance = random.Random()
    half = world.root / "half"
    whole = small.folder.journal_path.read_bytes()
    went_on = stopped = 0
    for name, position, copy in damaged_copies(half, tmp_path, 2, chance):
        if name == "lock" or name.startswith("checks"):
            continue
        try:
            train(copy)
        except PolcommitError:
            stopped += 1
        else:
            assert (copy / "journal").read_bytes() == whole, f"{name}, byte {position}"
            went_on += 1
    assert stopped > 10 and went_on > 0


def test_the_unchanged_half_goes_on(world: World, small: Registered, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world.root / "half", copy)
    assert train(copy) == 12 and (copy / "journal").read_bytes() == small.folder.journal_path.read_bytes()


def test_no_name_of_an_exception_is_stale(small: Registered) -> None:
    for name in (*LOCAL, *FREE):
        assert (small.path / name).exists(), name
