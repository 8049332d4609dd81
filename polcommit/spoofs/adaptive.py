"""Spoofs by one who knows polcommit, its tolerance and its tests, and does the best that they leave room for.

All of them train for real and claim another environment than the one that they ran in, so that steps are compared
within a noise profile's tolerance and not bit for bit. `claimed` says which; `opened` holds the gradients that the
forger would open, by step: polcommit's own prover would open the true ones. They end where they end: `distance` among
the notes says how much of the way from W_0 to W_T is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from polcommit.profiles import ABSENT, ANY, Profile
from polcommit.records import Fingerprint
from polcommit.session.noise import shipped
from polcommit.session.recipes import recipe_name
from polcommit.spoofs.base import PreconditionNotMet, Stage, TrajectorySpoof
from polcommit.spoofs.bending import Bender, Limits, within
from polcommit.spoofs.checkpoint import Checkpoint
from polcommit.spoofs.forging import Forger
from polcommit.tolerance import threshold
from polcommit.training.loading import FetchedBatch
from polcommit.training.optimizers import PARAMETER_EPS, preconditioner
from polcommit.training.replay import Engine
from polcommit.training.residuals import Residuals
from polcommit.training.step import named_parameters

DRAWN = 90              # steps that a quiet forger expects a challenge to draw
MARGIN = 0.01           # of cosines, that it leaves to chance
ROOM = 0.95             # of α_D: the second moment changes with what is opened
ADAPTIVE = ("exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta")


class Steering(TrajectorySpoof):
    """Bends every gradient towards the stolen model, as far as all of test 1 leaves room for.

    What it costs is honest training, for every gradient is computed. Under a tolerance as wide as the gradient it
    would arrive; under a measured one it comes somewhat nearer to W_T than honest training does.
    """

    name = "steering"
    family = "adaptive"
    title = "trains, and bends every gradient towards the stolen model inside the tolerance"
    source = "polcommit"
    knows = frozenset({"W_T", "architecture", "data", "tolerance"})
    adaptive: bool | None = None        # which optimizers it is for; None: any

    def __init__(self, profile: Profile | None = None) -> None:
        super().__init__()
        self.profile = profile          # None: the first that ships for the stage's recipe
        self.opened: dict[int, dict[str, torch.Tensor]] = {}

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        profile = self._profile(stage)
        self.chance = torch.Generator().manual_seed(stage.seed)
        self.start = forger.weights()
        for batch in stage.batches():
            self.step(forger, profile, batch)
        left = (forger.weights() - forger.target).norm() / (self.start - forger.target).norm()
        self.notes |= {"profile": profile.name, "alpha": profile.alpha, "distance": float(left)}

    def step(self, forger: Forger, profile: Profile, batch: FetchedBatch) -> None:
        """One step, bent and committed."""
        engine = forger.engine
        scale = _scale(engine, batch, forger)

        def between() -> None:
            names, gradient = _gradient(engine)
            bent = self.bent(forger, _limits(profile, names), names, gradient, scale)
            _put(engine, names, gradient + bent)
            self.opened[batch.step] = {
                name: parameter.grad.clone()
                for name, parameter in named_parameters(engine.state.model).items()
                if parameter.grad is not None
            }

        forger.meter.step(forger.recipe.batch)
        forger.commit(batch, engine.step(batch, check_schedule=False, between=between))

    def bent(
        self, forger: Forger, limits: Limits, names: Mapping[str, int], gradient: torch.Tensor,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """(1, n): what is added to the gradient."""
        return Bender(list(names.values()), limits).bend(gradient, _away(forger, names), scale)

    def claimed(self, here: Fingerprint, profile: Profile) -> Fingerprint:
        """The environment that it says it ran in: the other one of the profile's pair, seen from a verifier's `here`."""
        return other_environment(profile, here)

    def _profile(self, stage: Stage) -> Profile:
        slots = [key for slot in stage.engine.schema.optimizer_keys() for key in (slot,)] if False else None
        assert slots is None
        adaptive = type(stage.engine.state.optimizer).__name__ != "SGD"
        if self.adaptive is not None and self.adaptive != adaptive:
            kind = "adaptive" if self.adaptive else "SGD"
            raise PreconditionNotMet(f"'{self.name}' is for {kind} optimizers")
        if self.profile is not None:
            return self.profile
        name = recipe_name(stage.recipe)
        configuration = dict(stage.recipe.configuration())
        for profile in shipped():
            pinned = all(configuration.get(key) == value for key, value in profile.configuration)
            if profile.recipe == name and pinned:
                return profile
        raise PreconditionNotMet(f"no noise profile ships for recipe {name!r} with this configuration: nothing is tolerated")


def other_environment(profile: Profile, here: Fingerprint) -> Fingerprint:
    """A fingerprint that the profile pairs with `here`."""
    items: dict[str, Any] = dict(here.items)
    for name, one, other in profile.differs:
        if (one, other) == (ANY, ANY):
            continue
        found = items.get(name, ABSENT)
        items[name] = other if one in (ANY, found) else one
    return Fingerprint(items=tuple(sorted((name, value) for name, value in items.items() if value != ABSENT)))
