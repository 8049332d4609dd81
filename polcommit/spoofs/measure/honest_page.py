"""What docs/soundness.md says about honest runs: the tables, the plot, and the words around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polcommit.spoofs.measure import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SCREENS = "How often the screens flag steps of honest runs is measured on longer ones: [Screens](screens.md)."


def section(result: Mapping[str, Any]) -> str:
    """The part of docs/soundness.md between its markers."""
    kinds, runs = result["kinds"], result["runs"]
    exact, taken_up = sum(row["exact"] for row in kinds), sum(row["taken up"] for row in kinds)
    resumed = sum(row["resumed"] for row in kinds)
    rows = [
        [f"`{row['kind']}`", row["runs"], row["exact"], f"{row['alpha']:.2g}",
         *(f"{found['accepted']} ({found['largest distance']:.1g})" for found in row["elsewhere"].values())]
        for row in kinds
    ]  # fmt: skip
    header = ["recipe, optimizer", "runs", "bit-exact", "α", *(f"`{text}`" for text in result["elsewhere"])]
    return "\n\n".join((
        figures.paragraph(
            f"{runs} honest runs of {result['steps']} steps, small: digits, a transformer, a residual net; each with "
            f"several optimizers, four learning-rate schedules and seeds of its own. {result['judged']} steps of each "
            f"were re-executed in the environment that trained it (`{result['here']}`), and in each of the others. "
            f"{exact} of {runs} were accepted bit for bit; {resumed} of {taken_up} that were taken up again from a "
            "kept state ended in the same bits. In the other environments, the number that was accepted within the "
            f"tolerance of a profile measured on other seeds, with {result['measured']} steps of two runs; and the "
            "largest relative distance of a gradient:"
        ),
        figures.table(header, rows),
        _failures(result), _verdicts(result["verdicts"], result["steps"]), _reaches(result), SCREENS,
        "![Largest relative distances of honest runs, and the tolerance](figures/honest.svg)",
    ))  # fmt: skip


def _failures(result: Mapping[str, Any]) -> str:
    lines = [
        f"- `{row['kind']}`, `{text}`: {count} refuted or not decided: {why}"
        for row in result["kinds"] for text, found in row["elsewhere"].items() for why, count in found["why"].items()
    ]  # fmt: skip
    tried = sum(row["runs"] for row in result["kinds"]) * len(result["elsewhere"])
    if lines:
        return "Not accepted:\n\n" + "\n".join(lines)
    return figures.paragraph(
        f"None of the {tried} judgements refused one. Of independent runs there are {result['runs']}: with no failure "
        f"among them, a rate of {figures.share(result['upper'])} is excluded with 95 % confidence, and nothing less."
    )


def _verdicts(found: Mapping[str, Any], steps: int) -> str:
    flags = ", ".join(f"{count} of '{name}'" for name, count in found["flags"].items()) or "none"
    text = figures.paragraph(
        f"And {found['runs']} runs of the same kinds through all of polcommit, with a chain, keys and a verifier: "
        f"{found['post hoc']} of them post hoc, the others registered before training, {found['resumed']} recorded in "
        f"two sittings, {found['drawn']} steps drawn of each. {found['accepted']} of {found['runs']} verdicts are "
        f"'accepted', bit for bit. Flags, which decide nothing: {flags} (runs of {steps} steps are less than a pass "
        "over the data, which is what 'work' says)."
    )
    if not found["why"]:
        return text
    return text + " The others:\n\n" + "\n".join(f"- {why}" for why in found["why"])


def _reaches(result: Mapping[str, Any]) -> str:
    found = [found for row in result["kinds"] for found in row["elsewhere"].values()]
    above = sum(each["reach above 1"] for each in found)
    largest = max((each["largest reach"] for each in found if each["largest reach"] is not None), default=0.0)
    return figures.paragraph(
        f"Test 4 (reach) is not in these figures. With draws of {result['judged']} steps it is above 1, so that the "
        f"default policy would not accept the run, in {above} of the judgements; the largest is {largest:.2g}. Larger "
        "draws have a smaller reach."
    )


def draw(axes: Axes, result: Mapping[str, Any]) -> None:
    """Largest distances by recipe, optimizer and environment, beside α."""
    kinds = result["kinds"]
    for number, text in enumerate(result["elsewhere"]):
        values = [max(row["elsewhere"][text]["largest distance"], 1e-9) for row in kinds]
        axes.plot(range(len(kinds)), values, "osv^D"[number % 5], ms=5, mfc="none", label=text)
    axes.plot(range(len(kinds)), [row["alpha"] for row in kinds], "_", color="C3", ms=14, label="α")
    axes.set_xticks(range(len(kinds)), [row["kind"] for row in kinds], rotation=30, ha="right")
    axes.set(yscale="log", ylabel="relative distance of the gradient")
    axes.legend(fontsize=8)
