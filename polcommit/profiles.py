"""Noise profiles: how far two honest environments are apart on a recipe's steps (spec §6, V10).

A profile is what the tolerant comparison takes its bounds from; `polcommit calibrate` measures and writes one. Its
`alpha` is a security parameter: whatever it allows, a forger may use at every step. This module reads, writes and
chooses profiles. It cannot tell whether one was measured honestly: a reader loads those that come with polcommit and
those that they measured, or reviewed, themselves.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NoReturn

from polcommit.encoding import Bytes32, Record, encode, tagged_hash
from polcommit.errors import EncodingError, UsageError
from polcommit.records import Fingerprint

Pairs = tuple[tuple[str, str], ...]

#: Without a profile a gradient that is further away than this, relative to itself, is refuted; nor may a profile's
#: `alpha` exceed it: beyond, a forger chooses the direction more than the data does.
GROSS = 0.5
ANY = "*"           # in `Profile.differs`: whatever the environment says of that item, equal in both or not
ABSENT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound(Record):
    """What one tensor's distance may be: at most the larger of a share of itself and a floor.

    Of a gradient the floor is a share of the whole gradient's norm, for one that is nothing but noise (a bias before
    batch norm) has no bound relative to itself. Of a buffer's increment it is in the buffer's own units.
    """

    name: str
    relative: float                 # of min(‖opened‖, ‖here‖)
    floor: float
    zeros: int                      # elements that may be exactly zero in one of the two only

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(0 <= self.relative < math.inf, f"{self.name}: relative bound {self.relative}")
        _require(0 <= self.floor < math.inf, f"{self.name}: floor {self.floor}")
        _require(self.zeros >= 0, f"{self.name}: zeros {self.zeros}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread(Record):
    """What honest steps have of a quantity: cosines of residuals, or relative distances."""

    mean: float                     # largest of any calibrated run
    sd: float                       # likewise
    bound: float                    # no honest step is taken to exceed it

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _require(-1 <= self.mean <= self.bound <= 1, f"mean {self.mean} and bound {self.bound} of a spread")
        _require(0 <= self.sd <= 1, f"standard deviation {self.sd}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Record):
    """Bounds for one recipe between two environments, in either direction."""

    TAG: ClassVar[str] = "noise-profile"
    name: str
    recipe: str
    recipe_source: Bytes32
    configuration: Pairs                            # hyperparameters that it was measured with, less those left open
    differs: tuple[tuple[str, str, str], ...]       # items of the fingerprints: (name, in one, in the other)
    holds: Pairs                                    # items that both environments must have, with this value
    alpha: float                                    # ‖ĝ − g′‖ <= α·min(‖ĝ‖, ‖g′‖)
    alpha_preconditioned: float | None              # ‖D(ĝ − g′)‖ <= α_D·‖Dĝ‖; None: the optimizer is not adaptive
    tensors: tuple[Bound, ...]                      # of every parameter's gradient, sorted by name
    buffers: tuple[Bound, ...]                      # of what a step adds to each floating buffer, sorted by name
    distances: Spread                               # of ‖ĝ − g′‖ / min(‖ĝ‖, ‖g′‖), over the steps of a draw
    distances_preconditioned: Spread | None
    loss: float                                     # |opened − here| <= loss·(1 + min of both magnitudes)
    towards: Spread                                 # cosines of residuals with W_t − W_T
    pairs: Spread                                   # cosines of the residuals of two steps
    honest: int                                     # honest steps that it was measured on
    quantiles: tuple[tuple[str, float, float], ...]     # (quantity, q, value): for people, nothing is decided by them

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        for name, value in (("alpha", self.alpha), ("alpha_preconditioned", self.alpha_preconditioned)):
            _require(value is None or 0 < value <= GROSS, f"{name} {value}: above 0 and at most {GROSS}")
        adaptive = self.alpha_preconditioned is not None
        _require(adaptive == (self.distances_preconditioned is not None), "all of what is preconditioned, or nothing")
        _require(0 < self.loss <= GROSS, f"loss {self.loss}: above 0 and at most {GROSS}")
        _require(self.honest >= 1, f"measured on {self.honest} steps")
        for what, names in (
            ("configuration", [name for name, _ in self.configuration]),
            ("differs", [name for name, _, _ in self.differs]),
            ("holds", [name for name, _ in self.holds]),
            ("tensors", [bound.name for bound in self.tensors]),
            ("buffers", [bound.name for bound in self.buffers]),
        ):
            _require(names == sorted(set(names)), f"{what} are sorted by name, and unique")
        _require(all(math.isfinite(value) for _, q, number in self.quantiles for value in (q, number)), "quantiles")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise EncodingError(f"noise profile: {what}")


def digest(profile: Profile) -> bytes:
    """What a verdict names a profile by (32 bytes)."""
    return tagged_hash("profile", encode(profile))


# --- which one applies ----------------------------------------------------------------------------------------


def find(
    profiles: Sequence[Profile],
    *,
    recipe: str,
    recipe_source: bytes,
    configuration: Pairs,
    claimed: Fingerprint,
    here: Fingerprint,
) -> Profile | None:
    """The first of the profiles that applies to this recipe and pair of environments; None: no one does."""
    for profile in profiles:
        if _misfit(profile, recipe, recipe_source, configuration, claimed, here) is None:
            return profile
    return None


def require_applies(
    profile: Profile,
    *,
    recipe: str,
    recipe_source: bytes,
    configuration: Pairs,
    claimed: Fingerprint,
    here: Fingerprint,
) -> None:
    """Return if the profile is for this recipe and pair of environments, in either direction.

    Raises:
        UsageError: it is of another recipe, source, configuration or environment; the message names the first.
    """
    misfit = _misfit(profile, recipe, recipe_source, configuration, claimed, here)
    if misfit is not None:
        raise UsageError(
            f"noise profile '{profile.name}' is {misfit}",
            hint="measure one for this recipe and these environments with 'polcommit calibrate'; or go on with "
            "'--resume ID' and without this profile: the policy's and the shipped ones are tried then",
        )


def _misfit(
    profile: Profile, recipe: str, source: bytes, configuration: Pairs, claimed: Fingerprint, here: Fingerprint
) -> str | None:
    """The first thing in which the profile does not fit, as 'is ...'."""
    if profile.recipe != recipe:
        return f"of recipe {profile.recipe!r}, not {recipe!r}"
    if profile.recipe_source != source:
        return f"of another source of recipe {recipe!r}: {profile.recipe_source.hex()[:16]}, not {source.hex()[:16]}"
    given = dict(configuration)
    for name, value in profile.configuration:
        if given.get(name) != value:
            return f"of another configuration: '{name}' {value!r}, not {given.get(name)!r}"
    for name, value in profile.holds:
        for whose, items in (("the claimed", dict(claimed.items)), ("this", dict(here.items))):
            if items.get(name, ABSENT) != value:
                return f"of another environment: '{name}' {value!r}, and {whose} one has {items.get(name, ABSENT)!r}"
    forwards = _pair_misfit(profile, dict(claimed.items), dict(here.items))
    backwards = _pair_misfit(profile, dict(here.items), dict(claimed.items))
    return forwards if backwards is not None else None


def _pair_misfit(profile: Profile, one: dict[str, str], other: dict[str, str]) -> str | None:
    listed = {name: (a, b) for name, a, b in profile.differs}
    for name in sorted(listed.keys() | one.keys() | other.keys()):
        found = (one.get(name, ABSENT), other.get(name, ABSENT))
        if name not in listed:
            if found[0] != found[1]:
                return f"of another pair of environments: '{name}' is equal there, here {found[0]!r} and {found[1]!r}"
        elif not all(expected in (ANY, value) for expected, value in zip(listed[name], found, strict=True)):
            a, b = listed[name]
            return (
                f"of another pair of environments: '{name}' {a!r} and {b!r} there, here {found[0]!r} and {found[1]!r}"
            )
    return None


# --- as JSON --------------------------------------------------------------------------------------------------

_FORMAT = "polcommit noise profile 1"


def to_json(profile: Profile) -> str:
    """The profile as a file holds it: one object, bytes in hexadecimal, floats with every digit that they need."""
    document = {"format": _FORMAT, **_plain(profile)}
    lines = ",\n".join(f" {json.dumps(name)}: {_laid_out(value)}" for name, value in document.items())
    return f"{{\n{lines}\n}}\n"


def from_json(text: str, name: str) -> Profile:
    """Read what `to_json` wrote; `name` is the file's, for messages.

    Raises:
        UsageError: not JSON, an unknown, missing or repeated entry, or a value of the wrong kind or out of range.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no noise profile: {error}", hint=_HINT) from error
    if not isinstance(document, dict) or document.pop("format", None) != _FORMAT:
        raise UsageError(f"{name} is no noise profile: it has no entry 'format' {_FORMAT!r}", hint=_HINT)
    try:
        profile = _typed(Profile, document, name)
    except EncodingError as error:
        raise UsageError(f"{name}: {error.message}", hint=_HINT) from error
    assert isinstance(profile, Profile)
    return profile


