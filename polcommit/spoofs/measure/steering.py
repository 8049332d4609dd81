"""How far a forger gets who steers inside the tolerance, and how often the tests against it fail honest provers.

The forger holds a stolen W_T, starts from the W_0 that the beacon gives it, computes every gradient, and bends it. It
claims an environment for which a noise profile exists and that the verifier cannot take over, so that it is compared
within tolerance; it knows the verifier's own environment, so that its residuals are what it wants them to be.

What is found is the best of the variants that are tried here, each a single-step best. It bounds nothing from below.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from polcommit.errors import Refuted
from polcommit.profiles import Profile, from_json, to_json
from polcommit.replaying import Measured
from polcommit.session.calibrate import Plan, calibrate, reference
from polcommit.session.environments import EnvironmentSettings
from polcommit.session.noise import shipped
from polcommit.spoofs.bending import Limits, at_alpha, join, lemma, within
from polcommit.spoofs.measure import figures
from polcommit.spoofs.measure.alignment_draws import draws, measured, summary
from polcommit.spoofs.measure.lanes import Side
from polcommit.spoofs.measure.steered import LABELS, OPTIMIZERS, SteeredDigits, share_of_peak
from polcommit.spoofs.measure.steering_page import draw_distances, section
from polcommit.spoofs.measure.steering_runs import Forger, Run, run_forgers, trained
from polcommit.spoofs.measure.zeros import moved_embeddings
from polcommit.tolerance import check_alignment, threshold
from polcommit.training.environment import set_determinism
from polcommit.training.residuals import Residuals

LABEL = "polcommit soundness steering"          # all that is random here derives from it
LENGTHS = (1_000, 10_000, 100_000)
ALPHAS = (0.0, 0.001, 0.02, 0.1, 0.5, 1.0)      # of Lemma 3 alone
WIDTHS = (0.001, 0.02, 0.1, 0.5)                # of all of test 1, for which MIDDLE steps have to do
MIDDLE = 10_000
RATES = {"sgd": 0.05, "adamw": 0.003}           # the best of a few that were tried with 2,000 steps
AGAINST = ("onednn=off,threads=1", "capability=default,threads=1")
DRAWN, CHALLENGES = 90, 4                       # steps of a challenge (99 % of 5 %), and how many challenges are tried
#: Variants that mean to pass test 3: one step in how many they bend.
HELD = {"quiet": 1.0, "scattered": 1.0, "decoy": 2.0}
BURSTS = 0.6            # likewise, of the steps in `every`: how many bursts are drawn is chance
RARE = 100              # steps for each of a burst that is diluted further
MARGIN = 0.01           # of cosines, that a quiet forger leaves to chance
DRAWS = 3_300           # honest ones, for each optimizer
TRAINING = 5_000        # steps of the stolen model's


def calibrated(optimizer: str, cache: Path) -> Profile:
    """The profile of the steered recipe, measured as 'polcommit calibrate' does; from `cache` where it lies there."""
    path = cache / f"profile-{optimizer}.json"
    if path.exists():
        return from_json(path.read_text("utf-8"), path.name)
    recipe = SteeredDigits(optimizer=optimizer, peak=RATES[optimizer])
    plan = Plan(
        recipe=f"{SteeredDigits.__module__}:{SteeredDigits.__name__}", configuration=recipe.configuration(), data=None,
        train=200, steps=30, runs=2,
    )  # fmt: skip
    blobs = cache / f"blobs-{optimizer}"
    found = reference(plan, EnvironmentSettings.parse("threads=1"), blobs, _quietly)
    against = [EnvironmentSettings.parse(text) for text in AGAINST]
    profile = calibrate(
        found, blobs, against, name=f"steered digits, {optimizer}", left_open=("steps", "labels", "peak"),
        progress=_quietly,
    ).profile  # fmt: skip
    path.write_text(to_json(profile), "utf-8")
    return profile


def _quietly(done: int, total: int) -> None:
    pass


# --- the forgers ----------------------------------------------------------------------------------------------


def forgers(name: str, profile: Profile, *, long: bool = False) -> list[Forger]:
    """Everyone who is tried: Lemma 3 alone at each α (in long runs two of them), and all of test 1 under the profile.

    Under a profile that ships, those who came furthest under the others.
    """
    optimizer = optimizer_of(profile)
    common: dict[str, Any] = {"optimizer": optimizer, "rate": RATES[optimizer], "profile": name}
    ways: list[dict[str, Any]] = [{}, *_held(profile)]
    if name not in OPTIMIZERS:
        everyone = [Forger(labels=each, **common, **how) for each in LABELS[1:] for how in ways]
        return [*everyone, Forger(labels="random", variant="bursts", **common)]
    lemmas = [("random", 0.02), ("random", profile.alpha)]
    if not long:
        lemmas += [("clean", alpha) for alpha in ALPHAS] + [("noisy", 0.02)]
    everyone = [Forger(labels=labels, alpha=alpha, **common) for labels, alpha in lemmas]
    everyone += [Forger(labels=each, **common, **how) for how in ways for each in LABELS]
    everyone += [Forger(labels="random", variant=variant, **common) for variant in ("decoy", "bursts", "slack")]
    return everyone


def _held(profile: Profile) -> Iterator[dict[str, Any]]:
    """Those whose cosines stay below what test 3 lets pass: both of them, or those of pairs alone."""
    scattered = {"variant": "scattered", "paired": threshold(profile.pairs, Residuals.MOST // 2) - MARGIN}
    yield {**scattered, "variant": "quiet", "aligned": threshold(profile.towards, DRAWN) - MARGIN}
    yield scattered


def optimizer_of(profile: Profile) -> str:
    """Of the forgers under it."""
    return "sgd" if profile.alpha_preconditioned is None else "adamw"


def rare_bursts(profiles: Mapping[str, Profile]) -> list[Forger]:
    """Those whose movement is in one step of a hundred: a mean over steps is then no mean over what moved."""
    return [
        Forger(labels=labels, optimizer=optimizer, rate=RATES[optimizer], profile=name, variant="bursts", every=RARE)
        for name, profile in profiles.items() for optimizer in (optimizer_of(profile),) for labels in LABELS[1:]
    ]  # fmt: skip


def still(profiles: Mapping[str, Profile]) -> list[Forger]:
    """Those who bend nothing, and live on the rounding that test 2 lets pass."""
    own = [name for name in OPTIMIZERS if name in profiles]
    return [Forger(labels="clean", optimizer=name, rate=RATES[name], profile=name, variant="still") for name in own]


def odd_rates(profiles: Mapping[str, Profile]) -> list[Forger]:
    """Those who register rates of next to nothing, for most of the run or for all of it."""
    return [*rare_bursts(profiles), *still(profiles)]


def by_alpha(profiles: Mapping[str, Profile]) -> tuple[list[Forger], dict[str, Profile]]:
    """Those who keep to the nets' own profiles, and to them made wider and narrower: what each way gets out of α."""
    everyone, scaled = [], {}
    for optimizer in OPTIMIZERS:
        for alpha in WIDTHS:
            profile = at_alpha(profiles[optimizer], alpha)
            scaled[profile.name] = profile
            common: dict[str, Any] = {"labels": "noisy", "optimizer": optimizer, "rate": RATES[optimizer]}
            ways: list[dict[str, Any]] = [{}, *_held(profile), {"variant": "decoy"}, {"variant": "bursts"}]
            everyone += [Forger(profile=profile.name, **common, **how) for how in ways]
    return everyone, scaled


