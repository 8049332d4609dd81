"""One step compared in gradient space: honest steps of other environments, and what each forgery shows up as."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measured as harness
import mixed
import numpy as np
import pytest
import torch
from torch import nn

from polcommit.errors import Refuted, UsageError
from polcommit.recipes.digits import Digits
from polcommit.records import Gradient, StateIndex, TensorEntry
from polcommit.replaying import Measured
from polcommit.session.environments import has_capability
from polcommit.session.processes import worker_environment
from polcommit.training.measure import opened_parameters, span
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.training.residuals import Residuals
from polcommit.training.state import TrainingState
from polcommit.training.step import gradient_entries

HERE = Path(__file__).parent
SEED = harness.SEED


@dataclass
class Opened:
    """A recipe's steps, opened, and the engine that re-executes them."""

    recipe: Recipe
    blobs: harness.Blobs
    steps: list[harness.Opening]
    last: StateIndex

    def __post_init__(self) -> None:
        self.engine = Engine(self.recipe, SEED)

    def measure(self, opening: harness.Opening, last: StateIndex | None = None) -> Measured:
        return harness.measured(self.engine, opening, last or self.last, self.blobs)[0]

    def tensor(self, opening: harness.Opening, part: str, name: str) -> torch.Tensor:
        return harness.opened(opening, part, name, self.blobs)

    def forged(self, opening: harness.Opening, part: str, name: str, tensor: torch.Tensor) -> harness.Opening:
        return harness.forged(opening, self.blobs, **{part: {name: tensor}})


def opened_run(recipe: Recipe, *steps: int) -> Opened:
    blobs = harness.Blobs()
    openings, last = harness.opened_run(recipe, steps, blobs)
    return Opened(recipe, blobs, openings, last)


@pytest.fixture(scope="module")
def digits() -> Opened:
    return opened_run(harness.RECIPES["digits"](), 1, 2, 4)


@pytest.fixture(scope="module")
def gpt() -> Opened:
    return opened_run(harness.RECIPES["gpt"](), 1, 3)


@pytest.fixture(scope="module")
def scaled() -> Opened:
    return opened_run(harness.RECIPES["mixed"](), 2, 3)


# --- honest steps -------------------------------------------------------------------------------------------------


HERE_TOO = "threads=2,onednn=on"            # the environment that steps are recorded in
ELSEWHERE = {
    "one thread": "threads=1,onednn=on",
    "without oneDNN": "threads=2,onednn=off",
    "no vectors": "threads=2,onednn=on,capability=default",
    "avx2, and all that": "threads=1,onednn=off,capability=avx2",
}
PROCESSES = ((HERE_TOO, *list(ELSEWHERE.values())[:2]), *((text,) for text in list(ELSEWHERE.values())[2:]))


