"""What is equal bit for bit on every machine: initialisers, dropout masks, sketches and schedules, by fixed vectors."""

from __future__ import annotations

import math
import random
from array import array

import numpy as np
import pytest
import torch
from blake3 import blake3
from torch import nn

from polcommit import prf
from polcommit.errors import EncodingError, UsageError
from polcommit.records import TensorEntry
from polcommit.training.initial import normal, standard_initialize, uniform
from polcommit.training.randomness import Dropout, exact_dropout, isolated, reseed, step_context
from polcommit.training.schedule import half_cosine, warm_up_cosine
from polcommit.training.sketch import sketch, sketch_state
from polcommit.training.state import TrainingState, capture
from polcommit.training.tree import tensor_content

SEED = bytes(range(32))


def hexes(tensor: torch.Tensor) -> str:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist()).hex()


# --- initialisers ---------------------------------------------------------------------------------------------


def test_uniform_equals_its_definition_in_python() -> None:
    words = prf.name_words(SEED, "weights", "a.weight", count=6)
    expected = [np.float32(2 * (word >> 40) / 2**24 - 1) * np.float32(0.3) for word in words]
    assert uniform(SEED, "a.weight", (2, 3), 0.3).tolist() == np.array(expected).reshape(2, 3).tolist()


def test_normal_equals_its_definition_in_python() -> None:
    words = prf.name_words(SEED, "weights", "a.weight", count=12)
    expected = []
    for i in range(4):
        halves = [(word >> shift) & 0xFFFF for word in words[3 * i : 3 * i + 3] for shift in (0, 16, 32, 48)]
        expected.append(float(np.float32(sum(halves) / 2**16 - 6) * np.float32(0.02)))
    assert normal(SEED, "a.weight", (4,), 0.02).tolist() == expected


def test_initialisers_have_fixed_vectors() -> None:
    assert hexes(uniform(SEED, "w", (3,), 0.125)) == UNIFORM
    assert hexes(normal(SEED, "w", (3,), 0.02)) == NORMAL
    big = (1 << 20) + 3         # across blocks
    assert uniform(SEED, "w", (big,), 0.125)[:3].equal(uniform(SEED, "w", (3,), 0.125))
    assert tensor_content(uniform(SEED, "w", (big,), 0.125)).hex() == UNIFORM_BLOCKS
    assert tensor_content(normal(SEED, "w", (big,), 0.02)).hex() == NORMAL_BLOCKS


def test_initialisers_are_distributed_as_they_say() -> None:
    u, n = uniform(SEED, "u", (100_000,), 0.5).double(), normal(SEED, "n", (100_000,), 2.0).double()
    assert abs(u.mean()) < 0.005 and u.abs().max() <= 0.5 and abs(u.std() - 1 / math.sqrt(12)) < 0.002
    assert abs(n.mean()) < 0.03 and n.abs().max() <= 12 and abs(n.std() - 2) < 0.03


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 6, 3, groups=2)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight
        self.free = nn.Parameter(torch.full((3, 3), 7.0))
        self.scale = nn.Parameter(torch.full((3,), 7.0))
        self.frozen = nn.Parameter(torch.full((3,), 7.0), requires_grad=False)
        self.small = nn.Linear(4, 4, dtype=torch.bfloat16)


def test_standard_initialisation_by_the_kind_of_module() -> None:
    model = Zoo()
    standard_initialize(model, SEED)
    assert model.embedding.weight.equal(normal(SEED, "embedding.weight", (5, 4), 0.02))
    assert model.conv.weight.equal(uniform(SEED, "conv.weight", (6, 2, 3), 1 / math.sqrt(6)))
    assert model.conv.bias.equal(uniform(SEED, "conv.bias", (6,), 1 / math.sqrt(6)))
    assert model.norm.weight.eq(1).all() and model.norm.bias.eq(0).all()
    assert model.free.equal(normal(SEED, "free", (3, 3), 0.02)) and model.scale.eq(0).all() and model.frozen.eq(7).all()
    assert model.small.weight.equal(uniform(SEED, "small.weight", (4, 4), 0.5).bfloat16())
    assert model.head.bias.equal(uniform(SEED, "head.bias", (5,), 0.5))


# --- the generators, and dropout ------------------------------------------------------------------------------


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # not for secrets


def test_reseeding_repeats_and_isolation_gives_back() -> None:
    reseed(2**64 - 1)
    before = draws()
    with isolated():
        reseed(5)
        first = draws()
        reseed(5)
        assert draws() == first
        reseed(5 + 2**32)       # all 64 bits count, but for torch's generator on the CPU, which takes 32
        assert all(a != b for a, b in zip(draws()[:2], first[:2], strict=True))
    following = draws()
    reseed(2**64 - 1)
    assert (draws(), draws()) == (before, following)


def test_dropout_masks_equal_their_definition() -> None:
    x = torch.ones(2, 5)
    with step_context(SEED, 3, 1):
        exact_dropout(x, 0.5)
        second = exact_dropout(x, 0.25)
    raw = prf.words(SEED, "dropout", 3, 1, 1, count=5).tobytes()
    words = array("I", raw)
    expected = [(1 / 0.75 if word >= 2**30 else 0.0) for word in words]
    assert second.reshape(-1).tolist() == pytest.approx(expected, abs=1e-7)
    assert hexes(exact_dropout_of_ones()) == DROPOUT


def exact_dropout_of_ones() -> torch.Tensor:
    with step_context(SEED, 1, 0):
        return exact_dropout(torch.ones(6), 0.3)


