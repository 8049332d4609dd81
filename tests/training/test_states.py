"""The full training state: capture, restore, and indices that a hostile prover made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixed import SEED, Mixed
from torch import nn

from polcommit.encoding import pack
from polcommit.errors import EncodingError, NotReproducible, Refuted, UsageError
from polcommit.records import ScalarEntry, StateIndex, TensorEntry
from polcommit.training.loading import FetchedBatch, Loader
from polcommit.training.replay import Engine, first_difference
from polcommit.training.scalars import decode_scalars, encode_scalars
from polcommit.training.schema import restore, schema
from polcommit.training.state import TrainingState, capture
from polcommit.training.tree import content

VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "schedule": "pure"},
    "adamw with a scheduler": {},
    "a gradient scaler": {"scaler": True},
    "channels last": {"channels_last": True},
}


class Opened:
    """An index with the bytes it names, to be tampered with."""

    def __init__(self, engine: Engine) -> None:
        captured = engine.capture()
        self.index = captured.index
        self.bytes = {entry.content: bytes(captured.content(entry)) for entry in captured.index.tensors}

    def fetch(self, entry: TensorEntry) -> bytes:
        return self.bytes[entry.content]

    def changed(self, name: str, /, **changes: Any) -> StateIndex:
        entries = [dataclasses.replace(e, **changes) if e.name == name else e for e in self.index.tensors]
        return dataclasses.replace(self.index, tensors=tuple(sorted(entries, key=lambda e: e.name)))

    def without(self, *names: str) -> StateIndex:
        return dataclasses.replace(self.index, tensors=tuple(e for e in self.index.tensors if e.name not in names))

    def scalars(self, change: Callable[[dict[str, Any]], object]) -> StateIndex:
        table = decode_scalars(self.index.scalars.values)
        change(table)
        entry = dataclasses.replace(self.index.scalars, values=encode_scalars(table))
        return dataclasses.replace(self.index, scalars=entry)


def trained(steps: int = 2, **options: Any) -> tuple[Engine, FetchedBatch]:
    """An engine after some steps, and the batch of the next."""
    recipe = Mixed(**options)
    engine = Engine(recipe, SEED)
    engine.initial()
    *batches, following = Loader(recipe, SEED, 1, steps + 1)
    for batch in batches:
        engine.step(batch)
    return engine, following


@pytest.fixture(scope="module")
def adam() -> tuple[Engine, Opened, FetchedBatch]:
    engine, following = trained()
    return Engine(engine.recipe, SEED), Opened(engine), following


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_restored_state_is_the_captured_one_and_goes_on_as_it_would_have(variant: str) -> None:
    engine, following = trained(**VARIANTS[variant])
    opened = Opened(engine)
    other = Engine(engine.recipe, SEED)
    result, captured = other.replay(opened.index, opened.fetch, following)
    assert result == engine.step(following)
    assert first_difference(captured.index, engine.capture().index) is None
    assert captured.index == engine.capture().index


def test_everything_is_in_the_index() -> None:
    """Frozen parameters, non-persistent buffers, moments, scheduler, scaler, counters; tied tensors once."""
    engine, _ = trained(scaler=True)
    index = engine.capture().index
    names = {entry.name for entry in index.tensors}
    assert {"parameter/conv.weight", "parameter/frozen", "buffer/calls", "buffer/norm.running_mean"} <= names
    assert {"optimizer/conv.weight/exp_avg", "optimizer/conv.weight/step"} <= names
    assert "parameter/second.weight" not in names and not any(name.startswith("optimizer/frozen") for name in names)
    assert index.scalars.aliases == (("parameter/second.weight", "parameter/first.weight"),)
    scalars = decode_scalars(index.scalars.values)
    assert scalars["group/0/betas"] == [0.9, 0.999] and scalars["counter/applied"] == 2
    assert scalars["scheduler/last_epoch"] == 2 and scalars["scaler/scale"] == 1024.0


def test_the_state_before_any_step_restores_and_forgets_later_moments() -> None:
    engine, _ = trained()
    fresh = Engine(engine.recipe, SEED)
    fresh.initial()
    opened = Opened(fresh)
    engine.restore(opened.index, opened.fetch)
    assert engine.capture().index == opened.index and not engine.state.optimizer.state


def test_restoring_keeps_the_memory_format() -> None:
    engine, _ = trained(channels_last=True)
    opened = Opened(engine)
    other = Engine(engine.recipe, SEED)
    other.restore(opened.index, opened.fetch)
    weight = other.state.model.get_parameter("conv.weight")
    assert weight.stride() == engine.state.model.get_parameter("conv.weight").stride()
    moment = other.state.optimizer.state[weight]["exp_avg"]
    assert moment.stride() == weight.stride() and moment.dtype == torch.float32


def test_moments_of_bfloat16_parameters_are_not_cast() -> None:
    """`optimizer.load_state_dict` would turn a float32 moment into bfloat16."""

    def factory() -> TrainingState:
        model = nn.Linear(3, 2).bfloat16()
        return TrainingState(model=model, optimizer=MasterMomentum(model.parameters(), {"lr": 0.5}))

    first, second = factory(), factory()
    for parameter in first.model.parameters():
        parameter.grad = torch.full_like(parameter, 1 / 3)
    first.optimizer.step()
    captured = capture(first)
    restore(second, captured.index, captured.content, schema(factory))
    assert capture(second).index == captured.index
    assert {e.dtype for e in captured.index.tensors if e.kind == "optimizer"} == {"float32"}


class MasterMomentum(torch.optim.Optimizer):
    """Float32 momentum for parameters of any dtype, and a Python number per parameter."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    slots = self.state[p]
                    slots["momentum"] = slots.get("momentum", torch.zeros(p.shape)) * 0.9 + p.grad.float()
                    slots["norm"] = float(slots["momentum"].norm())
                    p -= (group["lr"] * slots["momentum"]).to(p.dtype)


