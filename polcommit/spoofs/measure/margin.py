"""The margin of the gradient test: the smallest forged relative distance beside the largest honest one.

A made-up trajectory commits states, no gradients. For test 2 to pass, the gradient ĝ that is opened has to be the one
that leads from each state to the next: for SGD that follows from the weights alone. So each forged step has a distance
from the gradient g′ of the step as it should be, and the smallest of them is what a tolerance has to stay below.

A step counts as forged if re-execution from the state before it does not give the state after it. Steps of data that
is not the data set's are found by digests, and listed apart. So is whoever adds a pull to true gradients: that is
steering, and how large its distances are, it chooses by the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

from polcommit.recipes.digits import Digits
from polcommit.session.noise import shipped
from polcommit.spoofs.attacks.ramp import OrdinaryRamp
from polcommit.spoofs.attacks.retraining import (
    DirectedRetraining,
    SequenceInversion,
    SmoothedSplice,
    Splice,
    SpliceOffSketch,
)
from polcommit.spoofs.attacks.stochastic import AdversarialRna, DataOrdering, SyntheticData
from polcommit.spoofs.attacks.structural import BlindfoldTopQ, InfinitesimalUpdate, MatchedNorms
from polcommit.spoofs.base import PreconditionNotMet, TrajectorySpoof
from polcommit.spoofs.checkpoint import Weights
from polcommit.spoofs.measure import figures
from polcommit.spoofs.measure.alignment_draws import without_onednn
from polcommit.spoofs.measure.opened import MemoryStage, OpenedRun, memory_stage, open_run
from polcommit.spoofs.plain.trial import victim
from polcommit.training.environment import set_determinism
from polcommit.training.loading import Loader
from polcommit.training.replay import Engine
from polcommit.training.schema import opened_tensor
from polcommit.training.step import gradients

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECIPE = Digits(steps=60)       # otherwise as the profile that ships has it
SEEDS = 3
GOAL = 50.0
HONEST = 20                     # honest steps that are compared, of each seed
STEERING = frozenset({DirectedRetraining.name})
SPOOFS: tuple[type[TrajectorySpoof], ...] = (
    InfinitesimalUpdate, MatchedNorms, BlindfoldTopQ, Splice, SpliceOffSketch, SmoothedSplice, OrdinaryRamp,
    DirectedRetraining, SequenceInversion, DataOrdering, SyntheticData, AdversarialRna,
)  # fmt: skip


def forged_distances(spoof: TrajectorySpoof, recipe: Digits, seed: int) -> dict[str, Any]:
    """Of a trajectory's forged steps: how many there are, how many digests find, and the others' distances."""
    stage = memory_stage(
        recipe, _seed("forger", seed), victim(recipe, seed)[0], "start" if _needs_start(spoof) else "", choices=seed
    )
    spoof.forge(stage)
    due = list(Loader(recipe, stage.engine.seed, 1, recipe.steps))
    exact, distances = 0, []
    for step, distance in _steps(stage, recipe):
        if stage.fetched[step - 1].digest != due[step - 1].digest:
            exact += 1
        else:
            distances.append(distance)
    return {"spoof": spoof.name, "seed": seed, "exact": exact, "forged": len(distances), "distances": distances}


def _needs_start(spoof: TrajectorySpoof) -> bool:
    return isinstance(spoof, SequenceInversion)


def _steps(stage: MemoryStage, recipe: Digits) -> Iterator[tuple[int, float]]:
    """(step, relative distance) of the forged ones."""
    engine = Engine(recipe, stage.engine.seed)
    moved = torch.zeros(0, dtype=torch.float64)         # (W_{t-1} − W_t) / lr of the step before: the momentum buffer
    for record, batch, before, after in zip(
        stage.records, stage.fetched, stage.states, stage.states[1:], strict=False
    ):
        names, here = _true_gradient(engine, stage, before, batch)
        old, new = _weights(stage, before, names), _weights(stage, after, names)
        rate = recipe.learning_rate(record.step)
        momentum = moved if len(moved) else torch.zeros_like(old)
        moved = (old - new) / rate if rate else torch.full_like(old, math.inf)
        captured = engine.capture()
        if captured.index.tensors == after.tensors:
            continue
        opened = moved - recipe.momentum * momentum - recipe.weight_decay * old
        least = min(float(opened.norm()), float(here.norm()))
        yield record.step, float((opened - here).norm()) / least if least > 0 else math.inf


def _true_gradient(engine: Engine, stage: MemoryStage, before: Any, batch: Any) -> tuple[list[str], Weights]:
    """Names, and g′ (n,) float64, of a step from an opened state; the engine is after the step then."""
    found: dict[str, torch.Tensor] = {}

    def take() -> None:
        found.update({name: g.detach().double().clone() for name, g in gradients(engine.state.model).items()})

    engine.replay(before, stage.memory.fetch, batch, between=take)
    names = sorted(found)
    return names, torch.cat([found[name].reshape(-1) for name in names])


def _weights(stage: MemoryStage, index: Any, names: Sequence[str]) -> Weights:
    entries = {entry.name: entry for entry in index.tensors}
    parts = [opened_tensor(entries[f"parameter/{name}"], stage.memory.fetch).double().reshape(-1) for name in names]
    return torch.cat(parts)


def honest_distances(recipe: Digits, seed: int) -> dict[str, list[float]]:
    """Relative distances of honest steps, by what differs: threads, or the kernels."""
    steps = [1 + (place * recipe.steps) // HONEST for place in range(HONEST)]
    run = open_run(recipe, _seed("honest", seed), steps)
    found = {"two threads instead of one": _with_threads(run, 2)}
    with without_onednn():
        found["oneDNN off"] = _compared(run)
    return found


def _with_threads(run: OpenedRun, threads: int) -> list[float]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _compared(run)
    finally:
        torch.set_num_threads(before)


def _compared(run: OpenedRun) -> list[float]:
    engine = Engine(run.recipe, run.seed)
    found = [run.compare(engine, opening)[0] for opening in run.openings]
    return [each.distance / min(each.opened, each.here) for each in found]


def _seed(role: str, number: int) -> bytes:
    return sha256(f"polcommit soundness margin: {role} {number}".encode()).digest()


# --- what is written ------------------------------------------------------------------------------------------


def measure(recipe: Digits = RECIPE, seeds: int = SEEDS) -> dict[str, Any]:
    """The whole experiment: what docs/figures/margin.json holds."""
    rows: list[dict[str, Any]] = []
    profiles = [profile for profile in shipped() if profile.recipe == "digits"]
    alphas = {profile.name: profile.alpha for profile in profiles}
    for kind in SPOOFS:
        tried: list[dict[str, Any]] = []
        try:
            tried = [forged_distances(kind(), recipe, seed) for seed in range(seeds)]
        except PreconditionNotMet as error:
            rows.append({"spoof": kind.name, "not tried": error.message})
            continue
        distances = sorted(value for each in tried for value in each["distances"] if math.isfinite(value))
        rows.append({
            "spoof": kind.name,
            "forged": sum(each["forged"] for each in tried), "exact": sum(each["exact"] for each in tried),
            "smallest": distances[0] if distances else None,
            "median": distances[len(distances) // 2] if distances else None,
            "within": {name: sum(value <= alpha for value in distances) for name, alpha in alphas.items()},
        })  # fmt: skip
    honest: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name, values in honest_distances(recipe, seed).items():
            honest.setdefault(name, []).extend(values)
    calibrated = {profile.name: _largest_honest(profile) for profile in profiles}
    largest = max([value for values in honest.values() for value in values] + list(calibrated.values()))
    found = {row["spoof"]: row["smallest"] for row in rows if row.get("smallest") is not None}
    smallest = min(value for name, value in found.items() if name not in STEERING)
    return {
        "recipe": dict(recipe.configuration()), "seeds": seeds, "goal": GOAL,
        "spoofs": rows,
        "honest": {
            name: {"steps": len(values), "median": sorted(values)[len(values) // 2], "largest": max(values)}
            for name, values in honest.items()
        },
        "calibrated": calibrated, "alphas": alphas, "steering": sorted(STEERING & found.keys()),
        "largest honest": largest, "smallest forged": smallest,
        "margin": smallest / largest,
        "margin with steering": min(found.values()) / largest,
    }  # fmt: skip


def _largest_honest(profile: Any) -> float:
    return max(value for quantity, q, value in profile.quantiles if quantity == "gradient" and q == 1.0)


def section(result: dict[str, Any]) -> str:
    """The part of docs/soundness.md between its markers."""
    rows = []
    for row in result["spoofs"]:
        if "not tried" in row:
            rows.append([f"`{row['spoof']}`", "", "", "", f"not tried: {row['not tried']}", ""])
        elif row["smallest"] is None:
            rows.append([f"`{row['spoof']}`", row["forged"], row["exact"], "", "", ""])
        else:
            values = [f"{row[name]:.3g}" for name in ("smallest", "median")]
            within = "; ".join(str(count) for count in row["within"].values())
            name = f"`{row['spoof']}`" + (" (apart)" if row["spoof"] in result["steering"] else "")
            rows.append([name, row["forged"], row["exact"], *values, within])
    honest = [
        [name, found["steps"], f"{found['median']:.2g}", f"{found['largest']:.2g}"]
        for name, found in result["honest"].items()
    ]
    honest += [[f"profile '{name}', when it was measured", "", "", f"{value:.2g}"]
               for name, value in result["calibrated"].items()]  # fmt: skip
    recipe = result["recipe"]
    header = ["spoof", "forged steps", "found by digests", "smallest distance", "median"]
    alphas = "; ".join(f"`{name}` ({alpha:.2g})" for name, alpha in result["alphas"].items()) or "no profile"
    header.append(f"within α of {alphas}")
    return "\n\n".join((
        figures.paragraph(
            f"`digits` as it ships, {recipe['steps']} steps, {result['seeds']} runs of each spoof. A forged step is "
            "one whose re-execution does not give the state that was committed. Its distance is that between the "
            "gradient that leads there, which the forger would have to open, and the true one, as a share of the "
            f"smaller. The smallest is {result['smallest forged']:.3g}, the largest honest one "
            f"{result['largest honest']:.2g}: a margin of {result['margin']:.3g} (goal: {result['goal']:.0f}). "
            f"With directed retraining it would be {result['margin with steering']:.3g}: true gradients with a pull "
            "added are steering, whose distances are as small as the run is long."
        ),
        figures.table(header, rows),
        figures.table(["honest steps, re-executed with", "steps", "median distance", "largest"], honest),
        figures.paragraph(
            "*Found by digests* are steps whose batch is not the one that the order demands; no tolerance is applied "
            "to them. *Within α* are steps that the bound on the whole gradient would let pass; the bounds on tensors "
            "and those of a whole draw come on top. α is no multiple of the honest distances here, but comes from rare "
            "events, provoked: ReLUs that open in one environment and not in the other. The margin is that of these "
            "forgeries in a run of this length: one that spreads the same way over more steps has smaller distances, "
            "in proportion, and [steering](#steering) is what is left of it at the size of the tolerance."
        ),
        "![Relative distances of forged and of honest steps](figures/margin.svg)",
    ))  # fmt: skip


def draw(axes: Axes, result: dict[str, Any]) -> None:
    """Smallest and median distances, spoof by spoof, and the honest ones."""
    rows = [row for row in result["spoofs"] if row.get("smallest") is not None]
    for place, row in enumerate(reversed(rows)):
        axes.plot([row["smallest"], row["median"]], [place, place], "o-", color="C3", ms=4, lw=1)
    axes.axvline(result["largest honest"], color="C0", lw=1, label="largest honest")
    axes.axvline(GOAL * result["largest honest"], color="C0", lw=1, ls="--", label=f"{GOAL:.0f} times that")
    axes.set_yticks(range(len(rows)), [row["spoof"] for row in reversed(rows)])
    axes.set(xscale="log", xlabel="relative distance of the gradient: smallest and median of forged steps")
    axes.legend(loc="lower right")


def main() -> None:
    """Measure, and write docs/figures/margin.json, its plot, and the section of docs/soundness.md."""
    docs = figures.docs_folder()        # before the work, where it fails
    set_determinism(1)
    result = measure()
    figures.write_json("margin", result, docs)
    figures.insert_section("soundness.md", "margin", section(result), docs)
    with figures.plot("margin", docs=docs) as (axes,):
        draw(axes, result)


if __name__ == "__main__":
    main()