def steer(steps: int, profiles: Mapping[str, Profile]) -> Run:
    """Everyone's run of so many steps."""
    found = [forgers(name, profile, long=steps >= max(LENGTHS)) for name, profile in profiles.items()]
    return steer_these([each for mine in found for each in mine], steps, profiles)


def steer_these(everyone: Sequence[Forger], steps: int, profiles: Mapping[str, Profile]) -> Run:
    """The run of some forgers."""
    recipe = SteeredDigits(steps=steps)
    names = Side(recipe, ["clean"]).names
    limits = [_limits(each, profiles[each.profile], names) for each in everyone]
    goals = trained(SteeredDigits(steps=TRAINING), _seed("victim"), RATES)
    targets = torch.stack([goals[each.optimizer] for each in everyone])
    return run_forgers(everyone, recipe, join(limits), _seed("forger"), targets, taken_steps(steps))


def _limits(forger: Forger, profile: Profile, names: Sequence[str]) -> Limits:
    if forger.alpha is not None:
        return lemma([forger.alpha], len(names))
    if forger.variant == "bursts":
        return within(profile, names, drawn=DRAWN, every=BURSTS * forger.every)
    if forger.variant in HELD:
        return within(profile, names, drawn=DRAWN, every=HELD[forger.variant])
    return within(profile, names)