# --- what a hostile prover may open ---------------------------------------------------------------------------

MOMENT = "optimizer/conv.weight/exp_avg"
WEIGHT = "parameter/conv.weight"


def refuted(adam: tuple[Engine, Opened, FetchedBatch], index: StateIndex, match: str) -> None:
    engine, opened, _ = adam
    with pytest.raises(Refuted, match=match) as caught:
        engine.restore(index, opened.fetch)
    assert caught.value.check == "V8"


@pytest.mark.parametrize("name", [WEIGHT, MOMENT, "buffer/calls", "parameter/frozen"])
def test_a_missing_tensor(adam: Any, name: str) -> None:
    refuted(adam, adam[1].without(name), f"tensors of the state: expected {name}, found no such entry")


@pytest.mark.parametrize("name", ["parameter/conv.weight2", "optimizer/frozen/exp_avg", "optimizer/x/y", "zzz"])
def test_a_renamed_tensor(adam: Any, name: str) -> None:
    refuted(adam, adam[1].changed(WEIGHT, name=name), f"also {name}")


def test_moments_for_a_frozen_parameter(adam: Any) -> None:
    opened = adam[1]
    extra = dataclasses.replace(opened.index.tensors[-1], name="optimizer/frozen/exp_avg", kind="optimizer")
    entries = tuple(sorted((*opened.index.tensors, extra), key=lambda e: e.name))
    refuted(adam, dataclasses.replace(opened.index, tensors=entries), "also optimizer/frozen/exp_avg")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (8, 1, 9)}, {"shape": (1 << 40, 1 << 40)}, {"shape": ()}, {"dtype": "bfloat16"}, {"dtype": "object"},
        {"kind": "buffer"}, {"kind": "other"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [WEIGHT, MOMENT])
def test_another_form(adam: Any, name: str, change: dict[str, Any]) -> None:
    """Compared before anything is fetched or allocated."""
    engine, opened, _ = adam
    with pytest.raises(Refuted, match=f"form of {name}"):
        engine.restore(opened.changed(name, **change), lambda entry: pytest.fail("fetched"))


