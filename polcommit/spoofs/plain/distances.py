"""Distances between weights, in the four metrics of Jia et al. (§V-C), and their normalisation by d_ref.

The cosine distance is 1 − a·b / (‖a‖·‖b‖). (The published verifier divides by ‖a‖² in places, which makes the
distance depend on the length of a.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import combinations

import torch

from polcommit.errors import UsageError
from polcommit.spoofs.checkpoint import Weights

METRICS = ("1", "2", "inf", "cos")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """One distance in each metric; NaN where a weight is not a number."""

    l1: float
    l2: float
    linf: float
    cosine: float

    def __truediv__(self, reference: Distances) -> Distances:
        """Each as a share of the reference's."""
        shares = [a / b if b else (0.0 if a == 0 else float("inf")) for a, b in zip(self, reference, strict=True)]
        return Distances(l1=shares[0], l2=shares[1], linf=shares[2], cosine=shares[3])

    def __iter__(self) -> Iterator[float]:
        return iter(astuple(self))

    def by_metric(self) -> dict[str, float]:
        """Keyed as METRICS."""
        return dict(zip(METRICS, astuple(self), strict=True))

    def above(self, bound: float, metrics: Iterable[str] = METRICS) -> list[str]:
        """The metrics in which it is not within the bound."""
        found = self.by_metric()
        return [metric for metric in metrics if not (found[metric] <= bound)]


def distances(a: Weights, b: Weights) -> Distances:
    """Of two weight vectors of the same length, float64."""
    difference = (a - b).abs()
    if difference.numel() == 0:
        return Distances(l1=0.0, l2=0.0, linf=0.0, cosine=0.0)
    return Distances(
        l1=float(difference.sum()), l2=float(torch.linalg.vector_norm(difference)), linf=float(difference.max()),
        cosine=_cosine(a, b),
    )  # fmt: skip


def _cosine(a: Weights, b: Weights) -> float:
    if torch.equal(a, b):
        return 0.0
    scale = float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    if scale == 0.0:
        return 1.0      # one of them is zero and the other is not: no direction to agree on
    value = 1.0 - float(torch.dot(a, b)) / scale
    return 0.0 if value < 0.0 else value


def mean_distances(finals: Iterable[Weights]) -> Distances:
    """The mean over all pairs, in each metric: d_ref, for the final weights of independent trainings.

    Raises:
        UsageError: fewer than two.
    """
    pairs = [distances(a, b) for a, b in combinations(finals, 2)]
    if not pairs:
        raise UsageError("a reference distance needs two independent trainings, or more")
    sums = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    return Distances(l1=sums[0], l2=sums[1], linf=sums[2], cosine=sums[3])
