"""What docs/soundness.md says about steering: its tables, its plot, and the words around the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polcommit.spoofs import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"sgd": "SGD", "adamw": "AdamW"}
VARIANTS = {
    "plain": "bends as far as test 1 lets it",
    "quiet": "the same, held below test 3",
    "decoy": "every second step, tiny residuals the other way between",
    "bursts": "one step in ten, and only those have a rate",
    "slack": "no bend; rounding that test 2 lets pass",
}


def section(result: Mapping[str, Any]) -> str:
    """The part of docs/soundness.md between its markers."""
    return "\n\n".join((
        _what(result), _alphas(result), _below(result),
        _lengths(result),
        "![Distance to the stolen weights over steps, by optimizer](figures/steering.svg)",
        _reading(result), _zeros(result["zeros"]), _honest(result),
    ))  # fmt: skip


def _what(result: Mapping[str, Any]) -> str:
    recipe = result["recipe"]
    return figures.paragraph(
        "A forger who holds a stolen W_T, starts from the W_0 that the beacon gives it, computes every gradient truly, "
        "and bends it towards W_T as far as the tolerance lets it. It claims an environment that a noise profile "
        "exists for and that the verifier cannot take over, and it registers what serves it: noise for data, its own "
        f"learning rate. The net of `digits` with {recipe['width']} and {2 * int(recipe['width'])} channels, batches "
        f"of {recipe['batch']}, no momentum, no weight decay. Distances are ‖W − W_T‖ as shares of ‖W_0 − W_T‖, the "
        "least on the way. Accuracy is on clean digits, at the end."
    )


def _alphas(result: Mapping[str, Any]) -> str:
    """Lemma 3 alone, by α."""
    rows = []
    for run in result["runs"]:
        found = [row for row in run["forgers"] if row["alpha"] is not None and row["labels"] == "clean"]
        for optimizer in NAMES:
            mine = {row["alpha"]: row for row in found if row["optimizer"] == optimizer}
            if mine:
                rows.append([NAMES[optimizer], run["steps"], *(f"{mine[alpha]['least']:.3f}" for alpha in sorted(mine))])
    alphas = sorted({
        row["alpha"] for run in result["runs"] for row in run["forgers"]
        if row["alpha"] is not None and row["labels"] == "clean"
    })  # fmt: skip
    text = figures.paragraph(
        "With nothing but Fang et al.'s Lemma 3, ‖ĝ − g′‖ ≤ α‖g′‖ over the whole gradient, and clean labels, least "
        "distance to W_T by α:"
    )
    return text + "\n\n" + figures.table(["", "steps", *(f"{alpha:g}" for alpha in alphas)], rows)


def _below(result: Mapping[str, Any]) -> str:
    lines = []
    for optimizer, found in result["profiles"].items():
        adaptive = found["alpha preconditioned"]
        own = "" if adaptive is None else f", α_D = {adaptive:.3g}"
        widest = max(found["tensors"], key=lambda name: found["tensors"][name][0])
        lines.append(
            f"{NAMES[optimizer]}: α = {found['alpha']:.3g}{own}; the widest bound of a tensor is that of `{widest}`, "
            f"{found['tensors'][widest][0]:.2g} of its own norm; a draw of {result['drawn']} steps may have a mean "
            f"distance of {found['distances']:.2g}"
            + ("" if found["distances preconditioned"] is None else
               f" ({found['distances preconditioned']:.2g} preconditioned)")
            + f", cosines of {found['towards']:.2g} with the way to W_T and {found['pairs']:.2g} with each other."
        )  # fmt: skip
    first = figures.paragraph(
        "Under noise profiles, measured as `polcommit calibrate` does (oneDNN off, and no vector instructions, against "
        "this machine as it is), all of test 1 applies: the whole gradient, each tensor, what the optimizer makes of "
        "it, and zeros of structure."
    )
    return first + "\n\n" + "\n".join(f"- {line}" for line in lines)


def _lengths(result: Mapping[str, Any]) -> str:
    """All of test 1, by variant."""
    tables = []
    for run in result["runs"]:
        rows = []
        for row in run["forgers"]:
            if row["alpha"] is not None and row["labels"] == "clean":
                continue
            what = f"Lemma 3 alone, α = {row['alpha']:.3g}" if row["alpha"] is not None else VARIANTS[row["variant"]]
            rows.append([
                NAMES[row["optimizer"]], what, row["labels"], f"{row['least']:.3f}",
                f"{row['least within reach']:.3f}", f"{row['caught']} of {row['tried']}", f"{row['accuracy']:.3f}",
            ])  # fmt: skip
        header = ["", "forger", "labels", "least distance", "with reach ≤ 1", "test 3 refutes", "accuracy"]
        tables.append(f"{run['steps']:,} steps:\n\n" + figures.table(header, rows))
    return "\n\n".join(tables)


def passing(result: Mapping[str, Any], optimizer: str | None = None) -> list[dict[str, Any]]:
    """Forgers under all of test 1 whom no challenge refuted by test 3, with their steps."""
    return [
        {**row, "steps": run["steps"]}
        for run in result["runs"] for row in run["forgers"]
        if row["alpha"] is None and row["caught"] == 0 and optimizer in (None, row["optimizer"])
    ]  # fmt: skip


def _reading(result: Mapping[str, Any]) -> str:
    lines = []
    for optimizer, name in NAMES.items():
        everyone = [
            {**row, "steps": run["steps"]} for run in result["runs"] for row in run["forgers"]
            if row["alpha"] is None and row["optimizer"] == optimizer
        ]  # fmt: skip
        quiet = passing(result, optimizer)
        if not everyone or not quiet:
            continue
        lines.append(
            f"- {name}, under the profile: {_best(everyone, 'least')} with tests 1 and 2 alone; {_best(quiet, 'least')} "
            f"among those that test 3 let pass in every challenge; {_best(quiet, 'least within reach')} among those, as "
            "long as test 4 finds a reach of at most 1."
        )
    text = figures.paragraph(
        "*With reach ≤ 1* is the least distance before test 4, with the default policy, no longer accepts the run. "
        f"*Test 3 refutes* counts challenges of {result['drawn']} random steps each, judged by the verifier's own code. "
        "The least distances, over all lengths, variants and labels:"
    )
    return text + "\n\n" + "\n".join(lines)


def _best(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    best = min(rows, key=lambda row: row[key])
    return f"**{best[key]:.3f}** ({best['variant']}, {best['labels']} labels, {best['steps']:,} steps)"


def _zeros(found: Mapping[str, Any]) -> str:
    return figures.paragraph(
        f"Zeros of structure. A transformer with an embedding of its own, AdamW, {found['steps']} steps; the forger adds "
        f"±{found['push']:g} towards W_T wherever the embedding's gradient is zero, and changes nothing else. The "
        f"embedding comes to {found['pushed']:.3f} of its distance from the stolen one ({found['honest']:.3f} without "
        f"the push), at a cost of {found['gradient']:.2g} of the gradient's norm. Element by element it shows: at least "
        f"{found['zeros']} of {found['elements']} elements are zero in one of the two only, in every step that was "
        f"compared; preconditioned, the distance is {found['preconditioned']:.2g}."
    )


def _honest(result: Mapping[str, Any]) -> str:
    rows = [
        [NAMES[name], found["draws"], found["rejected"], f"{found['upper']:.2e}", f"{found['largest mean distance']:.2g}",
         f"{found['largest mean towards']:.3f}", f"{found['largest mean of pairs']:.3f}"]
        for name, found in result["honest"].items()
    ]  # fmt: skip
    text = figures.paragraph(
        "False rejects of test 3: honest runs from independent seeds, with oneDNN and without, a draw of 8 of the first "
        "16 steps of each. The upper bound is Clopper and Pearson's, one-sided, at 95 %. The other columns are the "
        "largest of the draws' means. Test 4 refutes nobody; above its bound a run is not accepted."
    )
    header = ["", "draws", "refuted", "upper bound", "distance", "cosine with the way to W_T", "cosine of two"]
    return text + "\n\n" + figures.table(header, rows)


def draw_distances(axes: Axes, result: Mapping[str, Any], optimizer: str) -> None:
    """Distances over the steps of the longest run."""
    run = result["runs"][-1]
    styles = {"plain": "-", "quiet": "--", "decoy": ":", "bursts": "-.", "slack": (0, (1, 3))}
    colours = {"clean": "C0", "noisy": "C1", "random": "C3"}
    for row in run["forgers"]:
        if row["optimizer"] != optimizer:
            continue
        lemma = row["alpha"] is not None
        label = f"Lemma 3, α = {row['alpha']:.2g}, {row['labels']}" if lemma else f"{row['variant']}, {row['labels']}"
        steps, distances = zip(*row["trace"], strict=True)
        colour = "0.6" if lemma else colours[row["labels"]]
        axes.plot(steps, distances, ls=styles[row["variant"]], color=colour, lw=1.2, label=label)
    axes.set(xscale="log", xlabel=f"step, {NAMES[optimizer]}", ylabel="‖W − W_T‖ / ‖W_0 − W_T‖", ylim=(0, 1.5))
    axes.legend(fontsize=7)
