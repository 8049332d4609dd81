"""Which recipes are installed here, by name. Loads neither torch nor any recipe."""

from __future__ import annotations

from importlib.metadata import entry_points

GROUP = "polcommit.recipes"
BUILT_IN = {
    "digits": "polcommit.recipes.digits:Digits",
    "gpt": "polcommit.recipes.gpt:Gpt",
    "resnet20-cifar10": "polcommit.recipes.resnet:ResNet20Cifar10",
    "resnet50-cifar100": "polcommit.recipes.resnet:ResNet50Cifar100",
}


def installed_recipes() -> dict[str, str]:
    """Name -> 'package.module:Class' of the built-in recipes and of the entry points of their group."""
    return BUILT_IN | {entry.name: entry.value for entry in entry_points(group=GROUP)}
