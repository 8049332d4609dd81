"""Noise profiles by hand, for a net of a recipe."""

from __future__ import annotations

from typing import Any

from polcommit.profiles import Bound, Profile, Spread
from polcommit.training.recipe import Recipe


def by_hand(
    of: Recipe | None = None, *, adaptive: bool = False, alpha: float = 0.1, aligned: Spread, **more: Any
) -> Profile:
    """Bounds as wide for every tensor of the recipe's model; distances of a draw as far as `alpha`, but for `more`."""
    model = None if of is None else of.build().model
    parameters = [] if model is None else sorted(dict(model.named_parameters()))
    buffers = [] if model is None else sorted(dict(model.named_buffers()))
    sizes = Spread(mean=alpha, sd=0.0, bound=alpha)
    values: dict[str, Any] = {
        "name": "by hand", "recipe": "any", "recipe_source": bytes(32), "configuration": (), "differs": (),
        "holds": (), "alpha": alpha, "alpha_preconditioned": alpha if adaptive else None,
        "tensors": tuple(Bound(name=name, relative=0.2, floor=1e-6, zeros=0) for name in parameters),
        "buffers": tuple(Bound(name=name, relative=1e-3, floor=1e-6, zeros=0) for name in buffers),
        "distances": sizes, "distances_preconditioned": sizes if adaptive else None,
        "loss": 1e-3, "towards": aligned, "pairs": aligned, "honest": 1, "quantiles": (),
    }  # fmt: skip
    return Profile(**(values | more))
