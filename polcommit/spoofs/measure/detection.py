"""How often real draws meet forged steps, beside the stated figure and beside top-Q at the same cost.

An honest run of `digits` gives the sizes of updates that top-Q goes by (Jia et al., S&P 2021, Algorithm 2). Forged
sets are then laid over its steps: at random, as one ramp, or by a forger who knows the rule and keeps every forged
update below the largest of its epoch (blindfold top-Q; Fang et al., EuroS&P 2023, §6.2). Steps are drawn with the
protocol's own code, each time with a nonce and a block's randomness of its own.

Here a forged step counts as detected if it would be re-executed: whether re-execution notices it is measured
elsewhere. Top-Q is granted the same, and no tolerance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

from polcommit import sampling
from polcommit.encoding import digest
from polcommit.recipes.digits import Digits
from polcommit.records import Request
from polcommit.spoofs.measure import figures
from polcommit.training.environment import set_determinism
from polcommit.training.loading import Loader
from polcommit.training.replay import Engine
from polcommit.transcript import draw_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = "polcommit soundness detection"        # all that is random here derives from it
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.5)
TRIALS = 1000
ASKED = 0.9             # the draw is as large as detects with this probability
LEVEL = 0.99            # of the intervals
Q, INTERVAL = 5, 10     # of top-Q, as in its paper
#: 375 steps an epoch, close to the papers' 390; 7,500 steps in all.
RECIPE = Digits(steps=7500, batch=4, width=8, peak=0.01)
CONTRACT, RUN, COMMITMENT, VERIFIER = bytes(20), bytes(32), bytes(32), bytes(32)

Forged = Callable[[int, str], frozenset[int]]       # (how many, in which trial) to steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Forger:
    """Where somebody puts forged steps. Who is `blindfold` makes their updates smaller than any honest one."""

    name: str
    forged: Forged
    blindfold: bool = False     # and forges the same steps in every trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Steps `first` to `last` between two checkpoints of an epoch, and how far they moved the parameters."""

    epoch: int              # from 0
    first: int
    last: int
    size: float             # 2-norm

    @property
    def steps(self) -> range:
        """Its steps."""
        return range(self.first, self.last + 1)


# --- the honest run -------------------------------------------------------------------------------------------


def honest_intervals(recipe: Digits, interval: int) -> tuple[list[Interval], float]:
    """Train, and return the sizes of updates between checkpoints, and the accuracy at the end.

    Checkpoints lie every `interval` steps of an epoch and at its end.
    """
    engine = Engine(recipe, sha256(LABEL.encode()).digest())
    engine.initial()
    epoch_steps = len(recipe.source()) // recipe.batch
    found: list[Interval] = []
    first, start = 1, _parameters(engine)
    for batch in Loader(recipe, engine.seed, 1, recipe.steps):
        engine.step(batch)
        epoch, place = divmod(batch.step - 1, epoch_steps)
        if (place + 1) % interval == 0 or place + 1 == epoch_steps or batch.step == recipe.steps:
            end = _parameters(engine)
            size = float((end - start).norm())
            found.append(Interval(epoch=epoch, first=first, last=batch.step, size=size))
            first, start = batch.step + 1, end
    return found, recipe.evaluate(engine.state)


def _parameters(engine: Engine) -> torch.Tensor:
    """All parameters as one float64 vector."""
    return torch.cat([parameter.detach().double().flatten() for parameter in engine.state.model.parameters()])


# --- who forges what, and who re-executes what ----------------------------------------------------------------


def forgers(intervals: Sequence[Interval]) -> tuple[Forger, ...]:
    """At random, as a ramp, and in the smallest updates."""
    steps = intervals[-1].last

    def at_random(m: int, trial: str) -> frozenset[int]:
        return frozenset(_random("forged", trial).sample(range(1, steps + 1), m))

    def ramp(m: int, trial: str) -> frozenset[int]:
        first = _random("ramp", trial).randint(1, steps - m + 1)
        return frozenset(range(first, first + m))

    order = smallest_first(intervals)
    return (
        Forger(name="at random", forged=at_random),
        Forger(name="ramp", forged=ramp),
        Forger(name="small updates", forged=lambda m, trial: frozenset(order[:m]), blindfold=True),
    )


