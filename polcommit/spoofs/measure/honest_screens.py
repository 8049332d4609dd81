"""How often the screens (V11) flag honest training, what they flag of forgeries, and how far one gets below them.

Measured, not derived, on runs of a few hundred steps of small nets (`honest_runs`): other models, data and lengths have
rates of their own. Forgeries are made of sketches (`sketched_forgeries`). A flag only steers: what it is worth is that
one step of the flagged stretch is re-executed.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polcommit.records import Flag
from polcommit.screens import screen
from polcommit.spoofs.measure import figures
from polcommit.spoofs.measure.honest_runs import RATES, SCHEDULES, Trajectory, recipes, train
from polcommit.spoofs.measure.sketched_forgeries import even, line, ramp, splice
from polcommit.training.contribution import BETA, contribution
from polcommit.training.environment import set_determinism
from polcommit.training.loading import Loader, fetch_batch
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.state import survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 300
KEEPS = (1, 5, 10, 25)
SIGNS = bytes(range(32))                        # the seed of the sketches, unknown to whoever trains
SIZES = (3, 5, 10, 30, 100)                     # of a splice, in ordinary updates
STRAIGHTNESS = (1.0, 0.9, 0.5, 0.2)
STARTS = (0.0, 0.02, 0.05, 0.1, 0.3)  # of a ramp, as shares of the run
PLAIN = ("constant", "cosine")                  # schedules for which ramps and contributions are measured
SCORES = ("own > 0", "other > 0", "own > other")
LENGTHS = tuple(sorted({round(1.4**power) for power in range(18)}))


def flags(trajectory: Trajectory, keep: int) -> tuple[Flag, ...]:
    """What the screens flag, had the run kept every so many states."""
    return screen(
        trajectory.kept(keep), steps=trajectory.steps, batch=trajectory.batch, samples=trajectory.samples
    )


def covered(found: Sequence[Flag]) -> set[int]:
    """The steps in any of these flags."""
    return {step for flag in found for step in range(flag.first, flag.last + 1)}


def false_flags(runs: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """For each `keep`: honest steps, those in a flag of each screen and of any, and stretches (steps to add)."""
    rows = []
    for keep in KEEPS:
        steps, stretches = 0, 0
        of: dict[str, int] = defaultdict(int)
        for run in runs:
            found = flags(run, keep)
            steps, stretches = steps + run.steps, stretches + len(found)
            for name in sorted({flag.screen for flag in found}):
                of[name] += len(covered([flag for flag in found if flag.screen == name]))
            of["any"] += len(covered(found))
        rows.append({"keep": keep, "steps": steps, "stretches": stretches, "runs": len(runs), "flagged": dict(of)})
    return rows


def interpolations(pairs: Sequence[tuple[Trajectory, Trajectory]]) -> list[dict[str, Any]]:
    """Share of whole-run interpolations that are flagged, by screen, and how much of the run the flags cover."""
    generator = np.random.default_rng(1)
    kinds: dict[str, Callable[[Trajectory, Trajectory], Trajectory]] = {
        "sizes like an honest run's": lambda own, other: line(own, other.sketches[-1], own.updates),
        "sizes like the learning rates": lambda own, other: line(own, other.sketches[-1], np.array(own.rates)),
    }

    def equal(cosine: float) -> Callable[[Trajectory, Trajectory], Trajectory]:
        return lambda own, other: even(own, other.sketches[-1], cosine, generator)

    kinds |= {f"equal steps, cosine {cosine}": equal(cosine) for cosine in STRAIGHTNESS}
    rows = []
    for name, forge in kinds.items():
        for keep in KEEPS:
            found = [flags(forge(own, other), keep) for own, other in pairs]
            varied = [flags for flags, (own, _) in zip(found, pairs, strict=True) if len(set(own.rates)) > 1]
            rows.append({
                "forgery": name, "keep": keep,
                "flagged": sum(1 for each in found if each) / len(found),
                "flagged with a varying rate": sum(1 for each in varied if each) / len(varied),
                "screens": sorted({flag.screen for each in found for flag in each}),
            })  # fmt: skip
    return rows


def splices(runs: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Share of splices whose step is in a flag, by size and `keep`: at five places of each run."""
    generator = np.random.default_rng(2)
    rows = []
    for size in SIZES:
        for keep in KEEPS:
            hits = [
                step in covered(flags(splice(run, step, size, generator), keep))
                for run in runs
                for step in (1 + (run.steps * part) // 5 + int(generator.integers(run.steps // 5)) for part in range(5))
            ]
            rows.append({"size": size, "keep": keep, "flagged": sum(hits) / len(hits), "splices": len(hits)})
    return rows


def fewest_ramps(pairs: Sequence[tuple[Trajectory, Trajectory]]) -> Iterator[dict[str, Any]]:
    """For each pair and `keep`: the fewest forged steps that lead from one run to the other without a flag on them.

    Tried are STARTS, LENGTHS and both shapes. `multiple` is the median size of their updates, in units of those that
    the forger's own run has there.
    """
    for own, other in pairs:
        for keep in KEEPS:
            best: tuple[int, int, float] | None = None
            for length in LENGTHS:
                best = _unflagged(own, other, keep, length)
                if best is not None:
                    break
            yield {
                "run": own.name, "keep": keep,
                "forged": None if best is None else best[0],
                "after": None if best is None else best[1],
                "multiple": None if best is None else best[2],
            }  # fmt: skip


def _unflagged(own: Trajectory, other: Trajectory, keep: int, length: int) -> tuple[int, int, float] | None:
    for part in STARTS:
        start = int(part * own.steps)
        if start + length > own.steps:
            continue
        forged = range(start + 1, start + length + 1)
        for smooth in (False, True):
            made = ramp(own, other, start, length, smooth=smooth)
            if covered(flags(made, keep)).isdisjoint(forged):
                ratio = np.median(made.updates[start : start + length] / own.updates[start : start + length])
                return length, start, round(float(ratio), 2)
    return None


def contributions(name: str, recipe: Recipe, seed: bytes, every: int = 5) -> dict[str, Any]:
    """Of the honest steps of a run, every so many: shares with a score above 0 on the own batch, and above another's.

    The other batch is that of the step half a run away.
    """
    engine, source, scores = Engine(recipe, seed), recipe.source(), []
    engine.initial()
    for batch in Loader(recipe, seed, 1, recipe.steps, source=source):
        found = survey(engine.state).tensors
        before = {key: tensor.detach().clone() for key, (kind, tensor) in found.items() if kind == "parameter"}
        engine.step(batch)
        if batch.step % every == 0:
            far = (batch.step + recipe.steps // 2) % recipe.steps + 1
            scores.append(contribution(engine, before, batch, fetch_batch(recipe, source, seed, far)))
    return {
        "run": name, "steps": len(scores),
        "own > 0": sum(1 for score in scores if score.own > 0) / len(scores),
        "other > 0": sum(1 for score in scores if score.other > 0) / len(scores),
        "own > other": sum(1 for score in scores if score.own > score.other) / len(scores),
    }  # fmt: skip


def measure(folder: Path, steps: int = STEPS, only: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """Everything, in about a quarter of an hour; `folder` is for data. With `only`, runs of these names."""
    pairs, scores = [], []
    for name, recipe in recipes(folder, steps):
        if only(name):
            own, other = (train(name, recipe, bytes([50 * number + 1]) * 32, [SIGNS])[0] for number in range(2))
            pairs.append((own, other))
            if name.endswith(PLAIN):
                scores.append(contributions(name, recipe, bytes([9]) * 32))
    return evaluated(pairs, scores)


def evaluated(pairs: Sequence[tuple[Trajectory, Trajectory]], scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures, from two honest runs of each kind and the contributions that were measured."""
    honest = [run for pair in pairs for run in pair]
    return {
        "steps": honest[0].steps, "runs": len(honest), "optimizers": RATES, "schedules": SCHEDULES,
        "false flags": false_flags(honest),
        "interpolation": interpolations(pairs),
        "splices": splices([own for own, _ in pairs]),
        "ramps": list(fewest_ramps([pair for pair in pairs if pair[0].name.endswith(PLAIN)])),
        "contribution": {"beta": BETA, "runs": scores},
    }  # fmt: skip


# --- the page -------------------------------------------------------------------------------------------------


def section(result: dict[str, Any]) -> str:
    """The figures as they stand in docs/screens.md."""
    return "\n\n".join((
        figures.paragraph(
            f"{result['runs']} honest runs of {result['steps']} steps (`digits`, `gpt` and a small residual net; "
            f"{len(RATES)} optimizers; {len(SCHEDULES)} schedules; two seeds). Steps in a "
            "flagged stretch:"
        ),
        _false_flags_table(result["false flags"]),
        figures.paragraph("Interpolation from W_0 to the end of another run, all of it forged: share that is flagged."),
        figures.table(
            ("forgery", *(f"keep {keep}" for keep in KEEPS), "screens"), _interpolation_rows(result["interpolation"])
        ),
        figures.paragraph(
            "One jump in an otherwise honest run: share whose step is in a flag, by size in ordinary updates. With "
            "`keep` above 1 an interval holds many updates, and a jump has to stand out of them."
        ),
        figures.table(
            ("size", *(f"keep {keep}" for keep in KEEPS)),
            [
                (size, *(figures.share(row["flagged"]) for row in result["splices"] if row["size"] == size))
                for size in SIZES
            ],
        ),
        figures.paragraph(
            f"Ramps from one honest run into another: the fewest forged steps, of {result['steps']}, without a flag on "
            "them, and the median size of their updates beside the honest run's."
        ),
        figures.table(
            ("keep", "fewest", "median", "most", "none found", "median multiple"), _ramp_rows(result["ramps"])
        ),
        figures.paragraph(
            f"Contribution of honest steps, β = {result['contribution']['beta']}: share above 0 on the own batch, on "
            "another, and above that of another."
        ),
        figures.table(
            ("run", "steps", *SCORES),
            [
                (row["run"], row["steps"], *(figures.share(row[key]) for key in SCORES))
                for row in result["contribution"]["runs"]
            ],
        ),
        "![Jumps that are flagged, by size; ramps that are not, by length](figures/screens.svg)",
    ))  # fmt: skip


def draw_screens(splices: Axes, ramps: Axes, result: dict[str, Any]) -> None:
    """What is flagged of jumps, by their size; and the fewest forged steps that no flag is on, run by run."""
    for keep in KEEPS:
        rows = [row for row in result["splices"] if row["keep"] == keep]
        splices.plot([row["size"] for row in rows], [row["flagged"] for row in rows], "o-", label=f"keep {keep}")
        lengths = [row["forged"] for row in result["ramps"] if row["keep"] == keep and row["forged"] is not None]
        ramps.scatter([KEEPS.index(keep)] * len(lengths), lengths, s=14, alpha=0.6)
    splices.set(xscale="log", xlabel="size of the jump, in ordinary updates", ylabel="share that is flagged")
    splices.set_xticks(SIZES, [str(size) for size in SIZES])
    splices.legend()
    ramps.set(yscale="log", xlabel="keep", ylabel=f"fewest forged steps without a flag, of {result['steps']}")
    ramps.set_xticks(range(len(KEEPS)), [str(keep) for keep in KEEPS])


def _false_flags_table(rows: Sequence[dict[str, Any]]) -> str:
    screens = sorted({name for row in rows for name in row["flagged"]} - {"any"})
    return figures.table(
        ("keep", "steps", "any", *screens, "stretches a run"),
        [
            (
                row["keep"], row["steps"],
                *(figures.share(row["flagged"].get(name, 0) / row["steps"]) for name in ("any", *screens)),
                f"{row['stretches'] / row['runs']:.3f}",
            )
            for row in rows
        ],
    )  # fmt: skip


def _interpolation_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    names = dict.fromkeys(row["forgery"] for row in rows)
    found = []
    for name in names:
        own = [row for row in rows if row["forgery"] == name]
        screens = sorted({screen for row in own for screen in row["screens"]})
        found.append((name, *(figures.share(row["flagged"]) for row in own), ", ".join(screens)))
    return found


def _ramp_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for keep in KEEPS:
        lengths = [row["forged"] for row in rows if row["keep"] == keep and row["forged"] is not None]
        multiples = [row["multiple"] for row in rows if row["keep"] == keep and row["forged"] is not None]
        none = sum(1 for row in rows if row["keep"] == keep) - len(lengths)
        found.append((
            keep, min(lengths, default="none"), np.median(lengths) if lengths else "none", max(lengths, default="none"),
            none, f"{np.median(multiples):.2f}" if multiples else "none",
        ))  # fmt: skip
    return found


def main() -> None:
    """Measure, and write docs/figures/screens.json, its plot, and the section of docs/screens.md."""
    docs = figures.docs_folder()        # before the work, where it fails
    set_determinism(1)
    with tempfile.TemporaryDirectory(prefix="polcommit-") as folder:
        result = measure(Path(folder))
    figures.write_json("screens", result, docs)
    figures.insert_section("screens.md", "measured", section(result), docs)
    with figures.plot("screens", panels=2, docs=docs) as (jumps, ramps):
        draw_screens(jumps, ramps, result)


if __name__ == "__main__":
    main()
