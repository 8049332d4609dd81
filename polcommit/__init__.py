"""polcommit: commit to a training run step by step, timestamp it, and have drawn steps re-executed.

    run = polcommit.record("runs/digits", recipe=recipe)
    for batch in run:
        loss = run.step(batch)
    run.close()

Names are resolved when they are first used: importing polcommit loads neither torch, web3 nor click.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Applied": "polcommit.training.recipe",
    "PolcommitError": "polcommit.errors",
    "Recipe": "polcommit.training.recipe",
    "TrainingState": "polcommit.training.state",
    "Unavailable": "polcommit.errors",
    "VerificationError": "polcommit.errors",
    "record": "polcommit.session.record",
    "register": "polcommit.session.register",
}

__all__ = [
    "Applied",
    "PolcommitError",
    "Recipe",
    "TrainingState",
    "Unavailable",
    "VerificationError",
    "__version__",
    "record",
    "register",
]

if TYPE_CHECKING:
    from polcommit.errors import PolcommitError, Unavailable, VerificationError
    from polcommit.session.record import record
    from polcommit.session.register import register
    from polcommit.training.recipe import Applied, Recipe
    from polcommit.training.state import TrainingState


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'polcommit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
