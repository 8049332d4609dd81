"""Spoofs that have a stolen model as the final state of a run which their own claims to continue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polcommit.encoding import encode
from polcommit.records import ParentClaim, Receipt
from polcommit.session.parents import FoundParent
from polcommit.session.run import load_run
from polcommit.signing import sign_verdict
from polcommit.spoofs.attacks.protocol import signed_off
from polcommit.spoofs.attacks.splices import Spliced, spliced
from polcommit.spoofs.base import ProtocolSpoof
from polcommit.spoofs.checkpoint import flat, relative_distance
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt, best
from polcommit.spoofs.opponent.setting import Party
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.types import StoredParent
from polcommit.training.measure import opened_parameters


def child_of(arena: Arena, party: Party, parent: FoundParent, meter: Meter, **terms: Any) -> Attempt:
    """A run that starts from the parent's final state, trained honestly and judged."""
    folder = arena.new_run(party, parent=parent, **terms)
    arena.train(folder, meter=meter)
    return arena.attempt(arena.verdict(party, folder, arena.anchor(party, folder)), meter)


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

    def attack(self, arena: Arena) -> Attempt:
        friend = arena.new_verifier()
        run = spliced(arena, verifiers=(friend,))
        receipt = self._verdict(arena, run)
        lied = sign_verdict(friend.key, signed_off(receipt.verdict, friend))
        attempts = []
        for name, shown in (("its true verdict", receipt), ("a friend's", lied)):
            attempts.append(child_of(arena, run.party, claimed(run.folder, shown), run.meter))
            self.notes[name] = f"{attempts[-1].outcome}: {attempts[-1].why}"
        return best(attempts)

    def _verdict(self, arena: Arena, run: Spliced) -> Receipt:
        announced = arena.announce(run.put)
        return arena.settle(announced, arena.answer(run.party, run.folder, announced.challenge))


class LaunderedParent(ProtocolSpoof):
    """A post hoc parent that re-executes, trained under the victim's beacon as its seed; its child is registered.

    What the child starts from is true, accepted, and not registered beforehand: so neither is the child, whatever its
    own registration says. It is not the victim's model either: a post hoc seed counts with account and key.
    """

    name = "laundered-parent"
    family = "starting point"
    title = "registers a run that continues a post hoc copy of the victim's"
    source = "polcommit"
    knows = frozenset({"W_T", "architecture", "data", "transcript"})
    goal = "own"

    def attack(self, arena: Arena) -> Attempt:
        theirs, thief, meter = arena.victim, arena.party(), Meter()
        registration = theirs.folder.registration
        assert registration is not None
        parent = arena.new_run(thief, post_hoc=True, seed=registration.beacon)
        arena.train(parent, meter=meter)
        lenient = replace(arena.connection, policy=replace(arena.connection.policy, registered=False))
        verifier = replace(arena.verifier, connection=lenient)      # the same, who takes post hoc runs as well
        accepted = arena.verdict(thief, parent, arena.anchor(thief, parent), verifier=verifier)
        self.notes["verdict on the parent"] = f"{accepted.verdict}: {Attempt.of(accepted).why}"
        receipt = next(one for one in parent.receipts() if one.verdict == accepted)
        attempt = child_of(arena, thief, claimed(parent, receipt), meter, post_hoc=False)
        self.notes["the child is registered, says its verdict"] = bool(attempt.registered)
        index = parent.states.get(arena.setting.recipe.steps)
        reached = relative_distance(flat(opened_parameters(index, parent.tensors.get)), flat(theirs.stolen))
        self.notes["distance of the parent to W_T"] = reached
        return attempt.short_of(reached)
