"""V10 between environments: what honest noise passes, and what each forgery fails. Records made by hand, no torch."""

from __future__ import annotations

import itertools
import math
import operator
import random
from dataclasses import replace
from typing import Any

import pytest

from polcommit.errors import Refuted, Unavailable
from polcommit.profiles import Bound, Profile, Spread
from polcommit.records import StepRecord
from polcommit.replaying import Measured, Rates, ReplayedStep, TensorDistance
from polcommit.tolerance import FALSE_REJECTS, check_alignment, judge, reach, threshold

PROFILE = Profile(
    name="made by hand",
    recipe="digits",
    recipe_source=bytes(32),
    configuration=(),
    differs=(("onednn", "yes", "no"),),
    holds=(),
    alpha=0.02,
    alpha_preconditioned=0.05,
    tensors=(
        Bound(name="bias", relative=0.0, floor=1e-6, zeros=0),      # nothing but noise
        Bound(name="embedding", relative=0.1, floor=1e-7, zeros=0),
        Bound(name="weight", relative=0.1, floor=1e-7, zeros=2),
    ),
    buffers=(Bound(name="running_mean", relative=1e-4, floor=1e-7, zeros=0),),
    distances=Spread(mean=1e-4, sd=1e-3, bound=0.02),
    distances_preconditioned=Spread(mean=1e-4, sd=1e-3, bound=0.05),
    loss=1e-5,
    towards=Spread(mean=0.0, sd=0.1, bound=0.6),
    pairs=Spread(mean=0.01, sd=0.1, bound=0.8),
    honest=60,
    quantiles=(),
)
RECORD = StepRecord(
    step=7, samples=bytes(32), batch=bytes(32), state=bytes(32), loss=2.0, learning_rate=0.1, clipped=True,
    skipped=False, environment=0,
)  # fmt: skip


def tensor(name: str, distance: float, opened: float, here: float, zeros: int = 0) -> TensorDistance:
    return TensorDistance(name=name, distance=distance, opened=opened, here=here, size=100, zeros=zeros)


def measured(**changes: Any) -> Measured:
    made = Measured(
        finite=(True, True),
        missing=(),
        distance=0.01,
        opened=1.0,
        here=1.001,
        preconditioned=(0.4, 10.0),
        tensors=(tensor("weight", 0.01, 1.0, 1.001), tensor("bias", 5e-7, 1e-8, 4e-7)),
        buffers=(tensor("running_mean", 1e-6, 0.1, 0.1),),
        update=("weight", 0.4),
        exact=None,
        exact_only=None,
        towards=0.1,
        stride=0.1,
        rounding=0.0,
        loss=2.00001,
        learning_rate=0.1,
        clipped=True,
        skipped=False,
    )
    return replace(made, **changes)


def replayed(found: Measured | None) -> ReplayedStep:
    return ReplayedStep(
        step=7, batch=bytes(32), state=bytes(32), again=None, loss=2.0, learning_rate=0.1, clipped=True, skipped=False,
        measured=found, contribution=None,
    )  # fmt: skip


def test_an_honest_step_passes_and_says_how_far_it_was() -> None:
    distance = judge(RECORD, replayed(measured()), PROFILE)
    assert (distance.step, distance.value, distance.tolerance) == (7, 0.01, 0.02)


