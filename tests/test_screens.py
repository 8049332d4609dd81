"""polcommit.screens: each screen on a trajectory that has just that oddity, and not on one that has not.

Honest trajectories here are random walks with some momentum, straight in sketch space: 64 values, drawn once. Those of
real training are measured by `polcommit.spoofs.measure.honest_screens`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polcommit.encoding import encode
from polcommit.errors import UsageError
from polcommit.records import Flag, Request
from polcommit.screens import LEAST_KEPT, MAX_STRETCHES, Kept, added_steps, screen

SEED = bytes(range(32))
Vector = list[float]


def noise(generator: random.Random, size: float = 1.0) -> Vector:
    """64 values as exact multiples of 2^-20, so that a trajectory is the same wherever these tests run."""
    return [size * generator.randint(-(1 << 20), 1 << 20) / (1 << 20) for _ in range(64)]


def walk(updates: Sequence[Vector], *, every: int = 1, rate: Callable[[int], float] = lambda t: 0.1) -> list[Kept]:
    """Kept states of a run with these displacements of the sketch, `every` steps each; its loss falls."""
    at = [0.0] * 64
    kept = [Kept(step=0, sketch=tuple(at), loss=None, learning_rate=None)]
    for number, update in enumerate(updates, 1):
        at = [x + dx for x, dx in zip(at, update, strict=True)]
        step = number * every
        kept.append(Kept(step=step, sketch=tuple(at), loss=3.0 / (1 + number), learning_rate=rate(step)))
    return kept


def honest(
    count: int = 60, momentum: float = 0.0, seed: int = 1, scale: Callable[[int], float] = lambda i: 1.0
) -> list[Vector]:
    """Displacements: independent noise, or a running sum of it; the i-th, from 0, times scale(i)."""
    generator = random.Random(seed)
    velocity, updates = [0.0] * 64, []
    for i in range(-20, count):
        velocity = [momentum * v + g for v, g in zip(velocity, noise(generator), strict=True)]
        if i >= 0:
            updates.append([scale(i) * v for v in velocity])
    return updates


def screened(kept: Sequence[Kept], batch: int = 64, samples: int = 64) -> tuple[Flag, ...]:
    return screen(kept, steps=kept[-1].step, batch=batch, samples=samples)


def found(kept: Sequence[Kept]) -> list[tuple[str, int, int]]:
    return [(flag.screen, flag.first, flag.last) for flag in screened(kept)]


# --- honest runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("every", [1, 25])
@pytest.mark.parametrize("count", [LEAST_KEPT - 1, 9, 60])
def test_random_walks_are_not_flagged(momentum: float, every: int, count: int) -> None:
    for seed in range(5):
        assert found(walk(honest(count, momentum, seed), every=every)) == []


def test_updates_that_follow_the_learning_rate_are_not_flagged() -> None:
    """A step decay, and a warm-up."""
    for scale in (lambda i: 1.0 if i < 30 else 0.1, lambda i: min(1.0, (i + 1) / 20)):
        kept = walk(honest(scale=scale), rate=lambda t, scale=scale: 0.1 * scale(t - 1))  # type: ignore[misc]
        assert found(kept) == []


def test_heads_that_were_kept_between_make_no_difference() -> None:
    """Of a run that keeps every 10th state, two heads' states one step after a kept one: short intervals."""
    every_step = walk(honest(300))
    kept = [state for state in every_step if state.step % 10 == 0 or state.step in (101, 202)]
    assert found(kept) == []


def test_too_few_kept_states_are_not_compared() -> None:
    kept = walk([[math.nan] * 64] * (LEAST_KEPT - 2))
    assert len(kept) == LEAST_KEPT - 1 and screened(kept) == ()


# --- displacements --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 30, 58, 59])
def test_a_jump_is_one_flagged_step(place: int) -> None:
    updates = honest()
    updates[place] = noise(random.Random(9), 10.0)
    assert found(walk(updates)) == [("jump", place + 1, place + 1)]


def test_a_jump_between_kept_states_flags_the_interval() -> None:
    updates = honest()
    updates[30] = noise(random.Random(9), 10.0)
    assert found(walk(updates, every=25)) == [("jump", 751, 775)]


