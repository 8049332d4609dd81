"""Spoofs that have a stolen model as the final state of a run which their own claims to continue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from polcommit.encoding import encode
from polcommit.records import ParentClaim, Receipt
from polcommit.session.challenge import Verifier
from polcommit.session.parents import FoundParent
from polcommit.session.run import load_run
from polcommit.signing import sign_verdict
from polcommit.spoofs.attacks.protocol import signed_off
from polcommit.spoofs.attacks.splices import Spliced, spliced
from polcommit.spoofs.base import ProtocolSpoof
from polcommit.spoofs.checkpoint import flat, relative_distance
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt, best
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.types import StoredParent
from polcommit.training.measure import opened_parameters


def child_of(arena: Arena, run: Spliced, receipt: Receipt) -> Attempt:
    """A run that starts from the final state of `run`, trained honestly and judged; `receipt` is on its parent."""
    folder = arena.new_run(run.party, parent=claimed(run.folder, receipt))
    arena.train(folder, meter=run.meter)
    return arena.attempt(arena.verdict(run.party, folder, arena.anchor(run.party, folder)), run.meter)


def claimed(folder: RunFolder, receipt: Receipt) -> FoundParent:
    """The last head of a run as a parent, with whatever verdict: polcommit's own tools want an accepted one."""
    head = load_run(folder).heads[-1]
    index = folder.states.get(head.statement.steps)
    stored = StoredParent(claim=ParentClaim(head=head, receipt=encode(receipt)), state=index)
    return FoundParent(stored, folder.tensors.get)


class StolenParent(ProtocolSpoof):
    """A made-up run ends at the stolen model; an honest one starts from there, and names it as its parent.

    The parent is shown with the verdict that a verifier gave it, and with one that a friend signed unseen.
    """

    name = "stolen-parent"
    family = "starting point"
    title = "claims a stolen model as the final state of a parent run of its own"
    source = "Jia et al. 2021, §V-D3; polcommit"
    goal = "own"
    parent: ClassVar[Mapping[str, Any]] = {}        # terms of the made-up run: as the setting has it

    def attack(self, arena: Arena) -> Attempt:
        friend = arena.new_verifier()
        run = spliced(arena, verifiers=(friend,), **self.parent)
        index = run.folder.states.get(arena.setting.recipe.steps)
        end = flat(opened_parameters(index, run.folder.tensors.get))
        self.notes["distance of the parent to W_T"] = relative_distance(end, flat(arena.target))
        receipt = self._verdict(arena, run)
        self.notes["verdict on the parent"] = f"{receipt.verdict.verdict}: {Attempt.of(receipt.verdict).why}"
        lied = sign_verdict(friend.key, replace(signed_off(receipt.verdict, friend), registered=True))
        attempts = []
        for name, shown in (("its true verdict", receipt), ("a friend's", lied)):
            attempts.append(child_of(arena, run, shown))
            self.notes[name] = f"{attempts[-1].outcome}: {attempts[-1].why}"
        return best(attempts)

    def _verdict(self, arena: Arena, run: Spliced) -> Receipt:
        announced = arena.announce(run.put, verifier=lenient(arena))
        return arena.settle(announced, arena.answer(run.party, run.folder, announced.challenge))


class LaunderedParent(StolenParent):
    """The same by a post hoc run; the child is registered beforehand, where the setting has such runs.

    The child's own order and random streams are a beacon's, and its own steps are true. What it starts from is neither:
    a child is no more registered than its parent, and no better than the verdict on that.
    """

    name = "laundered-parent"
    title = "claims a stolen model as the final state of a post hoc parent, by a child that is registered"
    source = "polcommit"
    parent: ClassVar[Mapping[str, Any]] = {"post_hoc": True}


def lenient(arena: Arena) -> Verifier:
    """The arena's verifier, but one who takes post hoc runs as well."""
    connection = replace(arena.connection, policy=replace(arena.connection.policy, registered=False))
    return replace(arena.verifier, connection=connection)