def run(verb: str, folder: Path, *settings: str) -> str:
    chosen = harness.EnvironmentSettings.parse(settings[0])
    environment = worker_environment(None, chosen) | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    command = [sys.executable, "-W", "error", str(HERE / "measured.py"), verb, str(folder), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each environment that this processor has makes of the steps, by its settings."""
    folder = tmp_path_factory.mktemp("opened")
    run("record", folder, HERE_TOO)
    found: dict[str, Any] = {}
    for settings in PROCESSES:
        if has_capability(harness.EnvironmentSettings.parse(settings[0]).capability or "default"):
            found |= json.loads(run("measure", folder, *settings))
    return found


def steps_of(found: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    yield from found[name]["steps"]


def test_honest_steps_measured_where_they_were_recorded_differ_in_nothing(elsewhere: dict[str, Any]) -> None:
    found = elsewhere[HERE_TOO]
    for name in harness.RECIPES:
        assert set(found[name]["cosines"]) == {0.0}
        for step in steps_of(found, name):
            assert (step["distance"], step["update"], step["exact"], step["towards"]) == (0.0, ["", 0.0], None, 0.0)


@pytest.mark.parametrize("where", ELSEWHERE)
def test_honest_steps_of_another_environment_differ_by_rounding(elsewhere: dict[str, Any], where: str) -> None:
    """Gradients are a little apart, `apply` on the opened ones comes out within its bound, nothing points anywhere."""
    if ELSEWHERE[where] not in elsewhere:
        pytest.skip("this processor has not got that instruction set")
    found = elsewhere[ELSEWHERE[where]]
    for name in harness.RECIPES:
        for step in steps_of(found, name):
            assert 0.0 < step["distance"] <= 1e-4 * min(step["opened"], step["here"])
            assert step["update"][1] <= 1.0 and step["exact"] is None and step["exact_only"] is None
            assert step["missing"] == [] and step["finite"] == [True, True]
            assert abs(step["towards"]) < 0.5 and step["buffers"] < 1e-3
            if step["preconditioned"] is not None:
                difference, whole = step["preconditioned"]
                assert 0.0 < difference < 0.2 * whole
        assert all(abs(cosine) < 0.9 for cosine in found[name]["cosines"])


def test_an_honest_step_is_nothing_but_itself(digits: Opened, gpt: Opened, scaled: Opened) -> None:
    for case in (digits, gpt, scaled):
        for opening in case.steps:
            found = case.measure(opening)
            assert (found.distance, found.update, found.exact, found.missing) == (0.0, ("", 0.0), None, ())
            assert found.opened == found.here > 0 and found.finite == (True, True)
            assert found.stride > 0 and all(buffer.distance == 0 for buffer in found.buffers)


def test_the_norms_are_those_of_the_vectors(digits: Opened) -> None:
    opening = digits.steps[1]
    found = digits.measure(opening)
    whole = [digits.tensor(opening, "gradient", entry.name).double() for entry in opening.gradient.tensors]
    assert math.isclose(found.opened, float(torch.cat([t.flatten() for t in whole]).norm()), rel_tol=1e-12)
    assert [tensor.name for tensor in found.tensors] == [e.name.removeprefix("gradient/") for e in
                                                         opening.gradient.tensors]  # fmt: skip
    rate, momentum = digits.recipe.learning_rate(2), 0.9
    assert math.isclose(found.stride, rate * found.opened / (1 - momentum), rel_tol=1e-12)


def test_adams_preconditioner_is_what_moves_the_weights(gpt: Opened) -> None:
    """In the first step AdamW's update is lr·Dĝ: its length is the stride."""
    opening = gpt.steps[0]
    found = gpt.measure(opening)
    moved = 0.0
    for entry in opening.before.tensors:
        if entry.kind == "parameter":
            old, new = (gpt.tensor(opening, part, entry.name).double() for part in ("before", "after"))
            decay = 0.1 if old.dim() >= 2 else 0.0
            moved += float((new - old * (1 - found.learning_rate * decay)).square().sum())
    assert math.isclose(found.stride, math.sqrt(moved), rel_tol=1e-3)


# --- forged gradients ---------------------------------------------------------------------------------------------


def test_a_bent_gradient_is_as_far_off_as_it_was_bent(digits: Opened) -> None:
    """And the next state of the honest gradient is not the one of the bent."""
    opening, name = digits.steps[1], "gradient/out.weight"
    honest = digits.measure(opening)
    gradient = digits.tensor(opening, "gradient", name)
    bend = torch.full_like(gradient, 0.1 * honest.opened / math.sqrt(gradient.numel()))
    found = digits.measure(digits.forged(opening, "gradient", name, gradient + bend))
    assert math.isclose(found.distance, 0.1 * honest.opened, rel_tol=1e-5)
    tensor = next(tensor for tensor in found.tensors if tensor.name == "out.weight")
    assert math.isclose(tensor.distance, found.distance, rel_tol=1e-12)
    assert found.update[0].endswith(("out.weight", "out.weight/momentum_buffer")) and found.update[1] > 1e3


def test_steering_towards_a_state_has_cosine_one(digits: Opened) -> None:
    """The forger adds a multiple of W_t - W_T to the gradient: descent goes against it."""
    opening = digits.steps[1]
    last = digits.last
    bent = {}
    for entry in opening.gradient.tensors:
        name = entry.name.removeprefix("gradient/")
        at_end = harness.opened(replace(opening, after=last), "after", f"parameter/{name}", digits.blobs)
        away = digits.tensor(opening, "before", f"parameter/{name}") - at_end
        bent[entry.name] = digits.tensor(opening, "gradient", entry.name) + 0.05 * away
    found = digits.measure(harness.forged(opening, digits.blobs, gradient=bent))
    assert found.towards > 0.999
    back = {name: 2 * digits.tensor(opening, "gradient", name) - tensor for name, tensor in bent.items()}
    assert digits.measure(harness.forged(opening, digits.blobs, gradient=back)).towards < -0.999
    assert digits.measure(opening, last=opening.before).towards == 0.0      # no way to go


def test_smoke_in_structural_zeros_is_counted(gpt: Opened) -> None:
    """±1e-7 in the rows of positions or the like moves an element as far as any under Adam."""
    opening, name = gpt.steps[1], "gradient/layers.0.attention.bias"
    gradient = gpt.tensor(opening, "gradient", name)
    honest = next(tensor for tensor in gpt.measure(opening).tensors if tensor.name == "layers.0.attention.bias")
    gradient[:5] = 0.0
    found = next(
        tensor
        for tensor in gpt.measure(gpt.forged(opening, "gradient", name, gradient)).tensors
        if tensor.name == "layers.0.attention.bias"
    )
    assert (honest.zeros, found.zeros) == (0, 5)


def test_a_gradient_left_out_is_missing(digits: Opened) -> None:
    opening = digits.steps[1]
    kept = tuple(entry for entry in opening.gradient.tensors if entry.name != "gradient/norm1.bias")
    found = digits.measure(replace(opening, gradient=Gradient(step=opening.step, tensors=kept)))
    assert found.missing == ("norm1.bias",)
    assert found.exact in ("tensor optimizer/norm1.bias/momentum_buffer", "tensor parameter/norm1.bias")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_said_and_never_near(digits: Opened, value: float) -> None:
    opening, name = digits.steps[1], "gradient/conv1.weight"
    gradient = digits.tensor(opening, "gradient", name)
    gradient[0, 0, 0, 0] = value
    found = digits.measure(digits.forged(opening, "gradient", name, gradient))
    assert found.finite == (False, True) and found.distance == math.inf
    assert not (found.update[1] <= 1.0)


def test_a_next_state_that_is_not_a_number_is_infinitely_far(digits: Opened) -> None:
    opening, name = digits.steps[1], "parameter/out.bias"
    state = digits.tensor(opening, "after", name)
    state[3] = math.nan
    assert digits.measure(digits.forged(opening, "after", name, state)).update == (name, math.inf)


class Overflowing(mixed.Mixed):
    """One element of the gradient is infinite, and applied; the loss is not."""

    def loss(self, state: TrainingState, micro_batch: Any, k: int, n: int) -> torch.Tensor:
        bias = state.model.out.bias  # type: ignore[union-attr]
        assert isinstance(bias, torch.Tensor)
        root: torch.Tensor = (bias[3] - bias[3].detach()).sqrt()
        return super().loss(state, micro_batch, k, n) + root


@pytest.fixture(scope="module", params=[("sgd", None), ("adamw", None), ("adamw", 0.5)], ids=str)
def overflowing(request: pytest.FixtureRequest) -> Opened:
    optimizer, clip = request.param
    return opened_run(Overflowing(optimizer=optimizer, clip=clip, schedule="pure", native_dropout=False), 1)


def test_an_overflow_that_is_the_same_in_both_is_no_distance(overflowing: Opened) -> None:
    (opening,) = overflowing.steps
    found = overflowing.measure(opening)
    assert found.finite == (False, False) and not found.skipped and math.isfinite(found.loss)
    assert found.distance == 0.0 and 0 < found.opened == found.here < math.inf
    assert found.preconditioned is None or found.preconditioned[0] == 0.0 < found.preconditioned[1] < math.inf
    assert (found.update, found.exact) == (("", 0.0), None) and math.isfinite(found.stride)


def test_it_does_not_hide_what_is_bent_beside_it(overflowing: Opened) -> None:
    (opening,) = overflowing.steps
    name = "gradient/out.weight"
    gradient = overflowing.tensor(opening, "gradient", name)
    bent = overflowing.forged(opening, "gradient", name, gradient * 1.5)
    found, residual = harness.measured(overflowing.engine, bent, overflowing.last, overflowing.blobs)
    assert found.finite == (False, False)
    assert math.isclose(found.distance, 0.5 * float(gradient.double().norm()), rel_tol=1e-6)
    assert math.isclose(float(residual["out.weight"].norm()), found.distance, rel_tol=1e-9)
    assert found.preconditioned is None or 0 < found.preconditioned[0] < math.inf


@pytest.mark.parametrize(("name", "value"), [
    ("gradient/out.bias", -math.inf), ("gradient/out.bias", math.nan), ("gradient/first.bias", math.inf),
])  # fmt: skip
def test_an_overflow_elsewhere_or_of_another_kind_is_infinitely_far(
    overflowing: Opened, name: str, value: float
) -> None:
    (opening,) = overflowing.steps
    gradient = overflowing.tensor(opening, "gradient", name)
    gradient[3] = value
    forged = overflowing.forged(opening, "gradient", name, gradient)
    found, residual = harness.measured(overflowing.engine, forged, overflowing.last, overflowing.blobs)
    assert found.finite == (False, False) and found.distance == math.inf and residual == {}


# --- forged updates -----------------------------------------------------------------------------------------------


def test_a_forged_parameter_is_measured_in_roundings_of_the_largest(digits: Opened) -> None:
    """Two roundings of the tensor's largest magnitude are allowed: this is four."""
    opening, name = digits.steps[1], "parameter/conv2.weight"
    state = digits.tensor(opening, "after", name)
    state[0, 0, 0, 0] += 4 * 2.0**-23 * float(state.abs().max())
    found = digits.measure(digits.forged(opening, "after", name, state))
    assert found.update[0] == name and 1.4 < found.update[1] < 2.6 and found.exact is None


@pytest.mark.parametrize("run", ["digits", "gpt"])
def test_rounding_is_the_norm_of_what_is_not_seen_in_the_parameters(run: str, request: pytest.FixtureRequest) -> None:
    """Moved by all of it at once, no parameter is further off than it may be, but for the last bit of the largest."""
    case: Opened = request.getfixturevalue(run)
    opening = case.steps[1]
    moved = {}
    for entry in opening.after.tensors:
        if entry.kind == "parameter":
            old, new = (case.tensor(opening, part, entry.name) for part in ("before", "after"))
            moved[entry.name] = new + 2 * 2.0**-23 * torch.maximum(old.abs().max(), new.abs().max())
    found = case.measure(harness.forged(opening, case.blobs, after=moved))
    assert 0.9 < found.update[1] < 1.3
    length = math.hypot(*(
        float((tensor.double() - case.tensor(opening, "after", name).double()).norm()) for name, tensor in moved.items()
    ))  # fmt: skip
    assert math.isclose(found.rounding, length, rel_tol=0.02)


def roundings(case: Opened, opening: harness.Opening, share: float) -> float:
    """The norm of that share of each tensor's largest magnitude, over the elements of all parameters that learn."""
    total = 0.0
    for entry in opening.before.tensors:
        if entry.kind == "parameter" and not entry.name.endswith("/frozen"):
            old, new = (case.tensor(opening, part, entry.name).double() for part in ("before", "after"))
            total += old.numel() * (share * float(torch.maximum(old.abs().max(), new.abs().max()))) ** 2
    return math.sqrt(total)


def test_over_an_honest_run_of_digits_roundings_add_up_to_next_to_nothing() -> None:
    case = opened_run(Digits(batch=32), 1, 300)
    first, last = case.steps
    ends = [opened_parameters(index, case.blobs.fetch) for index in (last.after, first.before)]
    assert 300 * max(case.measure(opening).rounding for opening in case.steps) < 0.01 * span(*ends)


@pytest.mark.parametrize(("run", "slot"), [("digits", "momentum_buffer"), ("gpt", "exp_avg"), ("gpt", "exp_avg_sq")])
def test_a_forged_moment_is_measured_at_its_element(run: str, slot: str, request: pytest.FixtureRequest) -> None:
    """Also where the element is tiny beside others of its tensor."""
    case: Opened = request.getfixturevalue(run)
    opening = case.steps[1]
    entry = next(e for e in opening.after.tensors if e.name.endswith(f"/{slot}") and len(e.shape) > 1)
    gradient = case.tensor(opening, "gradient", "gradient/" + entry.name.removeprefix("optimizer/").rpartition("/")[0])
    moment, old = case.tensor(opening, "after", entry.name), case.tensor(opening, "before", entry.name)
    size = torch.maximum(moment.abs(), old.abs())
    if slot != "exp_avg_sq":
        size = torch.maximum(size, gradient.abs())
    tiny = int(size.flatten().masked_fill(size.flatten() == 0, math.inf).argmin())
    moment.view(-1)[tiny] += 16 * 2.0**-23 * float(size.view(-1)[tiny])
    found = case.measure(case.forged(opening, "after", entry.name, moment))
    assert found.update[0] == entry.name and 2.0 < found.update[1] < 6.0


def test_momentum_forged_before_the_step_does_not_come_out(digits: Opened) -> None:
    """The smuggled buffer lands the step elsewhere than the committed next state."""
    opening, name = digits.steps[1], "optimizer/out.weight/momentum_buffer"
    buffer = digits.tensor(opening, "before", name)
    found = digits.measure(digits.forged(opening, "before", name, buffer + 1e-3))
    assert found.distance == 0.0 and found.update[1] > 1.0


def test_counters_scalars_and_integers_must_be_equal(digits: Opened, gpt: Opened, scaled: Opened) -> None:
    opening = digits.steps[1]
    batches = digits.tensor(opening, "after", "buffer/norm1.num_batches_tracked")
    found = digits.measure(digits.forged(opening, "after", "buffer/norm1.num_batches_tracked", batches + 1))
    assert found.exact == "tensor buffer/norm1.num_batches_tracked" and found.update[1] == 0.0

    opening = gpt.steps[1]
    step = gpt.tensor(opening, "after", "optimizer/norm.weight/step")
    found = gpt.measure(gpt.forged(opening, "after", "optimizer/norm.weight/step", step + 1))
    assert found.exact == "tensor optimizer/norm.weight/step"

    first, second = scaled.steps
    found = scaled.measure(replace(first, after=replace(first.after, scalars=second.after.scalars)))
    assert found.exact == "scalar counter/applied"


def test_what_the_optimizer_does_not_hold_must_not_move(scaled: Opened) -> None:
    """By no rounding: many small ones would be a way."""
    opening, name = scaled.steps[0], "parameter/frozen"
    state = scaled.tensor(opening, "after", name)
    state[0] += 2.0**-23
    assert scaled.measure(scaled.forged(opening, "after", name, state)).exact == f"tensor {name}"


def test_running_means_are_compared_by_what_the_step_added(digits: Opened) -> None:
    opening, name = digits.steps[1], "buffer/norm1.running_mean"
    buffer, before = (digits.tensor(opening, part, name).double() for part in ("after", "before"))
    added = float((buffer - before).norm())
    bent = (before + 1.5 * (buffer - before)).float()
    found = digits.measure(digits.forged(opening, "after", name, bent))
    tensor = next(tensor for tensor in found.buffers if tensor.name == "norm1.running_mean")
    assert math.isclose(tensor.here, added, rel_tol=1e-4) and math.isclose(tensor.distance, 0.5 * added, rel_tol=1e-3)
    assert found.update[1] == 0.0 and found.exact is None


# --- hostile openings ---------------------------------------------------------------------------------------------


def with_entry(opening: harness.Opening, position: int, **changes: Any) -> harness.Opening:
    entries = list(opening.gradient.tensors)
    entries[position] = replace(entries[position], **changes)
    tensors = tuple(sorted(entries, key=lambda entry: entry.name))
    return replace(opening, gradient=Gradient(step=opening.step, tensors=tensors))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "gradient/no.such.weight"}, "gradient at step 2"),
        ({"name": "parameter/conv1.weight"}, "gradient at step 2"),
        ({"name": "gradient/norm1.running_mean"}, "gradient at step 2"),
        ({"dtype": "float64"}, "form of gradient/conv1.weight"),
        ({"shape": (1 << 40, 1 << 20)}, "form of gradient/conv1.weight"),
        ({"content": bytes(32)}, "content of gradient/conv1.weight"),
    ],
)
def test_a_gradient_of_another_form_is_refuted_before_it_is_read(
    digits: Opened, changes: dict[str, Any], what: str
) -> None:
    """Names, dtypes and shapes are the recipe's; bytes are those that their digest says."""
    opening = with_entry(digits.steps[1], 0, **changes)
    read: list[str] = []

    def fetch(entry: TensorEntry) -> bytes:
        read.append(entry.name)
        if entry.content == bytes(32):
            return bytes(4)
        return digits.blobs.held[entry.content]

    blobs = harness.Blobs()
    blobs.fetch = fetch  # type: ignore[method-assign]
    with pytest.raises(Refuted, match=what) as found:
        harness.measured(digits.engine, opening, digits.last, blobs)
    assert found.value.check == "V8"
    assert ("content" in changes) == bool(read)


