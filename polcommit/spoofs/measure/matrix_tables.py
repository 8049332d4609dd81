"""The tables of docs/soundness.md: every spoof on `digits`, on `gpt` and on a ResNet-20, as small as a CPU wants them.

Plain Proof-of-Learning meets runs that are long enough for a straight line to stay within δ. What polcommit meets is a
little longer than an epoch, and so short that every step is drawn: what a draw of fewer steps misses is a matter of
arithmetic (`detection`), not of how steps are forged. Cells lie in build/matrix, or where POLCOMMIT_MATRIX says.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polcommit.errors import UsageError
from polcommit.recipes.cifar import CIFAR10, digits_as_cifar10
from polcommit.recipes.digits import Digits
from polcommit.recipes.gpt import Gpt
from polcommit.recipes.resnet import ResNet20Cifar10
from polcommit.spoofs.catalogue import find_spoof
from polcommit.spoofs.measure import figures
from polcommit.spoofs.measure.matrix import RECIPE, SEEDS, Plan, Say, run
from polcommit.spoofs.measure.matrix_page import PLAIN, beside, instead, markdown, untried
from polcommit.spoofs.measure.matrix_plot import draw_matrix
from polcommit.spoofs.opponent.setting import MODES
from polcommit.training.recipe import Recipe

TEXT = 11_500           # bytes of a page that `gpt` is trained on: less than 12 steps
EACH = 22               # images of each of CIFAR-10's five training files: less than 8 steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One recipe's. `others` are, with the paths of their data, for what cannot be tried on `short`."""

    name: str           # of the figure, and of the page's section
    plain: Recipe       # what plain PoL meets
    short: Recipe       # what polcommit meets
    data: str | None = None
    others: tuple[tuple[Recipe, str | None], ...] = ()


def tables(home: Path) -> Iterator[Table]:
    """All three; the data of those that need any is written below `home`."""
    home.mkdir(parents=True, exist_ok=True)
    text = home / "text"
    text.write_bytes((figures.docs_folder() / "spec.md").read_bytes()[:TEXT])
    gpt = Gpt(steps=12, text=text)
    untied = Gpt(steps=12, tied=False, text=text), str(text)
    # Spoofs that claim another environment need a noise profile, and that of `digits` is for its own width.
    yield Table(
        name="matrix", plain=RECIPE, short=Digits(steps=26, batch=64, width=8),
        others=((Digits(steps=26), None), (gpt, str(text)), untied),
    )  # fmt: skip
    yield Table(
        name="matrix-gpt", short=gpt, data=str(text), others=(untied,),
        plain=Gpt(steps=160, batch=8, accumulation=1, layers=2, width=32, context=32, text=text),
    )  # fmt: skip
    images = home / "cifar10"
    digits_as_cifar10(images)
    for file in CIFAR10.train:
        os.truncate(images / file, EACH * CIFAR10.record)
    small = ResNet20Cifar10(steps=8, width=8, blocks="1 1 1", batch=16, data=images)   # it has a noise profile
    yield Table(
        name="matrix-resnet20", data=str(images), short=small, plain=replace(small, steps=160, width=4, batch=8)
    )


def measure(table: Table, out: Path, *, jobs: int, seeds: int = SEEDS, say: Say = lambda _: None) -> dict[str, Any]:
    """Try all of a table that `out` does not hold yet."""
    plain = run(Plan(recipe=table.plain, opponents=(PLAIN,), seeds=seeds), out, jobs=jobs, say=say)
    tried = Plan(recipe=table.short, opponents=MODES, data=table.data, seeds=seeds)
    result = beside(plain, run(tried, out, jobs=jobs, say=say))
    for recipe, data in table.others:
        lacking = tuple(find_spoof(name) for name in untried(result))
        plan = Plan(recipe=recipe, spoofs=lacking, opponents=MODES, data=data, seeds=seeds)
        result = instead(result, run(plan, out, jobs=jobs, say=say))
    return result


def section(result: dict[str, Any]) -> str:
    """What the page says about a table: what was tried, and how it ended."""
    plain, drawn = result["plain"], result["drawn"]
    words = (
        f"{result['seeds']} trials each: against plain Proof-of-Learning on `{plain['recipe']['name']}` with "
        f"{plain['recipe']['steps']} steps, {plain['interval']} between checkpoints, Q = {plain['top']}; against "
        f"polcommit on {result['recipe']['steps']} steps of `{result['recipe']['name']}`, of which {drawn} are drawn."
    )
    if left := untried(result):
        words += f" Tried on no recipe: {', '.join(f'`{name}`' for name in left)}."
    return f"{figures.paragraph(words)}\n\n{markdown(result)}"


def main(wanted: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Measure the tables of these names, all of them if none is given; write figures, sections and the plot."""
    out = Path(os.environ.get("POLCOMMIT_MATRIX", "build/matrix"))
    jobs = int(os.environ.get("POLCOMMIT_JOBS", 0)) or len(os.sched_getaffinity(0))

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201  (takes an hour)

    known = {table.name: table for table in tables(out / "data")}
    if unknown := sorted(set(wanted) - known.keys()):
        raise UsageError(f"no table {unknown[0]!r}", hint=f"there are: {', '.join(known)}")
    for name in wanted or known:
        result = measure(known[name], out, jobs=jobs, say=say)
        for spoof in untried(result):
            say(f"{name}: {spoof} was tried on no recipe")
        figures.write_json(name, result)
        figures.insert_section("soundness.md", name, section(result))
    draw_matrix([figures.read_json(name) for name in known])


if __name__ == "__main__":
    main()