def test_a_jump_is_seen_with_the_fewest_kept_states() -> None:
    updates = honest(LEAST_KEPT - 1)
    updates[2] = noise(random.Random(9), 20.0)
    assert found(walk(updates)) == [("jump", 3, 3)]


def test_a_ramp_of_ordinary_steps_in_one_direction_shows_in_longer_windows() -> None:
    """Twelve steps, each twice as long as usual: none is odd by itself."""
    updates, direction = honest(160), noise(random.Random(9), 2.0)
    for i in range(70, 82):
        updates[i] = [direction[j] + 0.3 * updates[i][j] for j in range(64)]
    flags = screened(walk(updates))
    assert flags and {flag.screen for flag in flags} <= {"jump", "straight"}
    assert min(flag.first for flag in flags) >= 60 and max(flag.last for flag in flags) <= 92
    assert max(flag.last - flag.first for flag in flags) >= 3


def test_decoys_do_not_hide_the_ramp_around_them() -> None:
    """Every third step of a ramp is an honest one that is a jump by itself, so that no longer window is without."""
    updates, direction, generator = honest(400), noise(random.Random(9), 1.2), random.Random(3)
    for i in range(200, 224):
        updates[i] = noise(generator, 8.0) if i % 3 == 1 else [direction[j] + 0.3 * updates[i][j] for j in range(64)]
    stretches = [(first, last) for name, first, last in found(walk(updates)) if name == "jump"]
    assert any(first >= 190 and last <= 234 and last - first >= 7 for first, last in stretches)


def test_displacement_that_outgrows_the_learning_rate_is_a_jump() -> None:
    """The rate falls to a twentieth for three steps, and the updates do not."""
    kept = walk(honest(), rate=lambda t: 0.005 if 30 <= t <= 32 else 0.1)
    assert {(name, first) for name, first, _ in found(kept)} <= {("jump", 31), ("jump", 32)} and found(kept)


def test_interpolation_in_equal_steps_is_straight() -> None:
    kept = walk([noise(random.Random(9), 0.1)] * 60)
    assert found(kept) == [("straight", 1, 60)]


def test_interpolation_in_steps_of_honest_sizes_is_straight() -> None:
    direction, sizes = noise(random.Random(9)), random.Random(4)
    lengths = [sizes.uniform(0.5, 1.5) for _ in range(60)]
    kept = walk([[length * x for x in direction] for length in lengths])
    assert found(kept) == [("straight", 1, 60)]


def test_interpolation_between_honest_stretches_is_one_stretch() -> None:
    updates = honest(100, momentum=0.5)
    updates[40:60] = [noise(random.Random(9))] * 20
    straight = [each for each in found(walk(updates)) if each[0] == "straight"]
    assert len(straight) == 1 and 41 <= straight[0][1] <= 44 and 57 <= straight[0][2] <= 60


def test_interpolation_of_four_intervals_is_straight() -> None:
    assert ("straight", 1, 4) in found(walk([noise(random.Random(9))] * 4))


def test_steps_of_one_size_while_the_learning_rate_falls() -> None:
    """Constant-norm interpolation, with noise that hides the line."""
    generator = random.Random(9)
    kept = walk([noise(generator) for _ in range(60)], rate=lambda t: 0.1 * (61 - t) / 60)
    assert ("norms", 1, 60) in found(kept)


def test_a_break_of_direction_where_momentum_turns_slowly() -> None:
    """A splice of ordinary size: from one step to the next everything points elsewhere."""
    updates = honest(30, 0.95, seed=1) + honest(30, 0.95, seed=2)
    assert found(walk(updates)) == [("turn", 30, 31)]


# --- learning rates, losses, work -----------------------------------------------------------------------------


def test_displacement_without_a_learning_rate() -> None:
    kept = walk(honest(), rate=lambda t: 0.0 if 30 <= t <= 31 else 0.1)
    assert ("rate", 31, 31) in found(kept)


def test_displacement_that_no_gradient_explains() -> None:
    kept = walk(honest(), rate=lambda t: 1e-8)
    assert found(kept) == [("rate", 1, 60)]


def test_learning_rates_near_zero() -> None:
    """The infinitesimal update: rates that let one real step end anywhere near."""
    kept = walk([[1e-12 * x for x in update] for update in honest()], rate=lambda t: 1e-10)
    assert found(kept) == [("idle", 1, 60)]


