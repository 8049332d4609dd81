"""A gradient, bent as far as a tolerance lets it be: what steering does at every step.

The forger has the true gradient g and opens ĝ = g + δ. Test 1 of V10 bounds δ as a whole, tensor by tensor and, for
adaptive optimizers, as the optimizer weighs it; zeros of structure stay zeros. Within that, δ is chosen so that the
update ends as near to the goal as it can: this is the best single step, and not a proof that no plan over many steps
does better.

Vectors come in lanes, (L, n) float32: L forgers side by side, each with bounds of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from polcommit.profiles import GROSS, Profile, Spread
from polcommit.tolerance import threshold

Lanes = torch.Tensor        # (L, n)

PUSH = 1e-7         # in an element that is zero by structure: nothing as a share of a gradient

_ROUNDING = 1 - 1e-4        # what g + δ loses when it is rounded to float32 stays inside the bounds
_ROOM = 0.9         # of α_D: D is known with the true gradient, and will be that with the opened one
_HELD = 0.9         # of a mean that may not be exceeded: which steps are drawn is chance
_TINY = 1e-30
_SHARES = 257       # mixtures of bending and noise that are looked at
_ROUNDS = 3         # of filling up: what is left of the budget after them is a per cent or less of it


@dataclass(frozen=True, slots=True)
class Limits:
    """What δ may be, lane by lane. Infinite: not tested."""

    alpha: torch.Tensor                 # (L,): ‖δ‖ <= α·min(‖ĝ‖, ‖g‖)
    preconditioned: torch.Tensor        # (L,): ‖Dδ‖ <= α_D·‖Dĝ‖
    relative: torch.Tensor              # (L, k) of each tensor's norm
    floor: torch.Tensor                 # (L, k) of the whole norm
    zeros: torch.Tensor                 # (L,) bool: elements that are zero stay zero

    def lanes(self, chosen: torch.Tensor) -> Limits:
        """Those of some lanes."""
        return Limits(*(getattr(self, name)[chosen] for name in Limits.__slots__))


def lemma(alphas: Sequence[float], tensors: int) -> Limits:
    """Fang et al., Lemma 3, alone: the whole gradient within α. Zeros stay zeros."""
    lanes = len(alphas)
    endless = torch.full((lanes, tensors), torch.inf)
    return Limits(
        torch.tensor(alphas), torch.full((lanes,), torch.inf), endless, endless, torch.ones(lanes, dtype=torch.bool)
    )


def within(profile: Profile, names: Sequence[str], *, drawn: int = 0, every: float = 1.0) -> Limits:
    """One lane: all of test 1 under a profile, for parameters of these names, in order.

    With `drawn`, also the mean distance that test 3 lets a draw of so many steps have, by one that bends one step in
    `every`. Of another net's profile, which does not know all of these names, only what bounds the whole vector: that
    is more than it allows anybody.
    """
    bounds = {bound.name: bound for bound in profile.tensors}
    known = bounds.keys() >= set(names)
    alpha, own = profile.alpha, profile.alpha_preconditioned
    if drawn:
        alpha = min(alpha, every * _HELD * threshold(profile.distances, drawn))
        if own is not None and profile.distances_preconditioned is not None:
            own = min(own, every * _HELD * threshold(profile.distances_preconditioned, drawn))
    return Limits(
        torch.tensor([alpha]),
        torch.tensor([torch.inf if own is None else _ROOM * own]),
        torch.tensor([[bounds[name].relative if known else torch.inf for name in names]]),
        torch.tensor([[bounds[name].floor if known else torch.inf for name in names]]),
        torch.ones(1, dtype=torch.bool),
    )


def at_alpha(profile: Profile, alpha: float) -> Profile:
    """The profile with all that bounds distances scaled to this α; cosines have no scale."""
    factor = alpha / profile.alpha

    def scaled(spread: Spread) -> Spread:
        mean, sd, bound = (min(1.0, factor * value) for value in (spread.mean, spread.sd, spread.bound))
        return Spread(mean=mean, sd=sd, bound=bound)

    own, weighed = profile.alpha_preconditioned, profile.distances_preconditioned
    return replace(
        profile, name=f"{profile.name}, α = {alpha:g}", alpha=alpha,
        alpha_preconditioned=None if own is None else min(GROSS, factor * own),
        tensors=tuple(
            replace(bound, relative=factor * bound.relative, floor=factor * bound.floor) for bound in profile.tensors
        ),
        distances=scaled(profile.distances),
        distances_preconditioned=None if weighed is None else scaled(weighed),
    )  # fmt: skip


def join(parts: Sequence[Limits]) -> Limits:
    """The lanes of these, one after the other."""
    return Limits(*(torch.cat([getattr(part, name) for part in parts]) for name in Limits.__slots__))


class Bender:
    """Bends gradients whose tensors are `sizes` long, within limits."""

    def __init__(self, sizes: Sequence[int], limits: Limits) -> None:
        self.sizes, self.limits = list(sizes), limits
        self._capped = bool(limits.relative.isfinite().any())
        self._tensor = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(self.sizes))
        self._members = torch.nn.functional.one_hot(self._tensor, len(sizes)).float()

    def bend(self, gradient: Lanes, away: Lanes, scale: Lanes | None = None) -> Lanes:
        """δ, such that an update along -(g + δ), or -D(g + δ), leads against `away` as far as the limits let it.

        `scale` is D. With it, the best shape where the bound on δ binds and the best where the bound on Dδ does are
        both tried in every lane, and the better is taken.
        """
        shapes = [away] if scale is None else [away * scale, away / scale]
        best, most = torch.zeros_like(gradient), torch.full((len(gradient),), -torch.inf)
        for shape in shapes:
            found = self.fit(shape, gradient, scale)
            gain = ((found if scale is None else found * scale) * away).sum(1)
            better = gain > most
            best, most = torch.where(better[:, None], found, best), torch.where(better, gain, most)
        return best

    def fit(self, shape: Lanes, gradient: Lanes, scale: Lanes | None = None) -> Lanes:
        """The longest vector of this shape, tensor by tensor shortened where it must be, that is within limits."""
        limits = self.limits
        shape = torch.where((gradient == 0) & limits.zeros[:, None], 0.0, shape)
        shape = shape / shape.norm(dim=1, keepdim=True).clamp_min(_TINY)
        norm = gradient.norm(dim=1)
        lengths = self._fill(shape, gradient, norm)
        found = self._spread(lengths) * shape
        if scale is not None:
            weighed, whole = (found * scale).norm(dim=1), (gradient * scale).norm(dim=1)
            product = (found * gradient * scale * scale).sum(1) / weighed.clamp_min(_TINY)
            found = found * (_longest(limits.preconditioned, whole, product, one_sided=True) / weighed.clamp_min(_TINY)
                             ).clamp(max=1.0)[:, None]  # fmt: skip
        length = found.norm(dim=1)
        product = (found * gradient).sum(1) / length.clamp_min(_TINY)
        shrink = (_longest(limits.alpha, norm, product) / length.clamp_min(_TINY)).clamp(max=1.0)
        return found * (_ROUNDING * shrink)[:, None]

    def quieten(
        self, full: Lanes, gradient: Lanes, away: Lanes, scale: Lanes | None, aligned: torch.Tensor,
        paired: torch.Tensor, chance: torch.Generator,
    ) -> Lanes:  # fmt: skip
        """The largest share of `full`, filled up with noise of the gradient's own shape, that points nowhere much.

        `aligned` (L,) is the cosine with `away` that it may have, `paired` (L,) that of two such residuals, if the
        bent part of all of them points one way.
        """
        signs = torch.randint(0, 2, gradient.shape, generator=chance, dtype=gradient.dtype) * 2 - 1
        noise = self.fit(signs * gradient.abs(), gradient, scale)
        shares = torch.linspace(0, 1, _SHARES)
        rest = 1 - shares
        own, other, both = _dot(full, full), _dot(noise, noise), _dot(full, noise)
        square = shares**2 * own + rest**2 * other + 2 * shares * rest * both
        along = shares * _dot(full, away) + rest * _dot(noise, away)
        cosine = along / (square.clamp_min(_TINY).sqrt() * away.norm(dim=1, keepdim=True)).clamp_min(_TINY)
        steady = shares**2 * own / square.clamp_min(_TINY)
        fits = (cosine <= aligned[:, None]) & (steady <= paired[:, None])
        share = torch.where(fits, shares, 0.0).amax(1, keepdim=True)
        return share * full + (1 - share) * noise

    def _fill(self, shape: Lanes, gradient: Lanes, norm: torch.Tensor) -> torch.Tensor:
        """(L, k): factors on each tensor of `shape`, so that each is within its bound and the whole about α‖g‖."""
        own, there = self._norms(shape), self._norms(gradient)
        product = self._sums(shape * gradient) / own.clamp_min(_TINY)
        floor = self.limits.floor * (norm / (1 + self.limits.alpha))[:, None]
        cap = torch.maximum(_longest(self.limits.relative, there, product), floor)
        budget = (self.limits.alpha * norm).square()
        level = budget.sqrt() / own.norm(dim=1).clamp_min(_TINY)
        for _ in range(_ROUNDS if self._capped else 0):     # tensors at their caps leave the budget to the others
            filled = own * level[:, None] >= cap
            rest = budget - torch.where(filled, cap, 0.0).square().sum(1)
            free = torch.where(filled, 0.0, own).square().sum(1)
            level = torch.maximum(level, (rest.clamp_min(0.0) / free.clamp_min(_TINY)).sqrt())
        return torch.minimum(level[:, None] * own, cap) / own.clamp_min(_TINY)

    def _spread(self, values: torch.Tensor) -> Lanes:
        return values[:, self._tensor]

    def _sums(self, vector: Lanes) -> torch.Tensor:
        return vector @ self._members

    def _norms(self, vector: Lanes) -> torch.Tensor:
        return (vector * vector @ self._members).sqrt()


def _dot(a: Lanes, b: Lanes) -> torch.Tensor:
    return (a * b).sum(1, keepdim=True)


def _longest(
    alpha: torch.Tensor, norm: torch.Tensor, product: torch.Tensor, *, one_sided: bool = False
) -> torch.Tensor:
    """The largest s with s <= α·min(‖g‖, ‖g + s·q‖), for a unit vector q with g·q = `product`.

    `one_sided`: only s <= α·‖g + s·q‖ is asked.
    """
    bounded = torch.where(alpha.isfinite(), alpha, 0.0).clamp(max=1 - 1e-4)
    square = bounded * bounded
    shrunk = (square * product + ((square * product).square() + (1 - square) * square * norm * norm).sqrt()) / (
        1 - square
    )
    found = shrunk if one_sided else torch.minimum(bounded * norm, shrunk)
    return torch.where(alpha.isfinite(), found, torch.inf)
