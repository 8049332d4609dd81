"""Spoofs that anchor forged steps, and try their luck when it comes to opening them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import torch

from polcommit.draws import Drawn
from polcommit.profiles import Profile, find
from polcommit.records import Fingerprint
from polcommit.session import noise
from polcommit.session.answer import Options
from polcommit.session.challenge import Ask
from polcommit.session.recipes import recipe_name
from polcommit.spoofs.attacks.elsewhere import copied_gradients, floating_gradients, nowhere, other_environment
from polcommit.spoofs.attacks.splices import Spliced, spliced
from polcommit.spoofs.base import PreconditionNotMet, ProtocolSpoof, Stage
from polcommit.spoofs.checkpoint import Weights, cut, members, parameters
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt, best
from polcommit.spoofs.opponent.dishonest import Sketches
from polcommit.spoofs.opponent.setting import Announced
from polcommit.spoofs.shelf import Shelf, plain_shelf
from polcommit.training.environment import fingerprint
from polcommit.training.loading import FetchedBatch
from polcommit.training.step import StepResult


class OpeningSpoof(ProtocolSpoof):
    """Base of what begins with a run whose second half is made up, and anchored."""

    family = "protocol"
    source = "polcommit"

    def judged(self, arena: Arena, run: Spliced, announced: Announced, answer: bytes) -> Attempt:
        """What the verifier makes of an answer."""
        verdict = arena.settle(announced, answer).verdict
        return arena.attempt(verdict, run.meter)


class RefusesToOpen(OpeningSpoof):
    """What was drawn is not opened: the challenge is called invalid, or the budget exhausted, or nothing is said.

    After silence another verifier is asked for, who challenges only steps that are honest.
    """

    name = "refuses-to-open"
    title = "does not open what was drawn: pleads a budget, calls the challenge invalid, or says nothing"

    def attack(self, arena: Arena) -> Attempt:
        other = arena.new_verifier()
        attempts = []
        for reason in ("invalid", "budget"):
            run = spliced(arena)
            announced = arena.announce(run.put)
            refusal = arena.dishonest(run.party, run.folder).refuse(announced.challenge, reason, "not this one")
            attempts.append(self.judged(arena, run, announced, refusal))
            self.notes[f"says '{reason}'"] = attempts[-1].outcome
        run = spliced(arena, verifiers=(other,))
        arena.announce(run.put)         # and no answer
        announced = arena.announce(run.put, Ask(strategy="list", steps=run.honest), other)
        answer = arena.dishonest(run.party, run.folder).answer(announced.challenge)
        attempts.append(self.judged(arena, run, announced, answer))
        self.notes["says nothing, and opens honest steps to another"] = attempts[-1].outcome
        return best(attempts)


class CannotReproduce(OpeningSpoof):
    """The drawn states were not kept, it says, and this machine does not get them back."""

    name = "cannot-reproduce"
    title = "says that it cannot reproduce the drawn steps"

    def attack(self, arena: Arena) -> Attempt:
        run = spliced(arena)
        announced = arena.announce(run.put)
        prover = arena.dishonest(run.party, run.folder)
        return self.judged(arena, run, announced, prover.refuse(announced.challenge, "irreproducible", "other bits"))


class OpensOtherSteps(OpeningSpoof):
    """Opens as many steps as were drawn, all of them honest, and none that was."""

    name = "opens-other-steps"
    title = "opens honest steps in place of those drawn"

    def attack(self, arena: Arena) -> Attempt:
        run = spliced(arena)
        count = min(arena.setting.draws, len(run.honest))
        announced = arena.announce(run.put, Ask(count=count))
        prover = arena.dishonest(run.party, run.folder)
        drawn = prover.drawn(announced.challenge)
        if set(drawn.steps) <= set(run.honest):
            raise PreconditionNotMet("the draw met no forged step: there is nothing to hide")
        opening = prover.open(announced.challenge, replace(drawn, steps=run.honest[:count]))
        return self.judged(arena, run, announced, prover.seal(announced.challenge, opening))


class LyingSketches(OpeningSpoof):
    """Half-way a run jumps to the stolen model and trains on; the sketches that are told lead smoothly around the jump.

    Which kept states are opened to check sketches follows from the draw, as do the sketches' signs: a prover knows
    both when it tells. It lies about the others only. 'screens' in the notes are those that true sketches trip,
    'screens, lied to' those that the told ones do. Besides them there is the random draw: one forged step.
    """

    name = "lying-sketches"
    title = "jumps to the stolen model, and tells smooth sketches of the states that are not opened"
    knows = frozenset({"W_T", "architecture", "data", "screens"})
    goal = "own"

    def attack(self, arena: Arena) -> Attempt:
        run = self._jumped(arena)
        announced = arena.announce(run.put)
        truthful = arena.dishonest(run.party, run.folder)
        truthful.open(announced.challenge)
        self.notes["screens"] = ", ".join(truthful.flags)
        prover = arena.dishonest(run.party, run.folder, lie=_smoothed)
        answer = prover.answer(announced.challenge)
        self.notes["screens, lied to"] = ", ".join(prover.flags)
        return self.judged(arena, run, announced, answer)

    def _jumped(self, arena: Arena) -> Spliced:
        party, meter, steps = arena.party(), Meter(), arena.setting.recipe.steps
        folder = arena.new_run(party)
        jump = steps // 2 + 1
        arena.write(folder, meter, lambda stage: _jumping(stage, jump))
        honest = tuple(step for step in range(1, steps + 1) if step != jump)
        return Spliced(party, folder, honest, (jump,), meter, arena.anchor(party, folder))


def _jumping(stage: Stage, jump: int) -> None:
    forger = Forger(stage)
    for batch in stage.batches():
        result = forger.step(batch)
        if batch.step == jump:
            forger.place(forger.target, 1.0)
        forger.commit(batch, result)


def _smoothed(drawn: Drawn, true: Sketches) -> Sketches:
    """True where a kept state is opened; elsewhere as an even, winding way between those would look."""
    told: dict[int, tuple[float, ...]] = {}
    opened = sorted({0, *drawn.opened_kept})
    for left, right in pairwise(opened):
        between = [step for step in sorted(true) if left < step < right]
        for step in between:
            share = (step - left) / (right - left)
            wiggle = (drawn.seed[step % 32] / 255 - 0.5) / max(len(between), 1)
            told[step] = tuple(
                a + (share + (wiggle if (step + place) % 2 else -wiggle)) * (b - a)
                for place, (a, b) in enumerate(zip(true[left], true[right], strict=True))
            )
    return ChainMap(told, true)     # type: ignore[arg-type]  # that is only read


class ForeignEnvironment(OpeningSpoof):
    """Claims to have trained elsewhere, so that other bits are no contradiction, and makes gradients to measure.

    Each gradient is solved for the next state on the line to the stolen model, so that the optimizer, applied to what
    is opened, leads exactly there. Where a noise profile of this verifier's covers some other environment, that one is
    claimed, and a made-up one elsewhere. Without gradients opened the same run is shown once more.
    """

    name = "foreign-environment"
    title = "claims another machine, and opens gradients that lead wherever it wants"
    knows = frozenset({"W_T", "architecture", "data", "tolerance"})

    def attack(self, arena: Arena) -> Attempt:
        party, meter = arena.party(), Meter()
        profiles = noise.known(arena.connection.policy)
        folder = arena.new_run(party)
        gradients: Shelf[Mapping[str, torch.Tensor]] = plain_shelf()
        arena.write(
            folder, meter, lambda stage: self._forge(stage, gradients), claimed=self._claimed(arena, profiles)
        )
        put = arena.anchor(party, folder)
        attempts = []
        for asked in (False, True):
            announced = arena.announce(put, Ask(count=arena.setting.draws, gradients=asked))
            prover = arena.dishonest(party, folder, gradients=gradients)
            options = Options(follow_up=False, profiles=profiles)
            receipt = arena.settle(announced, prover.answer(announced.challenge), options=options)
            folder.write_receipt(announced.challenge.id, receipt)
            verdict = receipt.verdict
            attempts.append(arena.attempt(verdict, meter))
            self.notes["with gradients" if asked else "without gradients"] = f"{verdict.verdict}: {attempts[-1].why}"
        return best(attempts)

    def _claimed(self, arena: Arena, profiles: tuple[Profile, ...]) -> Fingerprint:
        """Another environment than this one: one that a profile covers, if there is any."""
        recipe, here = arena.setting.recipe, fingerprint(arena.setting.recipe.device)
        for profile in profiles:
            claimed = other_environment(profile, here)
            fits = find(
                (profile,), recipe=recipe_name(recipe), recipe_source=type(recipe).source_digest(),
                configuration=recipe.configuration(), claimed=claimed, here=here,
            )  # fmt: skip
            if claimed != here and fits is not None:
                self.notes["profile"] = profile.name
                return claimed
        self.notes["profile"] = "none"
        return nowhere(here)

    def _forge(self, stage: Stage, gradients: Shelf[Mapping[str, torch.Tensor]]) -> None:
        forger = Forger(stage)
        start = forger.weights()
        for batch in stage.batches():
            wanted = torch.lerp(start, forger.target, batch.step / stage.steps)
            result, gradients[batch.step] = solved_step(forger, batch, wanted)
            forger.commit(batch, result)
        self.notes["distance to W_T"] = forger.missed()


def solved_step(forger: Forger, batch: FetchedBatch, wanted: Weights) -> tuple[StepResult, Mapping[str, torch.Tensor]]:
    """Take a step with the gradient that leads to `wanted`, and return that gradient by parameter.

    Exact, up to rounding, where the update is affine in the gradient, as SGD's is: two probes give the line.
    """
    saved, size = forger.save(), 1.0 / (forger.recipe.learning_rate(batch.step) or 1.0)
    ends = []
    for value in (0.0, size):
        _stepped(forger, batch, torch.full_like(wanted, value))
        ends.append(forger.weights())
        forger.back(saved)
    slope = (ends[1] - ends[0]) / size
    solved = torch.where(slope != 0, (wanted - ends[0]) / slope, torch.zeros_like(wanted))
    return _stepped(forger, batch, solved)


def _stepped(
    forger: Forger, batch: FetchedBatch, gradient: Weights
) -> tuple[StepResult, Mapping[str, torch.Tensor]]:
    taken: dict[str, torch.Tensor] = {}
    pieces = cut(gradient, parameters(members(forger.engine.state)))

    def give() -> None:
        for name, found in floating_gradients(forger.engine).items():
            found.copy_(pieces[f"parameter/{name}"])
        taken.update(copied_gradients(forger.engine))

    forger.meter.step(forger.recipe.batch)
    result = forger.engine.step(batch, between=give)
    return result, taken
