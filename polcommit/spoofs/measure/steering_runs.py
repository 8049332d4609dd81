"""Forgers that steer, run side by side for as many steps as wanted, and what came of each.

Every forger computes the true gradient of its own data at its own weights, bends it as its variant says, and updates
on that. Nothing is drawn or judged here: `steering` does that, on what is kept of steps taken at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from polcommit import prf
from polcommit.spoofs.bending import Bender, Lanes, Limits, lemma
from polcommit.spoofs.measure.lanes import Optimizer, Side
from polcommit.spoofs.measure.steered import SteeredDigits, share_of_peak
from polcommit.training.optimizers import PARAMETER_EPS

#: What a forger does with the room that a tolerance leaves it.
#: plain      bends every gradient as far as it goes
#: quiet      as far as residuals may point one way on average; the rest of the room is random
#: scattered  likewise, as far as any two of them may: who never arrives is tested against another end than W_T
#: decoy      every second step, by chance; the others have a residual of next to nothing, and the other way
#: bursts     one step in `every`, by chance, and only those have a learning rate to speak of
#: slack      leaves gradients alone, and moves each weight by what the comparison of updates lets pass
#: still      likewise, at a learning rate of next to nothing: no true update pulls back
VARIANTS = ("plain", "quiet", "scattered", "decoy", "bursts", "slack", "still")

TRACES = 60         # places at which distances are noted
NOTHING = 1e-6      # of the gradient's norm: a residual that is only there to have a direction; likewise of a rate
_TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Forger:
    """One lane."""

    labels: str
    optimizer: str = "sgd"
    variant: str = "plain"
    profile: str = ""               # whose bounds: a name
    alpha: float | None = None      # of Lemma 3 alone; None: all of test 1 under the profile
    rate: float = 0.05              # peak
    aligned: float = 1.0            # 'quiet': cosine with the way that its residuals may have
    paired: float = 1.0             # likewise, of two residuals
    every: int = 10                 # 'bursts': steps for each that counts


@dataclass(slots=True, eq=False)
class Run:
    """What came of all lanes. Distances are in units of ‖W_0 − W_T‖ of the lane."""

    forgers: Sequence[Forger]
    steps: int
    traced: list[int] = field(default_factory=list)
    distance: list[torch.Tensor] = field(default_factory=list)     # (L,) each: ‖W_t − W_T‖
    moved: list[torch.Tensor] = field(default_factory=list)        # ‖W_t − W_0‖
    stride: list[torch.Tensor] = field(default_factory=list)       # Σ lr·‖ĝ‖, or Σ lr·‖Dĝ‖, so far
    rounding: list[torch.Tensor] = field(default_factory=list)     # Σ of what test 2 lets pass, so far
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (L,): Σ of squared strides, of all steps
    weights: list[Lanes] = field(default_factory=list)             # of the steps taken at random: W before
    residuals: list[Lanes] = field(default_factory=list)           # likewise
    distances: list[torch.Tensor] = field(default_factory=list)    # likewise: (L, 2), ‖ĝ − g‖ and ‖D(ĝ − g)‖, relative
    end: Lanes | None = None
    accuracy: torch.Tensor | None = None


def run_forgers(
    forgers: Sequence[Forger], recipe: SteeredDigits, limits: Limits, seed: bytes, targets: Lanes,
    taken: frozenset[int],
) -> Run:  # fmt: skip
    """All of `recipe.steps` steps, from the seed's W_0 towards `targets`; `taken` are kept for tests."""
    side = Side(recipe, [forger.labels for forger in forgers])
    lanes = _Lanes(forgers, recipe, side, limits, first_weights(recipe, seed, side), targets)
    found = Run(forgers, recipe.steps)
    traced = {round(recipe.steps ** (place / TRACES)) for place in range(TRACES)} | {recipe.steps}
    size = len(recipe.source())
    for step in range(1, recipe.steps + 1):
        before = lanes.weights.clone() if step in taken else None
        residual, relative = lanes.step(step, prf.batch_indices(seed, step, size, recipe.batch))
        if before is not None:
            found.weights.append(before)
            found.residuals.append(residual)
            found.distances.append(relative)
        if step in traced:
            found.traced.append(step)
            found.distance.append(lanes.distance())
            found.moved.append((lanes.weights - lanes.start).norm(dim=1) / lanes.span)
            found.stride.append(lanes.stride / lanes.span)
            found.rounding.append(lanes.rounding / lanes.span)
    found.squares = lanes.squares / lanes.span.square()
    found.end, found.accuracy = lanes.weights, side.accuracy(lanes.weights)
    return found


def first_weights(recipe: SteeredDigits, seed: bytes, side: Side) -> torch.Tensor:
    """W_0 (n,) of the seed, as every process has it."""
    state = recipe.build()
    recipe.initialize(state, seed)
    found = dict(state.model.named_parameters())
    return torch.cat([found[name].detach().flatten() for name in side.names])


