"""What a recipe is: the code of a training run, which prover and verifier each have installed and reviewed.

A bundle names a recipe and commits to its source; it never carries code. A recipe is a frozen dataclass whose
fields are its hyperparameters:

    @dataclass(frozen=True, kw_only=True)
    class MyRecipe(Recipe):
        steps: int = 300
        batch: int = 64
        data: Path = field(metadata=LOCAL)      # where something lies on this machine is no hyperparameter

        def source(self): ...           # indexable raw samples, before any random transform
        def build(self): ...            # TrainingState
        def loss(self, state, micro_batch, k, n): ...
        def apply(self, state, t): ...  # unscale, clip, optimizer, scaler, scheduler
        def learning_rate(self, t): ... # a pure function of the step

The source digest covers the recipe's module and those it lists in `SOURCES`, not the libraries they import:
these are the environment fingerprint's.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self

import torch
from torch.utils.data import default_collate

from polcommit.encoding import pack, tagged_hash
from polcommit.errors import EncodingError, PolcommitError, Unavailable, UsageError
from polcommit.training.initial import standard_initialize
from polcommit.training.installed import installed_recipes
from polcommit.training.state import TrainingState

Pairs = tuple[tuple[str, str], ...]

LOCAL = {"local": True}     # metadata of a field that belongs to this machine and is no part of the configuration


class Source(Protocol):
    """Indexable raw samples: whatever has a length and items 0 to length - 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What `apply` reports. Whether the update was skipped, and its learning rate, polcommit observes itself."""

    clipped: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Base of all recipes. Fields may be int, float, bool or str, or one of the first three or None."""

    SOURCES: ClassVar[tuple[str, ...]] = ()     # further modules whose source is the recipe's, by full name
    #: How far `apply` may come out elsewhere, from the same state and gradient, where polcommit does not know the
    #: optimizer: 'parameter', or a slot's key, to a share of the tensor's largest magnitude. Others must be equal.
    UPDATE_BOUNDS: ClassVar[Mapping[str, float]] = MappingProxyType({})

    steps: int
    batch: int
    accumulation: int = 1
    device: str = field(default="cpu", metadata=LOCAL)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.batch % self.accumulation:
            raise UsageError(f"{self.accumulation} micro-batches do not divide a batch of {self.batch}")

    # what a recipe provides

    def source(self) -> Source:
        """The raw samples. Reading one twice must give the same, whatever the generators' state."""
        raise NotImplementedError

    def transform(self, sample: Any) -> Any:
        """What is random about a sample: called with the generators seeded for its place in the run."""
        return sample

    def collate(self, samples: Sequence[Any]) -> Any:
        """One micro-batch of transformed samples: tensors, or lists, tuples and dicts of them."""
        return default_collate(list(samples))

    def build(self) -> TrainingState:
        """Model, optimizer and the rest, on `self.device`; the parameters' values come from `initialize`."""
        raise NotImplementedError

    def initialize(self, state: TrainingState, seed: bytes) -> None:
        """Set W_0 from the run's seed, with operations that are exact on every processor."""
        standard_initialize(state.model, seed)

    def loss(self, state: TrainingState, micro_batch: Any, k: int, n: int) -> torch.Tensor:
        """What micro-batch k of n adds to the step's loss: a mean is divided by n already."""
        raise NotImplementedError

    def apply(self, state: TrainingState, t: int) -> Applied:
        """Update the weights from `.grad` after step t: unscale, clip, optimizer, scaler, scheduler."""
        raise NotImplementedError

    def learning_rate(self, t: int) -> float:
        """The first group's learning rate at step t, from 1: a pure function of it, and what the optimizer must see."""
        raise NotImplementedError

    # configuration

    def configuration(self) -> Pairs:
        """Hyperparameters as sorted (name, text): floats by repr, booleans 'true' and 'false', None 'none'."""
        return tuple(sorted((name, _text(name, getattr(self, name))) for name in _fields(type(self))))

    @classmethod
    def from_configuration(cls, pairs: Pairs, **local_values: Any) -> Self:
        """The recipe with this configuration, and these local fields.

        Raises:
            EncodingError: not the configuration of any such recipe.
            UsageError: a local field that it does not have, or lacks.
        """
        kinds = _fields(cls)
        if {name for name, _ in pairs} != set(kinds):
            raise EncodingError(f"configuration of {[name for name, _ in pairs]}, but {cls.__name__} has {list(kinds)}")
        try:
            values: dict[str, Any] = {name: _parsed(kinds[name], text) for name, text in pairs}
            recipe = cls(**values, **local_values)
        except TypeError as error:
            raise UsageError(f"{cls.__name__}: {error}") from error
        except (UsageError, ValueError, OverflowError) as error:
            raise EncodingError(f"configuration of {cls.__name__}: {error}") from error
        if recipe.configuration() != pairs:
            raise EncodingError(f"configuration of {cls.__name__} is not in its one form")
        return recipe

    @classmethod
    def source_digest(cls) -> bytes:
        """H(tag 'source' ‖ names and bytes of the recipe's module and of `SOURCES`, sorted by name), 32 bytes.

        Raises:
            Unavailable: a module has no source file.
        """
        modules = sorted({cls.__module__, *cls.SOURCES})
        return tagged_hash("source", pack(tuple((name, _source(name)) for name in modules)))


