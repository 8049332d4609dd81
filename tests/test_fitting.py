"""From measured steps to bounds: every honest step is held, what is rare has room, what is not comparable is named."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from polcommit.errors import NotReproducible, Refuted
from polcommit.profiles import Profile
from polcommit.records import Fingerprint, StepRecord
from polcommit.replaying import Measured, ReplayedStep, TensorDistance
from polcommit.session.fitting import Group, Stressed, digest_every, fit
from polcommit.tolerance import check_alignment, judge

THERE = Fingerprint(items=(("device", "cpu"), ("onednn", "yes"), ("threads", "2"), ("torch", "2.9")))
HERE = Fingerprint(items=(("device", "cpu"), ("onednn", "no"), ("threads", "2"), ("torch", "2.9")))
LOSS = 1.5


def tensor(name: str, distance: float, norm: float, zeros: int = 0) -> TensorDistance:
    return TensorDistance(name=name, distance=distance, opened=norm, here=norm, size=10, zeros=zeros)


def step(source: random.Random, **changes: Any) -> Measured:
    """An honest step: noise of about 1e-6, a bias whose gradient is nothing but noise, a running mean."""
    weight, bias = 1e-6 * source.uniform(0.5, 1), 1e-9 * source.uniform(0.5, 1)
    made = Measured(
        finite=(True, True), missing=(), distance=math.hypot(weight, bias), opened=1.0, here=1.0, preconditioned=None,
        tensors=(tensor("bias", bias, 1e-9), tensor("weight", weight, 1.0)),
        buffers=(tensor("running_mean", 1e-8 * source.uniform(0.5, 1), 0.1),),
        update=("weight", 0.25), exact=None, exact_only=None, towards=source.gauss(0, 0.05), stride=0.1, rounding=0.0,
        loss=LOSS + 1e-7, learning_rate=0.1, clipped=False, skipped=False,
    )  # fmt: skip
    return replace(made, **changes)


def group(steps: list[Measured], environment: Fingerprint = HERE, seed: int = 1) -> Group:
    source = random.Random(seed)
    pairs = len(steps) * (len(steps) - 1) // 2
    return Group(environment, steps, [LOSS] * len(steps), [source.gauss(0, 0.05) for _ in range(pairs)])


def stressed(distance: float) -> Stressed:
    tensors = (tensor("bias", 1e-9, 1e-9), tensor("weight", distance, 1.0))
    return Stressed(distance=distance, norm=1.0, preconditioned=None, tensors=tensors)


def fitted(groups: list[Group], rare: list[Stressed], **changes: Any) -> Profile:
    given: dict[str, Any] = {"drifts": [(1, 1e-6, 1.0), (2, 3e-6, 1.0)], "anything": ()}
    return fit(
        name="made by hand", recipe="some", recipe_source=bytes(32), configuration=(("width", "3"),), reference=THERE,
        groups=groups, stressed=rare, **(given | changes),
    )  # fmt: skip


def honest(count: int, seed: int = 0) -> list[Measured]:
    source = random.Random(seed)
    return [step(source) for _ in range(count)]


def verdict(profile: Profile, found: Measured) -> None:
    record = StepRecord(step=1, samples=bytes(32), batch=bytes(32), state=bytes(32), loss=LOSS, learning_rate=0.1,
                        clipped=False, skipped=False, environment=0)  # fmt: skip
    replayed = ReplayedStep(step=1, batch=bytes(32), state=bytes(32), again=None, loss=found.loss, learning_rate=0.1,
                            clipped=False, skipped=False, measured=found, contribution=None)  # fmt: skip
    judge(record, replayed, profile)


def test_honest_steps_pass_also_those_that_it_was_not_fitted_to() -> None:
    profile = fitted([group(honest(20))], [stressed(1e-5)] * 20)
    for found in honest(200, seed=9):
        verdict(profile, found)
    for seed in range(50):
        drawn = honest(20, seed=100 + seed)
        check_alignment(drawn, group(drawn, seed=200 + seed).residuals, profile)
    assert profile.alpha == pytest.approx(1e-5)
    assert profile.differs == (
        ("onednn", "yes", "no"), ("polcommit", "*", "*"), ("polcommit training", "*", "*"), ("processor", "*", "*"),
        ("python", "*", "*"),
    )  # fmt: skip
    assert profile.holds == (("device", "cpu"), ("torch", "2.9"))


def test_noise_has_a_floor_and_no_bound_relative_to_itself() -> None:
    bias = {bound.name: bound for bound in fitted([group(honest(20))], [stressed(1e-5)] * 20).tensors}["bias"]
    assert bias.relative < 0.5
    assert bias.floor < 1e-6        # a share of the whole gradient's norm, which is 1


def test_an_element_may_be_zero_by_accident_and_a_row_may_not() -> None:
    def large(zeros: int) -> Measured:
        weight = TensorDistance(name="weight", distance=1e-6, opened=1.0, here=1.0, size=16_384, zeros=zeros)
        return step(random.Random(0), tensors=(tensor("bias", 1e-10, 1.0), weight))

    zeros = {bound.name: bound.zeros for bound in fitted([group([large(0)] * 5)], []).tensors}
    assert zeros == {"bias": 0, "weight": 4}
    assert fitted([group([large(0), large(3)])], []).tensors[1].zeros == 6
    with pytest.raises(Refuted, match="zeros in the gradient of weight"):
        verdict(fitted([group([large(0)] * 5)], []), large(64))


def test_what_is_rare_has_room_in_a_step_and_not_in_every_step_of_a_draw() -> None:
    profile = fitted([group(honest(20))], [*[stressed(1e-5)] * 299, stressed(0.04)])
    assert profile.alpha == pytest.approx(0.04)
    source = random.Random(4)
    large = step(source, distance=0.03, tensors=(tensor("weight", 0.03, 1.0),), towards=0.0)
    verdict(profile, large)
    drawn = [large, *honest(58, seed=5)]
    check_alignment(drawn, group(drawn).residuals, profile)
    with pytest.raises(Refuted, match="distances of the gradients"):
        check_alignment([large] * 59, group([large] * 59).residuals, profile)


def test_of_several_environments_what_differs_may_be_anything() -> None:
    other = Fingerprint(items=(("device", "cpu"), ("onednn", "yes"), ("threads", "1"), ("torch", "2.9")))
    profile = fitted([group(honest(5)), group(honest(5), other)], [])
    assert {("onednn", "*", "*"), ("threads", "*", "*")} <= set(profile.differs)


def test_what_is_left_open_is_not_pinned() -> None:
    profile = fitted([group(honest(5))], [], anything=("device", "threads"))
    assert {("device", "*", "*"), ("threads", "*", "*")} <= set(profile.differs)
    assert profile.holds == (("torch", "2.9"),)


def test_environments_that_agree_bit_for_bit_still_leave_room_for_a_rounding() -> None:
    same = step(random.Random(0), distance=0.0, tensors=(tensor("weight", 0.0, 1.0),), towards=0.0, loss=LOSS)
    profile = fitted([group([same] * 5)], [])
    assert 0 < profile.alpha < 1e-5
    verdict(profile, same)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("the gradient of weight is there in one of the two environments only", {"missing": ("weight",)}),
        ("finite in one of the two environments only", {"finite": (True, False)}),
        ("compared bit for bit only: bfloat16", {"exact_only": "bfloat16"}),
        ("the optimizer gives another scalar counter/n", {"exact": "scalar counter/n"}),
        ("the update of weight is 1.5 times the rounding allowed away", {"update": ("weight", 1.5)}),
        ("honest gradients of these environments ask for a tolerance of 0.6", {"distance": 0.2}),
        ("honest gradients of these environments ask for a tolerance of inf", {"distance": math.nan}),
    ],
)
def test_honest_steps_that_no_tolerance_helps_have_no_profile(what: str, changes: dict[str, Any]) -> None:
    with pytest.raises(NotReproducible) as caught:
        fitted([group([*honest(3), step(random.Random(0), **changes)])], [])
    assert what in caught.value.message
    assert "recipe 'some'" in caught.value.message


def test_digest_every_ends_where_noise_reaches_the_update() -> None:
    assert digest_every([(1, 0.01, 1.0), (2, 0.05, 1.0), (5, 0.19, 1.0), (10, 0.51, 1.0), (20, 0.9, 1.0)]) == 2
    assert digest_every([(1, 0.2, 1.0), (2, 0.01, 1.0)]) is None
    assert digest_every([(1, math.nan, 1.0)]) is None
    assert digest_every([(1, 0.01, 0.0)]) is None
    assert digest_every([]) is None