def smallest_first(intervals: Sequence[Interval]) -> list[int]:
    """All steps, in the order in which one forges them who knows top-Q: the smallest interval of each epoch first."""
    rank: dict[int, int] = {}
    for epoch in {each.epoch for each in intervals}:
        mine = sorted((each for each in intervals if each.epoch == epoch), key=lambda each: each.size)
        rank |= {each.first: place for place, each in enumerate(mine)}
    return [step for each in sorted(intervals, key=lambda each: (rank[each.first], each.first)) for step in each.steps]


def top_q(intervals: Sequence[Interval], q: int, shrunk: frozenset[int] = frozenset()) -> frozenset[int]:
    """The steps that top-Q re-executes. Intervals with a step in `shrunk` count as if they moved nothing."""
    chosen: set[int] = set()
    for epoch in sorted({each.epoch for each in intervals}):
        mine = [each for each in intervals if each.epoch == epoch]
        mine.sort(key=lambda each: 0.0 if shrunk & set(each.steps) else -each.size)
        for each in mine[:q]:
            chosen |= set(each.steps)
    return frozenset(chosen)


def drawn_steps(steps: int, count: int, trial: str) -> tuple[int, ...]:
    """A draw, as a challenge of that trial would make it: with its own nonce and its own block."""
    request = Request(
        run=RUN, commitment=COMMITMENT, verifier=VERIFIER, strategy="random", count=count, steps=(),
        clear_openings=False,
    )  # fmt: skip
    seed = draw_seed(
        chain_id=31337, contract=CONTRACT, run=RUN, commitment=COMMITMENT, challenge_id=1, request=digest(request),
        nonce=sha256(f"{LABEL}/nonce/{trial}".encode()).digest(),
        prevrandao=sha256(f"{LABEL}/prevrandao/{trial}".encode()).digest(),
    )  # fmt: skip
    return sampling.draw(seed, request, steps)


def _random(what: str, trial: str) -> random.Random:
    """Not the protocol's generator: a flaw of that one must not cancel out."""
    return random.Random(f"{LABEL}/{what}/{trial}")  # noqa: S311  # repeatable, no secret


# --- rates ----------------------------------------------------------------------------------------------------


def binomial_interval(trials: int, probability: float, level: float) -> tuple[int, int]:
    """The least and the most successes that are no surprise: each tail beyond them has at most (1 - level)/2."""
    if probability in (0, 1):
        return int(probability) * trials, int(probability) * trials
    tail = (1 - level) / 2
    logs = math.log(probability), math.log1p(-probability)
    whole = math.lgamma(trials + 1)
    mass = [
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * logs[0] + (trials - k) * logs[1])
        for k in range(trials + 1)
    ]
    low, below = 0, mass[0]
    while below <= tail:
        low += 1
        below += mass[low]
    high, above = trials, mass[trials]
    while above <= tail:
        high -= 1
        above += mass[high]
    return low, high


def rates(forgers: Sequence[Forger], steps: int, trials: int) -> list[dict[str, Any]]:
    """For each fraction and forger: how many of `trials` draws met a forged step."""
    found = []
    for fraction in FRACTIONS:
        m, n = sampling.forged_steps(steps, fraction), sampling.draws_needed(steps, fraction, ASKED)
        stated = sampling.detection(steps, m, n)
        low, high = binomial_interval(trials, stated, LEVEL)
        for forger in forgers:
            names = [f"rates/{fraction}/{forger.name}/{number}" for number in range(trials)]
            met = sum(not forger.forged(m, trial).isdisjoint(drawn_steps(steps, n, trial)) for trial in names)
            found.append({
                "fraction": fraction, "forged": m, "forger": forger.name, "drawn": n, "stated": stated,
                "low": low / trials, "high": high / trials, "measured": met / trials, "within": low <= met <= high,
            })  # fmt: skip
    return found


