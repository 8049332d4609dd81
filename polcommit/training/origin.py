"""W_0 of a run whose seed nobody drew for it, against the distribution that the recipe claims (spec §6, V12).

Each parameter is compared with a sample of the recipe's own initialisation under a seed that the challenge brings:
the two-sample Kolmogorov-Smirnov test of Jia et al., S&P 2021, §V-D4, on the elements of one tensor. What the recipe
sets to fixed values must be these; buffers, optimizer and scalars must be those of the recipe's initial state.

Not found: a W_0 whose elements are a permutation of honest ones, sorted after a stolen W_T for instance, or one that
is honest and was chosen among many.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from polcommit.records import StateIndex, TensorEntry
from polcommit.replaying import TensorOrigin
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.schema import Fetch, opened_tensor

Sample = np.ndarray[tuple[int], np.dtype[np.float64]]
SCALARS = "scalars"         # the name under which all scalars together are reported


def tensor_origins(
    recipe: Recipe, opened: StateIndex, fetch: Fetch, initial: StateIndex, reference_seed: bytes
) -> tuple[TensorOrigin, ...]:
    """Each tensor of an opened W_0, and all its scalars, against the recipe's.

    `opened` has the recipe's schema; `initial` is the recipe's initial state under the run's own seed. The reference
    is initialised under `reference_seed` (32 bytes), which its prover did not know.

    Raises:
        Refuted, EncodingError: V8: the opened bytes are not those that the index names.
    """
    reference = Engine(recipe, reference_seed).initial()
    elsewhere = {entry.name: entry for entry in reference.index.tensors}
    own = {entry.name: entry for entry in initial.tensors}
    found = []
    for entry in opened.tensors:
        due = own.get(entry.name)
        fixed = due is None or entry.kind != "parameter" or due.content == elsewhere[entry.name].content
        if fixed:       # values that do not come from the seed, or are not a parameter's
            found.append(_fixed(entry, due))
            continue
        here = reference.tensors[entry.name].to("cpu").double().reshape(-1).numpy()
        there = opened_tensor(entry, fetch).double().reshape(-1).numpy()
        statistic, probability = kolmogorov_smirnov(there, here)
        found.append(
            TensorOrigin(
                name=entry.name,
                size=there.size,
                statistic=statistic,
                probability=probability,
                constant=False,
                equal=entry.content == elsewhere[entry.name].content,
            )
        )
    missing = [_fixed(entry, None) for name, entry in own.items() if name not in {e.name for e in opened.tensors}]
    same = replace(opened, tensors=()) == replace(initial, tensors=())
    scalars = TensorOrigin(name=SCALARS, size=0, statistic=0.0, probability=1.0, constant=True, equal=same)
    return (*found, *missing, scalars)


def kolmogorov_smirnov(a: Sample, b: Sample) -> tuple[float, float]:
    """The two-sample statistic, and its asymptotic probability: D, and P(D' >= D) were the distributions equal.

    Ties are counted exactly: the empirical distributions are compared at the samples' values, after all of a value.
    A sample with something that is not a number is from no distribution: (1, 0).
    """
    if not a.size or not b.size:
        return 0.0, 1.0
    if np.isnan(a).any() or np.isnan(b).any():
        return 1.0, 0.0
    values = np.concatenate((a, b))
    shares = (np.searchsorted(np.sort(sample), values, side="right") / sample.size for sample in (a, b))
    first, second = shares
    statistic = float(np.abs(first - second).max())
    return statistic, _kolmogorov(statistic * math.sqrt(a.size * b.size / (a.size + b.size)))


def _kolmogorov(x: float) -> float:
    """P(K >= x) of Kolmogorov's distribution, by whichever of its two series converges quickly."""
    if x <= 0.0:
        return 1.0
    if x < 1.18:
        below = sum(math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 8))
        return min(1.0, max(0.0, 1.0 - math.sqrt(2 * math.pi) / x * below))
    return min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 8))))


def _fixed(entry: TensorEntry, due: TensorEntry | None) -> TensorOrigin:
    return TensorOrigin(
        name=entry.name,
        size=math.prod(entry.shape),
        statistic=0.0,
        probability=1.0,
        constant=True,
        equal=entry == due,
    )
