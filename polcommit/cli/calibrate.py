"""polcommit calibrate: how far honest steps of a recipe are apart between two environments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polcommit.cli import common
from polcommit.cli.register import require_torch
from polcommit.errors import UsageError

if TYPE_CHECKING:
    from polcommit.session.calibrate import Calibration, Plan, Reference
    from polcommit.session.environments import EnvironmentSettings


@click.command()
@click.argument("recipe")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A hyperparameter; repeatable.")
@click.option("--data", metavar="PATH", help="Where the recipe's data lies, if it does not bring its own.")
@click.option("--reference", default="", metavar="SETTINGS", help="Environment that trains; default: this machine's.")
@click.option("--against", multiple=True, metavar="SETTINGS", help="Environment that re-executes, such as "
              "'threads=1,onednn=off'; repeatable: one profile for all of them.")  # fmt: skip
@click.option("--train", type=click.IntRange(1), help="Steps of each honest run; default: the recipe's, at most 300.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="Of these, steps to re-execute.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Honest runs, a seed each.")
@click.option("--open", "left_open", multiple=True, metavar="NAME", help="A hyperparameter that the profile does not "
              "pin, besides 'steps'; repeatable.")  # fmt: skip
@click.option("--any", "anything", multiple=True, metavar="ITEM", help="An item of the fingerprint, such as "
              "'threads', that may have any value in either environment; repeatable.")  # fmt: skip
@click.option("--name", metavar="TEXT", help="What verdicts and messages call the profile; default: the output's name.")
@click.option("--export", type=common.FOLDER, help="Train only, and write what another machine needs into that folder.")
@click.option("--import", "imported", type=common.FOLDER, help="Re-execute here what another machine exported.")
@click.option("-o", "--output", type=common.FILE, help="Where the profile goes.")
@common.json_option
def calibrate(
    recipe: str,
    settings: tuple[str, ...],
    data: str | None,
    reference: str,
    against: tuple[str, ...],
    train: int | None,
    steps: int,
    runs: int,
    left_open: tuple[str, ...],
    anything: tuple[str, ...],
    name: str | None,
    export: Path | None,
    imported: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure the noise between environments on honest steps of RECIPE, and write a noise profile.

    Trains honest runs, re-executes steps of them in the other environments as a verifier would, and takes the bounds
    from what came out. The profile's alpha is a security parameter: what it allows, a forger may use at every step.
    """
    require_torch("calibrating")
    _require_sense(against, export, imported, output)
    from polcommit.session import calibrate as calibrating
    from polcommit.session.environments import EnvironmentSettings

    others = [EnvironmentSettings.parse(text) for text in against] or [EnvironmentSettings()]
    common.require_writable(output)
    with _folder(export, imported) as folder:
        blobs = folder / "blobs"
        if imported is not None:
            found = _imported(folder, recipe)
            _require_open(found.runs[0].honest.configuration, left_open)
        else:
            plan = _plan(recipe, settings, data, train, steps, runs)
            _require_open(plan.configuration, left_open)
            with common.progress("training honest runs") as bar:
                found = calibrating.reference(plan, EnvironmentSettings.parse(reference), blobs, bar)
        if export is not None:
            calibrating.export(found, folder)
            common.show(_exported(found, export), as_json)
            return
        assert output is not None
        result = _measured(found, blobs, others, name or output.stem, left_open, anything)
    _written(result, output, as_json)


def _require_sense(
    against: tuple[str, ...], export: Path | None, imported: Path | None, output: Path | None
) -> None:
    if export is not None and (imported is not None or against or output is not None):
        raise UsageError("--export trains only", hint="give --against and -o where it is imported")
    if export is None and output is None:
        raise UsageError("no place for the profile", hint="give one with -o FILE")
    if export is None and imported is None and not against:
        raise UsageError("no environment to compare with", hint="give one, such as --against threads=1")


@contextmanager
def _folder(export: Path | None, imported: Path | None) -> Iterator[Path]:
    """Where the reference's blobs lie."""
    if imported is not None:
        yield imported
    elif export is not None:
        if export.exists() and any(export.iterdir()):
            raise UsageError(f"{export} is not empty", hint="give a new folder")
        export.mkdir(parents=True, exist_ok=True)
        yield export
    else:
        with tempfile.TemporaryDirectory(prefix="polcommit-") as name:
            yield Path(name)


def _plan(recipe: str, settings: tuple[str, ...], data: str | None, train: int | None, steps: int, runs: int) -> Plan:
    from polcommit.session.calibrate import Plan
    from polcommit.session.recipes import make_recipe

    given: dict[str, str] = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {text!r}", hint="write it as --set NAME=VALUE")
        given[key] = value
    where = str(Path(data).resolve()) if data is not None else None
    made = make_recipe(recipe, given, data=where)
    if train is not None and train > made.steps:
        raise UsageError(f"{train} steps of a recipe that has {made.steps}", hint=f"raise --set steps={train} as well")
    return Plan(
        recipe=recipe,
        configuration=made.configuration(),
        data=where,
        train=train if train is not None else min(made.steps, 300),
        steps=steps,
        runs=runs,
    )


def _imported(folder: Path, recipe: str) -> Reference:
    from polcommit.session.calibrate import import_

    found = import_(folder)
    if found.recipe != recipe:
        raise UsageError(f"{folder} is a calibration of recipe {found.recipe!r}, not {recipe!r}")
    return found


def _require_open(configuration: tuple[tuple[str, str], ...], left_open: tuple[str, ...]) -> None:
    known = [name for name, _ in configuration]
    for name in left_open:
        if name not in known:
            raise UsageError(f"no hyperparameter {name!r}", hint=f"there are {', '.join(known)}")


def _exported(found: Reference, folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "recipe": found.recipe,
        "honest steps": sum(len(run.honest.steps) for run in found.runs),
        "reproduces itself": found.repeats,
    }


def _measured(
    found: Reference,
    blobs: Path,
    others: list[EnvironmentSettings],
    name: str,
    left_open: tuple[str, ...],
    anything: tuple[str, ...],
) -> Calibration:
    from polcommit.session.calibrate import calibrate as run

    with common.progress("re-executing") as bar:
        return run(
            found, blobs, others, name=name, left_open=("steps", *left_open), anything=anything, progress=bar
        )


def _written(result: Calibration, output: Path, as_json: bool) -> None:
    from polcommit.profiles import digest, to_json
    from polcommit.storage import files

    profile = result.profile
    files.write_atomic(output, to_json(profile).encode(), exist_ok=True)
    if not result.repeats:
        every = result.digest_every
        told = f"one digest may cover {every} steps at most" if every else "no digest_every tells noise from forgery"
        common.say(f"warning: the reference does not reproduce itself bit by bit: {told}")
    common.show(
        {
            "profile": str(output),
            "digest": digest(profile).hex(),
            "honest steps": profile.honest,
            "alpha": profile.alpha,
            "alpha preconditioned": profile.alpha_preconditioned,
            "largest honest distance": result.largest.get("gradient"),
            "largest stressed distance": result.largest.get("gradient, stressed"),
            "loss": profile.loss,
            "reproduces itself": result.repeats,
            "digest_every": result.digest_every,
            "differs": [list(item) for item in profile.differs] if as_json else _differences(profile.differs),
        },
        as_json,
    )


def _differences(differs: tuple[tuple[str, str, str], ...]) -> str:
    return "; ".join(
        f"{name} {'any' if (one, other) == ('*', '*') else f'{one or None} and {other or None}'}"
        for name, one, other in differs
    )
