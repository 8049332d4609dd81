"""The demonstration: an honest run and two forgeries of it, on a devnet, with everybody's own keys and folders."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save_file

from polcommit.errors import Refuted
from polcommit.keys import Card, Role, create, load
from polcommit.ledger.accounts import create_keystore, open_keystore
from polcommit.ledger.devnet import Devnet
from polcommit.recipes.digits import Digits
from polcommit.records import Challenge, Evidence, Receipt, TensorEntry
from polcommit.session import bundle, registration
from polcommit.session import challenge as challenging
from polcommit.session import register as registering
from polcommit.session.anchor import anchor
from polcommit.session.answer import Options, verify_answer
from polcommit.session.challenge import Ask, Verifier
from polcommit.session.connection import Connection, connect, devnet_folder, load_policy
from polcommit.session.pending import ChallengeFolder, Challenges
from polcommit.session.receipts import take_receipt
from polcommit.session.record import record
from polcommit.session.released import read_model
from polcommit.session.respond import respond
from polcommit.spoofs.attacks.precedence import replay
from polcommit.spoofs.attacks.structural import InfinitesimalUpdate
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.opponent.stage import open_stage
from polcommit.storage.runfolder import RunFolder
from polcommit.training.environment import set_determinism

Say = Callable[[str], None]
RELEASED = "model.safetensors"
FORGED_STEPS = 40       # of the interpolation: the forger chooses, and the fewer the cheaper


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run's end: what it was, its verdict, where the bundle lies."""

    title: str
    short: str
    evidence: Evidence
    path: Path


@dataclass(frozen=True, slots=True)
class _Party:
    """A prover: keys, and a registered run of its own."""

    card: Card
    account: bytes
    folder: RunFolder


