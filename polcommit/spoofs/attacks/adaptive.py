"""Spoofs by one who knows polcommit, its tolerance and its tests, and does the best that they leave room for.

All of them train for real and claim another environment than the one that they ran in, so that steps are compared
within a noise profile's tolerance and not bit for bit. `opened` holds the gradients that the forger opens, by step:
polcommit's own prover would open the true ones. They end where they end: `distance` among the notes says how much of
the way from W_0 to W_T is left. How far the same gets with many more steps is `measure.steering`'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from polcommit.profiles import Profile
from polcommit.session import noise
from polcommit.session.answer import Options
from polcommit.session.recipes import recipe_name
from polcommit.spoofs.attacks.elsewhere import (
    copied_gradients,
    floating_gradients,
    other_environment,
    set_gradients,
)
from polcommit.spoofs.base import PreconditionNotMet, ProtocolSpoof, Stage
from polcommit.spoofs.bending import PUSH, Bender, within
from polcommit.spoofs.checkpoint import Checkpoint, flat, members, relative_distance
from polcommit.spoofs.cost import Meter
from polcommit.spoofs.forging import Forger
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt
from polcommit.spoofs.shelf import Shelf, plain_shelf
from polcommit.tolerance import threshold
from polcommit.training.environment import fingerprint
from polcommit.training.loading import FetchedBatch
from polcommit.training.optimizers import PARAMETER_EPS, preconditioner
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.residuals import Residuals
from polcommit.training.step import named_parameters

DRAWN = 90              # steps that a quiet forger expects a challenge to draw
MARGIN = 0.01           # of cosines, that it leaves to chance
SLACK = 0.75            # of what the comparison of updates allows: the addition is rounded too


@dataclass(frozen=True, slots=True)
class Bendable:
    """A step's true gradient, and what there is to bend it by; vectors are (1, n)."""

    names: Mapping[str, int]        # the tensors that have a gradient, in order, and their sizes
    gradient: torch.Tensor
    away: torch.Tensor              # W_t - W_T over these tensors
    scale: torch.Tensor | None      # D of this step; None of SGD

    def bender(self, profile: Profile, *, drawn: int = 0, every: float = 1.0) -> Bender:
        """One that stays within a profile's bounds; `drawn` and `every` as for `within`."""
        return Bender(list(self.names.values()), within(profile, list(self.names), drawn=drawn, every=every))


class Steering(ProtocolSpoof):
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
        self.opened: Shelf[Mapping[str, torch.Tensor]] = plain_shelf()

    def attack(self, arena: Arena) -> Attempt:
        """Forge a run, claim another environment for it, and open gradients when they are asked for."""
        recipe, meter = arena.setting.recipe, Meter()
        profile = self._profile(recipe)
        party = arena.party()
        folder = arena.new_run(party)
        claimed = other_environment(profile, fingerprint(recipe.device))
        stage = arena.write(folder, meter, self.forge, claimed=claimed)
        reached = relative_distance(flat(members(stage.engine.state)), flat(stage.stolen))
        put = arena.anchor(party, folder)
        prover = arena.dishonest(party, folder, gradients=self.opened)
        options = Options(profiles=(profile, *noise.known(arena.connection.policy)))
        verdict = arena.question(arena.announce(put), prover, options).verdict
        self.notes |= {"distance to W_T": reached, "reach": -1.0 if verdict.reach is None else verdict.reach}
        return arena.attempt(verdict, meter).short_of(reached)

    def forge(self, stage: Stage) -> None:
        """Commit every step, bent. Raises PreconditionNotMet."""
        self._require_optimizer(stage)
        forger = Forger(stage)
        profile = self._profile(stage.recipe)
        self.chance = torch.Generator().manual_seed(stage.seed)
        self.start = forger.weights()
        for batch in stage.batches():
            self.step(forger, profile, batch)
        left = (forger.weights() - forger.target).norm() / (self.start - forger.target).norm()
        self.notes |= {"profile": profile.name, "alpha": profile.alpha, "distance": float(left)}

    def step(self, forger: Forger, profile: Profile, batch: FetchedBatch) -> None:
        """One step, bent and committed."""
        engine = forger.engine
        scale = _scale(engine, batch)
        if scale is not None:
            forger.meter.step(forger.recipe.batch)

        def between() -> None:
            names, gradient = _gradient(engine)
            bent = gradient + self.bent(profile, Bendable(names, gradient, _away(forger, names), scale))
            set_gradients(floating_gradients(engine), bent[0])
            self.opened[batch.step] = copied_gradients(engine)

        forger.meter.step(forger.recipe.batch)
        forger.commit(batch, engine.step(batch, check_schedule=False, between=between))

    def bent(self, profile: Profile, at: Bendable) -> torch.Tensor:
        """(1, n): what is added to the gradient."""
        return at.bender(profile).bend(at.gradient, at.away, at.scale)

    def _require_optimizer(self, stage: Stage) -> None:
        adaptive = not isinstance(stage.engine.state.optimizer, torch.optim.SGD)
        if self.adaptive is not None and self.adaptive != adaptive:
            kind = "an adaptive optimizer" if self.adaptive else "SGD"
            raise PreconditionNotMet(f"'{self.name}' is for recipes with {kind}")

    def _profile(self, recipe: Recipe) -> Profile:
        if self.profile is not None:
            return self.profile
        name = recipe_name(recipe)
        configuration = dict(recipe.configuration())
        for profile in noise.shipped():
            pinned = all(configuration.get(key) == value for key, value in profile.configuration)
            if profile.recipe == name and pinned:
                return profile
        raise PreconditionNotMet(
            f"no noise profile ships for recipe {name!r} as it is configured: nothing tolerated; {_shipped_for(name)}"
        )


