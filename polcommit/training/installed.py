"""Which recipes are installed here, by name. Loads neither torch nor any recipe."""

from __future__ import annotations

from importlib.metadata import entry_points

GROUP = "polcommit.recipes"
BUILT_IN = {"digits": "polcommit.recipes.digits:Digits", "gpt": "polcommit.recipes.gpt:Gpt"}


def installed_recipes() -> dict[str, str]:
    """Name -> 'package.module:Class' of the built-in recipes and of the entry points of their group."""
    return BUILT_IN | {entry.name: entry.value for entry in entry_points(group=GROUP)}