def test_a_next_state_of_another_schema_is_refuted(digits: Opened) -> None:
    opening = digits.steps[1]
    fewer = replace(opening.after, tensors=opening.after.tensors[1:])
    with pytest.raises(Refuted, match="V8: tensors of the state"):
        digits.measure(replace(opening, after=fewer))


# --- scalers, and optimizers without a bound ----------------------------------------------------------------------


def test_an_overflow_is_skipped_and_must_leave_everything_where_it_was(scaled: Opened) -> None:
    """A scaler skips the update; one who claims so and moves a weight is caught by it."""
    opening, name = scaled.steps[0], "gradient/out.bias"
    gradient = scaled.tensor(opening, "gradient", name)
    gradient[0] = math.inf
    bent = scaled.forged(opening, "gradient", name, gradient)
    found = scaled.measure(bent)
    assert found.skipped and found.finite == (False, True) and found.stride == 0.0
    assert found.exact is not None      # the honest next state was not skipped
    entries = {entry.name: entry for entry in opening.before.tensors}
    still = tuple(
        entries[e.name] if e.kind in ("parameter", "optimizer") else e for e in opening.after.tensors
    )
    assert found.rounding == 0.0        # nothing may move by any
    left = replace(bent, after=replace(opening.after, tensors=still))
    assert str(scaled.measure(left).exact).startswith("scalar scaler/")


