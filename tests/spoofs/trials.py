"""What the tests of the spoofs share: a recipe that takes a fraction of a second, and terms for it."""

from __future__ import annotations

from dataclasses import dataclass

from polcommit.recipes.digits import Digits
from polcommit.spoofs.plain.verifier import Terms
from polcommit.training.recipe import Source


@dataclass(frozen=True, kw_only=True)
class FewDigits(Digits):
    """The first digits only; by default seven steps an epoch, and all of it in milliseconds."""

    steps: int = 10
    batch: int = 8
    width: int = 1
    samples: int = 56

    def source(self) -> Source:
        full = super().source()
        return [full[index] for index in range(self.samples)]


RECIPE = FewDigits(steps=160, batch=4, width=4, samples=360)    # 90 steps an epoch; enough steps for δ

EVERY_STEP = Terms(interval=1, top=None)
TOP_5 = Terms(interval=1, top=5)
