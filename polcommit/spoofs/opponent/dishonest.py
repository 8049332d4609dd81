"""A prover that does not use polcommit's own: it opens what it likes, and signs it.

Everything is taken as the folder holds it, and nothing is re-executed: a cheat knows better than to find out that its
steps do not reproduce. What it hands in is framed, signed and sealed like any other answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from polcommit import transcript as hashes
from polcommit.draws import Drawn, Screened, resolve
from polcommit.encoding import decode
from polcommit.events import ChainIdentity
from polcommit.prover import Run, drawn_samples, make_disclosure, make_openings, opened_states, receipts_that_count
from polcommit.records import (
    Challenge,
    Disclosure,
    Gradient,
    OpenedState,
    Openings,
    Refusal,
    StateIndex,
    StepRecord,
)
from polcommit.session import respond as responding
from polcommit.session.connection import Connection
from polcommit.session.regenerator import write_samples
from polcommit.session.run import load_run
from polcommit.session.wire import message
from polcommit.signing import sign_refusal
from polcommit.spoofs.opponent.setting import Party
from polcommit.storage.runfolder import RunFolder
from polcommit.training.recipe import Recipe
from polcommit.training.sketch import sketch_state
from polcommit.training.step import GRADIENT, gradient_entries
from polcommit.training.tree import raw_bytes

Sketches = Mapping[int, tuple[float, ...]]
Gradients = Mapping[int, Mapping[str, torch.Tensor]]    # step -> parameter -> ĝ


@dataclass(frozen=True, slots=True)
class Unsealed:
    """What is going to be sealed; bulky things lie in the folder `work`."""

    disclosure: Disclosure
    openings: Openings
    work: Path


class TrueSketches(Mapping[int, tuple[float, ...]]):
    """Of every state that a folder holds, each when it is asked for: of a long run few are."""

    def __init__(self, folder: RunFolder, seed: bytes) -> None:
        self._folder, self._seed = folder, seed
        self._steps = folder.states.steps()
        self._known: dict[int, tuple[float, ...]] = {}

    def __getitem__(self, step: int) -> tuple[float, ...]:
        if step not in self._known:
            index = self._folder.states.get(step)
            self._known[step] = sketch_state(index, self._folder.tensors.get, self._seed)
        return self._known[step]

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


@dataclass(slots=True)
class Dishonest:
    """A prover's own run, and its own idea of how to answer."""

    party: Party
    folder: RunFolder
    connection: Connection
    recipe: Recipe
    work: Path                                              # an empty folder for blobs
    gradients: Gradients | None = None                      # for challenges that ask for them
    lie: Callable[[Drawn, Sketches], Sketches] = lambda _, sketches: sketches   # told of the states, for the true ones
    run: Run | None = None                                  # another than what the folder holds
    flags: tuple[str, ...] = ()                             # what the screens make of the sketches that were told

    @property
    def chain(self) -> ChainIdentity:
        """The chain that all of it is about."""
        return self.connection.ledger.identity()

    def load(self) -> Run:
        """The run as it is claimed."""
        return self.run or load_run(self.folder, self.recipe.learning_rate)

    def drawn(self, challenge: Challenge) -> Drawn:
        """What the challenge draws, without asking whether it should be answered."""
        run, ledger = self.load(), self.connection.ledger
        event = next(event for event in ledger.challenges(run.id) if event.id == challenge.id)
        ledger.wait_final(event.position.block + hashes.DELAY)
        heads = [head.statement for head in run.heads]
        last = next(i for i, head in enumerate(run.heads) if head.commitment == challenge.request.commitment)
        return resolve(ledger, self.chain, run.manifest, challenge, event, tuple(heads[: last + 1]))

    def open(self, challenge: Challenge, drawn: Drawn | None = None) -> Unsealed:
        """The answer, in clear. `drawn` is what the challenge drew, or what the prover says that it did."""
        run = self.load()
        drawn = drawn or self.drawn(challenge)
        drawn, sketches = self._screened(run, challenge, drawn)
        states = {step: self.folder.states.get(step) for step in opened_states(drawn)}
        self.work.mkdir(parents=True, exist_ok=True)
        self._write(states.values())
        write_samples(self.folder, self.recipe, drawn_samples(run, drawn), self.work)
        follow_up = self._follow_up(drawn) if challenge.gradients else None
        receipts = receipts_that_count(run, self.connection.ledger, self.chain, challenge.id)
        disclosure = make_disclosure(replace(run, receipts=receipts), challenge, drawn)
        return Unsealed(disclosure, make_openings(run, drawn, states, sketches, follow_up), self.work)

    def seal(self, challenge: Challenge, opening: Unsealed) -> bytes:
        """Signed and sealed to whoever challenges, like any answer."""

        def payload() -> Iterator[bytes]:
            return responding.payload_of(opening.disclosure, opening.openings, opening.work)

        return b"".join(responding.sealed_answer(self.load(), self.chain, self.party.key, challenge, payload))

    def answer(self, challenge: Challenge) -> bytes:
        """Open and seal."""
        return self.seal(challenge, self.open(challenge))

    def refuse(self, challenge: Challenge, reason: str, detail: str) -> bytes:
        """A signed refusal instead."""
        refusal: Refusal = sign_refusal(
            self.party.key, run=challenge.request.run, challenge_id=challenge.id, reason=reason, detail=detail
        )
        return message(refusal)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _screened(self, run: Run, challenge: Challenge, drawn: Drawn) -> tuple[Drawn, Sketches]:
        """The draw with what the sketches add to it: those that are told, and not those that are true."""
        told = self.lie(drawn, TrueSketches(self.folder, hashes.sketch_seed(drawn.seed)))
        screened = Screened(
            challenge.request,
            run.manifest,
            seed=drawn.seed,
            last=drawn.kept[-1],
            records={step: decode(run.transcript.record(step), StepRecord) for step in drawn.kept if step},
            sketches={step: told[step] for step in drawn.kept},
        )
        self.flags = tuple(sorted({flag.screen for flag in screened.flags}))
        return drawn.with_added(screened.over(drawn.steps, told)), told

    def _write(self, states: Iterable[StateIndex]) -> None:
        for index in states:
            for entry in index.tensors:
                target = self.work / entry.content.hex()
                if not target.exists():
                    target.write_bytes(self.folder.tensors.get(entry))

    def _follow_up(self, drawn: Drawn) -> tuple[tuple[Gradient, ...], tuple[OpenedState, ...]]:
        """Gradients as they were prepared, and the states after, of the challenged steps."""
        assert self.gradients is not None, "gradients were asked for"
        opened = []
        for step in drawn.challenged:
            found = self.gradients[step]
            entries = gradient_entries(found)
            for entry in entries:
                (self.work / entry.content.hex()).write_bytes(raw_bytes(found[entry.name.removeprefix(GRADIENT)]))
            opened.append(Gradient(step=step, tensors=entries))
        after = {step: self.folder.states.get(step) for step in drawn.challenged}
        self._write(after.values())
        return tuple(opened), tuple(OpenedState(step=step, index=index) for step, index in after.items())
