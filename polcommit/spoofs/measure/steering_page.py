"""What docs/soundness.md says about steering: its tables, its plot, and the words around the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polcommit.spoofs.measure import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"sgd": "SGD", "adamw": "AdamW"}
VARIANTS = {
    "plain": "bends as far as test 1 lets it",
    "quiet": "the same, held below test 3",
    "scattered": "likewise, with an eye on pairs only",
    "decoy": "every second step, tiny residuals the other way between",
    "bursts": "bends one step in {every}, and only those have a rate",
    "slack": "no bend: the rounding that test 2 lets pass",
    "still": "likewise, at rates of next to nothing",
}

Rows = list[dict[str, Any]]


def section(result: Mapping[str, Any]) -> str:
    """The part of docs/soundness.md between its markers."""
    return "\n\n".join((
        _what(result), _best(result), _gaps(result), _alphas(result), _widths(result["by alpha"]),
        _profiles(result), *_lengths(result),
        "![Distance to the stolen weights over steps, by optimizer](figures/steering.svg)",
        figures.paragraph(
            "The longest run: Lemma 3 alone in grey, all of test 1 in colours by labels (clean blue, noisy orange, "
            "random red), lines by variant."
        ),
        _zeros(result["zeros"]), _honest(result),
    ))  # fmt: skip


def everyone(result: Mapping[str, Any]) -> Rows:
    """All forgers of all runs, with their steps."""
    return [{**row, "steps": run["steps"]} for run in result["runs"] for row in run["forgers"]]


def _what(result: Mapping[str, Any]) -> str:
    recipe = result["recipe"]
    width = int(recipe["width"])
    return figures.paragraph(
        "A forger who holds a stolen W_T, starts from the W_0 that the beacon gives it, computes every gradient truly, "
        "and bends it towards W_T as far as the tolerance lets it. It claims an environment that a noise profile "
        "exists for and that the verifier cannot take over, knows the verifier's own, and registers what serves it: "
        f"noise for data, its own learning rate. The net of `digits` with {width} and {2 * width} channels, batches of "
        f"{recipe['batch']}, no momentum, no weight decay; of each kind one run. Profiles are those of this very net, "
        "measured, and those that ship: of `digits-cpu` all bounds, for the tensors have the same names, of the others "
        "those on the whole gradient, which is more than they allow. Distances are ‖W − W_T‖ as shares of "
        "‖W_0 − W_T‖, the least on the way. What is found is the best of the variants that were tried; it bounds "
        "nothing from below."
    )


def _best(result: Mapping[str, Any]) -> str:
    """The least distances under all of test 1."""
    lines = []
    for name in result["profiles"]:
        tried = [row for row in everyone(result) if row["profile"] == name and row["alpha"] is None]
        passed = [row for row in tried if row["caught"] == 0]
        parts = [f"{_least(tried, 'least')} with tests 1 and 2 alone"]
        if passed:
            parts.append(f"{_least(passed, 'least')} if test 3 is to let all challenges pass")
            parts.append(f"{_least(passed, 'least within reach')} if the reach (test 4) is to stay below 1 as well")
        lines.append(f"- {_profile(result, name)}: " + "; ".join(parts) + ".")
    text = "The least distance to W_T that any variant reached within any number of steps:"
    return text + "\n\n" + "\n".join(figures.paragraph(line).replace("\n", "\n  ") for line in lines)


def _gaps(result: Mapping[str, Any]) -> str:
    """What tests 3 and 4 do not hold, as far as these figures show it."""
    tried = [row for row in everyone(result) if row["alpha"] is None]
    bursts = [row for row in tried if row["variant"] == "bursts" and row["caught"] == 0]
    unbent = [row for row in tried if row["variant"] == "slack"]
    parts = []
    if bursts:
        best = min(bursts, key=lambda row: row["least"])
        parts.append(
            "Tests 3 and 4 are means over steps, and not over what the steps move. A forger who registers a learning "
            f"rate that is next to nothing in all but one step of {best.get('every', 10)}, and bends only those, keeps "
            f"the means small and gets to {best['least']:.3f}. Test 4 therefore sums the committed rates of the run, "
            "and lets the mean distance count as one over as many steps as count, (Σ lr)²/Σ lr² of them, or of the "
            f"drawn ones by their strides: for such a schedule that is α itself, and the reach {best['reach']:.2g}."
        )
    resting = [row for row in tried if row["variant"] == "still"]
    if resting:
        best = min(resting, key=lambda row: row["least"])
        parts.append(
            "Where every rate is next to nothing, no true update pulls back what test 2 lets pass as rounding: "
            f"{best['steps']:,} steps of nothing else come to {best['least']:.3f}. Test 4 adds up what it lets pass in "
            f"every step, whatever the rate, and the reach is {best['reach']:.2g}."
        )
    if unbent:
        longest = max(unbent, key=lambda row: (row["steps"], row["reach"]))
        parts.append(
            f"And the reach grows with the length of honest runs too: without any bend, {longest['steps']:,} steps on "
            f"{longest['labels']} labels come to {longest['reach']:.2g} with draws of {result['drawn']} steps; a "
            "larger draw lowers it."
        )
    return figures.paragraph(" ".join(parts))


def _least(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    best = min(rows, key=lambda row: row[key])
    return f"**{best[key]:.3f}** ({best['variant']}, {best['labels']} labels, {best['steps']:,} steps)"


def _profile(result: Mapping[str, Any], name: str) -> str:
    found = result["profiles"][name]
    return f"{NAMES[found['optimizer']]}, " + ("profile of this net" if name in NAMES else f"`{name}`")


def _alphas(result: Mapping[str, Any]) -> str:
    """Lemma 3 alone on clean labels, by α."""
    rows: list[list[str]] = []
    alphas: set[float] = set()
    for run in result["runs"]:
        for optimizer, name in NAMES.items():
            mine = {
                row["alpha"]: row for row in run["forgers"]
                if row["optimizer"] == optimizer and row["alpha"] is not None and row["labels"] == "clean"
            }  # fmt: skip
            if mine:
                alphas |= mine.keys()
                rows.append([name, f"{run['steps']:,}", *(f"{mine[alpha]['least']:.3f}" for alpha in sorted(mine))])
    text = figures.paragraph(
        "With nothing but Fang et al.'s Lemma 3, ‖ĝ − g′‖ ≤ α‖g′‖ over the whole gradient (and zeros that stay zeros), "
        "on clean labels, by α:"
    )
    return text + "\n\n" + figures.table(["", "steps", *(f"{alpha:g}" for alpha in sorted(alphas))], rows)


def _widths(found: Mapping[str, Any]) -> str:
    """All of test 1, made as wide as α says: how far each way of bending gets."""
    widths = sorted({row["width"] for row in found["forgers"]})
    rows = []
    for optimizer, name in NAMES.items():
        for variant in dict.fromkeys(row["variant"] for row in found["forgers"]):
            mine = [row for row in found["forgers"] if (row["optimizer"], row["variant"]) == (optimizer, variant)]
            rows.append([name, _variant(mine[0]), *(
                f"{row['least']:.3f} ({row['caught']})" for row in sorted(mine, key=lambda row: row["width"])
            )])  # fmt: skip
    text = figures.paragraph(
        "With all of test 1 and the means of test 3, that is with every bound of the net's own profile scaled so that "
        f"α is what stands above the column, on noisy labels, {found['steps']:,} steps; in brackets the challenges, of "
        f"{found['forgers'][0]['tried']}, that test 3 refutes. (Rounding inside test 2 and zeros of structure have no "
        "α: they are below.)"
    )
    return text + "\n\n" + figures.table(["", "forger", *(f"α = {width:g}" for width in widths)], rows)


def _profiles(result: Mapping[str, Any]) -> str:
    rows = []
    for name, found in result["profiles"].items():
        alpha, mean = (
            "; ".join(_short(found[key]) for key in (name, f"{name} preconditioned") if found[key] is not None)
            for name in ("alpha", "distances")
        )
        tight = sum(relative < found["alpha"] / 10 for relative, _ in found["tensors"].values())
        rows.append([
            _profile(result, name), alpha, f"{tight} of {len(found['tensors'])}", mean, _short(found["towards"]),
            _short(found["pairs"]),
        ])  # fmt: skip
    text = figures.paragraph(
        "Under a noise profile, measured as `polcommit calibrate` does, all of test 1 applies: to the whole gradient, "
        f"to each tensor, to what the optimizer makes of it (α_D, after the semicolon). A challenge of "
        f"{result['drawn']} random steps also bounds means (test 3):"
    )
    header = ["", "α; α_D", "tensors bounded ten times closer", "mean distance", "cosine to W_T", "cosine of two"]
    return text + "\n\n" + figures.table(header, rows)


def _short(value: float) -> str:
    return f"{value:.2g}"


def _lengths(result: Mapping[str, Any]) -> list[str]:
    """A table for each number of steps."""
    found = [figures.paragraph(
        "*With reach ≤ 1* is the least distance before test 4, with the default policy, no longer accepts the run. "
        f"*Refuted* counts challenges of {result['drawn']} random steps that test 3 refutes, by the verifier's own "
        "code. Accuracy is on clean digits, at the end."
    )]  # fmt: skip
    header = ["", "forger", "labels", "least distance", "with reach ≤ 1", "refuted", "accuracy"]
    for run in result["runs"]:
        rows = []
        for row in run["forgers"]:
            lemma = row["alpha"] is not None
            if lemma and row["labels"] == "clean":
                continue
            rows.append([
                NAMES[row["optimizer"]] + ("" if row["profile"] in NAMES else f", `{row['profile']}`"),
                f"Lemma 3 alone, α = {_short(row['alpha'])}" if lemma else _variant(row),
                row["labels"], f"{row['least']:.3f}", f"{row['least within reach']:.3f}",
                f"{row['caught']} of {row['tried']}", f"{row['accuracy']:.3f}",
            ])  # fmt: skip
        found.append(f"{run['steps']:,} steps:\n\n" + figures.table(header, rows))
    return found


def _variant(row: Mapping[str, Any]) -> str:
    return VARIANTS[row["variant"]].format(every=row.get("every", 10))


def _zeros(found: Mapping[str, Any]) -> str:
    return figures.paragraph(
        f"Zeros of structure. A transformer with an embedding of its own, AdamW, {found['steps']} steps; the forger "
        f"adds ±{found['push']:g} towards W_T wherever the embedding's gradient is zero, and changes nothing else. The "
        f"{found['unseen']} of {found['rows']} rows that are never in a batch come to {found['pushed, unseen']:.3f} of "
        f"their distance from the stolen ones ({found['honest, unseen']:.3f} without the push), the whole embedding to "
        f"{found['pushed']:.3f} ({found['honest']:.3f}), at a cost of at most {found['gradient']:.1e} of the "
        "gradient's norm. Element by element it shows: "
        f"in every step that was compared, at least {found['zeros']} of {found['elements']} elements are zero in one "
        f"of the two only. Preconditioned, the distance is up to {found['preconditioned']:.2g}."
    )


def _honest(result: Mapping[str, Any]) -> str:
    rows = [
        [NAMES[name], f"{found['draws']:,}", found["rejected"], f"{found['upper']:.1e}",
         f"{found['largest mean distance']:.1e}", f"{found['largest mean towards']:.3f}",
         f"{found['largest mean of pairs']:.3f}"]
        for name, found in result["honest"].items()
    ]  # fmt: skip
    text = figures.paragraph(
        "False rejects of test 3: honest runs from independent seeds, with oneDNN and without, a draw of 8 of the "
        "first 16 steps of each, no step in two draws. The upper bound is Clopper and Pearson's, one-sided, at 95 %. "
        "The other columns are the largest of the draws' means. Test 4 refutes nobody: above its bound a run is not "
        "accepted, and a larger draw has a smaller reach."
    )
    header = ["", "draws", "refuted", "upper bound", "distance", "cosine to W_T", "cosine of two"]
    return text + "\n\n" + figures.table(header, rows)


def draw_distances(axes: Axes, result: Mapping[str, Any], optimizer: str) -> None:
    """Distances over the steps of the longest run."""
    styles = dict(zip(VARIANTS, ("-", "--", (0, (5, 3, 1, 3)), ":", "-.", (0, (1, 3)), (0, (1, 1))), strict=True))
    colours = {"clean": "C0", "noisy": "C1", "random": "C3"}
    for row in result["runs"][-1]["forgers"]:
        if row["optimizer"] != optimizer or row["profile"] not in NAMES:
            continue
        lemma = row["alpha"] is not None
        label = f"Lemma 3, α = {_short(row['alpha'])}" if lemma else row["variant"]
        steps, distances = zip(*row["trace"], strict=True)
        colour = "0.6" if lemma else colours[row["labels"]]
        axes.plot(steps, distances, ls=styles[row["variant"]], color=colour, lw=1.2, label=f"{label}, {row['labels']}")
    axes.set(xscale="log", xlabel=f"step, {NAMES[optimizer]}", ylabel="‖W − W_T‖ / ‖W_0 − W_T‖", ylim=(0, 1.5))
    axes.legend(fontsize=7)
