"""Where measured figures go: JSON and SVG in docs/figures, and sections of pages between markers.

Everything written here repeats: the same result gives the same bytes, apart from the entries 'machine' and
'versions'. There are no dates, host names or paths of a machine in it. Nothing here says that a figure is right.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polcommit
from polcommit import __version__
from polcommit.errors import MissingExtra, UsageError
from polcommit.storage import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a figure may depend on, as far as it is installed.
PACKAGES = ("torch", "numpy", "scikit-learn", "matplotlib")

#: Everything that decides about the bytes of an SVG: a fixed salt for ids, text that stays text.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def docs_folder() -> Path:
    """The folder `docs` of the checkout that this package lies in.

    Raises:
        UsageError: the package is installed elsewhere.
    """
    found = Path(polcommit.__file__).resolve().parent.parent / "docs"
    if not (found / "soundness.md").is_file():
        hint = "clone the repository, and use its scripts/soundness"
        raise UsageError("polcommit does not run from a checkout", hint=hint)
    return found


def machine() -> dict[str, str | int]:
    """What a figure was measured on, without anything that names this very machine."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": platform.system(),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python, polcommit, and those of the packages that are installed."""
    found = {"python": platform.python_version(), "polcommit": __version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(name: str, result: Mapping[str, Any], docs: Path | None = None) -> Path:
    """Write docs/figures/NAME.json: the result, and the machine and versions that it was measured with.

    Raises:
        UsageError: the result holds what JSON cannot (NaN and infinities too), or a path of this machine.
    """
    whole = {**result, "machine": machine(), "versions": versions()}
    try:
        text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UsageError(f"figure '{name}' cannot be written as JSON: {error}") from error
    return _write(_target(name, "json", docs), text)


def read_json(name: str, docs: Path | None = None) -> dict[str, Any]:
    """What `write_json` wrote last under this name. Raises StorageError where there is nothing."""
    path = _target(name, "json", docs)
    with files.reported("reading", path):
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def insert_section(page: str, section: str, text: str, docs: Path | None = None) -> Path:
    """Put `text` into docs/PAGE between `<!-- SECTION:begin -->` and `<!-- SECTION:end -->`, and nowhere else.

    Raises:
        UsageError: the page has not exactly one such pair of markers.
    """
    path = (docs or docs_folder()) / page
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    with files.reported("reading", path):
        old = path.read_text("utf-8")
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(end) < old.index(begin):
        raise UsageError(f"{page} has no place for section '{section}'", hint=f"add the lines {begin} and {end} to it")
    before, _, rest = old.partition(begin)
    _, _, after = rest.partition(end)
    return _write(path, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; cells are shown with `str`."""
    for row in rows:
        if len(row) != len(header):
            raise UsageError(f"a row of {len(row)} cells in a table of {len(header)} columns")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def paragraph(text: str) -> str:
    """A paragraph of Markdown, wrapped as the pages are."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def share(value: float) -> str:
    """0.128 as '12.8 %'."""
    return f"{100 * value:.3g} %"


@contextmanager
def plot(
    name: str, *, panels: int = 1, size: tuple[float, float] = (6.4, 3.8), docs: Path | None = None
) -> Iterator[list[Axes]]:
    """Axes of `panels` panels side by side, each `size` inches; written to docs/figures/NAME.svg at the end.

        with plot("detection") as (axes,):
            axes.plot(x, y, label="measured")

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("soundness", "a plot") from error
    path = _target(name, "svg", docs)
    with mpl.rc_context():
        mpl.rcdefaults()            # and not what a user has in matplotlibrc
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": f"polcommit {name}"})
        figure = Figure(figsize=(size[0] * panels, size[1]), layout="constrained")      # no pyplot: no global state
        yield list(figure.subplots(1, panels, squeeze=False)[0])
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    # matplotlib leaves blanks at the ends of lines, which editors and git complain about
    _write(path, "\n".join(line.rstrip() for line in drawn.getvalue().decode().splitlines()) + "\n")


def _target(name: str, suffix: str, docs: Path | None) -> Path:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UsageError(f"figure '{name}'", hint="lower-case words joined by '-'")
    return (docs or docs_folder()) / "figures" / f"{name}.{suffix}"


def _write(path: Path, text: str) -> Path:
    for place in {str(Path(polcommit.__file__).resolve().parent.parent), str(Path.home())} - {"/"}:
        if re.search(rf"(?<![\w.]){re.escape(place)}(?!\w)", text):
            raise UsageError(f"{path.name} would name a folder of this machine: {place}")
    with files.reported("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return path


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass        # not a Linux: what the standard library knows has to do
    return platform.processor() or platform.machine()