def test_a_stretch_without_displacement() -> None:
    updates = honest(100)
    updates[40:50] = [[0.0] * 64] * 10
    assert found(walk(updates)) == [("idle", 41, 50)]


def test_the_end_of_a_cosine_is_not_idle() -> None:
    def rate(t: int) -> float:
        return 0.1 * ((101 - t) / 100) ** 2 + 1e-8

    kept = walk(honest(100, scale=lambda i: rate(i + 1) / 0.1), rate=rate)
    assert found(kept) == []


def test_a_loss_that_does_not_fall() -> None:
    kept = [state if state.loss is None else replace(state, loss=2.3) for state in walk(honest())]
    assert found(kept) == [("loss", 1, 60)]


def test_less_work_than_a_pass_over_the_data() -> None:
    kept = walk(honest())
    flags = screened(kept, batch=10, samples=601)
    assert flags == (Flag(screen="work", first=1, last=60, value=600 / 601, bound=1.0),)
    assert screened(kept, batch=10, samples=600) == ()


# --- what is not a number -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_a_sketch_beyond_numbers_is_flagged(value: float) -> None:
    kept = walk(honest())
    kept[20] = replace(kept[20], sketch=(value, *kept[20].sketch[1:]))
    assert found(kept) == [("not-finite", 20, 21)]


@pytest.mark.parametrize("field", ["loss", "learning_rate"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_learning_rate_beyond_numbers_is_flagged(field: str, value: float) -> None:
    kept = walk(honest())
    kept[20] = replace(kept[20], **{field: value})
    assert ("not-finite", 20, 20) in found(kept)


floats = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def anything(draw: st.DrawFn) -> list[Kept]:
    steps = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=30)))
    states = [Kept(step=0, sketch=tuple(draw(st.lists(floats, min_size=3, max_size=3))), loss=None, learning_rate=None)]
    for step in steps:
        sketch, loss, rate = draw(st.lists(floats, min_size=3, max_size=3)), draw(floats), draw(floats)
        states.append(Kept(step=step, sketch=tuple(sketch), loss=loss, learning_rate=rate))
    return states


@settings(deadline=None)
@given(anything())
def test_whatever_was_committed_gives_flags_that_can_be_signed(kept: list[Kept]) -> None:
    """No overflow or division by zero ends a verification, and every flag lies within the run."""
    flags = screened(kept)
    assert all(encode(flag) and 1 <= flag.first <= flag.last <= kept[-1].step for flag in flags)
    for strategy in ("random", "mixed", "top-q"):
        added = added_steps(SEED, request(strategy, 3), flags, kept, (), 7)
        assert list(added) == sorted(set(added)) and all(1 <= step <= kept[-1].step for step in added)