class Sixteen(mixed.Mixed):
    """With weights of 16 bits."""

    def build(self) -> TrainingState:
        state = super().build()
        state.model.out.weight = nn.Parameter(state.model.out.weight.detach().bfloat16())  # type: ignore[union-attr]
        return state


class Rounded(mixed.Mixed):
    """An optimizer that polcommit does not know; without momentum it keeps nothing."""

    def build(self) -> TrainingState:
        state = super().build()
        state.optimizer = torch.optim.Rprop(state.model.parameters(), lr=1e-3)
        return state


class Declared(Rounded):
    UPDATE_BOUNDS = {"parameter": 1e-4}     # noqa: RUF012  (as a recipe's author writes it)


def test_what_has_no_bound_is_exact_only() -> None:
    """Rprop goes by signs; its author may say how far apart it may come out, and then nothing else may differ."""
    plain = {"optimizer": "sgd", "schedule": "pure", "native_dropout": False, "clip": None, "accumulation": 1}
    assert harness_reason(mixed.Mixed(**plain)) is None  # type: ignore[arg-type]
    assert harness_reason(Rounded(**plain)) == "the update of optimizer Rprop has no known bound"  # type: ignore[arg-type]
    assert harness_reason(Sixteen(**plain)) == "parameter out.weight is bfloat16"  # type: ignore[arg-type]
    declared = opened_run(Declared(**plain), 2)  # type: ignore[arg-type]
    (opening,) = declared.steps
    name = "parameter/first.weight"
    state = declared.tensor(opening, "after", name)
    state[0, 0] += 2e-4 * float(state.abs().max())
    found = declared.measure(declared.forged(opening, "after", name, state))
    assert math.isclose(found.rounding, roundings(declared, opening, 1e-4), rel_tol=1e-3)
    assert found.exact_only is None and found.update[0] == name and 1.8 < found.update[1] < 2.2
    slot = next(entry.name for entry in opening.after.tensors if entry.name.endswith("/prev"))
    state = declared.tensor(opening, "after", slot)
    state.view(-1)[0] += 1e-6
    assert declared.measure(declared.forged(opening, "after", slot, state)).exact == f"tensor {slot}"


