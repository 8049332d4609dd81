"""From names and settings to a recipe: what `register` is told, and what a run folder remembers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polcommit.errors import Contradiction, EncodingError, StorageError, UsageError
from polcommit.storage.runfolder import RunFolder
from polcommit.training.installed import BUILT_IN
from polcommit.training.recipe import Recipe, load_recipe
from polcommit.transcript import configuration_digest


def recipe_name(recipe: Recipe) -> str:
    """The name under which another process finds this recipe: an installed one, or 'package.module:Class'.

    Raises:
        UsageError: the class cannot be imported by anybody else.
    """
    kind = type(recipe)
    path = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ == "__main__":
        raise UsageError(
            f"recipe {kind.__qualname__} is defined in the script that runs",
            hint="move it into a module of its own, so that a verifier can install and import it",
        )
    return next((name for name, value in BUILT_IN.items() if value == path), path)


def data_field(kind: type[Recipe]) -> str | None:
    """The local field, if any, that says where a recipe's data lies."""
    fields = [field.name for field in dataclasses.fields(kind) if field.metadata.get("local")]
    return next((name for name in fields if name != "device"), None)


def local_values(kind: type[Recipe], data: str | None, device: str | None = None) -> dict[str, Any]:
    """Values of the local fields. Raises UsageError if the recipe takes no data, or cannot do without."""
    values: dict[str, Any] = {} if device is None else {"device": device}
    name = data_field(kind)
    if data is not None:
        if name is None:
            raise UsageError(f"recipe {kind.__name__} brings its own data", hint="leave --data out")
        values[name] = Path(data)
    return values


def make_recipe(
    name: str, settings: Mapping[str, str], *, data: str | None = None, device: str | None = None
) -> Recipe:
    """A recipe by name, with hyperparameters as text (`--set lr=0.1`) over its defaults.

    Raises:
        UsageError: no such recipe or hyperparameter, or a value that it does not take.
    """
    kind = load_recipe(name)
    defaults = _defaults(kind)
    for key in settings:
        if key not in defaults:
            known = ", ".join(sorted(defaults))
            raise UsageError(f"recipe {name} has no hyperparameter '{key}'", hint=f"it has: {known}")
    pairs = {key: value for key, value in (defaults | dict(settings)).items() if value is not None}
    missing = sorted(defaults.keys() - pairs.keys())
    if missing:
        raise UsageError(f"recipe {name} needs '{missing[0]}'", hint=f"give --set {missing[0]}=VALUE")
    local = local_values(kind, data, device)
    try:
        recipe = kind.from_configuration(tuple(sorted(pairs.items())), **local)
    except EncodingError as error:
        raise UsageError(error.message, hint="floats are written as 0.1, booleans as true or false") from error
    needed = data_field(kind)
    if needed is not None and getattr(recipe, needed) is None:
        what = f": a {needed}" if needed != "data" else ""
        raise UsageError(f"recipe {name} needs data{what}", hint="say where it lies with --data PATH")
    for key, value in recipe.configuration():
        if value == "nan":
            raise UsageError(f"--set {key}=nan: not a number", hint="no step could be re-executed with it")
    return recipe


def _defaults(kind: type[Recipe]) -> dict[str, str | None]:
    """Each hyperparameter's default as text; None where there is none."""
    fields = {field.name: field for field in dataclasses.fields(kind) if not field.metadata.get("local")}
    given = {name: field.default for name, field in fields.items()}
    filled = {name: (1 if value is dataclasses.MISSING else value) for name, value in given.items()}
    own = [field.name for field in dataclasses.fields(kind) if field.metadata.get("local")]
    needed = [name for name in own if name != "device"]
    values: dict[str, Any] = {**filled, **{name: Path() for name in needed}}
    texts = dict(kind(**values).configuration())
    return {name: None if given[name] is dataclasses.MISSING else texts[name] for name in fields}


def run_recipe(run: RunFolder) -> Recipe:
    """The recipe of a registered run, on the device that its settings name.

    Raises:
        StorageError: the settings were changed: their configuration is not the registered one.
        Contradiction: the installed recipe's source is not the registered one.
    """
    settings, manifest = run.settings, run.manifest
    if configuration_digest(settings.configuration) != manifest.configuration or settings.recipe != manifest.recipe:
        raise StorageError(
            f"settings.json of {run.path} does not hold the registered recipe and configuration",
            hint="restore them as they were at registration",
        )
    kind = load_recipe(settings.recipe)
    require_source(kind, manifest.recipe_source)
    local = local_values(kind, settings.data, settings.device)
    return kind.from_configuration(settings.configuration, **local)


def require_source(kind: type[Recipe], registered: bytes) -> None:
    """Raises Contradiction unless the installed recipe is, byte for byte, the registered one."""
    found = kind.source_digest()
    if found != registered:
        raise Contradiction("the source of the recipe", registered=registered.hex(), given=found.hex())


def require_same(run: RunFolder, recipe: Recipe) -> None:
    """Raises Contradiction naming the first value of `recipe` that is not what the run was registered with."""
    name = recipe_name(recipe)
    if name != run.settings.recipe:
        raise Contradiction("the recipe", registered=run.settings.recipe, given=name)
    registered = dict(run.settings.configuration)
    for key, value in recipe.configuration():
        if registered.get(key) != value:
            raise Contradiction(f"'{key}'", registered=registered.get(key), given=value)
    require_source(type(recipe), run.manifest.recipe_source)
