"""The recipes `resnet20-cifar10` and `resnet50-cifar100`: the papers' nets and schedules, learning, re-execution."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polcommit.errors import EncodingError, UsageError
from polcommit.recipes.cifar import CIFAR100, digits_as_cifar10
from polcommit.recipes.resnet import Basic, Bottleneck, OnCifar, ResNet20Cifar10, ResNet50Cifar100
from polcommit.session.recipes import make_recipe, recipe_name
from polcommit.training.environment import set_determinism
from polcommit.training.loading import Loader
from polcommit.training.recipe import load_recipe
from polcommit.training.replay import Engine

SEED = bytes(range(32))


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """An operation without a deterministic kernel raises."""
    set_determinism()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar10")
    digits_as_cifar10(folder)
    return folder


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 and 10 records with labels from everywhere in the range."""
    folder = tmp_path_factory.mktemp("cifar100")
    numbers = np.random.RandomState(3)
    for names, count in ((CIFAR100.train, 40), (CIFAR100.test, 10)):
        records = numbers.randint(0, 256, (count, 3074)).astype(np.uint8)
        records[:, 0] %= 20
        records[:, 1] %= 100
        (folder / names[0]).write_bytes(records.tobytes())
    return folder


def tiny10(folder: Path, **options: Any) -> ResNet20Cifar10:
    return ResNet20Cifar10(data=folder, **({"steps": 40, "batch": 32, "width": 8, "blocks": "1 1 1"} | options))


def tiny100(folder: Path, **options: Any) -> ResNet50Cifar100:
    return ResNet50Cifar100(data=folder, **({"steps": 10, "batch": 8, "width": 4, "blocks": "1 2"} | options))


def test_it_learns_and_re_executes(cifar10: Path) -> None:
    recipe = tiny10(cifar10, steps=60, shift=2)
    engine = Engine(recipe, SEED)
    engine.initial()
    assert recipe.evaluate(engine.state) < 0.25
    results = []
    for batch in Loader(recipe, SEED, 1, 60):
        if batch.step == 50:
            kept = engine.capture()
            bytes_of = {entry.name: bytes(kept.content(entry)) for entry in kept.index.tensors}
        results.append(engine.step(batch))
        if batch.step == 50:
            after, middle = engine.capture().index, batch
    assert sum(result.loss for result in results[-5:]) / 5 < results[0].loss - 0.5
    assert recipe.evaluate(engine.state) > 0.35
    again, captured = Engine(recipe, SEED).replay(kept.index, lambda entry: bytes_of[entry.name], middle)
    assert again == results[49] and captured.index == after


def test_bottlenecks_re_execute_from_the_middle(cifar100: Path) -> None:
    recipe = tiny100(cifar100)
    engine = Engine(recipe, SEED)
    engine.initial()
    assert 0 <= recipe.evaluate(engine.state) <= 1 and engine.state.model.training
    *first, last = Loader(recipe, SEED, 1, 10, workers=2)
    for batch in first:
        engine.step(batch)
    kept = engine.capture()
    bytes_of = {entry.name: bytes(kept.content(entry)) for entry in kept.index.tensors}
    result = engine.step(last)
    again, captured = Engine(recipe, SEED).replay(kept.index, lambda entry: bytes_of[entry.name], last)
    assert again == result and captured.index == engine.capture().index


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [ResNet20Cifar10, ResNet50Cifar100])
def test_the_papers_nets_re_execute_on_cuda(kind: type[OnCifar], cifar10: Path, cifar100: Path) -> None:
    recipe = kind(data=cifar10 if kind is ResNet20Cifar10 else cifar100, steps=4, batch=16, device="cuda")
    engine = Engine(recipe, SEED)
    engine.initial()
    *first, last = Loader(recipe, SEED, 1, 4)
    for batch in first:
        engine.step(batch)
    kept = engine.capture()
    bytes_of = {entry.name: bytes(kept.content(entry)) for entry in kept.index.tensors}
    result = engine.step(last)
    again, captured = Engine(recipe, SEED).replay(kept.index, lambda entry: bytes_of[entry.name], last)
    assert again == result and captured.index == engine.capture().index