def test_slots_are_all_there_or_none(adam: Any) -> None:
    names = [e.name for e in adam[1].index.tensors if e.name.startswith("optimizer/conv.weight/")]
    assert len(names) == 4
    refuted(adam, adam[1].without(*names[1:]), "found no such entry")
    adam[0].restore(adam[1].without(*names), adam[1].fetch)       # a parameter that was never updated


def test_other_bytes_than_the_index_names(adam: Any) -> None:
    engine, opened, _ = adam
    entry = next(e for e in opened.index.tensors if e.name == WEIGHT)
    for data in (bytes(288), b"", opened.bytes[entry.content] + b"x"):
        with pytest.raises(Refuted, match=f"content of {WEIGHT}"):
            engine.restore(opened.index, lambda e, data=data: data if e == entry else opened.fetch(e))


def test_bytes_of_another_length_under_their_own_hash(adam: Any) -> None:
    engine, opened, _ = adam
    index = opened.changed(WEIGHT, content=content(b"abc"))
    with pytest.raises(EncodingError):
        engine.restore(index, lambda e: b"abc" if e.name == WEIGHT else opened.fetch(e))


def test_a_forged_momentum_changes_what_comes_out(adam: Any) -> None:
    """It restores, for it is of the right form: the committed state before the step tells it apart."""
    engine, opened, following = adam
    honest = engine.replay(opened.index, opened.fetch, following)[1].index
    forged = bytes(len(opened.bytes[next(e.content for e in opened.index.tensors if e.name == MOMENT)]))
    index = opened.changed(MOMENT, content=content(forged))
    result = engine.replay(index, lambda e: forged if e.name == MOMENT else opened.fetch(e), following)[1]
    assert index != opened.index and result.index != honest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("group/0/betas", [0.0, 0.999]),            # hyperparameters are pinned
        ("group/0/weight_decay", 0.5),
        ("group/0/eps", 1e-3),
        ("group/0/amsgrad", False),
        ("group/0/amsgrad", 1),
        ("group/0/params", ["conv.weight"]),
        ("group/0/lr", "0.1"),
        ("group/0/lr", True),
        ("group/0/lr", None),
        ("group/0/lr", [0.1]),
        ("group/0/initial_lr", 0.1),
        ("scheduler/base_lrs", [1.0]),
        ("scheduler/last_epoch", float("inf")),
        ("scheduler/last_epoch", {}),
        ("scheduler/_last_lr", [0.1, 0.1]),
        ("scheduler/lr_lambdas", [{"__class__": "x"}]),
        ("counter/applied", 1.0),
        ("counter/applied", True),
    ],
)
def test_a_forged_scalar(adam: Any, path: str, value: Any) -> None:
    index = adam[1].scalars(lambda table: table.__setitem__(path, value))
    refuted(adam, index, f"scalar {path}|scalars")


@pytest.mark.parametrize("path", ["group/0/lr", "counter/applied", "scheduler/last_epoch"])
def test_a_missing_scalar(adam: Any, path: str) -> None:
    refuted(adam, adam[1].scalars(lambda table: table.pop(path)), f"scalars of the state: expected {path}")


@pytest.mark.parametrize("path", ["group/1/lr", "scheduler/__class__", "scheduler/step", "counter/more", "scaler/x"])
def test_an_extra_scalar(adam: Any, path: str) -> None:
    refuted(adam, adam[1].scalars(lambda table: table.__setitem__(path, 1)), f"also {path}")


@pytest.mark.parametrize("scale", [1e300, 0.1, float("inf"), -(2**63), "x"])
def test_a_forged_scale(scale: Any) -> None:
    engine, _ = trained(scaler=True)
    opened = Opened(engine)
    index = opened.scalars(lambda table: table.__setitem__("scaler/scale", scale))
    if scale in (float("inf"), -(2**63)):       # a float32, if a strange one: its effect is for re-execution to tell
        engine.restore(opened.scalars(lambda table: table.__setitem__("scaler/scale", float(scale))), opened.fetch)
        return
    with pytest.raises(Refuted):
        engine.restore(index, opened.fetch)
    for tracker in (-1, 1 << 40, 0.5):
        index = opened.scalars(lambda table, v=tracker: table.__setitem__("scaler/_growth_tracker", v))
        with pytest.raises(Refuted):
            engine.restore(index, opened.fetch)


