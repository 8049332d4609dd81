"""A spoof that gives a run which was found out another registration, and waits for a kinder draw."""

from __future__ import annotations

from dataclasses import replace

from polcommit import transcript as hashes
from polcommit.envelopes import make_envelope
from polcommit.prover import next_head
from polcommit.records import Evidence
from polcommit.sealing import derive
from polcommit.session import bundle
from polcommit.session.challenge import Ask
from polcommit.session.run import load_run
from polcommit.spoofs.attacks.protocol import DEMANDED, read_by
from polcommit.spoofs.base import ProtocolSpoof, Stage
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt
from polcommit.spoofs.opponent.setting import Party
from polcommit.storage.runfolder import RunFolder


class RegistersAgain(ProtocolSpoof):
    """A few steps of a run are forged; it is rejected, and its account registers the same transcript once more.

    What a post hoc run records does not depend on its registration, and the second one begins without challenges. The
    forged steps are trained on samples beside those that they commit to, so that no sketch shows them. The first
    challenge draws what is usual in this setting; those after it a tenth of that, until one misses. Each try costs a
    transaction and no training; what stands against it is that verdicts count an account's registrations, and the
    detection that a reader asks for. A run that is registered beforehand gets another beacon with each registration,
    and has recorded the first.
    """

    name = "registers-again"
    family = "protocol"
    title = "registers a rejected run once more, until a small draw misses the forged steps"
    source = "polcommit"
    knows = frozenset({"architecture", "data"})
    goal = "own"
    part = 20           # a step of so many is forged
    less = 10           # the usual draw, divided by that
    tries = 10          # registrations after the first

    def attack(self, arena: Arena) -> Attempt:
        party, meter = arena.party(), Meter()
        folder = arena.new_run(party)
        arena.write(folder, meter, self._forge)
        verdict = arena.verdict(party, folder, arena.anchor(party, folder))
        self.notes["first verdict"] = f"{verdict.verdict}: {Attempt.of(verdict).why}"
        count = max(1, arena.setting.draws // self.less)
        for tried in range(1, self.tries + 1):
            if verdict.verdict == "accepted":
                break
            evidence = self._again(arena, party, folder, Ask(count=count))
            verdict = evidence.receipt.verdict
            self.notes |= {"registered again": tried, "drawn then": count}
            self.notes[f"who asks for {100 * DEMANDED:.0f} % detection says"] = read_by(
                arena, evidence, arena.verifier
            ).outcome
            if not arena.setting.post_hoc:
                break       # no draw changes that the beacon is another
        self.notes["registrations, and anchored ones"] = "{} and {}".format(*verdict.registrations)
        return arena.attempt(verdict, meter)

    def _forge(self, stage: Stage) -> None:
        """Every step is trained; the last ones, which are short as a rule, on other samples than it says."""
        forger = Forger(stage)
        many = max(1, stage.steps // self.part)
        for batch in stage.batches():
            fed = batch
            if batch.step > stage.steps - many:
                fed = forger.batch(batch.step, [(index + 1) % len(forger.source) for index in batch.indices])
            forger.commit(batch, forger.step(fed))
        self.notes["forged"] = many

    def _again(self, arena: Arena, party: Party, folder: RunFolder, ask: Ask) -> Evidence:
        """The same manifest and transcript under a new registration, challenged and judged."""
        ledger = arena.connection.ledger
        commitment = hashes.manifest_commitment(derive(folder.secret, "blinding/manifest"), folder.manifest)
        event = ledger.register(party.account_key, commitment)
        ledger.wait_final(event.position.block + hashes.DELAY)      # a beacon comes before the anchor
        before = load_run(folder, arena.setting.recipe.learning_rate)
        run = replace(before, id=event.run, heads=(), receipts={})
        head = next_head(run, party.key)
        envelope = make_envelope(head, run.manifest, ledger.identity(), party.key)
        put = ledger.anchor(party.account_key, event.nonce, bytes(24), head.commitment, envelope)
        announced = arena.announce(put, ask)
        prover = arena.dishonest(party, folder, run=replace(run, heads=(head,)))
        arena.settle(announced, prover.answer(announced.challenge))
        return bundle.read(announced.evidence).evidence