@pytest.mark.parametrize("change", [{"step": 3}, {"step": 2}, {"sketch": (1.0,)}])
def test_states_that_do_not_belong_together_are_refused(change: dict[str, object]) -> None:
    kept = walk(honest(8))
    kept[4] = replace(kept[4], **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        screened(kept)


def test_flags_are_the_same_to_the_bit_everywhere() -> None:
    """Both sides sign them. A change of this digest is a change of the protocol."""
    generator = random.Random(7)
    updates = [noise(generator, 2.0 ** (generator.randint(-2, 3))) for _ in range(120)]
    updates[40:52] = [[0.75 * x for x in updates[40]]] * 12
    flags = screened(walk(updates, every=5), batch=1, samples=1000)
    assert {flag.screen for flag in flags} == {"jump", "straight", "work"}
    assert hashlib.sha256(b"".join(map(encode, flags))).hexdigest() == (
        "b3eea2e37bc411cae04259b4935bcef68eb8964d3a09b80768e4f4c8176be262"
    )


# --- added steps ----------------------------------------------------------------------------------------------


def request(strategy: str = "random", count: int = 8) -> Request:
    return Request(
        run=bytes(32), commitment=bytes(32), verifier=bytes(32), strategy=strategy, count=count, steps=(),
        clear_openings=False,
    )  # fmt: skip


def flag(first: int, last: int) -> Flag:
    return Flag(screen="jump", first=first, last=last, value=9.0, bound=3.0)


def seeds(count: int) -> list[bytes]:
    return [hashlib.sha256(number.to_bytes(2, "big")).digest() for number in range(count)]


def test_one_step_of_each_flagged_stretch() -> None:
    kept = walk(honest(), every=25)
    for seed in seeds(50):
        added = added_steps(seed, request(), [flag(1, 25), flag(51, 75), flag(100, 100)], kept, (3, 4), 10)
        assert len(added) == 3 and not {3, 4} & set(added)
        assert 1 <= added[0] <= 25 and 51 <= added[1] <= 75 and added[2] == 100


def test_every_step_of_a_stretch_can_be_the_one_and_about_as_often() -> None:
    kept = walk(honest(), every=25)
    drawn = [added_steps(seed, request(), [flag(11, 14)], kept, (12,), 10) for seed in seeds(900)]
    counts = [drawn.count((step,)) for step in (11, 13, 14)]
    assert len(drawn) == sum(counts) and all(240 < count < 360 for count in counts)      # 300, 4 standard deviations


def test_two_flags_on_the_same_stretch_are_one_stretch() -> None:
    kept = walk(honest(), every=25)
    twice = [flag(11, 14), replace(flag(11, 14), screen="turn")]
    assert len(added_steps(SEED, request(), twice, kept, (), 10)) == 1


def test_nothing_is_added_where_everything_is_drawn() -> None:
    assert added_steps(SEED, request(), [flag(3, 5), flag(9, 9)], walk(honest()), (3, 4, 5, 9), 10) == ()


def test_decoys_do_not_cost_the_verifier_more_than_so_many_steps() -> None:
    kept = walk(honest(2 * MAX_STRETCHES + 10))
    flags = [flag(step, step) for step in range(1, 2 * MAX_STRETCHES, 1)]
    chosen = {added_steps(seed, request(), flags, kept, (), 10) for seed in seeds(5)}
    assert {len(each) for each in chosen} == {MAX_STRETCHES} and len(chosen) == 5


def test_the_choice_is_not_known_before_the_challenge() -> None:
    kept = walk(honest(), every=25)
    assert len({added_steps(seed, request(), [flag(1, 1000)], kept, (), 10) for seed in seeds(40)}) > 30


def test_mixed_adds_the_largest_displacements_and_both_ends() -> None:
    updates = honest()
    for place in (10, 20, 30):
        updates[place] = noise(random.Random(place), 50.0)
    kept = walk(updates)
    assert added_steps(SEED, request("mixed", 12), (), kept, (), 10) == (1, 11, 21, 31, 60)
    assert len(added_steps(SEED, request("mixed", 1), (), kept, (), 10)) == 3
    assert added_steps(SEED, request("mixed", 12), (), kept, (11, 60), 10) == (1, 21, 31)


def test_mixed_takes_one_step_of_each_large_interval() -> None:
    updates = honest()
    updates[10] = noise(random.Random(2), 50.0)
    added = {added_steps(seed, request("mixed", 4), (), walk(updates, every=5), (), 10) for seed in seeds(40)}
    assert {each[1] for each in added} == {51, 52, 53, 54, 55}


def test_top_q_takes_the_largest_of_every_epoch() -> None:
    """With every state kept it is Jia et al.'s rule, whatever the seed."""
    updates = honest(40)
    for place in (3, 7, 15, 16, 21, 29, 30, 38):
        updates[place] = noise(random.Random(place), 50.0)
    kept = walk(updates)
    for seed in seeds(5):
        assert added_steps(seed, request("top-q", 2), (), kept, (), 10) == (4, 8, 16, 17, 22, 30, 31, 39)


def test_top_q_does_not_look_at_small_updates() -> None:
    """Blindfold top-Q (Fang et al., §6.2): Q large honest updates an epoch hide that the rest is forged."""
    updates = [[0.01 * x for x in update] for update in honest(40)]
    for epoch in range(4):
        for place in (2, 5):
            updates[10 * epoch + place] = noise(random.Random(epoch), 5.0)
    due = tuple(sorted(10 * epoch + place + 1 for epoch in range(4) for place in (2, 5)))
    assert added_steps(SEED, request("top-q", 2), (), walk(updates), (), 10) == due


def test_a_displacement_that_is_not_a_number_counts_as_the_largest() -> None:
    kept = walk(honest(20))
    kept[13] = replace(kept[13], sketch=(math.nan,) * 64)
    assert added_steps(SEED, request("top-q", 2), (), kept, (), 20) == (13, 14)