def test_a_changed_momentum_buffer_changes_the_step(cifar10: Path) -> None:
    """What re-execution rests on: the step depends on every part of the state that is opened."""
    recipe = tiny10(cifar10, steps=3)
    engine = Engine(recipe, SEED)
    engine.initial()
    first, second = Loader(recipe, SEED, 1, 2)
    engine.step(first)
    name = "stages.1.0.conv1.weight"
    parameter = engine.state.model.get_parameter(name)
    engine.state.optimizer.state[parameter]["momentum_buffer"].mul_(1.5)
    engine.step(second)
    changed = engine.capture().index
    honest = Engine(recipe, SEED)
    honest.initial()
    honest.step(first)
    honest.step(second)
    assert honest.capture().index != changed


@pytest.mark.parametrize(
    ("recipe", "parameters", "layers"), [(ResNet20Cifar10(), 269_722, 20), (ResNet50Cifar100(), 23_705_252, 50)]
)
def test_the_defaults_are_the_papers_nets(recipe: OnCifar, parameters: int, layers: int) -> None:
    """0.27 million of He et al., table 6; ResNet-50 with a 3x3 first convolution and 100 classes."""
    with torch.device("meta"):
        net = recipe.net()
        logits = net(torch.zeros(2, 3, 32, 32))
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert logits.shape == (2, recipe.FORMAT.classes)
    counted = [module for name, module in net.named_modules() if "shortcut" not in name]
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in counted) == layers


def test_a_block_with_nothing_but_its_shortcut() -> None:
    """Option A: every other pixel, with channels of zeros around; a last norm of scale zero leaves nothing else."""
    block = Basic(2, 4, 2)
    nn.init.zeros_(block.norm2.weight)
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    out = block(x)
    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2]) and not out[:, 0].any() and not out[:, 3].any()


def test_bottlenecks_project_only_where_shapes_differ() -> None:
    assert len(Bottleneck(16, 4, 1).shortcut) == 0
    assert len(Bottleneck(16, 4, 2).shortcut) == 2 and len(Bottleneck(8, 4, 1).shortcut) == 2


def test_w0_is_pytorchs_default_in_distribution_and_comes_from_the_seed(cifar10: Path) -> None:
    engine = Engine(tiny10(cifar10), SEED)
    first = engine.initial().index
    for module in engine.state.model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and not bool(module.bias.any())
    assert Engine(tiny10(cifar10), SEED).initial().index == first
    assert Engine(tiny10(cifar10), bytes(32)).initial().index != first


# --- schedule -------------------------------------------------------------------------------------------------


def test_the_papers_drops_come_after_their_epochs() -> None:
    """200 epochs of 390 steps; tenths after 100 and 150, fifths after 60, 120 and 160."""
    for recipe, epochs in ((ResNet20Cifar10(), (100, 150)), (ResNet50Cifar100(), (60, 120, 160))):
        assert recipe.steps == 200 * 390 and recipe.batch == 128 and recipe.momentum == 0.9
        rates = [recipe.learning_rate(t) for t in range(1, recipe.steps + 1)]
        assert rates[0] == 0.1 and rates == sorted(rates, reverse=True)
        assert [t for t, (a, b) in enumerate(pairwise(rates), start=1) if a != b] == [390 * epoch for epoch in epochs]


@pytest.mark.parametrize(
    ("recipe", "milestones"),
    [
        (ResNet20Cifar10(steps=40), [20, 30]),
        (ResNet50Cifar100(steps=50), [15, 30, 40]),
        (ResNet20Cifar10(steps=7, drops="30 60", factor=1 / 3), [3, 5]),
        (ResNet20Cifar10(steps=7, drops=""), []),
    ],
)
def test_rates_are_those_of_torchs_scheduler(recipe: OnCifar, milestones: list[int]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.peak)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=recipe.factor)
    for t in range(1, recipe.steps + 1):
        assert recipe.learning_rate(t) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def test_the_optimizer_sees_the_schedule(cifar100: Path) -> None:
    recipe = tiny100(cifar100, steps=6, drops="34 67")
    engine = Engine(recipe, SEED)
    engine.initial()
    rates = [engine.step(batch).learning_rate for batch in Loader(recipe, SEED, 1, 6)]
    assert rates == [recipe.learning_rate(t) for t in range(1, 7)] and len(set(rates)) == 3


