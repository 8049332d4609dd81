"""The verifier of plain Proof-of-Learning: Jia et al., Algorithm 2, with the fixed, normalised δ of Fang et al.

Faithful to what was published, holes included: it re-executes from the prover's checkpoint with the prover's optimizer
state and the prover's learning rates, on the data that the prover names or sends, picks what to check by a rule that
the prover knows, and compares the weights and nothing else. An accepted log says very little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from polcommit.errors import UsageError
from polcommit.prf import batch_indices
from polcommit.spoofs.checkpoint import Weights, flat, members
from polcommit.spoofs.plain.distances import METRICS, Distances, distances
from polcommit.spoofs.plain.log import Log, LoggedStep, by_epoch, intervals
from polcommit.spoofs.plain.start import StartTest, check_start
from polcommit.spoofs.rates import step_at
from polcommit.training.loading import FetchedBatch, batch_from_encoded, encoded_sample, fetch_batch
from polcommit.training.recipe import Recipe, Source
from polcommit.training.replay import Engine
from polcommit.training.tree import batch_digest

DELTA = 0.008       # Fang et al.: of d_ref

Stretch = tuple[int, int]       # first and last step between two checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What verifier and prover have agreed on, and what a forger therefore knows."""

    interval: int = 10                          # k
    top: int | None = 5                         # Q intervals in each epoch; None: all of them
    delta: float = DELTA                        # share of d_ref
    metrics: tuple[str, ...] = METRICS          # in which the distance has to be within delta
    least_p: float = 0.01                       # of the test of W_0

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UsageError(f"interval {self.interval}: at least one step between checkpoints")
        if self.top is not None and self.top < 1:
            raise UsageError(f"top {self.top}: at least one interval an epoch", hint="None checks all of them")
        if not (0 < self.delta < 1):
            raise UsageError(f"delta {self.delta}: a share of the reference distance, between 0 and 1")
        unknown = set(self.metrics) - set(METRICS)
        if unknown or not self.metrics:
            raise UsageError(f"metrics {self.metrics}: some of {', '.join(METRICS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedInterval:
    """One re-executed stretch between two checkpoints."""

    first: int                  # steps first to last were run
    last: int
    update: float               # L2 norm of what the log says that they changed
    distances: Distances        # of the re-executed weights from the logged ones
    normalised: Distances       # the same, as shares of d_ref
    finding: str | None         # why it is not accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the verifier found."""

    start: StartTest
    checked: tuple[CheckedInterval, ...]
    intervals: int                          # in the whole log
    steps: int                              # that were re-executed
    findings: tuple[str, ...]               # empty if accepted

    @property
    def accepted(self) -> bool:
        """Nothing was found."""
        return not self.findings

    @property
    def largest(self) -> float:
        """The largest normalised distance in any metric, over everything checked; NaN if one is."""
        values = [value for interval in self.checked for value in interval.normalised.by_metric().values()]
        return next((value for value in values if value != value), max(values, default=0.0))


def verify(log: Log, recipe: Recipe, terms: Terms, reference: Distances) -> Report:
    """Check a log against a recipe. `reference` is d_ref, in each metric. Two checkpoints are held at a time.

    Raises:
        UsageError: the log has other checkpoints than the terms ask for.
    """
    if log.interval != terms.interval:
        raise UsageError(f"the log has a checkpoint every {log.interval} steps, the terms ask for {terms.interval}")
    source = recipe.source()
    engine = Engine(recipe, log.seed)
    start = check_start(recipe, log.checkpoints[0].tensors, terms.least_p)
    updates = {} if terms.top is None else dict(_updates(log))
    chosen = choose(updates, len(log.steps), terms, max(len(source) // recipe.batch, 1))
    checked = tuple(_check(log, engine, source, stretch, terms, reference) for stretch in chosen)
    return _report(start, checked, -(-len(log.steps) // log.interval))


def _report(start: StartTest, checked: tuple[CheckedInterval, ...], intervals: int) -> Report:
    findings = [] if start.accepted else [f"W_0: {start.tensor} is not as initialised (p {start.p:.2g})"]
    findings += [f"steps {i.first} to {i.last}: {i.finding}" for i in checked if i.finding is not None]
    return Report(
        start=start,
        checked=checked,
        intervals=intervals,
        steps=sum(i.last - i.first + 1 for i in checked),
        findings=tuple(findings),
    )


def narrowed(report: Report, log: Log, recipe: Recipe, terms: Terms) -> Report:
    """From a report on every interval: what `verify` would have said under terms that check fewer of them."""
    updates = {(interval.first, interval.last): interval.update for interval in report.checked}
    chosen = set(choose(updates, len(log.steps), terms, max(len(recipe.source()) // recipe.batch, 1)))
    checked = tuple(interval for interval in report.checked if (interval.first, interval.last) in chosen)
    return _report(report.start, checked, report.intervals)


def choose(updates: Mapping[Stretch, float], steps: int, terms: Terms, epoch: int) -> list[Stretch]:
    """The intervals to check: in each epoch those with the largest updates, Q of them; rising.

    `updates` may be empty where all are checked.
    """
    chosen: list[Stretch] = []
    for stretches in by_epoch(steps, terms.interval, epoch):
        if terms.top is None:
            chosen += stretches
        else:
            chosen += sorted(stretches, key=lambda s: (-updates[s], s))[: terms.top]
    return sorted(chosen)


def _updates(log: Log) -> Iterator[tuple[Stretch, float]]:
    """How long the update of each interval is."""
    before = log.checkpoints[0].weights()
    for first, last in intervals(len(log.steps), log.interval):
        after = log.checkpoints[last].weights()
        yield (first, last), _length(before, after)
        before = after


def _length(before: Weights, after: Weights) -> float:
    norm = float((after - before).norm())
    return float("inf") if norm != norm else norm       # what is not a number is looked at first


def _check(
    log: Log, engine: Engine, source: Source, stretch: Stretch, terms: Terms, reference: Distances
) -> CheckedInterval:
    first, last = stretch
    before = log.checkpoints[first - 1]
    before.load(engine.state)
    end = log.checkpoints[last].weights()
    update = _length(before.weights(), end)
    finding = None
    for logged in log.steps[first - 1 : last]:
        batch = _data(log, engine, source, logged)
        if batch_digest(batch.micro_batches) != logged.digest:
            finding = f"the data of step {logged.step} has another hash than the log says"
            break
        step_at(engine, batch, logged.learning_rate)
    found = distances(flat(members(engine.state)), end)
    normalised = found / reference
    above = normalised.above(terms.delta, terms.metrics)
    if finding is None and above:
        shares = normalised.by_metric()
        finding = "weights differ by " + ", ".join(f"{shares[metric]:.3g} in metric {metric}" for metric in above)
    return CheckedInterval(
        first=first, last=last, update=update, distances=found, normalised=normalised, finding=finding
    )


def _data(log: Log, engine: Engine, source: Source, logged: LoggedStep) -> FetchedBatch:
    if logged.step in log.supplied:
        return log.supplied[logged.step]
    if logged.indices == batch_indices(engine.seed, logged.step, len(source), engine.recipe.batch):
        return fetch_batch(engine.recipe, source, engine.seed, logged.step)
    encoded = [encoded_sample(source, index) for index in logged.indices]
    return batch_from_encoded(engine.recipe, engine.seed, logged.step, encoded, logged.indices)
