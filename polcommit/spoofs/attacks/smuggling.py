"""Spoofs that hide something in what a state consists of, or release another model than the one that was trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch

from polcommit.records import TensorEntry
from polcommit.spoofs.base import PreconditionNotMet, ProtocolSpoof
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt, best
from polcommit.spoofs.plain.prover import Honest
from polcommit.training.scalars import decode_scalars, encode_scalars
from polcommit.training.state import Captured
from polcommit.training.tree import dtype_name, tensor_content


class AlteredStates(ProtocolSpoof):
    """An honest run, of whose states something else is committed than training made: `altered` says what."""

    family = "smuggling"
    source = "polcommit"
    goal = "own"

    def attack(self, arena: Arena) -> Attempt:
        party, meter, stolen = arena.party(), Meter(), arena.target
        folder = arena.new_run(party)

        def alter(step: int, captured: Captured) -> Captured:
            return self.altered(captured, stolen) if step else captured

        arena.write(folder, meter, Honest().forge, alter=alter)
        announced = arena.announce(arena.anchor(party, folder))
        answer = arena.dishonest(party, folder).answer(announced.challenge)
        verdict = arena.settle(announced, answer).verdict
        return arena.attempt(verdict, meter)

    @abstractmethod
    def altered(self, captured: Captured, stolen: Mapping[str, torch.Tensor]) -> Captured:
        """What is committed instead of a state after step 1 or later."""


class ExtraTensor(AlteredStates):
    """Every state holds one tensor more than the recipe builds: a stolen layer, to be swapped in at the end."""

    name = "extra-tensor"
    title = "carries a tensor of the stolen model along in every state"

    def altered(self, captured: Captured, stolen: Mapping[str, torch.Tensor]) -> Captured:
        name, tensor = next((name, tensor) for name, tensor in sorted(stolen.items()) if name.startswith("parameter/"))
        tensor = tensor.detach().cpu().contiguous()
        hidden = TensorEntry(
            name=f"buffer/hidden.{name.partition('/')[2]}", kind="buffer", dtype=dtype_name(tensor),
            shape=tuple(tensor.shape), content=tensor_content(tensor),
        )  # fmt: skip
        entries = tuple(sorted((*captured.index.tensors, hidden), key=lambda entry: entry.name))
        index = replace(captured.index, tensors=entries)
        return Captured(index=index, tensors={**captured.tensors, hidden.name: tensor})


class MissingTensor(AlteredStates):
    """Every state lacks the optimizer's slots of one parameter: re-executed, they would begin at nothing again."""

    name = "missing-tensor"
    title = "leaves a parameter's optimizer state out of every state"

    def altered(self, captured: Captured, stolen: Mapping[str, torch.Tensor]) -> Captured:
        slots = [entry.name for entry in captured.index.tensors if entry.kind == "optimizer"]
        if not slots:
            raise PreconditionNotMet("the recipe's optimizer keeps no tensors to leave out")
        gone = slots[0]
        entries = tuple(entry for entry in captured.index.tensors if entry.name != gone)
        kept = {name: tensor for name, tensor in captured.tensors.items() if name != gone}
        return Captured(index=replace(captured.index, tensors=entries), tensors=kept)


class ForgedSetting(AlteredStates):
    """The optimizer's own settings in every state say something else: the rate that the next step would begin with."""

    name = "forged-optimizer-settings"
    title = "changes the learning rate that every state's optimizer holds"

    def altered(self, captured: Captured, stolen: Mapping[str, torch.Tensor]) -> Captured:
        values = decode_scalars(captured.index.scalars.values)
        path = next((path for path in sorted(values) if path.endswith("/lr")), None)
        if path is None:
            raise PreconditionNotMet("the recipe's optimizer holds no learning rate")
        values[path] = 10.0 * float(str(values[path])) + 1.0
        scalars = replace(captured.index.scalars, values=encode_scalars(values))
        return Captured(index=replace(captured.index, scalars=scalars), tensors=captured.tensors)


class OtherRelease(ProtocolSpoof):
    """An honest run of one's own, shown beside another model: the stolen one, and one's own but for a bit.

    V13 compares only where a model is given to compare: a bundle by itself names no file.
    """

    name = "other-release"
    family = "smuggling"
    title = "proves one model, and releases another"
    source = "polcommit"
    goal = "own"

    def attack(self, arena: Arena) -> Attempt:
        party, meter = arena.party(), Meter()
        folder = arena.new_run(party)
        own = arena.train(folder, meter=meter)
        put = arena.anchor(party, folder)
        shown = (arena.target, _nudged(own))
        return best([arena.attempt(arena.verdict(party, folder, put, released=model), meter) for model in shown])


def _nudged(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same model, with one weight moved by one unit in its last place."""
    moved = {name: tensor.clone() for name, tensor in tensors.items()}
    name = next(name for name in sorted(moved) if name.startswith("parameter/") and moved[name].is_floating_point())
    flat = moved[name].view(-1)
    flat[0] = torch.nextafter(flat[0], flat[0] + 1)
    return moved