# --- configuration and data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [ResNet20Cifar10(), ResNet50Cifar100(), tiny10(Path("x")), tiny100(Path("x"))])
def test_a_configuration_comes_back_without_the_folder(recipe: OnCifar) -> None:
    again = type(recipe).from_configuration(recipe.configuration(), data=recipe.data)
    assert again == recipe
    assert "data" not in dict(recipe.configuration()) and "device" not in dict(recipe.configuration())


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": ""}, {"blocks": "0"}, {"blocks": "201"}, {"blocks": "3,3,3"}, {"blocks": "3  3"}, {"blocks": "03"},
        {"blocks": "1 1 1 1 1 1"}, {"blocks": "-1"}, {"blocks": "1\n"}, {"blocks": "\u0663"}, {"blocks": "9" * 5000},
        {"width": 0}, {"width": 10**9}, {"shift": -1}, {"shift": 33}, {"tilt": 1.5}, {"tilt": float("nan")},
        {"drops": "50 50"}, {"drops": "75 50"}, {"drops": "0 50"}, {"drops": "100"}, {"drops": "0.5"}, {"batch": 0},
    ],
)  # fmt: skip
def test_a_configuration_that_asks_for_too_much_is_refused(change: dict[str, Any]) -> None:
    """It comes from the prover: nothing is built from it before it was found reasonable."""
    pairs = dict(ResNet20Cifar10().configuration()) | {name: str(value) for name, value in change.items()}
    with pytest.raises(EncodingError):
        ResNet20Cifar10.from_configuration(tuple(sorted(pairs.items())))
    with pytest.raises(UsageError):
        ResNet20Cifar10(**change)


def test_both_are_installed_by_name(cifar10: Path) -> None:
    assert load_recipe("resnet50-cifar100") is ResNet50Cifar100
    recipe = make_recipe("resnet20-cifar10", {"blocks": "1 1", "width": "4"}, data=str(cifar10))
    assert recipe == ResNet20Cifar10(blocks="1 1", width=4, data=cifar10)
    assert recipe_name(recipe) == "resnet20-cifar10" and len(recipe.source()) == 1500
    with pytest.raises(UsageError, match="recipe resnet20-cifar10 needs data"):
        make_recipe("resnet20-cifar10", {})


def test_without_a_folder_it_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="needs CIFAR-100") as caught:
        ResNet50Cifar100().source()
    assert caught.value.hint is not None and "binary version" in caught.value.hint


def test_the_source_digest_covers_the_reader() -> None:
    """A verifier must not read or augment samples by other code than was registered."""
    assert "polcommit.recipes.cifar" in ResNet20Cifar10.SOURCES

    class Without(ResNet20Cifar10):
        SOURCES = ()

    Without.__module__ = ResNet20Cifar10.__module__
    assert Without.source_digest() != ResNet20Cifar10.source_digest()


def test_a_plain_sample_is_normalised_and_nothing_else(cifar10: Path) -> None:
    recipe = tiny10(cifar10, shift=0)
    image, label = recipe.source()[4]
    symmetric = np.maximum(image, image[:, :, ::-1])
    x, same = recipe.transform((symmetric, label))
    assert x.shape == (3, 32, 32) and x.dtype == torch.float32 and same == label
    mean, deviation = (np.array(values)[:, None, None] for values in (recipe.MEAN, recipe.DEVIATION))
    assert np.allclose(x.numpy(), (symmetric / 255 - mean) / deviation, atol=1e-6)
