"""What a challenge costs and buys, before there is a run: shares of training, for verifier and prover, beside top-Q.

Everything is counted in training steps, so that a share of the steps is a share of training; the costs of reading,
hashing and sending are not in it. The figures hold for uniform draws. They say how likely a draw meets one of m
forged steps, not how many forged steps it takes to steal or steer a model. docs/soundness.md derives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

from polcommit import sampling
from polcommit.errors import UsageError
from polcommit.records.run import MAX_KEPT, MAX_STEPS
from polcommit.screens import LARGEST, LEAST_KEPT

#: Top-Q in the set-up of the papers: k = 10, and 200 epochs of CIFAR-10, which are 78,000 steps.
TOP_Q, INTERVAL, EPOCH_STEPS = 5, 10, 390
#: Digits for sums of large terms that nearly cancel; what is reported has 15.
_EXACT = Context(prec=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regeneration:
    """Steps that a prover re-executes to answer a draw, who keeps a full state every `keep` steps.

    Each interval between kept states is walked once, from its kept state to the state before the last drawn step in
    it. A verifier in another environment wants the gradient and the state after it too: `beyond_*` is a walk to
    there.
    """

    keep: int
    kept: int                   # states that are kept: 0, every `keep`, and the last
    expected: float
    worst: int
    beyond_expected: float
    beyond_worst: int
    looking: int                # besides, at most: to look into the intervals with the largest displacements


@dataclass(frozen=True, slots=True, kw_only=True)
class TopQ:
    """The rule of Jia et al. (S&P 2021, Algorithm 2): per epoch the Q largest updates between checkpoints."""

    q: int
    interval: int               # steps between checkpoints
    epoch_steps: int
    executed: int               # steps that the verifier re-executes
    uniform: float              # detection of forged steps that lie at random, their sizes aside
    blindfold: float            # detection of forged steps kept below the Q largest of each epoch (Fang et al., §6.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A challenge of `drawn` of `steps` steps: the least that detects `forged` ones with the probability asked for."""

    steps: int
    fraction: float
    forged: int                 # m, steps that make up the fraction
    asked: float
    drawn: int                  # n
    added: int                  # steps that the largest displacements add, flagged or not; not counted for detection
    probability: float          # of meeting at least one of m
    single: float               # of meeting the one forged step of a run with no other
    prover: tuple[Regeneration, ...]
    top_q: TopQ

    def share(self, executed: float) -> float:
        """That many steps, as a share of training."""
        return executed / self.steps