def _shipped_for(recipe: str) -> str:
    """What to ask for instead, where that is short."""
    found = [profile for profile in noise.shipped() if profile.recipe == recipe]
    if not found:
        return f"profiles ship for {', '.join(sorted({profile.recipe for profile in noise.shipped()}))}"
    sizes = {"batch", "width", "blocks", "tied"}
    ways = (
        " ".join(f"--set '{name}={value}'" for name, value in profile.configuration if name in sizes)
        for profile in found
    )
    return f"with {' or '.join(ways)}, and defaults else, one does"


class SteeringSgd(Steering):
    """Steering of SGD: the bend moves the weights by lr·α‖g‖ at most, whatever the direction."""

    name = "steering-sgd"
    title = "steering, of SGD"
    adaptive = False


class SteeringAdam(Steering):
    """Steering of an adaptive optimizer: it weighs the bend as it weighs the gradient, and is bounded as it does."""

    name = "steering-adam"
    title = "steering, of an adaptive optimizer"
    adaptive = True


class QuietSteering(Steering):
    """Steering that passes test 3: residuals as small and as scattered, on average, as the test wants them.

    Of each residual a share points at W_T, and the rest is noise in the gradient's own shape.
    """

    name = "steering-quiet"
    title = "steering, with residuals held just below what the test over the draw lets pass"

    def bent(self, profile: Profile, at: Bendable) -> torch.Tensor:
        bender = at.bender(profile, drawn=DRAWN)
        aligned = torch.tensor([threshold(profile.towards, DRAWN) - MARGIN])
        paired = torch.tensor([threshold(profile.pairs, Residuals.MOST // 2) - MARGIN])
        full = bender.bend(at.gradient, at.away, at.scale)
        return bender.quieten(full, at.gradient, at.away, at.scale, aligned, paired, self.chance)


class DecoySteering(QuietSteering):
    """Steering at every second step; at the others a residual of next to nothing points the other way.

    Cosines know no lengths: on average the residuals point nowhere. It was made for a test of mean cosines alone.
    """

    name = "steering-decoy"
    title = "steering at every second step, and tiny residuals the other way in between"
    small = 1e-6            # of the gradient's norm

    def bent(self, profile: Profile, at: Bendable) -> torch.Tensor:
        if bool(torch.rand((), generator=self.chance) < 0.5):
            small = -self.small * at.away * at.gradient.norm() / at.away.norm().clamp_min(1e-30)
            return torch.where(at.gradient == 0, 0.0, small)
        return at.bender(profile, drawn=DRAWN, every=2).bend(at.gradient, at.away, at.scale)


LEAST_ZEROS = 0.01          # share of a gradient, below which its zeros are accidents


class StructuralZeros(Steering):
    """Under Adam, ±1e-7 towards W_T wherever the gradient is zero: nothing as a share of it, a whole step as an update.

    Needs a model that has such zeros: rows of an embedding that are not in the batch.
    """

    name = "structural-zeros"
    title = "gradients of 1e-7 where they are zero by structure, under an adaptive optimizer"
    adaptive = True

    def bent(self, profile: Profile, at: Bendable) -> torch.Tensor:
        share = float((at.gradient == 0).double().mean())
        if share < LEAST_ZEROS:
            raise PreconditionNotMet(f"{share:.1e} of the gradient is zero: the recipe has no zeros of structure")
        pushed = torch.where(at.gradient == 0, PUSH * torch.sign(at.away), 0.0)
        self.notes["pushed"] = max(float(self.notes.get("pushed", 0.0)), float((pushed != 0).double().mean()))
        return pushed


class OptimizerSlack(Steering):
    """Leaves gradients alone, and moves each weight towards W_T by what two processors' updates may differ."""

    name = "optimizer-slack"
    title = "moves weights by the rounding that the comparison of updates lets pass"

    def step(self, forger: Forger, profile: Profile, batch: FetchedBatch) -> None:
        engine = forger.engine
        opened: dict[str, torch.Tensor] = {}

        forger.meter.step(forger.recipe.batch)
        before = {name: parameter.detach().clone() for name, parameter in named_parameters(engine.state.model).items()}
        result = engine.step(batch, check_schedule=False, between=lambda: opened.update(copied_gradients(engine)))
        self.opened[batch.step] = opened
        with torch.no_grad():
            for name, parameter in named_parameters(engine.state.model).items():
                if name in opened and parameter.is_floating_point():
                    goal = forger.stage.stolen[f"parameter/{name}"].to(parameter.device)
                    largest = torch.maximum(before[name].abs().max(), parameter.abs().max())
                    room = SLACK * PARAMETER_EPS * torch.finfo(parameter.dtype).eps * largest
                    parameter.add_((goal - parameter).clamp(-room, room))
        forger.commit(batch, result)


# --- gradients as vectors -------------------------------------------------------------------------------------


def _gradient(engine: Engine) -> tuple[dict[str, int], torch.Tensor]:
    """(names and sizes of the tensors that have a gradient, in order; the gradient (1, n))."""
    found = floating_gradients(engine)
    vector = torch.cat([gradient.detach().to("cpu", torch.float32).reshape(-1) for gradient in found.values()])
    return {name: gradient.numel() for name, gradient in found.items()}, vector[None]


def _away(forger: Forger, names: Mapping[str, int]) -> torch.Tensor:
    """(1, n): W_t - W_T over these parameters."""
    parameters = named_parameters(forger.engine.state.model)
    parts = [
        (parameters[name].detach() - forger.stage.stolen[f"parameter/{name}"]).to("cpu", torch.float32).reshape(-1)
        for name in names
    ]
    return torch.cat(parts)[None]


def _scale(engine: Engine, batch: FetchedBatch) -> torch.Tensor | None:
    """D (1, n) of this step, tried out on its true gradient; None of SGD. The state is put back."""
    if isinstance(engine.state.optimizer, torch.optim.SGD):
        return None
    saved = Checkpoint.take(engine.state)
    names: dict[str, int] = {}
    engine.step(batch, check_schedule=False, between=lambda: names.update(_gradient(engine)[0]))
    groups = {id(p): group for group in engine.state.optimizer.param_groups for p in group["params"]}
    parameters = named_parameters(engine.state.model)
    parts = []
    for name, size in names.items():
        parameter = parameters[name]
        slots = engine.state.optimizer.state.get(parameter, {})
        scale = preconditioner(slots, groups[id(parameter)]) if slots else None
        parts.append(torch.ones(size) if scale is None else scale.float().reshape(-1))
    saved.load(engine.state)
    return torch.cat(parts)[None]

