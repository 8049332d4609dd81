"""settings.json of a run folder: what the manifest only commits to, and what is local to one machine."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from polcommit.errors import EncodingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the prover's commands find what they need. Only `recipe` and `configuration` are committed to."""

    recipe: str                                     # name of an installed recipe
    configuration: tuple[tuple[str, str], ...]      # its hyperparameters, names unique
    data: str | None = None                         # path that the recipe reads its data from
    rpc: str | None = None                          # URL of the chain's RPC server; None: the local devnet
    contract: str | None = None                     # the registry's address, 0x and 40 hex digits
    key: str | None = None                          # name of the prover's key
    device: str = "cpu"                             # what the recipe trains and re-executes on, in torch's words

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "configuration":
                _check_pairs(value)
            elif not (isinstance(value, str) or (value is None and field.name not in ("recipe", "device"))):
                raise EncodingError(f"{field.name} is {value!r}, not text")

    def encode(self) -> bytes:
        """As indented JSON with a final newline, for people to read and edit."""
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Settings:
        """Read what `encode` wrote, or a person edited.

        Raises:
            EncodingError: not JSON, an unknown, repeated or missing field, or one of the wrong type.
        """
        try:
            found = json.loads(data, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            if isinstance(error, EncodingError):
                raise
            raise EncodingError(f"not JSON: {error}") from error
        if not isinstance(found, dict):
            raise EncodingError("not a JSON object")
        names = {field.name for field in dataclasses.fields(cls)}
        for name in sorted(found.keys() ^ names):
            raise EncodingError(f"{'unknown' if name in found else 'missing'} field '{name}'")
        configuration = found.pop("configuration")
        if not isinstance(configuration, list) or not all(isinstance(pair, list) for pair in configuration):
            raise EncodingError("configuration is not a list of pairs")
        return cls(configuration=tuple(tuple(pair) for pair in configuration), **found)


def _check_pairs(pairs: Any) -> None:
    if not isinstance(pairs, tuple):
        raise EncodingError("configuration is not a tuple of pairs")
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise EncodingError(f"configuration holds {pair!r}, not a pair of texts")
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise EncodingError("configuration names a hyperparameter twice")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise EncodingError("a field stands twice in one object")
    return found