class _Lanes:
    def __init__(
        self, forgers: Sequence[Forger], recipe: SteeredDigits, side: Side, limits: Limits, start: torch.Tensor,
        targets: Lanes,
    ) -> None:  # fmt: skip
        self.recipe, self.side = recipe, side
        self.start, self.targets = start, targets
        self.weights = start.expand(len(forgers), -1).clone()
        self.span = (start - targets).norm(dim=1)
        self.optimizer = Optimizer([forger.optimizer for forger in forgers], self.weights)
        self.stride, self.squares, self.rounding = torch.zeros(3, len(forgers), dtype=torch.float64)
        self._bender = Bender(side.sizes, limits)
        self._rates = torch.tensor([forger.rate for forger in forgers])
        self._is = {name: torch.tensor([each.variant == name for each in forgers]) for name in VARIANTS}
        self._every = torch.tensor([forger.every for forger in forgers])
        self._slack = self._is["slack"] | self._is["still"]
        quiet = [lane for lane, each in enumerate(forgers) if each.variant in ("quiet", "scattered")]
        self._quiet = torch.tensor(quiet, dtype=torch.int64)
        self._quietly = Bender(side.sizes, limits.lanes(self._quiet))
        self._aligned = torch.tensor([forgers[lane].aligned for lane in quiet])
        self._paired = torch.tensor([forgers[lane].paired for lane in quiet])
        self._chance = torch.Generator().manual_seed(int.from_bytes(b"bend", "big"))

    def distance(self) -> torch.Tensor:
        return (self.weights - self.targets).norm(dim=1) / self.span

    def step(self, step: int, indices: Sequence[int]) -> tuple[Lanes, torch.Tensor]:
        """One step of every lane; the residuals ĝ - g, and their relative lengths (L, 2): theirs, and under D."""
        gradient, _ = self.side.gradient(self.weights, indices)
        scale = self.optimizer.scale(gradient)
        idle = self._is["bursts"] & (torch.rand((), generator=self._chance) * self._every >= 1) | self._is["still"]
        even = bool(torch.rand((), generator=self._chance) < 0.5)
        rate = self._rates * share_of_peak(step, self.recipe.steps)
        rate = torch.where(idle, NOTHING * rate, rate)
        residual = self._bent(gradient, scale, rate, idle=idle, even=even)
        opened = gradient + residual
        least = torch.minimum(gradient.norm(dim=1), opened.norm(dim=1)).clamp_min(_TINY)
        used = (opened * scale).norm(dim=1)
        self.stride += rate * used
        self.squares += (rate * used).double().square()
        weighed = (residual * scale).norm(dim=1) / used.clamp_min(_TINY)
        relative = torch.stack([residual.norm(dim=1) / least, weighed], 1)
        self.weights = self.weights - rate[:, None] * self.optimizer.update(opened)
        self._round()
        return residual, relative

    def _bent(self, gradient: Lanes, scale: Lanes, rate: torch.Tensor, *, idle: torch.Tensor, even: bool) -> Lanes:
        """What is added to the true gradients."""
        away = self.weights - self.targets
        wanted = away - rate[:, None] * gradient * scale        # what would be left to go without bending
        full = self._bender.bend(gradient, wanted, scale)
        moved = (full * scale).norm(dim=1) * rate
        full = full * (wanted.norm(dim=1) / moved.clamp_min(_TINY)).clamp(max=1.0)[:, None]     # and not beyond it
        if len(self._quiet):
            lanes = self._quiet
            full[lanes] = self._quietly.quieten(
                full[lanes], gradient[lanes], away[lanes], scale[lanes], self._aligned, self._paired, self._chance
            )
        if even:
            small = NOTHING * gradient.norm(dim=1) / away.norm(dim=1).clamp_min(_TINY)
            decoy = torch.where(gradient == 0, 0.0, -away * small[:, None])
            full = torch.where(self._is["decoy"][:, None], decoy, full)
        return torch.where((idle | self._slack)[:, None], 0.0, full)

    def _round(self) -> None:
        """What `training.optimizers` allows two processors to differ: who lives on it moves each weight by as much."""
        sizes = self.side.sizes
        eps = torch.finfo(self.weights.dtype).eps
        largest = torch.stack([part.abs().amax(1) for part in self.weights.split(sizes, 1)], 1)
        room = PARAMETER_EPS * eps * largest        # (L, k): of each element of a tensor
        self.rounding += (room.double().square() @ torch.tensor(sizes, dtype=torch.float64)).sqrt()
        if bool(self._slack.any()):
            most = room.repeat_interleave(torch.tensor(sizes), 1)
            moved = self.weights + (self.targets - self.weights).clamp(-most, most)
            self.weights = torch.where(self._slack[:, None], moved, self.weights)


def trained(recipe: SteeredDigits, seed: bytes, rates: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """W_T (n,) by optimizer: weights of honest runs under a seed, on clean labels."""
    everyone = [Forger(labels="clean", optimizer=name, alpha=0.0, rate=rate) for name, rate in rates.items()]
    side = Side(recipe, [each.labels for each in everyone])
    limits = lemma([0.0] * len(everyone), len(side.sizes))
    nowhere = torch.ones(len(everyone), sum(side.sizes))
    run = run_forgers(everyone, recipe, limits, seed, nowhere, frozenset())
    assert run.end is not None
    return {each.optimizer: weights for each, weights in zip(everyone, run.end, strict=True)}