def harness_reason(recipe: Recipe) -> str | None:
    from polcommit.training.optimizers import no_bound

    return no_bound(recipe, Engine(recipe, SEED).state)


def optimizers() -> dict[str, Any]:
    o = torch.optim
    return {
        "sgd with nesterov and decay": lambda p: o.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
        "adam with coupled decay": lambda p: o.Adam(p, lr=1e-2, weight_decay=1e-2, amsgrad=True),
        "adamw, fused": lambda p: o.AdamW(p, lr=1e-2, fused=True),
        "adamax": lambda p: o.Adamax(p, lr=1e-2),
        "nadam": lambda p: o.NAdam(p, lr=1e-2),
        "radam": lambda p: o.RAdam(p, lr=1e-2),
        "rmsprop with momentum": lambda p: o.RMSprop(p, lr=1e-3, momentum=0.9),
        "adadelta": lambda p: o.Adadelta(p, lr=1.0),
    }


@dataclass(frozen=True, kw_only=True)
class AnyOptimizer(mixed.Mixed):
    name: str = ""
    native_dropout: bool = False
    schedule: str = "pure"
    clip: float | None = None

    def build(self) -> TrainingState:
        state = super().build()
        state.optimizer = optimizers()[self.name](state.model.parameters())
        return state


@pytest.mark.parametrize("name", optimizers())
def test_known_optimizers_stay_within_their_bounds_and_forgers_do_not(name: str) -> None:
    """Each has its slots in the table; a ten-thousandth in any of them is beyond its bound."""
    case = opened_run(AnyOptimizer(name=name), 1, 2, 6)
    for opening in case.steps:
        found = case.measure(opening)
        assert (found.update, found.exact, found.exact_only) == (("", 0.0), None, None)
        due = roundings(case, opening, 2 * 2.0**-23)
        cancels = name == "adam with coupled decay"         # the decay, which D may make large again
        assert found.rounding > due if cancels else math.isclose(found.rounding, due, rel_tol=1e-9)
        if "sgd" not in name:
            assert found.preconditioned is not None and found.preconditioned[1] > 0 and math.isfinite(found.stride)
        for entry in opening.after.tensors:
            if entry.kind == "optimizer" and entry.name.startswith("optimizer/out.weight/") and entry.shape:
                slot = case.tensor(opening, "after", entry.name)
                forged = case.measure(case.forged(opening, "after", entry.name, slot * (1 + 1e-4) + 1e-6))
                assert forged.update[0] == entry.name and forged.update[1] > 1.0


