"""Imports point downwards only, and each large dependency has one home. Read from the source, nothing is run.

Imports inside functions count like those at the top; bodies of `if TYPE_CHECKING:` and the package's own
__init__ (a lazy table, see test_imports.py) do not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "polcommit"

# Each module or package directly under polcommit, and its layer. A new one is listed here.
LAYERS = {
    # standard library, blake3, msgpack
    "_version": 0,
    "encoding": 0,
    "errors": 0,
    "events": 0,
    "merkle": 0,
    "prf": 0,
    "subtrees": 0,
    "tree": 0,
    # + cryptography
    "keys": 1,
    "records": 1,
    "sealing": 1,
    "signing": 1,
    # pure logic, no I/O
    "anchors": 2,
    "comparisons": 2,
    "disclosure": 2,
    "displacements": 2,
    "draws": 2,
    "envelopes": 2,
    "established": 2,
    "evidence": 2,
    "leaves": 2,
    "opening": 2,
    "planning": 2,
    "policy": 2,
    "profiles": 2,
    "prover": 2,
    "origins": 2,
    "reexecution": 2,
    "replaying": 2,
    "sampling": 2,
    "screens": 2,
    "summary": 2,
    "tolerance": 2,
    "transcript": 2,
    "verifier": 2,
    # adapters, which do not know each other
    "ledger": 3,
    "storage": 3,
    "training": 3,
    # what is built on them
    "__main__": 4,
    "cli": 4,
    "demo": 4,
    "frameworks": 4,
    "recipes": 4,
    "report": 4,
    "service": 4,
    "session": 4,
    "spoofs": 4,
}
ADAPTERS = {name for name, layer in LAYERS.items() if layer == 3}
ABOVE = {name for name, layer in LAYERS.items() if layer == 4}

# Who may import what from outside. Layers 0 to 2 are what a verifier trusts: nothing but this.
TRUSTED = {0: {"blake3", "msgpack"}, 1: {"blake3", "msgpack", "cryptography"}, 2: {"blake3", "msgpack", "cryptography"}}
HOMES = {
    "click": {"cli"},
    "eth_account": {"ledger"},
    "pymerkle": {"storage"},
    "torch": {"training"} | ABOVE,
    "web3": {"ledger"},
}


def modules() -> dict[str, Path]:
    """Dotted name below polcommit -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below this one, except the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from at_run_time(other)
            continue
        yield child
        yield from at_run_time(child)


def named(node: ast.AST, package: list[str]) -> Iterator[str]:
    """The absolute names that a node imports, if it imports any."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        yield from (f"{origin}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        for argument in node.args[:1]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


@cache
def imports(module: str) -> frozenset[str]:
    """The absolute names that a module imports: 'polcommit.merkle.root', 'hashlib.sha256', 'torch'."""
    path = MODULES[module]
    parts = ["polcommit", *module.split(".")]
    package = parts if path.name == "__init__.py" else parts[:-1]
    tree = ast.parse(path.read_text(), str(path))
    return frozenset(name for node in at_run_time(tree) for name in named(node, package))


def unit(module: str) -> str:
    return module.split(".")[0]


def units_imported(module: str) -> set[str]:
    """The modules and packages directly under polcommit that a module imports, other than its own.

    The version stands in the package's __init__ itself; whoever writes it into a record may import it.
    """
    found = {name.split(".")[1] for name in imports(module) if name.startswith("polcommit.")}
    return found - {unit(module), "__version__"}


def outside(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)} - {"polcommit"} - sys.stdlib_module_names


def test_every_module_has_a_layer() -> None:
    unlisted = sorted({unit(module) for module in MODULES} - LAYERS.keys())
    assert not unlisted, f"list in LAYERS of tests/test_layers.py, with a layer: {', '.join(unlisted)}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    layer = LAYERS.get(unit(module), 0)
    # `from polcommit import X` of a public name goes through the lazy table; below the top that is a way up.
    unknown = units_imported(module) - LAYERS.keys()
    upwards = sorted(name for name in units_imported(module) if LAYERS.get(name, 0) > layer)
    assert not upwards, f"{module} is in layer {layer} and imports from above: {', '.join(upwards)}"
    assert not unknown or layer == 4, f"{module} imports {unknown} from polcommit itself: name the module it is in"


@pytest.mark.parametrize("module", [name for name in MODULES if unit(name) in ADAPTERS])
def test_adapters_do_not_know_each_other(module: str) -> None:
    others = units_imported(module) & ADAPTERS
    assert not others, f"{module} imports {', '.join(sorted(others))}: wire them together in session or cli"


@pytest.mark.parametrize("module", [name for name in MODULES if LAYERS.get(unit(name), 4) <= 2])
def test_what_a_verifier_trusts_is_small(module: str) -> None:
    foreign = outside(module) - TRUSTED[LAYERS[unit(module)]]
    assert not foreign, f"{module} imports {', '.join(sorted(foreign))}"


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_stay_at_home(module: str) -> None:
    strays = {name for name in outside(module) & HOMES.keys() if unit(module) not in HOMES[name]}
    assert not strays, f"{module} imports {', '.join(sorted(strays))}, which belongs elsewhere"


def test_no_module_depends_on_itself() -> None:
    """Within a layer, too, imports go one way: among the modules and packages directly under polcommit."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        graph.setdefault(unit(module), set()).update(units_imported(module) & LAYERS.keys())
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, f"circular: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


#: What each part of `spoofs` may import of the others, besides the modules directly under it.
SPOOFS = {
    "plain": set(),
    "opponent": {"plain"},
    "attacks": {"plain", "opponent"},
    "measure": {"plain", "opponent", "attacks"},
}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("spoofs.")])
def test_spoofs_do_not_depend_on_what_is_measured_with_them(module: str) -> None:
    part = module.split(".")[1]
    known = {name.split(".")[2] for name in imports(module) if name.startswith("polcommit.spoofs.")} & SPOOFS.keys()
    allowed = SPOOFS.get(part, {"opponent"} if part == "base" else {"attacks"} if part == "catalogue" else set())
    strays = known - allowed - {part}
    assert not strays, f"{module} imports of spoofs: {', '.join(sorted(strays))}"


# The reader of imports itself


SAMPLE = '''
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
else:
    import numpy
def later():
    from . import merkle
    from .ledger.client import Client
    importlib.import_module("polcommit.session")
'''


def test_imports_in_functions_count_and_those_for_type_checking_do_not() -> None:
    found = {name for node in at_run_time(ast.parse(SAMPLE)) for name in named(node, ["polcommit"])}
    assert found == {
        "typing.TYPE_CHECKING",
        "numpy",
        "polcommit.merkle",
        "polcommit.ledger.client.Client",
        "polcommit.session",
    }
