"""Initial weights of a forger's choosing."""

from __future__ import annotations

from hashlib import sha256

import torch

from polcommit.spoofs.checkpoint import Weights, flat, members, parameters
from polcommit.spoofs.forging import Forger
from polcommit.training.replay import Engine


def own_draw(forger: Forger) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a fair draw of the initialisation, under a seed of the forger's own."""
    engine = Engine(forger.recipe, sha256(b"the forger's own W_0" + str(forger.stage.seed).encode()).digest())
    engine.initial()
    return members(engine.state)


def rank_matched(forger: Forger) -> Weights:
    """A fair draw whose values, tensor by tensor, are put where W_T has those of the same rank."""
    stolen = parameters(forger.stage.stolen)
    sorted_like = {}
    for name, drawn in parameters(own_draw(forger)).items():
        values = drawn.to("cpu", torch.float64).reshape(-1).sort().values
        ranks = stolen[name].detach().to("cpu", torch.float64).reshape(-1).argsort().argsort()
        sorted_like[name] = values[ranks]
    return flat(sorted_like)


def near_target(forger: Forger, share: float) -> Weights:
    """W_T with this share of a fair draw mixed in."""
    return torch.lerp(forger.target, flat(own_draw(forger)), share)


def choose_start(forger: Forger) -> None:
    """Start from the rank-matched draw where the start is the forger's to choose; else leave it."""
    if "start" in forger.stage.free:
        forger.put(rank_matched(forger))
