"""What a training state holds that is not a tensor: collected, encoded, and fitted back onto a template.

A table maps a path such as 'group/0/lr' to a value of None, bool, int, float, str, and lists, tuples and dicts
(keys str or int) of these. It is encoded as canonical MessagePack of (path, node) pairs in the order of the
paths; a float is ("f", 8 big-endian bytes), a list or tuple ("l", item, ...), a dict ("d", (key, node), ...).
Functions are left out: they are code, and code is the recipe's.

A table that comes from elsewhere is never used as it is: `fit` rebuilds each value after templates taken from
the recipe's own build, so that a hostile one can neither change a hyperparameter nor a type.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from polcommit.encoding import pack, unpack
from polcommit.errors import EncodingError, Refuted, UsageError

MAX_BYTES = 16 << 20

#: Keys whose values may differ from those that the recipe builds; whatever else is a hyperparameter and pinned.
VARYING = frozenset(
    {
        "lr", "last_epoch", "_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step", "T_cur", "T_i",
        "scale", "_growth_tracker",
    }
)  # fmt: skip

_DROPPED = object()


def encode_scalars(table: Mapping[str, object]) -> bytes:
    """The one encoding of a table.

    Raises:
        UsageError: a value that has no encoding, with its path.
    """
    nodes = ((path, _node(table[path], path)) for path in sorted(table))
    try:
        return pack(tuple((path, node) for path, node in nodes if node is not _DROPPED))
    except EncodingError as error:
        raise UsageError(f"training state: {error}") from error


def decode_scalars(data: bytes) -> dict[str, Any]:
    """The table that `data` encodes; tuples come back as lists.

    Raises:
        EncodingError: not the one encoding of a table, or more than 16 MiB.
    """
    pairs = unpack(data, max_size=MAX_BYTES)
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise EncodingError("scalars are an array of pairs")
    paths = [path for path, _ in pairs]
    if not all(isinstance(path, str) for path in paths) or any(a >= b for a, b in pairwise(paths)):
        raise EncodingError("paths of scalars are text, sorted, and unique")
    return {path: _value(node, path) for path, node in pairs}


def fit(templates: Sequence[object], value: object, path: str, *, varying: frozenset[str], free: bool = False) -> Any:
    """`value` with the types of one of the templates, which come from the recipe's own build.

    Structure, keys and text must be a template's; numbers and booleans too, unless `free`, or below a key that is
    in `varying`.

    Raises:
        Refuted: V8, with the path.
    """
    if isinstance(value, dict):
        return _fit_dict(templates, value, path, varying, free)
    if isinstance(value, list):
        return _fit_list(templates, value, path, varying, free)
    if any(_same(template, value) for template in templates):
        return value
    if free and any(_interchangeable(template, value) for template in templates):
        return value
    raise Refuted("V8", f"scalar {path}", expected=" or ".join(sorted({repr(t) for t in templates})), found=repr(value))


def _fit_dict(
    templates: Sequence[object], value: dict[Any, Any], path: str, varying: frozenset[str], free: bool
) -> Any:
    alike = [t for t in templates if isinstance(t, dict) and _kept(t).keys() == value.keys()]
    if not alike:
        raise Refuted("V8", f"scalar {path}", expected=[_outline(t) for t in templates], found=_outline(value))
    fitted = {
        key: fit([t[key] for t in alike], item, f"{path}/{key}", varying=varying, free=free or key in varying)
        for key, item in value.items()
    }
    return Counter(fitted) if isinstance(alike[0], Counter) else fitted


def _fit_list(
    templates: Sequence[object], value: list[Any], path: str, varying: frozenset[str], free: bool
) -> Any:
    alike = [t for t in templates if isinstance(t, list | tuple) and len(t) == len(value)]
    if not alike:
        raise Refuted("V8", f"scalar {path}", expected=[_outline(t) for t in templates], found=_outline(value))
    fitted = [
        fit([t[i] for t in alike], item, f"{path}/{i}", varying=varying, free=free) for i, item in enumerate(value)
    ]
    return tuple(fitted) if isinstance(alike[0], tuple) else fitted


def _same(template: object, value: object) -> bool:
    """Equal, of the same type, and to the bit: 0.0 is not -0.0, True is not 1, NaN is NaN."""
    if isinstance(template, float) and isinstance(value, float):
        return struct.pack(">d", template) == struct.pack(">d", value)
    return type(template) is type(value) and template == value


def _interchangeable(template: object, value: object) -> bool:
    """A number may take another's place: schedules turn an integer rate into a float. Not so a boolean or text."""
    if isinstance(template, bool) or isinstance(value, bool):
        return type(template) is type(value)
    if isinstance(template, int) and isinstance(value, float):
        return math.isfinite(value)
    return isinstance(template, int | float) and isinstance(value, int | float)


def _kept(mapping: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in mapping.items() if not callable(value)}


def _outline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(map(str, _kept(value)))) + "}"
    return f"{len(value)} items" if isinstance(value, list | tuple) else repr(value)


def _node(value: object, path: str) -> object:
    if callable(value):
        return _DROPPED
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return "f", struct.pack(">d", value)
    if isinstance(value, list | tuple):
        items = [_node(item, f"{path}/{position}") for position, item in enumerate(value)]
        if any(item is _DROPPED for item in items):
            raise UsageError(f"training state: {path} is a list that holds a function, which cannot be committed")
        return ("l", *items)
    if isinstance(value, dict) and all(isinstance(key, str | int) and not isinstance(key, bool) for key in value):
        pairs = [(key, _node(value[key], f"{path}/{key}")) for key in sorted(value, key=_key_order)]
        return ("d", *(pair for pair in pairs if pair[1] is not _DROPPED))
    raise UsageError(
        f"training state: {path} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be committed",
        hint="keep numbers, text, lists and dicts in optimizer, scheduler and scaler",
    )


def _key_order(key: str | int) -> tuple[bool, int | str]:
    return isinstance(key, str), key


def _value(node: object, path: str) -> Any:
    if not isinstance(node, tuple):
        if isinstance(node, bytes):
            raise EncodingError(f"scalar {path}: bytes")
        return node
    head, rest = (node[0], node[1:]) if node else (None, ())
    if head == "f" and len(rest) == 1 and isinstance(rest[0], bytes) and len(rest[0]) == 8:
        return float(struct.unpack(">d", rest[0])[0])
    if head == "l":
        return [_value(item, f"{path}/{position}") for position, item in enumerate(rest)]
    if head == "d":
        return _dict(rest, path)
    raise EncodingError(f"scalar {path}: not a value")


def _dict(rest: tuple[Any, ...], path: str) -> dict[str | int, Any]:
    pairs = [pair for pair in rest if isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) in (str, int)]
    keys = [_key_order(key) for key, _ in pairs]
    if len(pairs) != len(rest) or any(not a < b for a, b in pairwise(keys)):
        raise EncodingError(f"scalar {path}: keys are text or integers, sorted, and unique")
    return {key: _value(item, f"{path}/{key}") for key, item in pairs}