def same_cost(forgers: Sequence[Forger], intervals: Sequence[Interval], trials: int) -> list[dict[str, Any]]:
    """Top-Q, and a draw of as many steps as it re-executes, against the same forged sets."""
    steps = intervals[-1].last
    found = []
    for m in (1, *(sampling.forged_steps(steps, fraction) for fraction in FRACTIONS)):
        for forger in forgers:
            largest = top_q(intervals, Q, forger.forged(m, "") if forger.blindfold else frozenset())
            by_size = by_draw = 0
            for number in range(trials):
                trial = f"cost/{m}/{forger.name}/{number}"
                forged = forger.forged(m, trial)
                by_size += not forged.isdisjoint(largest)
                by_draw += not forged.isdisjoint(drawn_steps(steps, len(largest), trial))
            found.append({
                "forged": m, "fraction": m / steps, "forger": forger.name, "executed": len(largest),
                "top-q": by_size / trials, "draw": by_draw / trials,
                "stated": sampling.detection(steps, max(m, len(largest)), min(m, len(largest))),
            })  # fmt: skip
    return found


# --- what is written ------------------------------------------------------------------------------------------


def measure(recipe: Digits, trials: int) -> tuple[dict[str, Any], list[Interval]]:
    """The whole experiment: what docs/figures/detection.json holds, and the intervals of the honest run."""
    intervals, accuracy = honest_intervals(recipe, INTERVAL)
    who = forgers(intervals)
    by_fraction = rates(who, recipe.steps, trials)
    result = {
        "run": {
            "recipe": "digits", **{name: getattr(recipe, name) for name in ("steps", "batch", "width", "peak")},
            "accuracy": accuracy, "epochs": intervals[-1].epoch + 1, "intervals": len(intervals),
        },
        "trials": trials, "level": LEVEL, "asked": ASKED, "q": Q, "interval": INTERVAL,
        "outside": sum(not row["within"] for row in by_fraction),
        "rates": by_fraction,
        "same cost": same_cost(who, intervals, trials),
    }  # fmt: skip
    return result, intervals


def section(result: dict[str, Any]) -> str:
    """The part of docs/soundness.md between its markers."""
    run, by_fraction, cost = result["run"], result["rates"], result["same cost"]
    names = [row["forger"] for row in by_fraction[:3]]
    level = figures.share(result["level"])
    measured = [
        [figures.share(row["fraction"]), row["forged"], row["drawn"], f"{row['stated']:.4f}",
         f"{row['low']:.3f} to {row['high']:.3f}", *(f"{each['measured']:.3f}" for each in by_fraction[i : i + 3])]
        for i, row in enumerate(by_fraction) if i % 3 == 0
    ]  # fmt: skip
    beside = [
        [row["forged"], figures.share(row["fraction"]), _stated(row["stated"]),
         *(f"{each[rule]:.3f}" for rule in ("draw", "top-q") for each in cost[i : i + 3])]
        for i, row in enumerate(cost) if i % 3 == 0
    ]  # fmt: skip
    executed = sorted({row["executed"] for row in cost})
    span = f"{executed[0]} to {executed[-1]}" if len(executed) > 1 else str(executed[0])
    return "\n\n".join((
        figures.paragraph(
            f"An honest run of `digits`: {run['steps']} steps in {run['epochs']} epochs, batches of {run['batch']}, "
            f"accuracy {run['accuracy']:.3f} at the end. Each entry is over {result['trials']} draws, each with a "
            "nonce and a block's randomness of its own; steps forged *at random* and as a *ramp* lie anew each time. "
            f"The draw is as large as detects with probability {result['asked']}. The last three columns are measured "
            f"rates. Of these {len(by_fraction)}, {result['outside']} lie outside the {level} interval of the stated "
            f"figure; {len(by_fraction) * (1 - result['level']):.2f} are to be expected on average, at most."
        ),
        figures.table(["forged", "m", "draw", "stated", f"{level} interval", *names], measured),
        figures.paragraph(
            f"At the cost of top-Q with Q = {result['q']} and a checkpoint every {result['interval']} steps, which is "
            f"{span} re-executed steps, {figures.share(executed[-1] / run['steps'])} of training: a draw of as many "
            "steps, and top-Q itself, against the same forged sets. *Small updates* is blindfold top-Q: the forger's "
            "updates are smaller than any honest one. The other two forgers' have the sizes of the honest ones in "
            "their place."
        ),
        figures.table(
            ["m", "forged", "stated", *(f"{rule}: {name}" for rule in ("draw", "top-Q") for name in names)], beside
        ),
        "![Measured rates on the curves of the stated figure; and sizes of updates](figures/detection.svg)",
        figures.paragraph(
            "Left: the stated figure as curves, measured rates as marks. Right: the updates between checkpoints of "
            "that run, those that top-Q re-executes, and those that a forger of a tenth of the steps picks."
        ),
    ))