FORGED: dict[str, tuple[str, dict[str, Any]]] = {
    "bent gradient": ("gradient", {"distance": 0.0201}),
    "inflated gradient: the smaller norm counts": ("gradient", {"distance": 0.9, "opened": 100.0, "here": 1.0}),
    "no gradient where there is one": ("gradient", {"distance": 1.0, "opened": 0.0}),
    "distance that is not a number": ("gradient", {"distance": math.nan}),
    "norm that is not a number": ("gradient", {"opened": math.nan}),
    "one tensor bent": ("gradient of weight", {"tensors": (tensor("weight", 0.0101, 0.1, 0.1),)}),
    "noise that is more than noise": ("gradient of bias", {"tensors": (tensor("bias", 1.1e-6, 1e-6, 4e-7),)}),
    "tensor not a number": ("gradient of weight", {"tensors": (tensor("weight", math.nan, 1.0, 1.0),)}),
    "an embedding's absent row": (
        "zeros in the gradient of embedding",
        {"tensors": (tensor("embedding", 1e-9, 1.0, 1.0, zeros=1),)},
    ),
    "small gradients that Adam makes large": ("preconditioned gradient", {"preconditioned": (0.51, 10.0)}),
    "preconditioned, not a number": ("preconditioned gradient", {"preconditioned": (math.nan, 10.0)}),
    "batch-norm statistics": (
        "what the step adds to running_mean",
        {"buffers": (tensor("running_mean", 2e-5, 0.1, 0.1),)},
    ),
    "batch-norm statistics not a number": (
        "what the step adds to running_mean",
        {"buffers": (tensor("running_mean", math.nan, math.nan, 0.1),)},
    ),
    "loss": ("loss", {"loss": 2.001}),
    "loss not a number here": ("loss", {"loss": math.nan}),
    "weights other than the gradient's": ("update of weight", {"update": ("weight", 1.01)}),
    "update not a number": ("update of weight", {"update": ("weight", math.nan)}),
    "a counter": ("state after the step", {"exact": "scalar counter/updates"}),
    "learning rate": ("learning rate as applied", {"learning_rate": 0.2}),
    "not clipped": ("whether clipped", {"clipped": False}),
    "skipped": ("whether skipped", {"skipped": True}),
    "a gradient left out": ("parameters with a gradient", {"missing": ("weight",)}),
    "an overflow that was none": ("whether the gradient is finite", {"finite": (False, True)}),
    "an overflow passed over": ("whether the gradient is finite", {"finite": (True, False)}),
    "an overflow in other elements": ("gradient", {"finite": (False, False), "distance": math.inf}),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_step_is_refuted_and_named(name: str) -> None:
    what, changes = FORGED[name]
    with pytest.raises(Refuted) as caught:
        judge(RECORD, replayed(measured(**changes)), PROFILE)
    assert (caught.value.check, caught.value.what, caught.value.at) == ("V10", what, 7)


NEEDS_A_PROFILE = {
    "bent gradient", "one tensor bent", "noise that is more than noise", "tensor not a number",
    "an embedding's absent row", "small gradients that Adam makes large", "preconditioned, not a number",
    "batch-norm statistics", "batch-norm statistics not a number", "loss",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_without_a_profile_only_what_needs_no_tolerance_is_refuted(name: str) -> None:
    found = replayed(measured(**FORGED[name][1]))
    if name in NEEDS_A_PROFILE:
        assert judge(RECORD, found, None).tolerance == 0.5
    else:
        with pytest.raises(Refuted):
            judge(RECORD, found, None)


def test_without_a_profile_half_of_the_gradient_is_too_much() -> None:
    assert judge(RECORD, replayed(measured(distance=0.5)), None).value == 0.5
    with pytest.raises(Refuted, match="gradient at step 7"):
        judge(RECORD, replayed(measured(distance=0.51)), None)


def test_what_was_not_measured_is_neither_accepted_nor_refuted() -> None:
    with pytest.raises(Unavailable, match="step 7 was not compared in gradient space"):
        judge(RECORD, replayed(None), PROFILE)
    with pytest.raises(Unavailable, match="bit for bit only: an optimizer with matrix products"):
        judge(RECORD, replayed(measured(exact_only="an optimizer with matrix products")), PROFILE)
    with pytest.raises(Unavailable, match="no bound for other"):
        judge(RECORD, replayed(measured(tensors=(tensor("other", 0.0, 1.0, 1.0),))), PROFILE)
    with pytest.raises(Unavailable, match="not adaptive"):
        judge(RECORD, replayed(measured()), replace(PROFILE, alpha_preconditioned=None, distances_preconditioned=None))


def test_an_optimizer_without_a_bound_does_not_hide_a_bent_gradient() -> None:
    with pytest.raises(Refuted, match="gradient at step 7"):
        judge(RECORD, replayed(measured(exact_only="bfloat16 parameters", distance=0.3)), PROFILE)


def test_of_a_step_that_overflowed_the_update_and_the_forward_pass_still_count() -> None:
    record, changes = replace(RECORD, skipped=True), {"skipped": True, "finite": (False, False), "distance": math.nan}
    assert judge(record, replayed(measured(**changes)), PROFILE).value == 0.0
    with pytest.raises(Refuted, match="update of weight"):
        judge(record, replayed(measured(**changes, update=("weight", 1e5))), PROFILE)
    with pytest.raises(Refuted, match="running_mean"):
        judge(record, replayed(measured(**changes, buffers=(tensor("running_mean", 1.0, 1.0, 0.1),))), PROFILE)


APPLIED = {"finite": (False, False)}        # not skipped: distances and norms are of the elements that are finite


def test_an_overflow_that_was_applied_is_compared_where_it_is_finite() -> None:
    assert judge(RECORD, replayed(measured(**APPLIED)), PROFILE).value == 0.01
    for name in NEEDS_A_PROFILE - {"batch-norm statistics not a number"}:
        what, changes = FORGED[name]
        with pytest.raises(Refuted) as caught:
            judge(RECORD, replayed(measured(**APPLIED, **changes)), PROFILE)
        assert caught.value.what == what


def test_an_overflow_that_was_applied_says_nothing_without_a_profile_unless_it_is_refuted() -> None:
    with pytest.raises(Unavailable, match="step 7 applied a gradient that is not finite"):
        judge(RECORD, replayed(measured(**APPLIED)), None)
    with pytest.raises(Refuted, match="gradient at step 7"):
        judge(RECORD, replayed(measured(**APPLIED, distance=0.51)), None)


@pytest.mark.parametrize("skipped", [True, False])
@pytest.mark.parametrize("finite", [(False, True), (True, False)])
def test_an_overflow_in_one_of_the_two_only_is_refuted_skipped_or_not(
    finite: tuple[bool, bool], skipped: bool
) -> None:
    for profile in (PROFILE, None):
        with pytest.raises(Refuted, match="whether the gradient is finite"):
            judge(replace(RECORD, skipped=skipped), replayed(measured(finite=finite, skipped=skipped)), profile)


def test_an_overflow_that_was_skipped_and_applied_here_is_refuted() -> None:
    with pytest.raises(Refuted, match="whether skipped"):
        judge(replace(RECORD, skipped=True), replayed(measured(**APPLIED)), PROFILE)


def test_a_gradient_of_nothing_equals_nothing() -> None:
    zero = {"distance": 0.0, "opened": 0.0, "here": 0.0, "tensors": (tensor("weight", 0.0, 0.0, 0.0),)}
    assert judge(RECORD, replayed(measured(**zero, preconditioned=(0.0, 0.0))), PROFILE).value == 0.0


# --- alignment ------------------------------------------------------------------------------------------------


def steps(cosines: list[float]) -> list[Measured]:
    return [measured(towards=cosine, distance=1e-5, preconditioned=(1e-4, 10.0)) for cosine in cosines]


def pairs(count: int, value: float) -> list[float]:
    return [value] * (count * (count - 1) // 2)


@pytest.mark.parametrize("count", [1, 2, 5, 59, 200])
def test_a_steering_forger_fails_at_every_size_of_the_draw(count: int) -> None:
    with pytest.raises(Refuted, match="V10: cosines of the residuals with the way to the last state"):
        check_alignment(steps([0.99] * count), pairs(min(count, 64), 0.0), PROFILE)


def test_so_does_one_who_steers_somewhere_else() -> None:
    check_alignment(steps([0.0]), [], PROFILE)
    for count in (2, 5, 59):
        with pytest.raises(Refuted, match="cosines of the residuals of every two steps"):
            check_alignment(steps([0.0] * count), pairs(count, 0.95), PROFILE)


def test_only_the_steering_direction_counts() -> None:
    check_alignment(steps([-0.9] * 20), pairs(20, -0.05), PROFILE)


def test_cosines_that_are_not_numbers_do_not_pass() -> None:
    with pytest.raises(Refuted):
        check_alignment(steps([0.0, math.nan]), [0.0], PROFILE)
    with pytest.raises(Refuted):
        check_alignment(steps([0.0, 0.0]), [math.nan], PROFILE)


def test_a_step_that_overflowed_and_was_skipped_has_no_residual() -> None:
    odd = [measured(finite=(False, False), skipped=True, towards=math.nan), *steps([0.0, 0.0])]
    check_alignment(odd, pairs(3, 0.0), PROFILE)
    check_alignment([odd[0]], [], PROFILE)
    check_alignment([], [], PROFILE)


def test_one_who_overflows_at_every_step_and_bends_the_rest_is_no_exception() -> None:
    aimed = [replace(step, finite=(False, False)) for step in steps([0.99] * 10)]
    with pytest.raises(Refuted, match="cosines of the residuals with the way to the last state"):
        check_alignment(aimed, pairs(10, 0.0), PROFILE)
    bent = [measured(**APPLIED, distance=0.0199, towards=0.0)] * 10
    with pytest.raises(Refuted, match="distances of the gradients"):
        check_alignment(bent, pairs(10, 0.0), PROFILE)


def test_pairs_that_are_missing_were_not_checked() -> None:
    with pytest.raises(Unavailable, match="every pair"):
        check_alignment(steps([0.0] * 3), [0.0, 0.0], PROFILE)
    with pytest.raises(Unavailable, match="every pair"):
        check_alignment(steps([0.0]), pairs(3, 0.0), PROFILE)


def test_the_threshold_falls_with_the_draw_and_never_exceeds_what_one_may_have() -> None:
    found = [threshold(PROFILE.towards, count) for count in (1, 2, 5, 20, 59, 200, 10_000)]
    assert found == sorted(found, reverse=True)
    assert found[0] == PROFILE.towards.bound
    assert found[-1] < 0.01
    # of 59 honest steps the mean has deviation 0.013: between the normal distribution's 3.5 of them and twice that
    assert 3.5 * 0.1 / math.sqrt(59) < threshold(PROFILE.towards, 59) < 7 * 0.1 / math.sqrt(59)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 59])
def test_the_threshold_holds_for_the_worst_distribution_of_that_deviation(count: int) -> None:
    """Almost always a little below the mean, and rarely as large as can be: exact, by the binomial distribution."""
    spread = Spread(mean=0.0, sd=0.1, bound=0.6)
    for rare in (0.001, 0.01, spread.sd**2 / (spread.sd**2 + spread.bound**2), 0.2):
        high = min(spread.bound, spread.sd * math.sqrt((1 - rare) / rare))
        low = -rare * high / (1 - rare)
        limit = threshold(spread, count)
        exceeding = math.fsum(
            math.comb(count, hits) * rare**hits * (1 - rare) ** (count - hits)
            for hits in range(count + 1)
            if (hits * high + (count - hits) * low) / count > limit * (1 + 1e-12)
        )
        assert exceeding < 1 / FALSE_REJECTS


def test_residuals_with_a_direction_in_common_pass_when_the_profile_knows_it() -> None:
    """Honest rounding may lean to one side: simulated residuals with a mean pair cosine of about 0.01."""
    source = random.Random(5)
    dimensions, lean = 400, math.sqrt(0.01 / 400)
    failures = 0
    for _ in range(40):
        residuals = [[source.gauss(0, 1 / 20) + lean for _ in range(dimensions)] for _ in range(12)]
        norms = [math.hypot(*residual) for residual in residuals]
        cosines = [
            sum(map(operator.mul, a, b)) / (x * y)
            for (a, x), (b, y) in itertools.combinations(list(zip(residuals, norms, strict=True)), 2)
        ]
        try:
            check_alignment(steps([0.0] * 12), cosines, PROFILE)
        except Refuted:
            failures += 1
    assert failures == 0


@pytest.mark.parametrize("count", [10, 59])
def test_one_who_bends_every_step_by_alpha_fails_though_each_step_passes(count: int) -> None:
    bent = [measured(distance=0.0199, towards=0.0, preconditioned=(1e-4, 10.0))] * count
    for step in bent:
        judge(RECORD, replayed(step), PROFILE)
    with pytest.raises(Refuted, match="V10: distances of the gradients"):
        check_alignment(bent, pairs(count, 0.0), PROFILE)
    bent = [measured(distance=1e-5, towards=0.0, preconditioned=(0.49, 10.0))] * count
    with pytest.raises(Refuted, match="distances of the preconditioned gradients"):
        check_alignment(bent, pairs(count, 0.0), PROFILE)


def test_a_rare_large_distance_among_small_ones_passes() -> None:
    rare = [measured(distance=0.0199, towards=0.0), *steps([0.0] * 20)]
    check_alignment(rare, pairs(21, 0.0), PROFILE)


# --- reach ----------------------------------------------------------------------------------------------------


RATE = 0.1          # that `measured` has
EVEN = (Rates(steps=300, total=300 * RATE, squares=300 * RATE * RATE),)


def test_reach_is_what_the_tolerance_adds_up_to() -> None:
    assert threshold(PROFILE.distances, 1) == PROFILE.alpha         # one step bounds the mean no better
    assert reach([measured(preconditioned=None, stride=0.2)], PROFILE, EVEN, 12.0) == pytest.approx(0.02 * 0.2 * 25)
    assert reach([measured(stride=0.2)], PROFILE, EVEN, 12.0) == pytest.approx(0.05 * 0.2 * 25)
    plain = [measured(preconditioned=None, stride=stride) for stride in (0.1, 0.2, 0.3)]
    assert reach(plain, PROFILE, EVEN, 12.0) == pytest.approx(threshold(PROFILE.distances, 2) * 0.2 * 25)


def test_reach_has_the_rounding_of_every_step_whatever_the_rates() -> None:
    """Of three drawn steps it is 0.3 on average, one of them at a rate of nothing; 300 of them make 90 of 12."""
    drawn = [measured(stride=0.0, rounding=each) for each in (0.2, 0.3)]
    drawn.append(measured(stride=0.0, rounding=0.4, learning_rate=0.0))
    assert reach(drawn, PROFILE, EVEN, 12.0) == pytest.approx(0.3 * 300 / 12.0)
    slow = (Rates(steps=300, total=300e-9, squares=300e-18),)
    still = [replace(step, learning_rate=min(step.learning_rate, 1e-9)) for step in drawn]
    assert reach(still, PROFILE, slow, 12.0) == pytest.approx(0.3 * 300 / 12.0)
    both = [measured(preconditioned=None, stride=0.2, rounding=0.3)]
    assert reach(both, PROFILE, EVEN, 12.0) == pytest.approx(0.02 * 0.2 * 25 + 0.3 * 25)


def test_reach_falls_with_the_size_of_the_draw() -> None:
    found = [reach([measured(preconditioned=None)] * count, PROFILE, EVEN, 12.0) for count in (2, 10, 59, 1000)]
    assert found == sorted(found, reverse=True)
    assert found[2] < found[0] / 5


def test_reach_is_not_diluted_by_steps_that_do_not_count() -> None:
    """One step in a hundred has a learning rate to speak of, and is hardly ever drawn: the sum of the rates has it."""
    bursts = (Rates(steps=300, total=3 * 100 * RATE, squares=3 * (100 * RATE) ** 2),)
    quiet = [measured(preconditioned=None)] * 59
    even, diluted = (reach(quiet, PROFILE, rates, 12.0) for rates in (EVEN, bursts))
    assert diluted == pytest.approx(even * PROFILE.alpha / threshold(PROFILE.distances, 59)) and diluted > even


def test_reach_is_not_diluted_by_steps_with_next_to_no_gradient() -> None:
    """The rate is constant: it is the drawn steps' own strides that say that three of sixty count."""
    bursts = [measured(preconditioned=None, stride=stride) for stride in [0.1] * 3 + [1e-9] * 57]
    even = [measured(preconditioned=None, stride=0.1 * 3 / 60)] * 60
    diluted = reach(bursts, PROFILE, EVEN, 12.0)
    allowed = threshold(PROFILE.distances, 3)
    assert diluted == pytest.approx(allowed * 0.1 * 3 / 60 * 25, rel=1e-6)
    assert diluted == pytest.approx(reach(even, PROFILE, EVEN, 12.0) * allowed / threshold(PROFILE.distances, 60))


def test_of_rates_and_strides_the_one_counts_by_which_fewer_steps_do() -> None:
    half = (Rates(steps=300, total=150 * 2 * RATE, squares=150 * (2 * RATE) ** 2),)
    for strides, count in (([0.1] * 60, 30), ([0.1] * 12 + [0.0] * 48, 12), ([0.1] * 40 + [0.0] * 20, 30)):
        drawn = [measured(preconditioned=None, stride=stride) for stride in strides]
        mean = sum(strides) / len(strides)
        assert reach(drawn, PROFILE, half, 12.0) == pytest.approx(threshold(PROFILE.distances, count) * mean * 25)


def test_a_draw_that_nothing_moved_in_reaches_nothing() -> None:
    assert reach([measured(stride=0.0)] * 5, PROFILE, EVEN, 12.0) == 0.0


def test_reach_without_anything_to_go_by_is_without_bound() -> None:
    for found in (
        reach([], PROFILE, EVEN, 12.0),
        reach([measured()], PROFILE, EVEN, 0.0),
        reach([measured()], PROFILE, EVEN, math.nan),
        reach([measured()], PROFILE, (), 12.0),
        reach([replace(measured(), learning_rate=0.0)], PROFILE, EVEN, 12.0),
        reach([measured(stride=math.nan)], PROFILE, EVEN, 12.0),
        reach([measured(stride=math.inf), measured(stride=-math.inf)], PROFILE, EVEN, 12.0),
        reach([measured(), measured(stride=math.nan)], PROFILE, EVEN, 12.0),
        reach([measured(rounding=math.nan)], PROFILE, EVEN, 12.0),
        reach([measured(rounding=math.inf)], PROFILE, EVEN, 12.0),
    ):
        assert found == math.inf