def _seed(who: str) -> bytes:
    return sha256(f"{LABEL}/{who}".encode()).digest()


def taken_steps(steps: int) -> frozenset[int]:
    """The steps that challenges draw, all of them together."""
    count = min(steps, DRAWN * CHALLENGES)
    return frozenset(random.Random(f"{LABEL}/drawn/{steps}").sample(range(1, steps + 1), count))  # noqa: S311


@dataclass(frozen=True, slots=True)
class Alignment:
    """Test 3 over challenges of one forger's run."""

    towards: float          # mean cosine with the way to the run's own last weights
    pairs: float            # of every two residuals
    caught: int             # challenges, of those tried, that refute the run
    tried: int


def alignment(run: Run, lane: int, profile: Profile) -> Alignment:
    """What challenges of a lane's run find, by the verifier's own test."""
    assert run.end is not None
    order = random.Random(f"{LABEL}/challenges").sample(range(len(run.weights)), len(run.weights))  # noqa: S311
    towards, pairs, caught = [], [], 0
    size = len(order) // CHALLENGES
    for number in range(CHALLENGES):
        chosen = order[number * size : (number + 1) * size]
        residuals = torch.stack([run.residuals[at][lane] for at in chosen]).double()
        away = torch.stack([run.weights[at][lane] for at in chosen]).double() - run.end[lane].double()
        cosines = _unit(residuals) * _unit(away)
        products = _unit(residuals[: Residuals.MOST]) @ _unit(residuals[: Residuals.MOST]).T
        upper = products[tuple(torch.triu_indices(len(products), len(products), 1))]
        steps = _steps(run, lane, chosen, cosines.sum(1).tolist(), profile)
        towards.append(float(cosines.sum(1).mean()))
        pairs.append(float(upper.mean()))
        try:
            check_alignment(steps, upper.tolist(), profile)
        except Refuted:
            caught += 1
    return Alignment(math.fsum(towards) / CHALLENGES, math.fsum(pairs) / CHALLENGES, caught, CHALLENGES)


def _steps(run: Run, lane: int, chosen: Sequence[int], cosines: Sequence[float], profile: Profile) -> list[Measured]:
    found = []
    for at, cosine in zip(chosen, cosines, strict=True):
        own, preconditioned = run.distances[at][lane].tolist()
        adaptive = profile.alpha_preconditioned is not None
        found.append(measured(cosine, own, preconditioned if adaptive else None))
    return found


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-300)


def _counting(steps: int) -> float:
    """The share of a run's steps that count, (Σ lr)²/(T · Σ lr²), by the schedule that all forgers register."""
    shares = [share_of_peak(step, steps) for step in range(1, steps + 1)]
    return math.fsum(shares) ** 2 / math.fsum(share * share for share in shares) / steps


def _counted(run: Run, lane: int) -> int:
    """Of a draw of `DRAWN` steps, those that count in test 4: by their rates, or by the strides of the whole run."""
    forger, total, squares = run.forgers[lane], float(run.stride[-1][lane]), float(run.squares[lane])
    rates = _counting(run.steps) / (forger.every if forger.variant == "bursts" else 1)
    strides = total * total / squares / run.steps if squares > 0 else 1.0
    return max(1, math.floor(DRAWN * min(rates, strides)))


def results(run: Run, profiles: Mapping[str, Profile]) -> list[dict[str, Any]]:
    """A row for each forger."""
    rows = []
    distance, moved = torch.stack(run.distance), torch.stack(run.moved)
    stride, rounding = torch.stack(run.stride), torch.stack(run.rounding)
    for lane, forger in enumerate(run.forgers):
        alpha, profile = forger.alpha, profiles[forger.profile]
        if alpha is None:       # as test 4 has it for a draw of this size
            alpha = threshold(profile.distances_preconditioned or profile.distances, _counted(run, lane))
        reach = (alpha * stride[:, lane] + rounding[:, lane]) / moved[:, lane].clamp_min(1e-30)
        allowed = distance[:, lane][reach <= 1.0]
        found = alignment(run, lane, profile)
        assert run.accuracy is not None
        rows.append({
            "optimizer": forger.optimizer, "profile": forger.profile, "labels": forger.labels,
            "variant": forger.variant, "every": forger.every, "alpha": forger.alpha,
            "test 1": "Lemma 3" if forger.alpha is not None else "all of it",
            "least": float(distance[:, lane].min()), "end": float(distance[-1, lane]),
            "reach": float(reach[-1]),
            "least within reach": float(allowed.min()) if len(allowed) else 1.0,
            "towards": found.towards, "pairs": found.pairs, "caught": found.caught, "tried": found.tried,
            "accuracy": float(run.accuracy[lane]),
            "trace": [[step, float(value)] for step, value in zip(run.traced, distance[:, lane], strict=True)],
        })  # fmt: skip
    return rows