def test_dropout_has_its_rate_keeps_the_mean_and_passes_gradients() -> None:
    x = torch.ones(200_000, requires_grad=True)
    with step_context(SEED, 1, 0):
        y = exact_dropout(x, 0.3)
    y.sum().backward()
    assert abs(float(y.eq(0).double().mean()) - 0.3) < 0.005 and abs(float(y.detach().double().mean()) - 1) < 0.01
    assert x.grad is not None and x.grad.equal(y.detach())
    with step_context(SEED, 1, 0):
        assert exact_dropout(torch.ones(3, dtype=torch.bfloat16), 0.3).dtype == torch.bfloat16


def test_dropout_outside_a_step_and_in_eval_mode() -> None:
    layer = Dropout(0.5)
    with pytest.raises(UsageError, match="outside a step"):
        layer(torch.ones(3))
    assert layer.eval()(torch.ones(3)).tolist() == [1, 1, 1]
    with pytest.raises(UsageError, match="dropout of 1"):
        exact_dropout(torch.ones(3), 1.0)


# --- sketches -------------------------------------------------------------------------------------------------


def by_definition(vector: list[float]) -> list[float]:
    """For less than one block: pad with zeros to a power of two, and fold."""
    words = prf.words(SEED, "sketch", count=len(vector))
    values = []
    for j in range(64):
        signed = [x if word >> j & 1 else -x for x, word in zip(vector, words, strict=True)]
        signed += [0.0] * ((1 << (len(vector) - 1).bit_length()) - len(vector))
        while len(signed) > 1:
            half = len(signed) // 2
            signed = [a + b for a, b in zip(signed[:half], signed[half:], strict=True)]
        values.append(signed[0])
    return values


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 33, 1000])
def test_a_sketch_equals_its_definition(size: int) -> None:
    tensors = [uniform(SEED, "a", (size,), 1.0), normal(SEED, "b", (3, 2), 5.0)]
    flat = [float(x) for tensor in tensors for x in tensor.reshape(-1)]
    assert list(sketch(tensors, SEED)) == by_definition(flat)


def test_sketches_have_a_fixed_vector() -> None:
    values = sketch([uniform(SEED, "w", ((1 << 20) + 77,), 1.0), torch.ones(5)], SEED)
    assert blake3(np.array(values, dtype="<f8").tobytes()).hexdigest() == SKETCH
    assert sketch([], SEED) == (0.0,) * 64


def test_sketches_are_linear_and_do_not_depend_on_how_the_vector_is_cut() -> None:
    a, b = uniform(SEED, "a", (5000,), 1.0).double(), uniform(SEED, "b", (5000,), 1.0).double()
    together, apart = sketch([a - b], SEED), [x - y for x, y in zip(sketch([a], SEED), sketch([b], SEED), strict=True)]
    assert together == pytest.approx(apart, abs=1e-9)
    assert sketch([a[:17], a[17:].reshape(-1, 1)], SEED) == sketch([a], SEED)
    # the squares estimate the squared length: 64 values, so within a few times sqrt(2/64)
    assert sum(v * v for v in together) / 64 == pytest.approx(float((a - b).square().sum()), rel=0.8)


def test_sums_that_are_not_finite() -> None:
    assert all(math.isnan(value) for value in sketch([torch.tensor([math.inf, -math.inf, 1.0, math.nan])], SEED))
    assert all(abs(value) == math.inf for value in sketch([torch.tensor([1e308, math.inf], dtype=torch.float64)], SEED))


def test_the_sketch_of_a_state_counts_floating_parameters_in_the_order_of_their_names() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    captured = capture(TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)))
    names = ("0.bias", "0.weight", "1.bias", "1.weight")
    assert sketch_state(captured.index, captured.content, SEED) == sketch(map(model.get_parameter, names), SEED)

    def short(entry: TensorEntry) -> bytes:
        return bytes(captured.content(entry))[:-1]

    with pytest.raises(EncodingError, match=r"parameter/0.bias: .*7 bytes"):
        sketch_state(captured.index, short, SEED)


# --- schedules ------------------------------------------------------------------------------------------------


def test_the_cosine_is_one() -> None:
    for i in range(1001):
        assert abs(half_cosine(i / 1000) - (1 + math.cos(math.pi * i / 1000)) / 2) < 1e-15
    assert (half_cosine(0.0), half_cosine(1.0), half_cosine(2.0), half_cosine(-1.0)) == (1.0, 0.0, 0.0, 1.0)
    assert half_cosine(1 / 3).hex() == COSINE


def test_warm_up() -> None:
    assert [warm_up_cosine(t, 10, 4) for t in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert warm_up_cosine(10, 10, 4, 0.1) == 0.1 and warm_up_cosine(1, 10, 0) < 1


# --- fixed vectors: these change only with the version of the generator ---------------------------------------

UNIFORM = "a0dab9bc28a663bddefda3bd"
NORMAL = "c2f5adbc0ad71abdeb31163c"
UNIFORM_BLOCKS = "d9b2fdf2b160453d54f4de65bd8c33317ed7218c9df1f93f79d15001b1969ea4"
NORMAL_BLOCKS = "2cd2f4fbc367f7eb7ff7a6d27409efb7ee2d95139e32f2ae4471a8984eb478e8"
DROPOUT = "6edbb63f6edbb63f00000000000000006edbb63f00000000"
SKETCH = "c962993cb4d573a3e61cf48a6a6591e6f2f1c2f2837ad28b45ffc5b5d54c9562"
COSINE = "0x1.8000000000001p-1"
