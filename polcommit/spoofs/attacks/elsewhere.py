"""What those have in common who claim another machine than the one that they ran on: whose it is, and ĝ as a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from polcommit.profiles import ABSENT, ANY, Profile
from polcommit.records import Fingerprint
from polcommit.spoofs.checkpoint import cut
from polcommit.training.replay import Engine
from polcommit.training.step import gradients

ELSEWHERE = "another one"       # a processor that nobody here has


def other_environment(profile: Profile, here: Fingerprint) -> Fingerprint:
    """A fingerprint that the profile pairs with `here`."""
    items: dict[str, Any] = dict(here.items)
    for name, one, other in profile.differs:
        found = items.get(name, ABSENT)
        if ANY not in (one, other):
            items[name] = other if one == found else one
        elif name == "processor":       # what no verifier can take over from a claim
            items[name] = ELSEWHERE
    return Fingerprint(items=tuple(sorted((name, value) for name, value in items.items() if value != ABSENT)))


def nowhere(here: Fingerprint) -> Fingerprint:
    """The same with a processor that no profile knows."""
    return Fingerprint(items=tuple(sorted({**dict(here.items), "processor": ELSEWHERE}.items())))


def floating_gradients(engine: Engine) -> dict[str, torch.Tensor]:
    """The live gradients that a bend can be added to, by parameter, sorted."""
    return {name: found for name, found in gradients(engine.state.model).items() if found.is_floating_point()}


def set_gradients(found: Mapping[str, torch.Tensor], vector: torch.Tensor) -> None:
    """Put a vector over live gradients, in their order, in their place."""
    for name, piece in cut(vector, found).items():
        found[name].copy_(piece)


def copied_gradients(engine: Engine) -> dict[str, torch.Tensor]:
    """What lies in `.grad`, to be opened."""
    return {name: gradient.clone() for name, gradient in gradients(engine.state.model).items()}
