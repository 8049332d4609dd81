"""polcommit spoof: the attacks, run against plain Proof-of-Learning and against polcommit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polcommit.cli import common
from polcommit.cli.register import require_torch
from polcommit.errors import UsageError

if TYPE_CHECKING:
    from polcommit.spoofs.base import Spoof
    from polcommit.spoofs.plain.verifier import Terms
    from polcommit.training.recipe import Recipe

ACCEPTED, NOT_TRIED = 1, 3


@click.group()
def spoof() -> None:
    """Run attacks on training runs: to see what polcommit makes of them, and what plain Proof-of-Learning does."""
    require_torch("running a spoof")


def recipe_options(command: common.F) -> common.F:
    """--recipe, --set, --data, --device, --count; --interval, --top, --delta: what plain Proof-of-Learning checks."""
    for option in (
        click.option("--delta", type=float, default=0.008, show_default=True, metavar="D", help="Distance that plain "
                     "Proof-of-Learning accepts, as a share of that between independent runs."),
        click.option("--top", type=click.IntRange(1), default=5, show_default=True, metavar="Q",
                     help="Intervals of each epoch that it re-executes."),
        click.option("--interval", type=click.IntRange(1), default=1, show_default=True, metavar="K",
                     help="Steps between its checkpoints; 10 in the papers, for runs of 78,000 steps."),
        click.option("--device", help="Device that trains and re-executes; default: cpu."),
        click.option("--count", type=click.IntRange(1), help="Steps that a challenge draws; default: all of a short "
                     "run, as many as detect 5 % with probability 0.99 of a long one."),
        click.option("--data", metavar="PATH", help="Where the recipe's data lies, if it does not bring its own."),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A hyperparameter; repeatable."),
        click.option("--recipe", metavar="NAME", help="An installed recipe, or 'package.module:Class'; default: "
                     "digits, with 160 steps of 16 and a width of 8."),
    ):  # fmt: skip
        command = option(command)
    return command


@spoof.command("list")
@click.option("--family", "families", multiple=True, metavar="FAMILY", help="Only those of it; repeatable.")
@common.json_option
def list_spoofs(families: tuple[str, ...], as_json: bool) -> None:
    """List the spoofs: name, family, what is done, what the forger knows, and where it comes from."""
    from polcommit.spoofs.base import TrajectorySpoof

    found = _chosen((), families)
    rows: list[dict[str, Any]] = [
        {
            "name": kind.name, "family": kind.family, "title": kind.title, "source": kind.source,
            "knows": sorted(kind.knows), "kind": "states" if issubclass(kind, TrajectorySpoof) else "protocol",
            "goal": kind.goal,
        }
        for kind in found
    ]  # fmt: skip
    width = max(len(row["name"]) for row in rows)
    lines, family = [], ""
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            lines += ["", family]
        lines.append(f"  {row['name']:<{width}}  {row['title']}")
        lines.append(f"  {'':<{width}}  knows {', '.join(row['knows'])}; {row['source']}")
    common.show({"spoofs": rows}, as_json, "\n".join(lines).lstrip("\n"))


@spoof.command("run")
@click.argument("name")
@recipe_options
@click.option("--post-hoc", is_flag=True, help="The forger's run is not registered beforehand, and the verifier takes "
              "such runs.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the forger's own choices.")
@click.option("--plain", is_flag=True, help="Against plain Proof-of-Learning only.")
@click.option("--processes", is_flag=True, help="Re-execute in processes of their own, as the commands do.")
@common.json_option
def run_spoof(
    name: str, recipe: str | None, settings: tuple[str, ...], data: str | None, count: int | None, post_hoc: bool,
    seed: int, plain: bool, processes: bool, as_json: bool, device: str | None, interval: int, top: int, delta: float,
) -> int:  # fmt: skip
    """Run the spoof NAME, and say what came of it.

    Exit status: 0 not accepted, 1 accepted, 2 usage, 3 it cannot be tried here.
    """
    from polcommit.spoofs.base import TrajectorySpoof
    from polcommit.spoofs.catalogue import find_spoof
    from polcommit.spoofs.plain.verifier import Terms

    kind = find_spoof(name)
    made = _recipe(recipe, settings, data, device)
    terms = Terms(interval=interval, top=top, delta=delta)
    if plain and not issubclass(kind, TrajectorySpoof):
        raise UsageError(f"'{name}' attacks the protocol, which plain Proof-of-Learning does not have",
                         hint="leave --plain out")  # fmt: skip
    result: dict[str, Any] = {"spoof": name, "family": kind.family, "seed": seed}
    if issubclass(kind, TrajectorySpoof):
        result["plain PoL"] = _against_plain(kind, made, seed, terms)
    if not plain:
        mode = "post hoc" if post_hoc else "registered"
        result["polcommit"] = _against_polcommit(kind, made, mode, seed, count, processes, data)
    common.show(result, as_json, _text(kind, result))
    found = result["plain PoL" if plain else "polcommit"]
    if found.get("verdict", found["outcome"]) == "accepted":
        return ACCEPTED
    return NOT_TRIED if found["outcome"] == "not tried" else 0


@spoof.command("matrix")
@recipe_options
@click.option("--only", multiple=True, metavar="NAME", help="Only this spoof; repeatable.")
@click.option("--family", "families", multiple=True, metavar="FAMILY", help="Only those of it; repeatable.")
@click.option("--opponent", "opponents", multiple=True, metavar="WHO", help="Only 'plain PoL', 'registered' or "
              "'post hoc'; repeatable.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Trials of each.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes at a time.")
@click.option("--out", type=common.FOLDER, required=True, help="Folder for the trials, and for matrix.json and .md; "
              "what it holds is not tried again.")  # fmt: skip
@common.json_option
def matrix(
    recipe: str | None, settings: tuple[str, ...], data: str | None, count: int | None, only: tuple[str, ...],
    families: tuple[str, ...], opponents: tuple[str, ...], seeds: int, jobs: int, out: Path, as_json: bool,
    device: str | None, interval: int, top: int, delta: float,
) -> int:  # fmt: skip
    """Try every spoof on plain Proof-of-Learning, and on polcommit with registered and with post hoc runs.

    Exit status: 0 polcommit accepted none, 1 it accepted some, 2 usage, 3 some could not be tried.
    """
    import json

    from polcommit.spoofs.measure import matrix as trials
    from polcommit.spoofs.measure import matrix_page as page
    from polcommit.spoofs.plain.verifier import Terms
    from polcommit.storage import files

    unknown = sorted(set(opponents) - set(trials.OPPONENTS))
    if unknown:
        raise UsageError(f"no opponent {unknown[0]!r}", hint=f"there are: {', '.join(trials.OPPONENTS)}")
    plan = trials.Plan(
        recipe=_recipe(recipe, settings, data, device), spoofs=_chosen(only, families),
        opponents=opponents or trials.OPPONENTS, seeds=seeds, count=count, data=data,
        terms=Terms(interval=interval, top=top, delta=delta),
    )  # fmt: skip
    result = trials.run(plan, out, jobs=jobs, say=common.say)
    table = page.markdown(result)
    out.mkdir(parents=True, exist_ok=True)
    files.write_atomic(out / "matrix.json", json.dumps(result, indent=1).encode(), exist_ok=True)
    files.write_atomic(out / "matrix.md", (table + "\n").encode(), exist_ok=True)
    common.show(result, as_json, table)
    cells = [cell for row in result["rows"] for found in row["cells"].values() for cell in found]
    for cell in cells:
        if cell["outcome"] == "error":
            common.say(f"warning: {cell['spoof']}, {cell['opponent']}, seed {cell['seed']}: {cell['why']}")
    untried = page.untried(result)
    if untried:
        common.say(f"warning: not tried against polcommit: {', '.join(untried)}; give another --recipe")
    if page.succeeded(result):
        return ACCEPTED
    return NOT_TRIED if untried or any(cell["outcome"] == "error" for cell in cells) else 0


def _chosen(names: tuple[str, ...], families: tuple[str, ...]) -> tuple[type[Spoof], ...]:
    """The spoofs of these names and families; all of them where neither is given."""
    from polcommit.spoofs.base import FAMILIES
    from polcommit.spoofs.catalogue import all_spoofs, find_spoof

    unknown = sorted(set(families) - set(FAMILIES))
    if unknown:
        raise UsageError(f"no family {unknown[0]!r}", hint=f"there are: {', '.join(FAMILIES)}")
    wanted = tuple(dict.fromkeys(find_spoof(name) for name in names))
    every, wrong = all_spoofs()
    for message in wrong:
        common.say(f"warning: {message}")
    if not names and not families:
        return every
    return tuple(kind for kind in every if kind in wanted or kind.family in families) + tuple(
        kind for kind in wanted if kind not in every
    )


def _recipe(name: str | None, settings: tuple[str, ...], data: str | None, device: str | None) -> Recipe:
    from polcommit.session.recipes import make_recipe
    from polcommit.spoofs.measure.matrix import RECIPE

    given = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: not NAME=VALUE")
        given[key] = value
    if name is None:
        given = {**dict(RECIPE.configuration()), **given}
    where = str(Path(data).resolve()) if data is not None else None
    return make_recipe(name or "digits", given, data=where, device=device)


def _against_plain(kind: type[Spoof], recipe: Recipe, seed: int, terms: Terms) -> dict[str, Any]:
    from polcommit.spoofs.measure.matrix import plain_trial

    return dict(plain_trial(kind, recipe, seed, terms))


def _against_polcommit(
    kind: type[Spoof], recipe: Recipe, mode: str, seed: int, count: int | None, processes: bool, data: str | None
) -> dict[str, Any]:
    from polcommit.spoofs.base import PreconditionNotMet
    from polcommit.spoofs.opponent.arena import run_spoof as try_out
    from polcommit.spoofs.opponent.setting import Setting
    from polcommit.training.environment import set_determinism

    set_determinism(1)
    setting = Setting(recipe=recipe, mode=mode, seed=seed, count=count, processes=processes, data=data)
    try:
        return {"mode": mode, **try_out(kind(), setting).plain()}
    except PreconditionNotMet as error:
        return {"mode": mode, "outcome": "not tried", "why": error.message}


def _text(kind: type[Spoof], result: dict[str, Any]) -> str:
    lines = [f"{kind.name}: {kind.title}", ""]
    if "plain PoL" in result:
        found = result["plain PoL"]
        lines.append(f"  plain PoL    {found['outcome']}: {found['why']}")
        if "every interval" in found:
            lines.append(f"  {'':<12} with every interval checked: {found['every interval']}")
        lines += _spent(found)
    if "polcommit" in result:
        found = result["polcommit"]
        lines.append(f"  polcommit    {found['outcome']}: {found['why']} ({found['mode']} run)")
        if "drawn" in found:
            lines.append(f"  {'':<12} {found['drawn']} of {found['steps']} steps challenged")
        lines += _spent(found)
        lines += [f"  {'':<12} {name}: {value}" for name, value in found.get("notes", {}).items()]
    return "\n".join(lines)


def _spent(found: dict[str, Any]) -> list[str]:
    if found.get("cost") is None:
        return []
    return [f"  {'':<12} forging cost {100 * found['cost']:.3g} % of honest training, {found['seconds']:.1f} s"]