# --- all of it ------------------------------------------------------------------------------------------------


def measure(cache: Path, lengths: Sequence[int] = LENGTHS, honest: int = DRAWS) -> dict[str, Any]:
    """The whole experiment; parts that `cache` holds are not made again."""
    cache.mkdir(parents=True, exist_ok=True)
    profiles = {optimizer: calibrated(optimizer, cache) for optimizer in OPTIMIZERS}
    profiles |= {profile.name: profile for profile in shipped()}
    runs = [dict(_cached(cache / f"run-{steps}.json", partial(_one, steps, profiles))) for steps in lengths]
    odd = _cached(cache / f"odd-rates-{max(lengths)}.json", partial(_odd_rates, max(lengths), profiles))
    middle = min(MIDDLE, max(lengths))
    runs[-1]["forgers"] = [*runs[-1]["forgers"], *odd["forgers"]]
    return {
        "recipe": dict(SteeredDigits().configuration()), "rates": RATES, "drawn": DRAWN, "challenges": CHALLENGES,
        "profiles": {name: _of_profile(profile) for name, profile in profiles.items()},
        "runs": runs,
        "by alpha": _cached(cache / f"alphas-{middle}.json", partial(_by_alpha, middle, profiles)),
        "zeros": _cached(cache / "zeros.json", moved_embeddings),
        "honest": {
            name: summary(draws(name, RATES[name], honest, cache / f"draws-{name}.jsonl"), profiles[name])
            for name in OPTIMIZERS
        },
    }  # fmt: skip


def _one(steps: int, profiles: Mapping[str, Profile]) -> dict[str, Any]:
    return {"steps": steps, "forgers": results(steer(steps, profiles), profiles)}


def _odd_rates(steps: int, profiles: Mapping[str, Profile]) -> dict[str, Any]:
    return {"steps": steps, "forgers": results(steer_these(odd_rates(profiles), steps, profiles), profiles)}


def _by_alpha(steps: int, profiles: Mapping[str, Profile]) -> dict[str, Any]:
    everyone, scaled = by_alpha(profiles)
    rows = results(steer_these(everyone, steps, scaled), scaled)
    return {"steps": steps, "forgers": [{**row, "width": scaled[row["profile"]].alpha} for row in rows]}


def _of_profile(profile: Profile) -> dict[str, Any]:
    return {
        "optimizer": optimizer_of(profile), "recipe": profile.recipe,
        "alpha": profile.alpha, "alpha preconditioned": profile.alpha_preconditioned, "honest": profile.honest,
        "tensors": {bound.name: [bound.relative, bound.floor] for bound in profile.tensors},
        "distances": threshold(profile.distances, DRAWN),
        "distances preconditioned": (
            None if profile.distances_preconditioned is None
            else threshold(profile.distances_preconditioned, DRAWN)
        ),
        "towards": threshold(profile.towards, DRAWN),
        "pairs": threshold(profile.pairs, Residuals.MOST // 2),
    }  # fmt: skip


def _cached(path: Path, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    if not path.exists():
        made = path.with_suffix(".part")
        made.write_text(json.dumps(make(), allow_nan=False), "utf-8")
        made.replace(path)
    found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def main() -> None:
    """Measure, and write docs/figures/steering.json, its plot, and the section of docs/soundness.md."""
    docs = figures.docs_folder()        # before the work, where it fails
    set_determinism(1)
    result = measure(docs.parent / "runs" / "soundness" / "steering")
    figures.write_json("steering", result, docs)
    figures.insert_section("soundness.md", "steering", section(result), docs)
    with figures.plot("steering", panels=2, docs=docs) as axes:
        for panel, optimizer in zip(axes, OPTIMIZERS, strict=True):
            draw_distances(panel, result, optimizer)


if __name__ == "__main__":
    main()
