"""polcommit as a spoof's opponent: a chain, keys, contract and verifier as they are, and one who cheats.

Nothing here stands in for anything. What a forger hands in goes through `register`, `anchor`, `challenge`, `respond`
and `verify`; only what a forger would write itself is written here. Verifier and prover are this one process, which
sees both sides' keys: what a spoof knows is what its class says, and not what it could read here.

An attempt that is not accepted says that this attempt was not. A step of a kind that was never drawn is no evidence.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from polcommit.comparisons import ReleasedModel
from polcommit.errors import GradientsWanted, Refuted
from polcommit.events import Anchored
from polcommit.records import Challenge, Receipt, Verdict
from polcommit.session import challenge as challenging
from polcommit.session import register as registering
from polcommit.session import registration
from polcommit.session.anchor import anchor
from polcommit.session.answer import Options, verify_answer
from polcommit.session.challenge import Ask, Verifier
from polcommit.session.connection import Connection
from polcommit.session.inprocess import in_this_process
from polcommit.session.parents import FoundParent
from polcommit.session.pending import Challenges
from polcommit.session.receipts import take_receipt
from polcommit.session.recipes import recipe_name
from polcommit.session.record import record
from polcommit.session.released import read_model
from polcommit.session.respond import respond
from polcommit.spoofs.base import PreconditionNotMet, ProtocolSpoof, Spoof, TrajectorySpoof
from polcommit.spoofs.checkpoint import flat, members, relative_distance
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.opponent.attempt import Attempt
from polcommit.spoofs.opponent.dishonest import Dishonest
from polcommit.spoofs.opponent.setting import (
    VICTIM,
    Announced,
    Party,
    Setting,
    Victim,
    cleared,
    demanding,
    devnet,
    new_party,
    new_verifier,
    scratch,
)
from polcommit.spoofs.opponent.stage import RunFolderStage, open_stage
from polcommit.spoofs.plain.trial import victim
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.stored import write_record
from polcommit.training.environment import set_determinism
from polcommit.training.recipe import Recipe

BUDGET = 1 << 40        # steps and samples that manifests here let a verifier see: budgets are not what stops anybody


class Arena:
    """One chain, one verifier who is asked about everything, and forgers with keys of their own."""

    def __init__(self, home: Path, connection: Connection, setting: Setting) -> None:
        self.home, self.setting = home, setting
        self.connection = demanding(connection, setting)
        self.verifier = new_verifier(self.connection)
        self._names = iter(range(1 << 30))

    @classmethod
    @contextmanager
    def open(cls, setting: Setting) -> Iterator[Arena]:
        """An arena on a chain of its own, gone at the end. Kernels are set to repeat, in this process.

        Raises:
            Unavailable: there is no anvil, or it does not start.
        """
        set_determinism()
        with ExitStack() as held:
            folder = tempfile.TemporaryDirectory(prefix="polcommit-arena-", dir=scratch(setting.recipe))
            home = Path(held.enter_context(folder))
            held.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
            tempfile.tempdir = str(home)        # what is received and re-executed goes there as well
            connection = held.enter_context(devnet(home / "devnet"))
            if not setting.processes:
                held.enter_context(in_this_process())
            yield cls(home, connection, setting)

    def try_out(self, spoof: Spoof) -> Attempt:
        """Let a spoof do its worst. What it wrote is gone afterwards.

        Raises:
            PreconditionNotMet: it cannot be tried in this setting.
            StorageError: there is no room for what it writes.
        """
        with cleared(self.home):
            if isinstance(spoof, TrajectorySpoof):
                return self.forge(spoof)
            if isinstance(spoof, ProtocolSpoof):
                return spoof.attack(self).noted(spoof.notes)
        raise PreconditionNotMet(f"'{spoof.name}' attacks neither states nor the protocol")

    # --- who takes part -------------------------------------------------------------------------------------------

    def party(self, name: str = "forger") -> Party:
        """Somebody new, with keys and ether."""
        return new_party(name, self.connection)

    def new_verifier(self) -> Verifier:
        """Another verifier: a friend of the prover's, say."""
        return new_verifier(self.connection)

    @property
    def target(self) -> Mapping[str, torch.Tensor]:
        """W_T of a training that was not submitted anywhere, by entry name: what is stolen where no more is needed."""
        return victim(self.setting.recipe, self.setting.seed)[0]

    @cached_property
    def victim(self) -> Victim:
        """An honest run, made when it is first asked for, and shared."""
        party = self.party(VICTIM)
        folder = self.new_run(party, post_hoc=False, clear_openings=True)
        stolen = self.train(folder)
        put = self.anchor(party, folder)
        announced = self.announce(put, Ask(count=self.setting.recipe.steps, clear_openings=True))
        receipt = self.settle(announced, self.answer(party, folder, announced.challenge))
        take_receipt(folder, receipt)
        assert receipt.verdict.verdict == "accepted", "an honest run is accepted"
        return Victim(party, folder, put, receipt, announced.evidence, stolen)

    # --- what provers do ------------------------------------------------------------------------------------------

    def new_run(
        self,
        party: Party,
        recipe: Recipe | None = None,
        *,
        post_hoc: bool | None = None,
        **terms: Any,
    ) -> RunFolder:
        """A folder of `party`'s that may be recorded into: registered, with its beacon; or post hoc.

        `post_hoc` is the setting's where it is not said; `terms` as for `prepare`.
        """
        folder = self.prepare(party, recipe, post_hoc=post_hoc, **terms)
        if folder.manifest.seed is None:
            self.register(party, folder)
        return folder

    def prepare(
        self,
        party: Party,
        recipe: Recipe | None = None,
        *,
        post_hoc: bool | None = None,
        seed: bytes | None = None,
        verifiers: tuple[Verifier, ...] = (),
        clear_openings: bool = False,
        parent: FoundParent | None = None,
    ) -> RunFolder:
        """As `new_run`, with nothing sent yet. The arena's verifier is eligible, and `verifiers` besides.

        A `seed` of the forger's choice goes into the manifest of a post hoc run, before anything is committed to it.
        """
        cards = [
            (one.public, one.recipient.public_key().public_bytes_raw()) for one in (self.verifier, *verifiers)
        ]
        terms = registering.Terms(
            prover=party.public,
            account=party.account,
            verifiers=registering.eligible(cards, steps=BUDGET, samples=BUDGET),
            keep=self.setting.keep,
            clear_openings=clear_openings,
            data=self.setting.data,
        )
        path = self.home / f"run-{next(self._names)}-{party.name}"
        late = self.setting.post_hoc if post_hoc is None else post_hoc
        chosen = recipe or self.setting.recipe
        folder = registering.prepare(path, chosen, terms, self.connection, post_hoc=late, parent=parent)
        if seed is None:
            return folder
        assert late, "the seed of a registered run is its beacon's"
        write_record(path / "manifest", replace(folder.manifest, seed=seed), replace=True)
        return RunFolder.open(path)

    def register(self, party: Party, folder: RunFolder) -> None:
        """Send the registration, and wait for the beacon."""
        event = registration.send(folder, self.connection, party.account_key)
        registration.await_beacon(folder, self.connection, event)

    def train(
        self, folder: RunFolder, steps: int | None = None, meter: Meter | None = None
    ) -> Mapping[str, torch.Tensor]:
        """Record honestly, all of it or up to a step; the model as it is then, by entry name."""
        meter = meter or Meter()
        with meter.timed(), record(folder.path, self_check="off") as run:
            for batch in run:
                run.step(batch)
                meter.step(self.setting.recipe.batch)
                if batch.step == steps:
                    break
            run.close()
            return {name: tensor.clone() for name, tensor in members(run.state).items()}

    def stage(
        self, folder: RunFolder, stolen: Mapping[str, torch.Tensor], meter: Meter, **more: Any
    ) -> RunFolderStage:
        """Where a trajectory is written into `folder`; the engine is at the W_0 of the run. `more`: of the stage."""
        return open_stage(folder, self.setting.recipe, stolen, meter, seed=self.setting.seed, **more)

    def write(
        self, folder: RunFolder, meter: Meter, forge: Callable[[RunFolderStage], object], *, begin: int = 0,
        partial: bool = False, stolen: Mapping[str, torch.Tensor] | None = None, **more: Any,
    ) -> RunFolderStage:  # fmt: skip
        """Have `forge` commit to the steps behind `begin`, and count its seconds; the stage, as it is then.

        What is stolen is the `target` where it is not said; `partial` where not all steps need be there; `more` as
        for `stage`.
        """
        with self.stage(folder, self.target if stolen is None else stolen, meter, **more) as stage:
            if begin:
                stage.resume(begin)
            with meter.timed():
                forge(stage)
            stage.finish(partial=partial)
        return stage

    def anchor(self, party: Party, folder: RunFolder) -> Anchored:
        """Anchor what is recorded in `folder`."""
        return anchor(folder, self.connection, party.key, party.account_key).event

    def answer(self, party: Party, folder: RunFolder, challenge: Challenge) -> bytes:
        """What polcommit's own prover answers to a challenge of this folder's run."""
        with tempfile.TemporaryDirectory(prefix="answer-", dir=self.home) as work:
            return b"".join(respond(folder, self.connection, party.key, challenge, Path(work) / "blobs"))

    # --- what a verifier does -------------------------------------------------------------------------------------

    def announce(self, anchored: Anchored, ask: Ask | None = None, verifier: Verifier | None = None) -> Announced:
        """Open the anchor's envelope, and send a challenge of it.

        Raises:
            Refuted: the envelope alone refutes it.
        """
        who = verifier or self.verifier
        head = challenging.open_head(who, anchored)
        ask = ask or Ask(count=min(self.setting.draws, head.statement.steps))
        folder = Challenges(self.home / who.public.hex()[:16]).new(anchored.run)
        challenging.begin(who, folder, anchored, head, ask)
        return Announced(who, folder, challenging.announce(who, folder))

    def settle(self, announced: Announced, answer: bytes, *, options: Options | None = None) -> Receipt:
        """Verify an answer, to a signed verdict. Raises what `verify_answer` raises."""
        chosen = options or Options(follow_up=False)
        chosen = replace(chosen, recipes=(recipe_name(self.setting.recipe), *chosen.recipes))
        stream = io.BytesIO(answer)
        return verify_answer(
            announced.verifier, announced.folder, announced.challenge, stream, announced.evidence, chosen
        )

    def question(self, announced: Announced, prover: Dishonest, options: Options) -> Receipt:
        """Have a prover answer; where digests do not settle it, once more with gradients, as 'challenge' does it."""
        try:
            return self.settle(announced, prover.answer(announced.challenge), options=options)
        except GradientsWanted:
            again = replace(announced, challenge=replace(announced.challenge, gradients=True))
            return self.settle(again, prover.answer(again.challenge), options=options)

    def dishonest(self, party: Party, folder: RunFolder, **more: Any) -> Dishonest:
        """A prover of this folder's run that opens what it likes; `more` as for `Dishonest`."""
        work = self.home / f"opened-{next(self._names)}"
        return Dishonest(party, folder, self.connection, self.setting.recipe, work, **more)

    def verdict(
        self,
        party: Party,
        folder: RunFolder,
        anchored: Anchored,
        ask: Ask | None = None,
        *,
        released: Mapping[str, torch.Tensor] | None = None,
        verifier: Verifier | None = None,
    ) -> Verdict:
        """Challenge, answer with polcommit's own prover, and verify; `released` is the model that is out, to compare.

        Without the follow-up ('challenge --no-follow-up'): where bits differ in the environment that is claimed,
        gradients could make the verdict inconclusive, and never accepted.
        """
        try:
            announced = self.announce(anchored, ask, verifier)
        except Refuted as error:
            return challenging.reject_anchor(verifier or self.verifier, anchored, error).receipt.verdict
        options = Options(follow_up=False, model=self._released(released))
        receipt = self.settle(announced, self.answer(party, folder, announced.challenge), options=options)
        take_receipt(folder, receipt)
        return receipt.verdict

    def attempt(self, verdict: Verdict, meter: Meter) -> Attempt:
        """What a verdict says, and what it cost the forger."""
        return Attempt.of(verdict, cost=meter.share(self.setting.recipe), seconds=meter.seconds)

    def _released(self, tensors: Mapping[str, torch.Tensor] | None) -> ReleasedModel | None:
        """A model as it would be published, by entry name; read as the verifier reads it."""
        if tensors is None:
            return None
        path = self.home / "released.safetensors"
        save_file({name.partition("/")[2]: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return read_model(path)

    # --- made-up trajectories -------------------------------------------------------------------------------------

    def forge(self, spoof: TrajectorySpoof) -> Attempt:
        """Have a trajectory made up, anchored, challenged and verified."""
        party, meter = self.party(), Meter()
        folder = self.new_run(party)
        stage = self.write(folder, meter, spoof.forge)
        reached = relative_distance(flat(members(stage.engine.state)), flat(stage.stolen))
        verdict = self.verdict(party, folder, self.anchor(party, folder))
        attempt = self.attempt(verdict, meter).noted({**spoof.notes, "distance to W_T": reached})
        return attempt.short_of(reached) if spoof.goal == "W_T" else attempt


def run_spoof(spoof: Spoof, setting: Setting) -> Attempt:
    """One spoof in an arena of its own. Raises PreconditionNotMet, and what `Arena.open` raises."""
    with Arena.open(setting) as arena:
        return arena.try_out(spoof)