@pytest.mark.parametrize(
    "values",
    [
        b"", b"\xc0", pack(((1, 2),)), pack((("a",),)), pack((("b", 1), ("a", 1))), pack((("a", 1), ("a", 1))),
        pack((("a", b"x"),)), pack((("a", ("f", b"1")),)), pack((("a", ("d", (2, 1), (1, 1))),)), pack((("a", ()),)),
        pack((("a", ("d", ("k",))),)),
    ],
)  # fmt: skip
def test_scalars_that_are_no_encoding(adam: Any, values: bytes) -> None:
    engine, opened, _ = adam
    index = dataclasses.replace(opened.index, scalars=ScalarEntry(values=values, aliases=()))
    with pytest.raises(EncodingError):
        engine.restore(index, opened.fetch)


@pytest.mark.parametrize("aliases", [(), (("parameter/second.weight", "parameter/conv.weight"),)])
def test_other_aliases(adam: Any, aliases: Any) -> None:
    scalars = dataclasses.replace(adam[1].index.scalars, aliases=aliases)
    refuted(adam, dataclasses.replace(adam[1].index, scalars=scalars), "tied tensors")


def test_code_that_fails_on_an_opened_state_is_no_traceback(adam: Any) -> None:
    engine, opened, following = adam
    index = opened.scalars(lambda table: table.__setitem__("scheduler/last_epoch", -2))     # 1 / (1 + -1)
    with pytest.raises(NotReproducible, match="re-execution failed: ZeroDivisionError"):
        engine.replay(index, opened.fetch, following)


# --- what cannot be committed ---------------------------------------------------------------------------------


def test_a_difference_is_named(adam: Any) -> None:
    opened = adam[1]
    assert first_difference(opened.index, opened.changed(WEIGHT, content=bytes(32))) == f"tensor {WEIGHT}"
    assert first_difference(opened.index, opened.without(MOMENT)) == f"tensor {MOMENT}"
    later = opened.scalars(lambda table: table.__setitem__("counter/applied", 3))
    assert first_difference(opened.index, later) == "scalar counter/applied"


def test_state_that_has_no_encoding_is_named() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["extra"] = {1, 2}
    with pytest.raises(UsageError, match=r"group/0/extra is a builtins\.set"):
        capture(TrainingState(model=model, optimizer=optimizer))


def test_an_optimizer_over_foreign_parameters() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(UsageError, match="not one of the model's"):
        capture(TrainingState(model=nn.Linear(2, 2), optimizer=optimizer))


def test_an_optimizer_that_needs_a_closure() -> None:
    def factory() -> TrainingState:
        model = nn.Linear(2, 2)
        return TrainingState(model=model, optimizer=torch.optim.LBFGS(model.parameters()))

    with pytest.raises(UsageError, match="LBFGS cannot be stepped with zero gradients"):
        schema(factory)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3]),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.StepLR(o, 1)], [2]
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*epoch parameter.*:UserWarning")
def test_schedulers_of_torch_restore(make: Callable[[torch.optim.Optimizer], Any]) -> None:
    """Nested states, Counters with whole-number keys, cyclic momentum declared as varying."""

    def factory() -> TrainingState:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        varying = frozenset({"momentum"})
        return TrainingState(model=model, optimizer=optimizer, scheduler=make(optimizer), varying=varying)

    def steps(state: TrainingState, count: int) -> list[float]:
        rates = []
        for _ in range(count):
            for parameter in state.model.parameters():
                parameter.grad = torch.ones_like(parameter)
            rates.append(state.optimizer.param_groups[0]["lr"])
            state.optimizer.step()
            state.scheduler.step()
        return rates

    first, second = factory(), factory()
    steps(first, 3)
    captured = capture(first)
    restore(second, captured.index, captured.content, schema(factory))
    assert capture(second).index == captured.index
    assert steps(second, 3) == steps(first, 3)
    assert capture(second).index == capture(first).index
