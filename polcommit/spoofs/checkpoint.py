"""A training state put aside and put back, the ordinary way: `state_dict` and `load_state_dict`.

What plain Proof-of-Learning logs, and what a forger tries things out with. Nothing is hashed and nothing is checked:
whatever a state holds is taken over, which is the point of it here. polcommit's own is `training.schema.restore`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from polcommit.training.state import TrainingState, survey

Weights = torch.Tensor      # (P,) float64 on the CPU: all floating parameters, flattened, in the order of their names


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Copies of everything in a state."""

    tensors: Mapping[str, torch.Tensor]         # 'parameter/…' and 'buffer/…', as `training.state` names them
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any] | None
    scaler: Mapping[str, Any] | None
    counters: Mapping[str, int]

    @classmethod
    def take(cls, state: TrainingState) -> Checkpoint:
        """Copy a state."""
        return cls(
            tensors={name: tensor.clone() for name, tensor in members(state).items()},
            optimizer=copy.deepcopy(state.optimizer.state_dict()),
            scheduler=None if state.scheduler is None else copy.deepcopy(state.scheduler.state_dict()),
            scaler=None if state.scaler is None else copy.deepcopy(state.scaler.state_dict()),
            counters=dict(state.counters),
        )

    def load(self, state: TrainingState) -> None:
        """Put it into a state that the same recipe built."""
        live = members(state)
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                live[name].copy_(tensor)
        state.optimizer.load_state_dict(copy.deepcopy(dict(self.optimizer)))
        if state.scheduler is not None and self.scheduler is not None:
            state.scheduler.load_state_dict(copy.deepcopy(dict(self.scheduler)))
        if state.scaler is not None and self.scaler is not None:
            state.scaler.load_state_dict(copy.deepcopy(dict(self.scaler)))
        state.counters.clear()
        state.counters.update(self.counters)

    def weights(self) -> Weights:
        """Its parameters as one vector."""
        return flat(self.tensors)

    def tree(self) -> object:
        """What `encode_tree` takes. Functions in a scheduler's state are left out: they are code, and the recipe's."""
        return tuple(_tree(getattr(self, name)) for name in _PARTS)

    @classmethod
    def back(cls, tree: Any) -> Checkpoint:
        """From such a tree; the tensors are on the CPU."""
        return cls(**{name: _untree(part) for name, part in zip(_PARTS, tree, strict=True)})


_PARTS = ("tensors", "optimizer", "scheduler", "scaler", "counters")


def _tree(value: Any) -> Any:
    """Dictionaries as pairs, whatever their keys; the rest as it is."""
    if isinstance(value, Mapping):
        pairs = [(key, _tree(item)) for key, item in value.items() if not callable(item)]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    if isinstance(value, list | tuple):
        return type(value)(_tree(item) for item in value)
    return value


def _untree(value: Any) -> Any:
    if isinstance(value, dict):
        ((kind, pairs),) = value.items()
        found = {key: _untree(item) for key, item in pairs}
        return Counter(found) if kind == "counter" else found
    if isinstance(value, list | tuple):
        return type(value)(_untree(item) for item in value)
    return value


def members(state: TrainingState) -> dict[str, torch.Tensor]:
    """The live parameters and buffers of a state, by entry name."""
    found = survey(state).tensors
    return {name: tensor.detach() for name, (kind, tensor) in found.items() if kind in ("parameter", "buffer")}


def parameters(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those that count as weights: floating parameters, in the order of their names."""
    return {
        name: tensors[name]
        for name in sorted(tensors)
        if name.startswith("parameter/") and tensors[name].is_floating_point()
    }


def flat(tensors: Mapping[str, torch.Tensor]) -> Weights:
    """The weights among these tensors as one vector."""
    parts = [tensor.detach().to("cpu", torch.float64).reshape(-1) for tensor in parameters(tensors).values()]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def cut(vector: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A vector in pieces, by name, shaped as these tensors and in their order. Raises RuntimeError: another length."""
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view(like[name].shape) for name, piece in zip(like, pieces, strict=True)}


def relative_distance(found: Weights, target: Weights) -> float:
    """‖found − target‖ / ‖target‖."""
    return float((found - target).norm() / target.norm())
