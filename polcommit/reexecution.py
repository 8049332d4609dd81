"""V10: what re-executed steps say (spec §6, V10). The digests settle what was recorded in the same environment;
gradients, within the tolerance of a noise profile, what was recorded in another.

Exactness is a security feature: slack is what every published spoof lives in. So a step that claims the environment
which it was re-executed in is never accepted with other bits, and one that claims another is accepted only where a
noise profile of that very pair says how much honest steps differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polcommit.comparisons import differences
from polcommit.draws import OTHER_BITS
from polcommit.errors import Refuted, Unavailable
from polcommit.established import Established
from polcommit.policy import Policy
from polcommit.profiles import Profile, digest, find, require_applies
from polcommit.records import Disclosure, Distance, Fingerprint, Openings, StepRecord
from polcommit.replaying import Measured, ReplayedStep, ReplayReport
from polcommit.tolerance import check_alignment, compared, judge, reach

Doubt = Callable[..., None]


class Settled:
    """What became of the challenged steps. `settle` fills it, in order, up to the first contradiction."""

    def __init__(
        self,
        known: Established,
        disclosure: Disclosure,
        openings: Openings,
        report: ReplayReport,
        profiles: tuple[Profile, ...],
        doubt: Doubt,
    ) -> None:
        self._known, self._report, self._doubt = known, report, doubt
        self._configuration = openings.configuration
        self._environments = disclosure.environments
        here = report.environment
        self._profiles = [
            self._find(claimed, profiles) if claimed != here else None for claimed in disclosure.environments
        ]
        self._used = list(dict.fromkeys(profile for profile in self._profiles if profile is not None))
        self.reexecuted: list[int] = []         # bit for bit
        self.tolerated: list[int] = []          # in another environment, within tolerance
        self.distances: list[Distance] = []
        self.reach: float | None = None
        self.unsettled: str | None = None       # why gradients are wanted, if they are

    @property
    def strange(self) -> bool:
        """Whether any of the run was recorded in an environment that neither is this one nor has a noise profile."""
        pairs = zip(self._environments, self._profiles, strict=True)
        return any(claimed != self._report.environment and profile is None for claimed, profile in pairs)

    @property
    def exact(self) -> bool:
        """Whether no step of the run, drawn or not, is taken within a tolerance."""
        return not self._used

    @property
    def counted(self) -> int:
        """Randomly drawn steps that came out right: what detection is counted by."""
        return len({*self.reexecuted, *self.tolerated} & set(self._known.draw.steps))

    def fields(self) -> dict[str, Any]:
        """The fields of a verdict that follow from here."""
        return {
            "reexecuted": tuple(sorted(self.reexecuted)),
            "tolerated": tuple(sorted(self.tolerated)),
            "distances": tuple(sorted(self.distances, key=lambda distance: distance.step)),
            "profiles": tuple(sorted(digest(profile) for profile in self._used)),
            "reach": self.reach,
        }

    def settle(self, policy: Policy) -> None:
        """Compare every step, and say what the policy makes of a tolerance. Raises Refuted."""
        for step in self._report.steps:
            self._step(step)
        for profile in self._used:
            self._pooled(profile)
        if not self.exact and not policy.tolerance:
            self._doubt("V10", "basis", expected="bit-exact, by your policy", found="within tolerance")
        if self.reach is not None and not self.reach <= policy.reach:
            wanted = f"at most {policy.reach:g} of the way from W_0 to W_T"
            self._doubt("V10", "reach of the tolerance", expected=wanted, found=f"{self.reach:.3g}")

    def require(self, demanded: tuple[Profile, ...]) -> None:
        """Raise UsageError unless each of these noise profiles is of this recipe, and of environments that are met."""
        here = self._report.environment
        foreign = [claimed for claimed in self._environments if claimed != here]
        for profile in demanded:
            if not any(self._find(claimed, (profile,)) for claimed in foreign):
                require_applies(profile, claimed=(foreign or [here])[0], here=here, **self._recipe())

    def _find(self, claimed: Fingerprint, profiles: tuple[Profile, ...]) -> Profile | None:
        return find(profiles, claimed=claimed, here=self._report.environment, **self._recipe())

    def _recipe(self) -> dict[str, Any]:
        manifest = self._known.manifest
        return {
            "recipe": manifest.recipe,
            "recipe_source": manifest.recipe_source,
            "configuration": self._configuration,
        }

    def require_profiles(self) -> None:
        """A doubt for each environment of the run that is neither this one nor covered by a profile.

        Of the run, not only of the drawn steps: forged steps that claim an environment of their own could be drawn
        without ever being refuted, and drawn again until none of them is met.
        """
        here = self._report.environment
        epochs = zip(self._known.statement.environments, self._environments, self._profiles, strict=True)
        for (first, _), claimed, profile in epochs:
            if claimed != here and profile is None:
                differs = claimed.difference(here)
                self._doubt(
                    "V10",
                    "re-executed in another environment than the prover's, and no noise profile covers the two",
                    step=first,
                    expected="; ".join(f"{name}={there}" for name, there, _ in differs),
                    found="; ".join(f"{name}={own}" for name, _, own in differs),
                )

    def _step(self, replayed: ReplayedStep) -> None:
        """The same batch and the same bits after it; in another environment, a gradient within tolerance."""
        assert self._known.records is not None
        record = self._known.records[replayed.step]
        if self._environments[record.environment] != self._report.environment:
            self._elsewhere(record, replayed, self._profiles[record.environment])
            return
        difference = next(iter(differences(record, replayed)), None)
        if difference is None:
            self.reexecuted.append(replayed.step)
        elif replayed.again not in (None, replayed.state):
            self._doubt("V10", "this machine does not reproduce itself", step=replayed.step)
        else:
            check, what, expected, found = difference
            refuted = Refuted(check, what, at=replayed.step, expected=expected, found=found)
            if check != "V10" or replayed.state == record.state:    # a loss or flag beside the right bits is no noise
                self.unsettled = None
                raise refuted
            self._other_bits(record, replayed, refuted)

    def _other_bits(self, record: StepRecord, replayed: ReplayedStep, refuted: Refuted) -> None:
        """Other bits in the environment that is claimed: refuted, unless gradients say that it may be noise."""
        if replayed.measured is None:
            self.unsettled = "the environment that is claimed gives other bits"
            raise refuted
        try:
            self.distances.append(judge(record, replayed, None))
        except Unavailable as error:        # only bits can settle it, and they have
            raise refuted from error
        self._doubt("V10", OTHER_BITS, step=replayed.step)

    def _elsewhere(self, record: StepRecord, replayed: ReplayedStep, profile: Profile | None) -> None:
        if replayed.measured is None:
            self.unsettled = "it was recorded in another environment"
            if profile is not None:
                self._doubt("V10", "gradients to compare were not asked for", step=record.step)
            return
        try:
            self.distances.append(judge(record, replayed, profile))
        except Unavailable as error:        # an optimizer without a bound, say: neither for nor against the run
            self._doubt("V10", error.message, step=record.step, expected="a step that tolerances cover")
            return
        if profile is not None:
            self.tolerated.append(record.step)

    def _pooled(self, profile: Profile) -> None:
        """Tests 3 and 4: what the residuals of the randomly drawn steps point at, and how far they could lead."""
        assert self._known.records is not None
        report, drawn = self._report, set(self._known.draw.steps)
        epochs = {number for number, found in enumerate(self._profiles) if found == profile}
        positions = [
            position
            for position, step in enumerate(report.steps)
            if self._known.records[step.step].environment in epochs and step.measured is not None
        ]
        # the drawn ones, where there are any: which steps are added is up to the prover, and idle ones reach nothing
        positions = [position for position in positions if report.steps[position].step in drawn] or positions
        if not positions:
            return          # an epoch of the run that no challenged step is of
        measured = self._measured(positions)
        # a step that overflowed and was skipped has no residual: among the pairs it would dilute the others
        paired = {at for at, found in zip(positions, measured, strict=True) if compared(found)}
        check_alignment(measured, _cosines_among(report.residuals, paired), profile)
        span = report.span if report.span is not None else math.nan
        rates = [found for number, found in enumerate(report.rates) if number in epochs]
        reached = reach(measured, profile, rates, span)
        self.reach = reached if self.reach is None else self.reach + reached

    def _measured(self, positions: list[int]) -> list[Measured]:
        return [found for position in positions if (found := self._report.steps[position].measured) is not None]


#: The same fields where no step was re-executed.
NOTHING_SETTLED: dict[str, Any] = {"reexecuted": (), "tolerated": (), "distances": (), "profiles": (), "reach": None}


def _cosines_among(residuals: tuple[float, ...], positions: set[int]) -> list[float]:
    """Of the cosines of every two of the first steps, (0, 1), (0, 2), …, (1, 2), …, those between these positions."""
    compared = math.isqrt(2 * len(residuals)) + 1 if residuals else 0
    pairs = [(a, b) for a in range(compared) for b in range(a + 1, compared)]
    return [cosine for (a, b), cosine in zip(pairs, residuals, strict=True) if a in positions and b in positions]