def _stated(probability: float) -> str:
    return f"{probability:.5f}" if probability < 0.999995 else "above 0.99999"


def draw_rates(axes: Axes, result: dict[str, Any]) -> None:
    """Stated detection over the size of the draw, with measured rates."""
    steps = result["run"]["steps"]
    markers = dict(zip([row["forger"] for row in result["rates"][:3]], "osv", strict=True))
    for number, fraction in enumerate(FRACTIONS):
        m = sampling.forged_steps(steps, fraction)
        sizes = sorted({min(round(1.12**power), steps) for power in range(60)})
        axes.plot(sizes, [sampling.detection(steps, m, n) for n in sizes], color=f"C{number}", lw=1)
        for row in result["rates"]:
            if row["fraction"] == fraction:
                axes.plot(row["drawn"], row["measured"], markers[row["forger"]], color=f"C{number}", ms=5, mfc="none")
        left_of = (sampling.draws_needed(steps, fraction, 0.6), 0.6)
        axes.annotate(
            figures.share(fraction), left_of, (-7, 0), textcoords="offset points", ha="right", color=f"C{number}"
        )
    for name, marker in markers.items():
        axes.plot([], [], marker, color="black", mfc="none", ms=5, label=name)
    axes.set(xscale="log", xlabel="steps drawn", ylabel="probability of meeting a forged step", ylim=(0, 1.03))
    axes.legend(loc="lower right")


def draw_sizes(axes: Axes, intervals: Sequence[Interval]) -> None:
    """Sizes of the updates between checkpoints, by who looks at them."""
    fraction = 0.1
    forged = frozenset(smallest_first(intervals)[: sampling.forged_steps(intervals[-1].last, fraction)])
    largest = top_q(intervals, Q, forged)
    kinds = (
        ("neither", "0.75", [each for each in intervals if not forged & set(each.steps) | largest & set(each.steps)]),
        (f"re-executed by top-{Q}", "C0", [each for each in intervals if largest & set(each.steps)]),
        (f"forged, {figures.share(fraction)}", "C3", [each for each in intervals if forged & set(each.steps)]),
    )
    for label, colour, chosen in kinds:
        axes.plot([each.last for each in chosen], [each.size for each in chosen], ".", color=colour, label=label, ms=4)
    axes.set(xlabel="step", ylabel=f"update of {INTERVAL} steps, 2-norm", yscale="log")
    axes.legend(loc="lower left")


def main() -> None:
    """Measure, and write docs/figures/detection.json, its plot, and the section of docs/soundness.md."""
    docs = figures.docs_folder()        # before the work, where it fails
    set_determinism(1)
    result, intervals = measure(RECIPE, TRIALS)
    figures.write_json("detection", result, docs)
    figures.insert_section("soundness.md", "detection", section(result), docs)
    with figures.plot("detection", panels=2, docs=docs) as (left, right):
        draw_rates(left, result)
        draw_sizes(right, intervals)


if __name__ == "__main__":
    main()
