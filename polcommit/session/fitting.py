"""From honest steps, measured in two environments, to the bounds of a noise profile.

A bound is `SAFETY` times the largest value of an honest step, `RARE` times that of a stressed one, or a least one. This
covers steps like those that were measured. How often others exceed it, only more of them can tell: what is rare has a
heavy tail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from polcommit.encoding import Record
from polcommit.errors import NotReproducible
from polcommit.profiles import ABSENT, ANY, GROSS, Bound, Profile, Spread
from polcommit.records import Fingerprint
from polcommit.replaying import Measured, TensorDistance

#: Steps over which the drift of the weights is followed.
DISTANCES = (1, 2, 5, 10, 20)

#: A bound is so many times the largest honest value; of a forward pass, which has no rare events, so many times.
SAFETY, FORWARD = 3.0, 10.0
#: And so many times the largest value of a stressed step, among which rare events are several times as frequent.
RARE = 1.0
#: A tensor whose largest distance is so many times its median one shares in what is rare.
HEAVY = 10.0
#: Where honest steps are equal bit for bit, some roundings of float32 are allowed all the same.
LEAST = 2.0**-20
#: Of one tensor, likewise: a rounding of the whole gradient.
LEAST_FLOOR = 2.0**-23
#: Elements of a tensor that may by accident be zero in one of the two only: one in so many, up to so many.
ELEMENTS, LEAST_ZEROS = 256, 4
#: Of cosines: the largest single one by this factor, deviations by this one, and the mean by so many standard errors.
COSINE_SAFETY, DEVIATION_SAFETY, ERRORS = 1.5, 1.25, 2.0
LEAST_DEVIATION, LEAST_COSINE = 0.02, 0.25

#: Items of the fingerprint that may be anything in either environment: they say who computes, not how.
FREE = ("polcommit", "polcommit training", "processor", "python")
#: Items that must be as they were when measured. What is in neither list must be equal in both environments.
PINNED = (
    "blas", "default dtype", "deterministic algorithms", "device", "float32 matmul precision", "flush subnormals",
    "machine", "torch",
)  # fmt: skip

QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Group:
    """The measured steps of one honest run in one environment."""

    environment: Fingerprint
    steps: Sequence[Measured]
    losses: Sequence[float]             # as recorded
    residuals: Sequence[float]          # cosines, pair by pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Stressed(Record):
    """The gradient of one honest step, and that of the same step from weights that are a little off."""

    distance: float
    norm: float                         # the smaller of the two
    preconditioned: tuple[float, float] | None
    tensors: tuple[TensorDistance, ...]


def fit(
    *,
    name: str,
    recipe: str,
    recipe_source: bytes,
    configuration: tuple[tuple[str, str], ...],
    reference: Fingerprint,
    groups: Sequence[Group],
    stressed: Sequence[Stressed],
    drifts: Sequence[tuple[int, float, float]],
    anything: Iterable[str] = (),
) -> Profile:
    """One profile for the reference's environment and all those of the groups.

    Raises:
        NotReproducible: an honest step fails what no tolerance helps against, or differs too much for any.
    """
    for group in groups:
        _require_comparable(recipe, group)
    steps = [step for group in groups for step in group.steps if all(step.finite)]
    stressed = [step for step in stressed if math.isfinite(step.distance)]
    losses = [_apart(loss, step.loss) for group in groups for loss, step in zip(group.losses, group.steps, strict=True)]
    others = [group.environment for group in groups]
    distances = [_ratio(step.distance, min(step.opened, step.here)) for step in steps]
    rare = [_ratio(step.distance, step.norm) for step in stressed]
    alpha = _share(recipe, "gradients", SAFETY * max(distances, default=0.0), RARE * max(rare, default=0.0))
    own = [_ratio(*step.preconditioned) for step in steps if step.preconditioned is not None]
    rare_own = [_ratio(*step.preconditioned) for step in stressed if step.preconditioned is not None]
    adaptive = None
    if own:
        adaptive = _share(recipe, "preconditioned gradients", SAFETY * max(own), RARE * max(rare_own, default=0.0))
    return Profile(
        name=name,
        recipe=recipe,
        recipe_source=recipe_source,
        configuration=tuple(sorted(configuration)),
        differs=_differs(reference, others, frozenset(anything)),
        holds=_holds(reference, others, frozenset(anything)),
        alpha=alpha,
        alpha_preconditioned=adaptive,
        tensors=_tensors(steps, stressed, alpha),
        buffers=_buffers(steps),
        distances=_sizes([distances, rare], alpha),
        distances_preconditioned=None if adaptive is None else _sizes([own, rare_own], adaptive),
        loss=_share(recipe, "losses", FORWARD * max(losses, default=0.0)),
        towards=_cosines([([step.towards for step in group.steps], None) for group in groups]),
        pairs=_cosines([(group.residuals, len(group.steps)) for group in groups]),
        honest=sum(len(group.steps) for group in groups),
        quantiles=_quantiles(groups, stressed, drifts),
    )


def digest_every(drifts: Sequence[tuple[int, float, float]]) -> int | None:
    """Of an environment that does not reproduce itself: the most steps that one digest may cover, or None.

    Weights re-executed over d steps are told from forged ones while `SAFETY` times the largest honest distance is
    within half of what the steps move the weights: a forged stretch is off by all of that, or more. `drifts` holds
    (d, distance, movement).
    """
    separated = []
    for distance in DISTANCES:
        shares = [_ratio(apart, moved) for steps, apart, moved in drifts if steps == distance]
        if not shares or not (SAFETY * max(shares) <= GROSS):
            break
        separated.append(distance)
    return separated[-1] if separated else None


# --- what no tolerance helps against --------------------------------------------------------------------------


def _require_comparable(recipe: str, group: Group) -> None:
    for step in group.steps:
        trouble = None
        if step.missing:
            trouble = f"the gradient of {step.missing[0]} is there in one of the two environments only"
        elif step.finite[0] != step.finite[1]:
            trouble = "gradients are finite in one of the two environments only"
        elif step.exact_only is not None:
            trouble = f"steps can be compared bit for bit only: {step.exact_only}"
        elif step.exact is not None:
            trouble = f"the optimizer gives another {step.exact} on the same state and gradient"
        elif not (step.update[1] <= 1.0):
            trouble = f"the update of {step.update[0]} is {step.update[1]:.3g} times the rounding allowed away"
        if trouble is not None:
            raise NotReproducible(
                f"no profile for recipe {recipe!r}: {trouble}", hint="verify it in the environment that it claims"
            )


def _share(recipe: str, what: str, *wanted: float) -> float:
    """A tolerance for relative distances."""
    found = max(LEAST, *wanted)
    if not (found <= GROSS):
        raise NotReproducible(
            f"no profile for recipe {recipe!r}: honest {what} of these environments ask for a tolerance of "
            f"{found:.3g}, which is more than {GROSS}",
            hint="verify it in the environment that it claims",
        )
    return found


# --- bounds ---------------------------------------------------------------------------------------------------

Values = tuple[float, float, float]     # of one tensor at one step: distance, norm, and what the floor is a share of


def _tensors(steps: Sequence[Measured], stressed: Sequence[Stressed], alpha: float) -> tuple[Bound, ...]:
    honest: dict[str, list[Values]] = {}
    rare: dict[str, list[Values]] = {}
    zeros: dict[str, int] = {}
    own = [(honest, step.tensors, min(step.opened, step.here)) for step in steps]
    for values, tensors, unit in [*own, *((rare, step.tensors, step.norm) for step in stressed)]:
        for tensor in tensors:
            triple = (tensor.distance, min(tensor.opened, tensor.here), unit)
            values.setdefault(tensor.name, []).append(triple)
            accident = min(LEAST_ZEROS, tensor.size // ELEMENTS)
            zeros[tensor.name] = max(zeros.get(tensor.name, accident), 2 * tensor.zeros)
    return tuple(
        _tensor(name, values, rare.get(name, []), zeros[name], alpha) for name, values in sorted(honest.items())
    )


def _tensor(name: str, honest: Sequence[Values], rare: Sequence[Values], zeros: int, alpha: float) -> Bound:
    scaled = [(distance * SAFETY, norm, unit) for distance, norm, unit in honest]
    scaled += [(distance * RARE, norm, unit) for distance, norm, unit in rare]
    relative, floor = _least(scaled)
    shares = sorted(_ratio(distance, unit) for distance, _, unit in rare or honest)
    if shares[-1] > HEAVY * shares[len(shares) // 2]:
        relative = max(relative, min(GROSS, 2 * alpha))
    return Bound(name=name, relative=relative, floor=max(LEAST_FLOOR, floor), zeros=zeros)


def _buffers(steps: Sequence[Measured]) -> tuple[Bound, ...]:
    found: dict[str, list[Values]] = {}
    for step in steps:
        for buffer in step.buffers:
            if math.isfinite(buffer.distance):
                norm = min(buffer.opened, buffer.here)
                found.setdefault(buffer.name, []).append((FORWARD * buffer.distance, norm, 1.0))
    bounds = ((name, *_least(values)) for name, values in sorted(found.items()))
    return tuple(Bound(name=name, relative=max(LEAST, own), floor=floor, zeros=0) for name, own, floor in bounds)


def _least(values: Sequence[Values]) -> tuple[float, float]:
    """The relative bound and the floor that hold every step and, on average over them, allow least.

    A relative bound above `GROSS` is none: what is that noisy is left to the floor.
    """
    floors = sorted(((_ratio(distance, unit), _ratio(distance, norm)) for distance, norm, unit in values), reverse=True)
    best, least, relative = (0.0, math.inf), math.inf, 0.0
    for place, (floor, own) in enumerate([*floors, (0.0, 0.0)]):
        if relative <= GROSS and (place == 0 or floor < floors[place - 1][0]):
            allowed = math.fsum(max(relative * norm, floor * unit) / unit for _, norm, unit in values if unit)
            if allowed < least:
                best, least = (relative, floor), allowed
        relative = max(relative, own)
    return best


# --- a draw ---------------------------------------------------------------------------------------------------


def _sizes(samples: Sequence[Sequence[float]], bound: float) -> Spread:
    """Of relative distances: the sample, of honest or of stressed steps, that has the larger ones."""
    mean, deviation = 0.0, 0.0
    for values in samples:
        if values:
            mean, deviation = max(mean, math.fsum(values) / len(values)), max(deviation, _deviation(values))
    return Spread(mean=min(mean, bound), sd=max(bound / 100, DEVIATION_SAFETY * deviation), bound=bound)


def _cosines(groups: Sequence[tuple[Sequence[float], int | None]]) -> Spread:
    """Of cosines, group by group; where they are of pairs, with the number of steps that the pairs are of."""
    mean, deviation, largest = 0.0, LEAST_DEVIATION, LEAST_COSINE
    for cosines, paired in groups:
        if not cosines:
            continue
        rows = list(cosines) if paired is None else _row_means(cosines, paired)
        error = (1 if paired is None else 2) * _deviation(rows) / math.sqrt(len(rows))
        mean = max(mean, math.fsum(cosines) / len(cosines) + ERRORS * error)
        deviation = max(deviation, DEVIATION_SAFETY * _deviation(cosines))
        largest = max(largest, COSINE_SAFETY * max(cosines))
    return Spread(mean=min(1.0, mean), sd=min(1.0, deviation), bound=min(1.0, max(largest, mean)))


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))


def _row_means(cosines: Sequence[float], steps: int) -> list[float]:
    """Each step's mean cosine with the others: their deviation is what the mean over all pairs is uncertain by."""
    count = next(n for n in range(steps, -1, -1) if n * (n - 1) // 2 == len(cosines))
    sums = [0.0] * count
    pairs = ((i, j) for i in range(count) for j in range(i + 1, count))
    for (i, j), cosine in zip(pairs, cosines, strict=True):
        sums[i] += cosine
        sums[j] += cosine
    return [total / (count - 1) for total in sums]


# --- environments ---------------------------------------------------------------------------------------------


def _differs(
    reference: Fingerprint, others: Sequence[Fingerprint], anything: frozenset[str]
) -> tuple[tuple[str, str, str], ...]:
    """Items in which the environments differ. Of more than two environments such an item may be anything."""
    there = dict(reference.items)
    found = {}
    for name in sorted(anything | set(FREE) | there.keys() | {name for other in others for name, _ in other.items}):
        values = [dict(other.items).get(name, ABSENT) for other in others]
        own = there.get(name, ABSENT)
        if name in anything or name in FREE:
            found[name] = (ANY, ANY)
        elif any(value != own for value in values):
            found[name] = (own, values[0]) if len(set(values)) == 1 else (ANY, ANY)
    return tuple((name, *pair) for name, pair in found.items())


def _holds(
    reference: Fingerprint, others: Sequence[Fingerprint], anything: frozenset[str]
) -> tuple[tuple[str, str], ...]:
    there = dict(reference.items)
    return tuple(
        (name, there[name])
        for name in PINNED
        if name in there and name not in anything
        and all(dict(other.items).get(name) == there[name] for other in others)
    )  # fmt: skip


# --- for people -----------------------------------------------------------------------------------------------


def _quantiles(
    groups: Sequence[Group], stressed: Sequence[Stressed], drifts: Sequence[tuple[int, float, float]]
) -> tuple[tuple[str, float, float], ...]:
    steps = [step for group in groups for step in group.steps if all(step.finite)]
    found: dict[str, list[float]] = {
        "gradient": [_ratio(step.distance, min(step.opened, step.here)) for step in steps],
        "gradient, stressed": [_ratio(step.distance, step.norm) for step in stressed],
        "preconditioned": [_ratio(*step.preconditioned) for step in steps if step.preconditioned is not None],
        "preconditioned, stressed": [_ratio(*step.preconditioned) for step in stressed if step.preconditioned],
        "update, of what is allowed": [step.update[1] for step in steps],
        "cosine towards the last weights": [step.towards for step in steps],
        "cosine of two residuals": [cosine for group in groups for cosine in group.residuals],
    }
    for distance in DISTANCES:
        shares = [_ratio(apart, moved) for taken, apart, moved in drifts if taken == distance]
        found[f"weights after {distance} step{'s' * (distance > 1)}"] = shares
    for step in steps:
        for tensor in step.tensors:
            shares = found.setdefault(f"gradient of {tensor.name}", [])
            shares.append(_ratio(tensor.distance, min(tensor.opened, tensor.here)))
    return tuple(_rows(found))


def _rows(found: Mapping[str, Sequence[float]]) -> Iterable[tuple[str, float, float]]:
    for name, values in found.items():
        finite = sorted(value for value in values if math.isfinite(value))
        for q in QUANTILES if finite else ():
            yield name, q, float(f"{finite[min(len(finite) - 1, math.ceil(q * len(finite)) - 1)]:.4g}")


def _ratio(distance: float, norm: float) -> float:
    """Infinite where it is no number, for the largest of several is looked for."""
    if distance == 0:
        return 0.0
    found = distance / norm if norm > 0 else math.inf
    return math.inf if math.isnan(found) else found


def _apart(a: float, b: float) -> float:
    """How far losses are apart, as the profile's `loss` counts it."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return 0.0
    return abs(a - b) / (1 + min(abs(a), abs(b)))