def load_recipe(name: str) -> type[Recipe]:
    """The installed recipe of this name: an entry point of the group 'polcommit.recipes', or 'package.module:Class'.

    Raises:
        UsageError: there is no such recipe, or it is no `Recipe`.
        MissingExtra: it needs an extra that is not installed.
        Unavailable: it is installed, but importing it fails.
    """
    installed = installed_recipes()
    value = installed.get(name, name)
    module_name, _, attribute = value.partition(":")
    if not attribute or not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        known = ", ".join(sorted(installed))
        raise UsageError(f"no recipe {name[:100]!r}", hint=f"give one of {known}, or 'package.module:Class'")
    found: Any = _imported(module_name)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Recipe) and dataclasses.is_dataclass(found)):
        raise UsageError(f"{value} is not a recipe", hint="a recipe is a frozen dataclass derived from Recipe")
    return found


def _imported(module_name: str) -> types.ModuleType:
    try:
        return importlib.import_module(module_name)
    except PolcommitError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UsageError(f"no module {module_name!r}", hint="install the package that holds the recipe") from error
        raise Unavailable(f"recipe module {module_name} needs {error.name}, which is not installed") from error
    except Exception as error:  # a recipe's module can fail in any way
        raise Unavailable(f"recipe module {module_name} cannot be imported: {error!r}") from error


# --- fields as text -------------------------------------------------------------------------------------------


def _fields(cls: type[Recipe]) -> dict[str, tuple[type, bool]]:
    """name -> (type, may be None) of the fields that are configuration, sorted by name."""
    hints = typing.get_type_hints(cls)
    names = sorted(f.name for f in dataclasses.fields(cls) if not f.metadata.get("local"))
    return {name: _kind(name, hints[name]) for name in names}


def _kind(name: str, hint: Any) -> tuple[type, bool]:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [option for option in options if option is not type(None)]
    optional = len(kinds) < len(options)
    if len(kinds) != 1 or kinds[0] not in (int, float, bool, str) or (optional and kinds[0] is str):
        raise UsageError(f"field {name}: neither int, float, bool nor str", hint="mark paths with metadata=LOCAL")
    return kinds[0], optional


def _text(name: str, value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return repr(value)
    raise UsageError(f"field {name}: {value!r} is no hyperparameter")


def _parsed(kind: tuple[type, bool], text: str) -> object:
    if kind[1] and text == "none":
        return None
    if kind[0] is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{text!r} is neither 'true' nor 'false'")
        return text == "true"
    return kind[0](text)


def _source(module_name: str) -> bytes:
    try:
        spec = importlib.util.find_spec(module_name)
        if spec is None or spec.origin is None:
            raise OSError("it has no file")
        return Path(spec.origin).read_bytes()
    except (ImportError, OSError, ValueError) as error:
        raise Unavailable(f"no source of module {module_name}: {error}") from error