@contextmanager
def devnet(folder: Path) -> Iterator[Connection]:
    """A devnet of the demonstration's own, stopped at the end."""
    os.environ["POLCOMMIT_HOME"] = str(folder)
    os.environ.pop("POLCOMMIT_POLICY", None)
    chain = Devnet(devnet_folder())
    info = chain.start(port=_free_port())
    try:
        yield connect(load_policy(info.policy))
    finally:
        chain.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Demo:
    """The steps of the demonstration, in order."""

    def __init__(self, home: Path, connection: Connection, say: Say, *, steps: int, count: int) -> None:
        self._home, self._connection, self._say = home, connection, say
        self._steps, self._count = steps, count
        self._began = time.monotonic()

    def _tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def run(self) -> list[Outcome]:
        """All of it; the honest run first."""
        verifier = self._verifier()
        parties = self._register(verifier)
        honest, interpolator, copyist = parties
        self._train(honest)
        put = anchor(honest.folder, self._connection, self._signing("prover"), honest.account)
        self._tell(f"anchored head 1 in block {put.event.position.block}: {put.event.commitment.hex()[:16]}…")
        waiting = self._challenge(verifier, honest)
        self._forge(honest, interpolator)
        forged = self._challenge(verifier, interpolator)
        registration = copyist.folder.registration
        assert registration is not None
        copied = replay(
            self._connection.ledger, copyist.account, registration.registered, put.event
        )
        self._tell("a third account has sent the honest prover's anchor again as its own")
        options = Options(model=read_model(self._home / RELEASED))
        outcomes = [self._verify("honest run", "honest", verifier, honest, *waiting, options)]
        title = "forgery: a straight line to the same weights"
        options = Options(follow_up=False)      # its steps have no gradients to be asked for
        outcomes.append(self._verify(title, "interpolated", verifier, interpolator, *forged, options))
        path = self._home / "evidence-replay.polcommit"
        try:
            challenging.open_head(verifier, copied)
        except Refuted as error:
            evidence = challenging.reject_anchor(verifier, copied, error)
            bundle.write(path, evidence, None)
            title = "forgery: the anchor replayed from another account"
            outcomes.append(Outcome(title, "replayed", evidence, path))
        return outcomes

    # --- the parties ------------------------------------------------------------------------------------------

    def _key(self, name: str) -> tuple[Card, bytes]:
        role: Role = "verifier" if name == "verifier" else "prover"
        card = create(self._home, name, role, None, partial(create_keystore, light=True))
        account = load(self._home, name).account(None, open_keystore)
        self._connection.fund(card.account, lambda _: None)
        return card, account

    def _signing(self, name: str) -> Ed25519PrivateKey:
        return load(self._home, name).signing(None)

    def _verifier(self) -> Verifier:
        _, account = self._key("verifier")
        keys = load(self._home, "verifier")
        return Verifier(self._connection, keys.signing(None), keys.recipient(None), account)

    def _register(self, verifier: Verifier) -> list[_Party]:
        """Three runs, by three accounts, in one block or two: all beacons are waited for together."""
        card = load(self._home, "verifier").card
        assert card.recipient is not None
        parties, events = [], []
        for name, steps in (("prover", self._steps), ("interpolator", FORGED_STEPS), ("copyist", FORGED_STEPS)):
            own, account = self._key(name)
            terms = registering.Terms(
                prover=own.signing,
                account=own.account,
                verifiers=registering.eligible([(card.signing, card.recipient)], steps=steps, samples=1 << 40),
            )
            folder = registering.prepare(self._home / name, Digits(steps=steps), terms, self._connection)
            parties.append(_Party(own, account, folder))
            events.append(registration.send(folder, self._connection, account))
        for party, event in zip(parties, events, strict=True):
            registration.await_beacon(party.folder, self._connection, event)
        self._tell("registered three runs on the ledger, and waited for their beacons")
        return parties

    # --- the runs ---------------------------------------------------------------------------------------------

    def _train(self, party: _Party) -> None:
        with record(party.folder.path) as run:
            for batch in run:
                loss = run.step(batch)
            run.close()
            accuracy = Digits(steps=self._steps).evaluate(run.state)
            save_file(dict(run.model.state_dict()), self._home / RELEASED)
        self._tell(f"trained {self._steps} steps: last loss {loss:.3f}, {accuracy:.1%} of held-out digits right")

    def _forge(self, honest: _Party, forger: _Party) -> None:
        states = honest.folder.states
        last = states.get(self._steps)
        stolen = {
            entry.name: _tensor(entry, honest.folder.tensors.get(entry)) for entry in last.tensors
        }
        set_determinism()
        with open_stage(forger.folder, Digits(steps=FORGED_STEPS), stolen, Meter()) as stage:
            InfinitesimalUpdate().forge(stage)
            stage.finish()
        put = anchor(forger.folder, self._connection, self._signing("interpolator"), forger.account)
        self._tell(f"a forger has anchored a made-up path to the same weights, in block {put.event.position.block}")

    # --- challenges -------------------------------------------------------------------------------------------

    def _challenge(self, verifier: Verifier, party: _Party) -> tuple[ChallengeFolder, Challenge]:
        registration = party.folder.registration
        assert registration is not None
        run = registration.registered.run
        found = challenging.find_anchor(verifier, run)
        head = challenging.open_head(verifier, found)
        folder = Challenges(self._home).new(run)
        challenging.begin(verifier, folder, found, head, Ask(count=self._count))
        return folder, challenging.announce(verifier, folder)

    def _verify(
        self,
        title: str,
        short: str,
        verifier: Verifier,
        party: _Party,
        folder: ChallengeFolder,
        challenge: Challenge,
        options: Options,
    ) -> Outcome:
        path = self._home / f"evidence-{party.card.name}.polcommit"
        with tempfile.TemporaryDirectory(prefix="polcommit-") as work:
            answer = Path(work) / "opening"
            with answer.open("wb") as file:
                blobs = Path(work) / "blobs"
                for data in respond(party.folder, self._connection, self._signing(party.card.name), challenge, blobs):
                    file.write(data)
            with answer.open("rb") as file:
                receipt: Receipt = verify_answer(verifier, folder, challenge, file, path, options)
        take_receipt(party.folder, receipt)
        self._tell(f"{title}: {receipt.verdict.verdict}")
        return Outcome(title, short, bundle.read(path).evidence, path)


def _tensor(entry: TensorEntry, data: bytes) -> torch.Tensor:
    from polcommit.training.tree import tensor_from_bytes

    return tensor_from_bytes(entry.dtype, entry.shape, memoryview(data))