# --- residuals, span, forms ---------------------------------------------------------------------------------------


def test_cosines_of_residuals_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory and in a file alike; zero has no direction, and only the first are compared."""
    model = nn.Linear(3, 2)
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(8, generator=generator, dtype=torch.float64) * 1e-9 for _ in range(3)]
    vectors.insert(2, torch.zeros(8, dtype=torch.float64))
    found = {}
    for limit in (1 << 30, 0):
        monkeypatch.setattr(Residuals, "IN_MEMORY", limit)
        monkeypatch.setattr(Residuals, "MOST", 4)
        monkeypatch.setattr(Residuals, "_COLUMNS", 3)
        with Residuals(6) as residuals:
            for vector in [*vectors, vectors[0]]:
                residuals.add(model, {"weight": vector[:6].view(2, 3), "bias": vector[6:]})
            found[limit] = residuals.cosines()
    order = [torch.cat([v[6:], v[:6]]).numpy() for v in vectors]        # by name: bias, weight
    due = []
    for a in range(4):
        for b in range(a + 1, 4):
            lengths = np.linalg.norm(order[a]) * np.linalg.norm(order[b])
            due.append(float(order[a] @ order[b] / lengths) if lengths else 0.0)
    assert np.allclose(found[1 << 30], due, atol=1e-6) and found[0] == found[1 << 30]
    with Residuals(0) as none:
        assert none.cosines() == ()


def test_span_is_the_distance_between_two_states(digits: Opened) -> None:
    first, last = digits.steps[0].before, digits.last
    total = 0.0
    for entry in first.tensors:
        if entry.kind == "parameter":
            a = digits.tensor(digits.steps[0], "before", entry.name).double()
            b = harness.opened(replace(digits.steps[0], after=last), "after", entry.name, digits.blobs).double()
            total += float((a - b).square().sum())
    fetch = digits.blobs.fetch
    found = span(opened_parameters(last, fetch), opened_parameters(first, fetch))
    assert math.isclose(found, math.sqrt(total), rel_tol=1e-12)


def test_sparse_gradients_cannot_be_opened() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.tensor([1.0]), (2, 2), check_invariants=True)
    with pytest.raises(UsageError, match=r"the gradient of embedding\.weight cannot be opened"):
        gradient_entries({"embedding.weight": sparse})


def test_flops_are_counted_as_the_layers_say(digits: Opened) -> None:
    """Two per multiplication and addition; the first convolution's input needs no gradient."""
    opening = digits.steps[1]
    batch = harness.batch_of(digits.recipe, opening.step)
    found = digits.engine.flops(opening.before, digits.blobs.fetch, batch)
    width, size = 16, 32
    first, second, out = 64 * width * 9, 16 * 2 * width * width * 9, 2 * width * 4 * 10
    assert found == 2 * size * (2 * first + 3 * second + 3 * out)
