"""Spoofs that claim a model that somebody else has trained, with everything that an opening of that run shows.

A beacon, and the seed of a post hoc run as well, counts with account and key: what is true of one run is not true of
another's, so that a copy is refuted, and honest retraining ends at a model of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from polcommit.spoofs.attacks.copies import Change, ShownRun, permutation
from polcommit.spoofs.attacks.splices import lead
from polcommit.spoofs.base import PreconditionNotMet, ProtocolSpoof, Stage
from polcommit.spoofs.checkpoint import flat, members, relative_distance
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt
from polcommit.spoofs.plain.prover import Honest
from polcommit.training.replay import Engine


class ReanchoredTranscript(ProtocolSpoof):
    """An honest run's opened states and records, anchored again under another name. A colluding verifier has them.

    A run that is registered beforehand has a beacon of its own, so that neither W_0 nor the order are the victim's. A
    post hoc run names its seed itself, the victim's public beacon for instance; but what that gives depends on whose
    run it is, so that the order is another all the same.
    """

    name = "reanchored-transcript"
    family = "precedence"
    title = "anchors the opened states of an honest run as its own"
    source = "polcommit"
    knows = frozenset({"W_T", "architecture", "data", "transcript", "envelope"})

    def attack(self, arena: Arena) -> Attempt:
        theirs, thief = arena.victim, arena.party()
        with tempfile.TemporaryDirectory(dir=arena.home) as work:
            opened = ShownRun.read(theirs.evidence, Path(work))
            seed = opened.genesis.beacon if arena.setting.post_hoc else None
            folder = arena.new_run(thief, seed=seed)
            meter = Meter()
            with meter.timed():
                opened.copy_into(folder, self.change(arena))
        return arena.attempt(arena.verdict(thief, folder, arena.anchor(thief, folder)), meter)

    def change(self, arena: Arena) -> Change | None:
        """What is done to every state."""
        return None


class PermutedTranscript(ReanchoredTranscript):
    """The same, with hidden units of all states in another order: no digest is the victim's, the function is.

    Which ones is `HIDDEN`'s to say: all of `digits`, those inside a block of other nets.
    Sums over the units come in another order, so that bits may differ when a step is re-executed.
    """

    name = "permuted-transcript"
    title = "anchors the opened states of an honest run with hidden units reordered, inside blocks where there are any"

    def change(self, arena: Arena) -> Change | None:
        generator = torch.Generator().manual_seed(arena.setting.seed)
        return permutation(arena.setting.recipe.build().model, generator)


class PermutedRetraining(ProtocolSpoof):
    """The victim's run, trained again from its W_0 with hidden units in another order. Costs as much as training.

    Every step is real. With the victim's order of the data the same function would come out, in another order of
    units; a run of one's own has an order of its own. It needs a W_0 of its own choice, which a beacon does not give
    it; a test of the distribution of W_0 sees values and not places.
    """

    name = "permuted-retraining"
    family = "precedence"
    title = "trains an honest run again from its W_0, with hidden units reordered"
    source = "polcommit"
    knows = frozenset({"W_T", "architecture", "data", "transcript"})

    def attack(self, arena: Arena) -> Attempt:
        theirs, thief, meter = arena.victim, arena.party(), Meter()
        change = permutation(arena.setting.recipe.build().model, torch.Generator().manual_seed(arena.setting.seed))
        with tempfile.TemporaryDirectory(dir=arena.home) as work:
            opened = ShownRun.read(theirs.evidence, Path(work))
            folder = arena.new_run(thief, seed=opened.genesis.beacon if arena.setting.post_hoc else None)

            def retrain(stage: Stage) -> None:
                _begin_at(stage.engine, opened, change)
                Honest().forge(stage)

            stage = arena.write(folder, meter, retrain, stolen=theirs.stolen)
            reached = _distance(stage.engine, opened, change, stage.steps)
            self.notes["distance to W_T, reordered"] = reached
        verdict = arena.verdict(thief, folder, arena.anchor(thief, folder))
        return arena.attempt(verdict, meter).short_of(reached)


class SameModelLater(ProtocolSpoof):
    """The same final model, registered later. Costs as much as training, so there is nothing forged about its steps.

    Who registers beforehand gets a beacon, and so another model: it is the stolen one that is released, and compared.
    Who does not names the victim's beacon as its seed, and gets another model as well, for it is another's run.
    """

    name = "same-model-later"
    family = "precedence"
    title = "trains honestly, and claims the victim's model"
    source = "polcommit"

    def attack(self, arena: Arena) -> Attempt:
        theirs, thief = arena.victim, arena.party()
        genesis = theirs.folder.registration
        assert genesis is not None
        folder = arena.new_run(thief, seed=genesis.beacon if arena.setting.post_hoc else None)
        meter = Meter()
        arena.train(folder, meter=meter)
        verdict = arena.verdict(thief, folder, arena.anchor(thief, folder), released=theirs.stolen)
        return arena.attempt(verdict, meter)


class EarlyHeartbeat(ProtocolSpoof):
    """A head of some honest run, anchored early; later steps lead to a model that was stolen in the meantime.

    What it is after is the early head's place in the order of claims. Precedence goes by the head whose leaf commits
    the model, which is the late one; and the splice is made of steps that lead nowhere.
    """

    name = "early-heartbeat"
    family = "precedence"
    title = "anchors an honest beginning early, and splices a stolen model into the rest"
    source = "polcommit"

    def attack(self, arena: Arena) -> Attempt:
        thief, meter = arena.party(), Meter()
        recipe = arena.setting.recipe
        if recipe.steps < 4:
            raise PreconditionNotMet(f"{recipe.steps} steps have no early head and a rest")
        early = recipe.steps // 3
        folder = arena.new_run(thief)
        arena.train(folder, early, meter)
        first = arena.anchor(thief, folder)
        theirs = arena.victim           # trained after that head, where it was not there before
        arena.write(folder, meter, lambda stage: lead(stage, early), begin=early, stolen=theirs.stolen)
        put = arena.anchor(thief, folder)
        self.notes["blocks between the heads"] = put.position.block - first.position.block
        verdict = arena.verdict(thief, folder, put)
        return arena.attempt(verdict, meter)


def _begin_at(engine: Engine, opened: ShownRun, change: Change) -> None:
    """Parameters and buffers of the opened W_0, changed; the rest stays as it is built."""
    live = engine.capture().tensors
    with torch.no_grad():
        for entry in opened.states[0].tensors:
            if entry.kind in ("parameter", "buffer"):
                live[entry.name].copy_(change(entry, opened.tensor(entry)))


def _distance(engine: Engine, opened: ShownRun, change: Change, step: int) -> float:
    """Of the weights from the opened ones after `step`, changed; as a share of their norm."""
    tensors = {entry.name: change(entry, opened.tensor(entry)) for entry in opened.states[step].tensors}
    return relative_distance(flat(members(engine.state)), flat(tensors))