def plan(
    steps: int, *, detect: float, fraction: float, keeps: tuple[int, ...],
    q: int = TOP_Q, interval: int | None = None, epoch_steps: int | None = None,
) -> Plan:  # fmt: skip
    """What detects, with probability `detect`, a run of `steps` steps of which this fraction is forged.

    `keeps` are the intervals between kept states to compare. Top-Q takes `q` intervals of `interval` steps, by
    default 10, in each epoch of `epoch_steps`, by default 390; or the whole of a shorter epoch or run.

    Raises:
        UsageError: a value out of its range; the message names it.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"a run of {steps} steps", hint=f"from 1 to {MAX_STEPS}")
    forged = sampling.forged_steps(steps, fraction)
    drawn = sampling.draws_needed(steps, fraction, detect)
    epoch_steps = min(EPOCH_STEPS, steps) if epoch_steps is None else epoch_steps
    interval = max(1, min(INTERVAL, epoch_steps)) if interval is None else interval
    return Plan(
        steps=steps,
        fraction=fraction,
        forged=forged,
        asked=detect,
        drawn=drawn,
        added=min(LARGEST, steps - drawn),
        probability=sampling.detection(steps, forged, drawn),
        single=drawn / steps,
        prover=tuple(regeneration(steps, keep, drawn) for keep in keeps),
        top_q=top_q(steps, forged, q, interval, epoch_steps),
    )


def regeneration(steps: int, keep: int, drawn: int) -> Regeneration:
    """The prover's re-execution for a uniform draw of `drawn` of `steps` steps without replacement.

    Raises:
        UsageError: `keep` or `drawn` is not within 1 to `steps`.
    """
    for name, value in (("keep", keep), ("draw", drawn)):
        if not 1 <= value <= steps:
            raise UsageError(f"{name} {value} of {steps} steps", hint=f"from 1 to {steps}")
    whole, rest = divmod(steps, keep)
    if whole > MAX_KEPT:
        least = steps // (MAX_KEPT + 1) + 1
        raise UsageError(f"keep {keep} of {steps} steps keeps {whole} states", hint=f"at least every {least} steps")
    intervals = [(whole, keep)] + ([(1, rest)] if rest else [])
    with localcontext(_EXACT):
        last = sum((count * _last_drawn(steps, length, drawn) for count, length in intervals), Decimal())
        met = sum((count * (1 - _missed(steps, length, drawn)) for count, length in intervals), Decimal())
    reached = min(drawn, whole)             # at worst each draw is the last step of an interval of its own
    tail = rest if drawn > whole else 0
    return Regeneration(
        keep=keep,
        kept=len(intervals) + whole,
        expected=float(max(last - met, Decimal())),     # and not a -1e-59 that rounding left of nothing
        worst=reached * (keep - 1) + max(0, tail - 1),
        beyond_expected=float(last),
        beyond_worst=reached * keep + tail,
        # each is walked twice: to sketch its states, and to open the one before its largest step
        looking=min(2 * LARGEST * keep, 2 * steps) if len(intervals) + whole >= LEAST_KEPT else 0,
    )


def top_q(steps: int, forged: int, q: int, interval: int, epoch_steps: int) -> TopQ:
    """What top-Q would cost, and detect, granted that it notices every forged step that it re-executes.

    Raises:
        UsageError: a value below 1, an interval longer than an epoch, or an epoch longer than the run.
    """
    if not 1 <= epoch_steps <= steps:
        raise UsageError(f"an epoch of {epoch_steps} of {steps} steps", hint=f"from 1 to {steps}")
    if not 1 <= interval <= epoch_steps:
        raise UsageError(f"interval {interval} in an epoch of {epoch_steps} steps", hint=f"from 1 to {epoch_steps}")
    if q < 1:
        raise UsageError(f"top-q {q}", hint="at least 1 interval of each epoch")
    epochs, rest = divmod(steps, epoch_steps)
    executed = epochs * min(q * interval, epoch_steps) + min(q * interval, rest)
    return TopQ(
        q=q,
        interval=interval,
        epoch_steps=epoch_steps,
        executed=executed,
        uniform=_detected(steps, forged, executed),
        # Forged updates are made smaller than Q honest intervals of each epoch, and so are never among the Q largest.
        # That has room as long as they and what is re-executed are not more than there is.
        blindfold=0.0 if forged + executed <= steps else 1.0,
    )


def _detected(steps: int, forged: int, executed: int) -> float:
    """As `sampling.detection`, for draws of any size: the figure is symmetric, and the loop runs over the second."""
    return sampling.detection(steps, max(forged, executed), min(forged, executed))


def _missed(steps: int, length: int, drawn: int) -> Decimal:
    """C(T - L, n)/C(T, n): the probability that a draw of n meets none of L given steps. Symmetric in L and n."""
    few, many = sorted((length, drawn))
    if few + many > steps:
        return Decimal()
    missed = Decimal(1)
    for i in range(few):
        missed *= Decimal(steps - many - i) / (steps - i)
    return missed


def _last_drawn(steps: int, length: int, drawn: int) -> Decimal:
    """E of the place, 1 to L, of the last drawn step in an interval of L steps; 0 where none is drawn.

    P(place >= j) is the probability of meeting one of the last L - j + 1 steps, so that E = sum of
    1 - C(T - j, n)/C(T, n) for j = 1 to L. The binomials add up to C(T, n + 1) - C(T - L, n + 1) (hockey stick), and
    C(T, n + 1)/C(T, n) = (T - n)/(n + 1).
    """
    if drawn == steps:
        return Decimal(length)
    return length - Decimal(steps - drawn) / (drawn + 1) * (1 - _missed(steps, length, drawn + 1))