_HINT = "give a file that 'polcommit calibrate' wrote"


def _laid_out(value: object) -> str:
    """A list of lists or objects has one of them a line."""
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return "[\n" + ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in value) + "\n ]"
    return json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an entry is there twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


@functools.cache
def _kinds(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _typed(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as what the record declares. Raises EncodingError."""
    if isinstance(kind, type) and issubclass(kind, Record):
        kinds = _kinds(typing.cast(Any, kind))
        if not isinstance(value, dict) or value.keys() != kinds.keys():
            odd = sorted(kinds.keys() ^ value.keys()) if isinstance(value, dict) else []
            raise EncodingError(f"{where}: unknown or missing: {', '.join(odd)[:100] or 'an object'}")
        return kind(**{name: _typed(of, value[name], f"{where}: '{name}'") for name, of in kinds.items()})
    if isinstance(kind, types.UnionType):
        (inner,) = (option for option in typing.get_args(kind) if option is not type(None))
        return None if value is None else _typed(inner, value, where)
    if typing.get_origin(kind) is tuple:
        return _typed_list(typing.get_args(kind), value, where)
    if kind is bytes and isinstance(value, str):
        try:
            return bytes.fromhex(value)
        except ValueError as error:
            raise EncodingError(f"{where}: {value[:80]!r} is not hexadecimal") from error
    if kind is float and type(value) in (int, float):
        try:
            return float(value)
        except OverflowError as error:
            raise EncodingError(f"{where}: out of range") from error
    if type(value) is not kind:
        raise EncodingError(f"{where}: {str(value)[:80]!r} is not of type {getattr(kind, '__name__', kind)}")
    return value


def _typed_list(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise EncodingError(f"{where}: not a list")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(value) != len(items):
        raise EncodingError(f"{where}: {len(value)} items instead of {len(items)}")
    return tuple(_typed(of, item, f"{where}[{at}]") for at, (of, item) in enumerate(zip(items, value, strict=True)))
