"""Which steps a challenge asks for: from the options to what the request says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polcommit import sampling
from polcommit.cli import common
from polcommit.errors import UsageError

if TYPE_CHECKING:
    from polcommit.session.challenge import Ask

MAX_LISTED = 1 << 20     # steps of one list
DRAWN = ("random", "mixed", "top-q")
DETECT = 0.95       # where neither --count nor --detect is given


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options ask for, before it is known how many steps the head has."""

    listed: tuple[int, ...] = ()
    count: int = 0
    detect: float | None = None
    fraction: float | None = None
    clear: bool = False
    strategy: str = "random"        # or 'mixed' or 'top-q', where no steps are listed
    gradients: bool = False

    def of(self, population: int, fraction: float) -> Ask:
        """For a head of this many steps."""
        from polcommit.session.challenge import Ask

        if self.listed:
            return Ask(strategy="list", steps=self.listed, clear_openings=self.clear, gradients=self.gradients)
        count = self.count
        if self.detect is not None:
            count = sampling.draws_needed(population, fraction if self.fraction is None else self.fraction, self.detect)
            common.say(f"drawing {count} of {population} steps")
        return Ask(strategy=self.strategy, count=count, clear_openings=self.clear, gradients=self.gradients)


def ask_for(steps: str, count: int | None, detect: float | None, fraction: float | None, clear: bool) -> Asked:
    """What to ask for; how many, by --detect, is only known with the head."""
    if steps not in DRAWN:
        if count is not None or detect is not None:
            raise UsageError("--count and --detect go with --steps random, mixed or top-q")
        return Asked(listed=_listed(steps), clear=clear)
    if count is not None and detect is not None:
        raise UsageError("--count and --detect exclude one another")
    if steps == "top-q" and count is None:
        raise UsageError("--steps top-q detects nothing by chance", hint="give Q, the steps an epoch, with --count")
    if count is None and detect is None:
        detect = DETECT
    if fraction is not None and count is not None:
        raise UsageError("--fraction goes with --detect, not with --count")
    return Asked(count=count or 0, detect=detect, fraction=fraction, clear=clear, strategy=steps)


def _listed(text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not all(re.fullmatch("[0-9]{1,18}", number) for number in ((first, last) if dash else (first,))):
            raise UsageError(f"--steps {text!r}", hint="'random', 'mixed', 'top-q', or a list like 3,17,40-42")
        listed = range(int(first), int(last or first) + 1)
        if not listed:
            raise UsageError(f"--steps {text!r}: {first} is behind {last}", hint="write the lower step first")
        if len(found) + len(listed) > MAX_LISTED:
            raise UsageError(f"--steps {text!r} lists too many steps", hint=f"at most {MAX_LISTED}, or draw at random")
        found.update(listed)
    if 0 in found:
        raise UsageError("steps count from 1")
    return tuple(sorted(found))
