"""How often honest provers fail tests 1 to 3 under the profiles that ship: independent runs, a draw from each.

As `alignment_draws`, with the recipes themselves, trained and compared by polcommit's own engine: with oneDNN here, and
without there, on one thread. A draw is of the first steps of a run of its own, in which gates open and close most
often; of later ones this says nothing, nor of other pairs of environments.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from polcommit.errors import Refuted
from polcommit.profiles import Profile
from polcommit.recipes.cifar import digits_as_cifar10
from polcommit.replaying import Measured, ReplayedStep
from polcommit.session.noise import shipped
from polcommit.session.recipes import make_recipe
from polcommit.spoofs.measure import figures
from polcommit.spoofs.measure.alignment_draws import upper_bound, without_onednn
from polcommit.spoofs.measure.opened import Opening, open_run
from polcommit.tolerance import check_alignment, judge
from polcommit.training.environment import set_determinism
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.residuals import Residuals

DRAWS = 3_300
#: By profile: steps of each run, and how many of them are drawn.
SIZES = {"digits-cpu": (8, 4), "resnet20-small-cpu": (4, 2), "gpt-cpu": (2, 1), "gpt-untied-cpu": (2, 1)}


def measure(cache: Path, data: Mapping[str, Path], count: int = DRAWS) -> dict[str, Any]:
    """A row for each shipped profile; draws that `cache` holds are not made again. `data` is by recipe."""
    cache.mkdir(parents=True, exist_ok=True)
    return {
        profile.name: summary(list(draws(profile, data.get(profile.recipe), count, cache)), profile)
        for profile in shipped()
    }


def draws(profile: Profile, data: Path | None, count: int, cache: Path) -> Iterator[dict[str, Any]]:
    """The first `count` draws, each with what refutes it ('why', or None) and its largest distance."""
    path = cache / f"shipped-{profile.name}.jsonl"
    known = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    yield from known[:count]
    steps, drawn = SIZES[profile.name]
    where = str(data) if data is not None else None
    recipe = replace(make_recipe(profile.recipe, dict(profile.configuration), data=where), steps=steps)
    for number in range(len(known), count):
        found = draw(recipe, profile, number, drawn)
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(found) + "\n")
        yield found


def draw(recipe: Recipe, profile: Profile, number: int, drawn: int) -> dict[str, Any]:
    """One run, and one draw of it."""
    label = f"polcommit shipped {profile.name} {number}"
    chosen = random.Random(label).sample(range(1, recipe.steps + 1), drawn)  # noqa: S311
    run = open_run(recipe, sha256(label.encode()).digest(), chosen)
    engine, found, why = Engine(recipe, run.seed), [], None
    with without_onednn(), Residuals(drawn) as residuals:
        for opening in run.openings:
            measured, residual = run.compare(engine, opening)
            residuals.add(engine.state.model, residual)
            found.append(measured)
        try:
            for opening, measured in zip(run.openings, found, strict=True):
                judge(opening.record, _replayed(opening, measured), profile)
            check_alignment(found, residuals.cosines(), profile)
        except Refuted as error:
            why = error.message
    return {"why": why, "distance": max(each.distance / min(each.opened, each.here) for each in found)}


def _replayed(opening: Opening, measured: Measured) -> ReplayedStep:
    record = opening.record
    return ReplayedStep(
        step=record.step, batch=record.batch, state=bytes(32), again=None, loss=measured.loss,
        learning_rate=measured.learning_rate, clipped=measured.clipped, skipped=measured.skipped, measured=measured,
        contribution=None,
    )  # fmt: skip


def summary(found: list[dict[str, Any]], profile: Profile) -> dict[str, Any]:
    """Rejects, and what they are counted against."""
    failed = [each["why"] for each in found if each["why"] is not None]
    steps, drawn = SIZES[profile.name]
    return {
        "draws": len(found), "steps": steps, "drawn": drawn, "rejected": len(failed),
        "upper": upper_bound(len(failed), len(found)), "alpha": profile.alpha,
        "largest distance": max(each["distance"] for each in found), "why": sorted(set(failed)),
    }  # fmt: skip


def section(result: Mapping[str, Any]) -> str:
    """What docs/soundness.md says about them."""
    rows = [
        (
            f"`{name}`", f"{found['draws']:,}", f"{found['drawn']} of {found['steps']}", found["rejected"],
            f"{found['upper']:.1e}", f"{found['largest distance']:.2g}", f"{found['alpha']:.2g}",
        )
        for name, found in result["profiles"].items()
    ]  # fmt: skip
    words = figures.paragraph(
        "Honest runs of the recipes themselves, each from a seed of its own, trained with oneDNN on one thread, its "
        "draw re-executed without: draws that tests 1 to 3 refute, under the profile that ships. The upper bound is "
        "Clopper and Pearson's, one-sided, at 95 %. Draws are small and of the first steps, where gates open and close "
        "most often; of larger draws and later steps this says nothing."
    )
    header = ("profile", "draws", "steps", "refuted", "upper bound", "largest distance", "α")
    return f"{words}\n\n{figures.table(header, rows)}"


def main() -> None:
    """Measure, and write docs/figures/draws.json and the section 'draws' of docs/soundness.md."""
    docs = figures.docs_folder()
    set_determinism(1)
    cache = docs.parent / "runs" / "soundness" / "draws"
    images = cache / "cifar10"
    digits_as_cifar10(images)
    result = {"profiles": measure(cache, {"gpt": docs / "spec.md", "resnet20-cifar10": images})}
    figures.write_json("draws", result, docs)
    figures.insert_section("soundness.md", "draws", section(result), docs)


if __name__ == "__main__":
    main()
