"""What a challenge costs and buys, before there is a run: shares of training, for verifier and prover, beside top-Q.

Everything is counted in training steps, so that a share of the steps is a share of training; the costs of reading,
hashing and sending are not in it, and a forward pass is taken for a third of a step. The figures hold for uniform
draws. They say how likely a draw meets one of m forged steps, not how many forged steps it takes to steal or steer a
model. docs/soundness.md derives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

from polcommit import sampling
from polcommit.comparisons import LEAST_CONTRIBUTIONS
from polcommit.errors import UsageError
from polcommit.records.run import MAX_KEPT, MAX_STEPS
from polcommit.screens import LARGEST, LEAST_KEPT

#: Top-Q in the set-up of the papers: k = 10, and 200 epochs of CIFAR-10, which are 78,000 steps.
TOP_Q, INTERVAL, EPOCH_STEPS = 5, 10, 390
#: Forward passes that score a step's contribution: its batch and another, before and after a share of the update.
PASSES = 4
#: Steps' work in a forward pass: the backward pass is about two of them, and the optimizer's work is left out.
FORWARD = 1 / 3
#: Executions of a challenged step, for one answer: its digests are right; they are not, and are computed once more, for
#: a machine may not reproduce itself; and likewise, with a gradient to compare.
EQUAL, UNEQUAL, MEASURED = 1, 2, 3
#: Digits for sums of large terms that nearly cancel; what is reported has 15.
_EXACT = Context(prec=60)
_NOTHING = Decimal(10) ** -60       # beside 1, at that precision


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
class Effort:
    """What a verifier computes for a verdict, at most."""

    times: int                  # that each challenged step is executed
    executed: int               # executions of challenged steps
    counted: int                # besides, to count a step's operations
    scored: int                 # steps whose contribution is scored
    passes: int                 # forward passes that this takes

    @property
    def scoring(self) -> float:
        """The work of the forward passes, in steps."""
        return self.passes * FORWARD

    @property
    def total(self) -> float:
        """All of it, in steps."""
        return self.executed + self.counted + self.scoring


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
    same: Effort                # of the verifier, in the prover's environment
    elsewhere: Effort           # in another one, where gradients are asked for at once
    follow_up: Effort           # in another one, where they are asked for after the first answer
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
    if not 0 < detect < 1:
        raise UsageError(f"detect with probability {detect}", hint="above 0 and below 1")
    drawn = sampling.draws_needed(steps, fraction, detect)
    epoch_steps = min(EPOCH_STEPS, steps) if epoch_steps is None else epoch_steps
    interval = max(1, min(INTERVAL, epoch_steps)) if interval is None else interval
    added = min(LARGEST, steps - drawn)
    return Plan(
        steps=steps,
        fraction=fraction,
        forged=forged,
        asked=detect,
        drawn=drawn,
        added=added,
        probability=sampling.detection(steps, forged, drawn),
        single=drawn / steps,
        same=effort(drawn + added, EQUAL),
        elsewhere=effort(drawn + added, MEASURED),
        follow_up=effort(drawn + added, UNEQUAL, MEASURED),
        prover=tuple(regeneration(steps, keep, drawn) for keep in keeps),
        top_q=top_q(steps, forged, q, interval, epoch_steps),
    )


def effort(challenged: int, *answers: int) -> Effort:
    """The verifier's work on `challenged` steps, each executed so many times for each answer of the prover's."""
    scored = min(challenged, LEAST_CONTRIBUTIONS) if challenged > 1 else 0      # alone, it has no other batch
    return Effort(
        times=sum(answers),
        executed=challenged * sum(answers),
        counted=len(answers),
        scored=scored,
        passes=len(answers) * PASSES * scored,
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
    """As `sampling.detection`, for draws of any size: there the loop runs over all of them."""
    with localcontext(_EXACT):
        return float(1 - _missed(steps, forged, executed))


def _missed(steps: int, length: int, drawn: int) -> Decimal:
    """C(T - L, n)/C(T, n): the probability that a draw of n meets none of L given steps. Symmetric in L and n."""
    few, many = sorted((length, drawn))
    if few + many > steps:
        return Decimal()
    missed = Decimal(1)
    for i in range(few):
        missed *= Decimal(steps - many - i) / (steps - i)
        if missed < _NOTHING:
            return Decimal()
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
