"""V11: what is odd about a run as a whole, from the sketches of its kept states, losses and learning rates.

Screens steer, re-execution decides: a flag adds a step to a challenge and never rejects a run by itself. Prover and
verifier compute the same flags and the same added steps, from the same numbers (`displacements`): every threshold is a
constant of the protocol.

What screens do not do: see anything between kept states, or stop a forger who spreads a jump over enough steps, trains
with a large learning rate, or lies about losses of steps that are not drawn. How far one gets is in docs/screens.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polcommit import prf
from polcommit.displacements import Kept, Path, Window, cosine, median, norm, variation
from polcommit.encoding import tagged_hash, u64
from polcommit.records import Flag, Request

__all__ = ["LEAST_KEPT", "Kept", "added_steps", "fine_states", "fine_stretches", "pinned_steps", "screen"]

LEAST_KEPT = 5                      # with fewer kept states no screen runs

NEIGHBOURS = 8                      # windows on each side that a window is compared with
FEWEST = 3                          # neighbours without which nothing is compared
EARLY = 4                           # so many windows at the beginning of a run may be larger
JUMP, EARLY_JUMP = 3.0, 6.0         # times the usual displacement around
PEAK = 1.5                          # times the largest one around, if that is less, and there are NEIGHBOURS at least
#: (intervals of a window, share of net displacement in path length); longer windows have the last one's.
STRAIGHT = ((4, 0.9995), (8, 0.998), (16, 0.99), (32, 0.97), (64, 0.95))
STEADY, TURN = 0.75, 0.2            # where successive displacements usually have that cosine, this one is a break
VARIED, EVEN = 0.25, 0.5            # where learning rates vary that much, norms vary by more than this share of it
LEAST_NORMS = 8
PER_RATE = 1e6                      # displacement of a step, per unit of learning rate
IDLE_RATE, IDLE_SHARE, IDLE_STRETCH = 1e-9, 1e-5, 0.05
JOINED = frozenset({"not-finite", "rate"})
MAX_STRETCHES = 64                  # stretches that steps are added for: decoys must not cost the verifier much
LARGEST = 2                         # intervals that are looked into whatever the screens say
MAX_FINE = 4096                     # states between kept ones that are sketched as well, in all stretches together


@dataclass(frozen=True, slots=True)
class _Found:
    """Intervals `first` to `last`, from 0, are odd."""

    first: int
    last: int
    value: float
    bound: float


def screen(kept: Sequence[Kept], *, steps: int, batch: int, samples: int) -> tuple[Flag, ...]:
    """What is odd about a run of `steps` steps of `batch` samples, out of `samples`, by first step.

    `kept` are its kept states by rising step. With fewer than LEAST_KEPT nothing is compared, and nothing flagged.

    Raises:
        UsageError: the steps do not rise, or the sketches differ in size.
    """
    if len(kept) < LEAST_KEPT:
        return ()
    path = Path(kept)
    jumps = tuple(_jumps(path))
    jumped = {interval for found in jumps for interval in range(found.first, found.last + 1)}
    turns = (found for found in _turns(path) if not jumped & {found.first, found.last})
    found = {
        "idle": _idle(path), "jump": jumps, "loss": _loss(path), "norms": _norms(path), "not-finite": _not_finite(path),
        "rate": _rates(path), "straight": _straight(path), "turn": turns,
    }  # fmt: skip
    flags = [flag for name, each in found.items() for flag in _flags(path, name, each)]
    passes = steps * batch / samples if samples else math.inf
    if not passes >= 1.0:
        flags.append(Flag(screen="work", first=1, last=steps, value=passes, bound=1.0))
    return tuple(sorted(flags, key=lambda flag: (flag.first, flag.last, flag.screen)))


def _flags(path: Path, name: str, found: Iterable[_Found]) -> Iterator[Flag]:
    """Flags in steps; what overlaps is one stretch, with the value that was found first in it.

    Of the screens in JOINED, what follows one another is one stretch, too.
    """
    stretch: _Found | None = None
    reach = 1 if name in JOINED else 0
    for each in sorted(found, key=lambda each: (each.first, each.last)):
        if stretch is not None and each.first <= stretch.last + reach:
            stretch = _Found(stretch.first, max(stretch.last, each.last), stretch.value, stretch.bound)
            continue
        if stretch is not None:
            yield _flag(path, name, stretch)
        stretch = each
    if stretch is not None:
        yield _flag(path, name, stretch)


def _flag(path: Path, name: str, found: _Found) -> Flag:
    first, last = path.kept[found.first].step + 1, path.kept[found.last + 1].step
    return Flag(screen=name, first=first, last=last, value=found.value, bound=found.bound)


# --- the screens ----------------------------------------------------------------------------------------------


def _not_finite(path: Path) -> Iterator[_Found]:
    """A sketch, displacement, loss or learning rate that is infinite or not a number."""
    for i, state in enumerate(path.kept[1:]):
        for value in (path.norms[i], state.loss, state.learning_rate):
            if value is not None and not math.isfinite(value):
                yield _Found(i, i, value, math.inf)
                break


def _jumps(path: Path) -> Iterator[_Found]:
    """Net displacements, over 1, 2, 4, … intervals, that are large beside those around them: a jump, or its ramp.

    Compared is the displacement per learning rate, with the median and the largest of the windows around; where windows
    cover different numbers of steps, one may be larger by as much as a straight path, or smaller by a random one.
    """
    covered: set[int] = set()
    size = 1
    while size * 4 <= path.size:
        windows = path.windows(size)
        for position, window in enumerate(windows):
            # what a smaller window says already does not count again, and does not hide the rest
            beside = _beside_neighbours(windows, position, path.norm_without(window, covered))
            if beside is None:
                continue
            ratio, largest = beside
            bound = EARLY_JUMP if window.first < EARLY * size else min(JUMP, PEAK * largest)
            if not ratio <= bound:
                covered.update(range(window.first, window.last + 1))
                yield _Found(window.first, window.last, ratio, bound)
        size *= 2


def _beside_neighbours(windows: Sequence[Window], position: int, length: float) -> tuple[float, float] | None:
    """A displacement per learning rate, and the largest around a window, both in units of the usual one around.

    The largest is infinite where there are few around; None where all of them say nothing.
    """
    window, reach = windows[position], 2 * NEIGHBOURS + 2
    around = [
        other
        for other in windows[max(0, position - reach) : position + reach + 1]
        if (other.last < window.first or other.first > window.last) and _measured(other)
        and abs(other.first - window.first) <= NEIGHBOURS * (window.last - window.first + 1)
    ]  # fmt: skip
    if len(around) < FEWEST or not _measured(window):
        return None
    sizes = [other.norm / other.rate for other in around]
    usual = median(sizes)
    longer = window.steps / median([float(other.steps) for other in around])
    allowed = usual * (longer if longer > 1.0 else math.sqrt(longer))
    if allowed > 0.0:
        largest = max(sizes) / usual if len(sizes) >= NEIGHBOURS else math.inf
        return length / window.rate / allowed, largest
    return (math.inf, math.inf) if length > 0.0 else None


def _measured(window: Window) -> bool:
    return 0.0 < window.rate < math.inf and window.norm < math.inf


def _straight(path: Path) -> Iterator[_Found]:
    """Windows whose path is a straight line: interpolation, with whatever sizes of steps."""
    size = STRAIGHT[0][0] if path.size < STRAIGHT[1][0] else STRAIGHT[1][0]
    while size <= path.size:
        bound = STRAIGHT[-1][1]
        for intervals, share in reversed(STRAIGHT):
            bound = share if size <= intervals else bound
        for window in path.windows(size):
            length = 0.0
            for i in range(window.first, window.last + 1):
                length += path.norms[i]
            if 0.0 < length < math.inf and not window.norm / length <= bound:
                yield _Found(window.first, window.last, window.norm / length, bound)
        size *= 2


def _turns(path: Path) -> Iterator[_Found]:
    """Breaks of direction where an optimizer with momentum can only turn slowly: a splice of ordinary size."""
    cosines = [cosine(path, i) for i in range(path.size - 1)]
    for i, found in enumerate(cosines):
        around = [*cosines[max(0, i - NEIGHBOURS) : i], *cosines[i + 1 : i + 1 + NEIGHBOURS]]
        usual = [other for other in around if other == other]
        if found == found and len(usual) >= FEWEST and median(usual) >= STEADY and not found >= TURN:
            yield _Found(i, i + 1, found, TURN)


def _norms(path: Path) -> Iterator[_Found]:
    """Displacements of one size throughout, while the learning rate varies: interpolation in equal steps."""
    usual = median([float(steps) for steps in path.steps])
    alike = [
        i for i in range(path.size)
        if path.steps[i] == usual and path.norms[i] < math.inf and 0.0 <= path.rates[i] < math.inf
    ]  # fmt: skip
    if len(alike) < LEAST_NORMS:
        return
    norms, rates = (variation([values[i] for i in alike]) for values in (path.norms, path.rates))
    if rates >= VARIED and not norms >= EVEN * rates:
        yield _Found(0, path.size - 1, norms, EVEN * rates)


def _rates(path: Path) -> Iterator[_Found]:
    """Displacements that the learning rate cannot explain."""
    for i, length in enumerate(path.norms):
        bound = PER_RATE * path.rates[i] * path.steps[i]
        if length < math.inf and not length <= bound:
            yield _Found(i, i, length, bound)


def _idle(path: Path) -> Iterator[_Found]:
    """Long stretches without a learning rate to speak of, or without any displacement."""
    peak = max((rate for rate in path.rates if rate < math.inf), default=0.0)
    least = max(IDLE_RATE, IDLE_SHARE * peak)
    total = path.kept[-1].step - path.kept[0].step
    start = 0
    for i in range(path.size + 1):
        if i < path.size and (path.rates[i] <= least or path.norms[i] == 0.0):
            continue
        if i > start and path.kept[i].step - path.kept[start].step >= IDLE_STRETCH * total:
            yield _Found(start, i - 1, max(path.rates[start:i]), least)
        start = i + 1


def _loss(path: Path) -> Iterator[_Found]:
    """A loss that does not fall: the median of the last fifth of the kept steps against that of the first."""
    losses = [state.loss for state in path.kept if state.loss is not None and math.isfinite(state.loss)]
    share = max(1, len(losses) // 5)
    if len(losses) < LEAST_KEPT - 1:
        return
    first, last = median(losses[:share]), median(losses[-share:])
    if not last < first:
        yield _Found(0, path.size - 1, last, first)


# --- the steps that are added to a challenge ------------------------------------------------------------------


def fine_stretches(seed: bytes, flags: Sequence[Flag], kept: Sequence[Kept]) -> tuple[tuple[int, int], ...]:
    """(first, last) of the stretches whose every state is sketched (spec §5.2); none with fewer than LEAST_KEPT.

    The LARGEST intervals with the largest displacement, flagged or not, and the stretches that are flagged as jumps:
    one random step of a stretch meets a jump of one step only now and then, and among few or long intervals one that
    leads all the way need not stand out. As many of the latter, as `seed` chooses them, as have no more than MAX_FINE
    states between kept ones together.
    """
    if len(kept) < LEAST_KEPT:
        return ()
    steps = [state.step for state in kept]
    found, total = [], 0
    jumps = _chosen(seed, [(flag.first, flag.last) for flag in flags if flag.screen == "jump"])
    for first, last in dict.fromkeys([*_largest(_intervals(kept), LARGEST), *jumps]):
        inside = last - first - sum(1 for step in steps if first <= step < last)
        if total + inside <= MAX_FINE:
            total += inside
            found.append((first, last))
    return tuple(found)


def fine_states(stretches: Sequence[tuple[int, int]], kept: Sequence[Kept]) -> tuple[int, ...]:
    """The states inside these stretches that are not kept, rising: they are sketched too."""
    steps = {state.step for state in kept}
    return tuple(sorted({step for first, last in stretches for step in range(first, last) if step not in steps}))


def pinned_steps(
    stretches: Sequence[tuple[int, int]], sketches: Mapping[int, Sequence[float]]
) -> tuple[int, ...]:
    """Of each stretch the step with the largest displacement, rising; of equal ones the first, and one that is not
    finite before all others. The sketches before and after it are compared with opened states, so that the largest
    displacement that is claimed is a true one. What is claimed of the other states of a stretch is the prover's word:
    a jump can still be told as many steps, each no larger than the largest true one (docs/decisions/0016)."""
    pinned = set()
    for first, last in stretches:
        lengths = [norm(sketches[step - 1], sketches[step]) for step in range(first, last + 1)]
        finite = [length if length < math.inf else math.inf for length in lengths]
        pinned.add(first + finite.index(max(finite)))
    return tuple(sorted(pinned))


def added_steps(
    seed: bytes,
    request: Request,
    flags: Sequence[Flag],
    kept: Sequence[Kept],
    drawn: Sequence[int],
    epoch: int,
    pinned: Sequence[int] = (),
) -> tuple[int, ...]:
    """The steps that the sketches add to the `drawn` ones, rising, none of them drawn already (spec §5.2).

    The `pinned` ones, and one of each flagged stretch, as `seed` (the draw's, 32 bytes) has it; of more than
    MAX_STRETCHES, so many chosen by it. For 'mixed' also the first and the last step, and one of each of the
    request.count // 4 (at least one) intervals between kept states with the largest displacement. For 'top-q' one of
    each of the request.count largest intervals of every epoch of `epoch` steps (Jia et al., IEEE S&P 2021, Algorithm
    2); an interval belongs to the epoch in which it ends. Neither of the two is random: a forger knows beforehand which
    displacements it makes large.
    """
    taken = {*drawn, *pinned}
    stretches = _chosen(seed, [(flag.first, flag.last) for flag in flags])
    if request.strategy == "mixed":
        stretches += [(1, 1), (kept[-1].step, kept[-1].step)] if kept and kept[-1].step else []
        stretches += _largest(_intervals(kept), max(1, request.count // 4))
    elif request.strategy == "top-q":
        epochs: dict[int, list[tuple[float, int, int]]] = {}
        for interval in _intervals(kept):
            epochs.setdefault((interval[2] - 1) // epoch, []).append(interval)
        for number in sorted(epochs):
            stretches += _largest(epochs[number], request.count)
    added = set(pinned) - set(drawn)
    for number, (first, last) in enumerate(stretches):
        step = _one_of(tagged_hash("added-seed", seed, u64(number)), first, last, taken)
        if step is not None:
            taken.add(step)
            added.add(step)
    return tuple(sorted(added))


def _chosen(seed: bytes, stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """All of the distinct stretches, or MAX_STRETCHES of them, by first step."""
    distinct = sorted(set(stretches))
    count = min(MAX_STRETCHES, len(distinct))
    return [distinct[i] for i in prf.sample_without_replacement(tagged_hash("added-seed", seed), len(distinct), count)]


def _intervals(kept: Sequence[Kept]) -> list[tuple[float, int, int]]:
    """(displacement, first step, last step) of each interval; one that is not finite counts as the largest."""
    found = []
    for before, after in pairwise(kept):
        length = norm(before.sketch, after.sketch)
        found.append((length if length < math.inf else math.inf, before.step + 1, after.step))
    return found


def _largest(intervals: Sequence[tuple[float, int, int]], count: int) -> list[tuple[int, int]]:
    """(first step, last step) of the `count` largest displacements, by first step; of equal ones the earlier."""
    ordered = sorted(intervals, key=lambda interval: (-interval[0], interval[1]))
    return sorted((first, last) for _, first, last in ordered[:count])


def _one_of(seed: bytes, first: int, last: int, taken: set[int]) -> int | None:
    """A step from `first` to `last` that is not taken, each as likely; None where all are."""
    if all(step in taken for step in range(first, last + 1)):
        return None
    return next(first + x for x in prf.uniform(seed, last - first + 1) if first + x not in taken)
