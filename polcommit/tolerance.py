"""V10 between environments: one step, and the draw as a whole, judged in gradient space (spec §6, V10).

What was measured comes from the verifier's own re-execution (`replaying.Measured`), what is allowed from a noise
profile. Four tests: the gradient (Fang et al., EuroS&P 2023, Lemma 3, on the gradient), the update, the alignment of
the residuals of randomly drawn steps, and the reach of the tolerance over the run.

A step that passes is within tolerance, no more: up to α of its gradient may have been bent by a forger. α leaves room
for what is rare among honest steps (a ReLU that opens in one environment only), so that the draw as a whole is held to
much less: the mean distance of its steps, and how far their residuals point one way. `reach` says how far what is left
could have led.

Every comparison is written `not (d <= tolerance)`, so that NaN fails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from polcommit.errors import Refuted, Unavailable
from polcommit.profiles import GROSS, Bound, Profile, Spread
from polcommit.records import Distance, StepRecord
from polcommit.replaying import Measured, Rates, ReplayedStep

#: Of honest draws less than one in this many fails each test of a mean over the draw, under what `threshold` assumes.
FALSE_REJECTS = 4000


def judge(record: StepRecord, replayed: ReplayedStep, profile: Profile | None) -> Distance:
    """Tests 1 and 2, loss and flags of one step; its relative distance if it passes.

    Without a profile only what needs no tolerance is decided: flags, structure, the update, and a distance above 0.5.
    The caller makes nothing of a step that passes so.

    Raises:
        Refuted: V10, at this step.
        Unavailable: not measured, not a step that this profile knows, or an optimizer that has no bound.
    """
    measured = replayed.measured
    if measured is None:
        raise Unavailable(f"step {record.step} was not compared in gradient space", hint="run the re-execution again")
    _check_flags(record, measured)
    _check_form(record, measured)
    tolerance = GROSS if profile is None else profile.alpha
    value = 0.0
    if compared(measured):
        value = _check_gradient(record, measured, tolerance)
        if profile is not None:
            _check_tensors(record, measured, profile)
            _check_preconditioned(record, measured, profile)
    if profile is not None:
        _check_buffers(record, measured, profile)
        _check_loss(record, measured, profile)
    _check_update(record, measured)
    if profile is None and not measured.finite[0] and not measured.skipped:     # no noise explains other bits here
        raise Unavailable(
            f"step {record.step} applied a gradient that is not finite: without a noise profile only bits decide",
            hint="verify in the environment that the run claims",
        )
    return Distance(step=record.step, value=value, tolerance=tolerance)


def compared(measured: Measured) -> bool:
    """Whether the gradient is compared: not where it overflowed and the update was skipped, so that nothing came of it.

    One that is not finite and was applied is compared in its finite elements, and must be the same in the others, or
    the distance is infinite: one infinite element, in a row of an embedding that nothing uses, would hide any others.
    """
    return measured.finite[0] or not measured.skipped


def check_alignment(steps: Sequence[Measured], residuals: Sequence[float], profile: Profile) -> None:
    """Test 3, over the randomly drawn steps alone: their residuals are small on average, point neither towards W_T
    nor all one way.

    `residuals` are the cosines of every pair of some of these steps (a re-execution compares the first 64).

    Raises:
        Refuted: V10: larger, or more aligned, than honest noise.
        Unavailable: not the number of cosines that any number of steps has pairs.
    """
    paired = math.isqrt(2 * len(residuals)) + 1 if residuals else 0
    if 2 * len(residuals) != paired * (paired - 1) or paired > len(steps):
        raise Unavailable("the re-execution did not compare every pair of residuals", hint="run it again")
    having = [step for step in steps if compared(step)]         # the others have no residual
    distances = [_relative(step.distance, min(step.opened, step.here)) for step in having]
    _require_spread("distances of the gradients", distances, profile.distances, len(having))
    if profile.distances_preconditioned is not None:
        distances = [_relative(*step.preconditioned) for step in having if step.preconditioned is not None]
        _require_spread("distances of the preconditioned gradients", distances, profile.distances_preconditioned,
                        len(distances))  # fmt: skip
    cosines = [step.towards for step in having]
    _require_spread("cosines of the residuals with the way to the last state", cosines, profile.towards, len(cosines))
    _require_spread("cosines of the residuals of every two steps", residuals, profile.pairs, paired // 2)


def _relative(distance: float, norm: float) -> float:
    if norm > 0:
        return distance / norm
    return 0.0 if distance == 0 else math.inf


def _require_spread(what: str, values: Sequence[float], spread: Spread, count: int) -> None:
    if not values:
        return
    mean, allowed = sum(values) / len(values), threshold(spread, count)
    if not (mean <= allowed):
        raise Refuted("V10", what, expected=f"at most {allowed:.4g} on average", found=f"{mean:.4g}")


def threshold(spread: Spread, count: int) -> float:
    """What the mean of `count` independent honest values exceeds less than once in `FALSE_REJECTS` draws.

    Bennett's inequality (1962) for values of at most `spread.bound` with that mean and deviation; no normal
    distribution is assumed, and few steps are enough for it to hold. The mean over all pairs of n steps is an average
    of means over n // 2 independent pairs each, so that it obeys the same bound with count = n // 2 (Hoeffding 1963,
    §5).
    """
    room, variance = spread.bound - spread.mean, spread.sd * spread.sd
    if not room > 0 or not variance > 0:
        return spread.bound
    wanted = math.log(FALSE_REJECTS) * room * room / (count * variance)
    most = room * room / variance       # where the mean is the bound
    if not _bennett(most) > wanted:
        return spread.bound
    low, high = 0.0, most
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if _bennett(middle) > wanted else (middle, high)
    return min(spread.bound, spread.mean + high * variance / room)


def _bennett(u: float) -> float:
    return (1 + u) * math.log1p(u) - u


def reach(steps: Sequence[Measured], profile: Profile, rates: Sequence[Rates], span: float) -> float:
    """Test 4: how far the tolerance could have bent the whole run, in units of `span` = ‖W_T − W_0‖.

    `steps` are the randomly drawn ones, `rates` the learning rates of all that they were drawn of. Each step could have
    moved the weights by its `stride` times α (α_D where it was preconditioned); on average over the draw, no more than
    test 3 lets through. A stride is taken per learning rate, and the rates are summed over the run instead of the draw:
    a forger who registers a schedule in which only a few steps count is not saved by their being drawn rarely. For the
    same reason the mean of test 3 counts as one over as many steps as count (`_counting`).

    To that comes the rounding that test 2 lets pass. It does not go by learning rates: where they are next to nothing
    no honest update pulls back what it adds up to.

    An estimate, as good as the draw is large: bursts of long gradients, or of large weights, that no drawn step met
    are not seen. Infinite where there is nothing to estimate from.
    """
    total, squares = math.fsum(each.total for each in rates), math.fsum(each.squares for each in rates)
    number = sum(each.steps for each in rates)
    moving = [step for step in steps if step.learning_rate > 0]
    strides = [step.stride for step in moving]
    if not moving or not (span > 0) or not (squares > 0) or not all(map(math.isfinite, strides)):
        return math.inf
    count = _counting(strides, total * total / squares / number)
    allowed = threshold(profile.distances, count)
    weighed = profile.distances_preconditioned
    adaptive = allowed if weighed is None else threshold(weighed, count)
    bends = [
        step.stride / step.learning_rate * (allowed if step.preconditioned is None else adaptive) for step in moving
    ]
    bent, rounded = sum(bends) / len(bends) * total, sum(step.rounding for step in steps) / len(steps) * number
    found = (bent + rounded) / span
    return found if math.isfinite(found) else math.inf


def _counting(strides: Sequence[float], share: float) -> int:
    """How many of the drawn steps a mean over them is a mean of, where some move the weights and others hardly do.

    The smaller of what the rates say, whose `share` of the run is (Σ lr)²/Σ lr² of its steps, and the same of the drawn
    steps' strides: gradients may come in bursts under a constant rate.
    """
    largest = max(strides)
    own = float(len(strides))
    if largest > 0:
        shares = [stride / largest for stride in strides]
        own = math.fsum(shares) ** 2 / math.fsum(each * each for each in shares)
    return max(1, math.floor(min(own, len(strides) * share) + 1e-9)) if share > 0 else 1


# --- one step -------------------------------------------------------------------------------------------------


def _check_flags(record: StepRecord, measured: Measured) -> None:
    """What `apply` on the opened gradient does needs no tolerance."""
    pairs = (
        ("learning rate as applied", record.learning_rate, measured.learning_rate),
        ("whether clipped", record.clipped, measured.clipped),
        ("whether skipped", record.skipped, measured.skipped),
    )
    for what, committed, here in pairs:
        if not (committed == here):
            raise Refuted("V10", what, at=record.step, expected=committed, found=here)


def _check_form(record: StepRecord, measured: Measured) -> None:
    if measured.finite[0] != measured.finite[1]:
        raise Refuted("V10", "whether the gradient is finite", at=record.step, expected=_finite(measured.finite[1]),
                      found=_finite(measured.finite[0]))  # fmt: skip
    if math.isfinite(record.loss) != math.isfinite(measured.loss):
        raise Refuted("V10", "loss", at=record.step, expected=measured.loss, found=record.loss)
    if measured.missing:
        raise Refuted("V10", "parameters with a gradient", at=record.step, expected="the same ones as here",
                      found=f"{measured.missing[0]} in one of the two only")  # fmt: skip


def _finite(value: bool) -> str:
    return "finite" if value else "not finite"


def _check_gradient(record: StepRecord, measured: Measured, alpha: float) -> float:
    """Test 1 over the whole gradient, less what is the same and not finite; ‖ĝ − g′‖ / min(‖ĝ‖, ‖g′‖)."""
    least = _least(measured.opened, measured.here)
    if not (measured.distance <= alpha * least < math.inf):
        found = _share(measured.distance, least)
        raise Refuted("V10", "gradient", at=record.step, expected=f"within {alpha:.4g} of its norm", found=found)
    return measured.distance / least if least > 0 else 0.0


def _check_tensors(record: StepRecord, measured: Measured, profile: Profile) -> None:
    """Test 1 tensor by tensor, and element by element where a gradient is zero by structure."""
    bounds = {bound.name: bound for bound in profile.tensors}
    whole = _least(measured.opened, measured.here)
    for tensor in measured.tensors:
        bound = _bound(bounds, tensor.name, profile)
        if not (tensor.zeros <= bound.zeros):
            raise Refuted("V10", f"zeros in the gradient of {tensor.name}", at=record.step, expected=f"at most "
                          f"{bound.zeros} in one of the two only", found=tensor.zeros)  # fmt: skip
        allowed = max(bound.relative * _least(tensor.opened, tensor.here), bound.floor * whole)
        if not (tensor.distance <= allowed):
            raise Refuted("V10", f"gradient of {tensor.name}", at=record.step, expected=f"a distance of at most "
                          f"{allowed:.4g}", found=f"{tensor.distance:.4g}")  # fmt: skip


def _check_preconditioned(record: StepRecord, measured: Measured, profile: Profile) -> None:
    """Test 1 as an adaptive optimizer weighs it: what is tiny in the gradient is not in the update."""
    if measured.preconditioned is None:
        return
    if profile.alpha_preconditioned is None:
        raise Unavailable(f"noise profile '{profile.name}' is of an optimizer that is not adaptive")
    distance, norm = measured.preconditioned
    if not (distance <= profile.alpha_preconditioned * norm < math.inf):
        expected = f"within {profile.alpha_preconditioned:.4g} of its norm"
        raise Refuted("V10", "preconditioned gradient", at=record.step, expected=expected,
                      found=_share(distance, norm))  # fmt: skip


def _check_buffers(record: StepRecord, measured: Measured, profile: Profile) -> None:
    """Forward statistics, as increments. Two that are both not finite are as far as this can tell the same."""
    bounds = {bound.name: bound for bound in profile.buffers}
    for buffer in measured.buffers:
        bound = _bound(bounds, buffer.name, profile)
        if not math.isfinite(buffer.opened) and not math.isfinite(buffer.here):
            continue
        allowed = max(bound.relative * _least(buffer.opened, buffer.here), bound.floor)
        if not (buffer.distance <= allowed):
            raise Refuted("V10", f"what the step adds to {buffer.name}", at=record.step, expected=f"a distance of at "
                          f"most {allowed:.4g}", found=f"{buffer.distance:.4g}")  # fmt: skip


def _bound(bounds: dict[str, Bound], name: str, profile: Profile) -> Bound:
    if name not in bounds:
        raise Unavailable(
            f"noise profile '{profile.name}' has no bound for {name}",
            hint="measure one for this configuration with 'polcommit calibrate'",
        )
    return bounds[name]


def _check_loss(record: StepRecord, measured: Measured, profile: Profile) -> None:
    allowed = profile.loss * (1 + min(abs(record.loss), abs(measured.loss)))
    if math.isfinite(record.loss) and not (abs(record.loss - measured.loss) <= allowed):
        expected = f"within {allowed:.4g} of {measured.loss!r}"
        raise Refuted("V10", "loss", at=record.step, expected=expected, found=record.loss)


def _check_update(record: StepRecord, measured: Measured) -> None:
    """Test 2: the committed next state is what `apply` makes of the opened state and gradient."""
    if measured.exact is not None:
        raise Refuted("V10", "state after the step", at=record.step, expected="what the opened gradient leads to",
                      found=f"another {measured.exact}")  # fmt: skip
    if measured.exact_only is not None:
        raise Unavailable(
            f"step {record.step} can be compared bit for bit only: {measured.exact_only}",
            hint="verify in the environment that the run claims",
        )
    name, ratio = measured.update
    if not (ratio <= 1.0):
        raise Refuted("V10", f"update of {name}", at=record.step, expected="what the opened gradient leads to",
                      found=f"{ratio:.4g} times the rounding that is allowed away")  # fmt: skip


def _least(opened: float, here: float) -> float:
    """The smaller of two norms; NaN if either is, which `min` would hide."""
    return min(opened, here) if opened == opened and here == here else math.nan


def _share(distance: float, norm: float) -> str:
    return f"{distance / norm:.4g} of it away" if norm > 0 else f"a distance of {distance:.4g} from nothing"
