"""Noise profiles that a verifier goes by: the shipped ones, the policy's, and those given on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from polcommit.policy import Policy
from polcommit.profiles import Profile, from_json
from polcommit.storage import files

MAX_PROFILE = 16 << 20


def shipped() -> tuple[Profile, ...]:
    """The profiles that come with the project, by file name."""
    folder = resources.files("polcommit.recipes") / "profiles"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name)
    return tuple(from_json(entry.read_text(encoding="utf-8"), entry.name) for entry in found)


def known(policy: Policy) -> tuple[Profile, ...]:
    """The policy's profiles, before the shipped ones: the first that applies counts.

    Raises:
        StorageError: a file cannot be read. UsageError: it holds no profile.
    """
    return (*read(Path(name) for name in policy.profiles), *shipped())


def read(paths: Iterable[Path]) -> tuple[Profile, ...]:
    """Profiles from files. Raises as `known`."""
    return tuple(from_json(files.read(path, MAX_PROFILE).decode("utf-8", "replace"), str(path)) for path in paths)
