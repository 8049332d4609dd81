"""Spoofs of the data that need an opening: what was committed to is not what is shown."""

from __future__ import annotations

from dataclasses import replace

from polcommit.records import OpenedSample
from polcommit.spoofs.attacks.splices import spliced
from polcommit.spoofs.base import ProtocolSpoof
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt, best
from polcommit.spoofs.opponent.dishonest import Unsealed
from polcommit.training.tree import sample_content


class DataAfterAnchor(ProtocolSpoof):
    """A run that leads straight to the stolen model; the data that would explain it is made up once the draw is known.

    Shown instead of the committed samples are others, under the committed leaves' salts: named by what they are, and
    named by what was committed.
    """

    name = "data-after-anchor"
    family = "data"
    title = "makes up the data of the drawn steps after the anchor"
    source = "polcommit"

    def attack(self, arena: Arena) -> Attempt:
        attempts = []
        for owned_up in (True, False):
            run = spliced(arena, share=0.0)
            announced = arena.announce(run.put)
            prover = arena.dishonest(run.party, run.folder)
            opening = made_up(prover.open(announced.challenge), owned_up)
            verdict = arena.settle(announced, prover.seal(announced.challenge, opening)).verdict
            attempts.append(arena.attempt(verdict, run.meter))
            self.notes["named by what it is" if owned_up else "named by what was committed"] = attempts[-1].why
        return best(attempts)


def made_up(opening: Unsealed, owned_up: bool) -> Unsealed:
    """The opening with every sample's last byte changed; its leaf says so, or does not."""
    changed = tuple(_changed(opening, sample, owned_up) for sample in opening.openings.samples)
    return replace(opening, openings=replace(opening.openings, samples=changed))


def _changed(opening: Unsealed, sample: OpenedSample, owned_up: bool) -> OpenedSample:
    path = opening.work / sample.leaf.content.hex()
    data = path.read_bytes()
    data = data[:-1] + bytes([data[-1] ^ 1])
    if not owned_up:
        path.write_bytes(data)
        return sample
    content = sample_content(data)
    (opening.work / content.hex()).write_bytes(data)
    return replace(sample, leaf=replace(sample.leaf, content=content))
