"""W_0 against the distribution that its recipe claims: against an oracle, and what is found and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import measured as harness
import numpy as np
import pytest
import torch

from polcommit.recipes.digits import Digits
from polcommit.records import StateIndex
from polcommit.replaying import TensorOrigin
from polcommit.training.initial import normal, uniform
from polcommit.training.origin import SCALARS, kolmogorov_smirnov, tensor_origins
from polcommit.training.replay import Engine

SEED, OTHER = bytes(range(32)), bytes(range(1, 33))
RECIPE = Digits(steps=10, batch=16)


class Origins:
    """W_0 of a run that claims `SEED`, with some of its tensors replaced, and what is found about each."""

    def __init__(self) -> None:
        self.blobs = harness.Blobs()
        captured = Engine(RECIPE, SEED).initial()
        for tensor in captured.tensors.values():
            self.blobs.put(tensor)
        self.index = captured.index
        self.tensors = {name: tensor.clone() for name, tensor in captured.tensors.items()}

    def found(self, changes: Mapping[str, torch.Tensor] = MappingProxyType({})) -> dict[str, TensorOrigin]:
        entries = tuple(
            replace(entry, content=self.blobs.put(changes[entry.name])) if entry.name in changes else entry
            for entry in self.index.tensors
        )
        return self.of(replace(self.index, tensors=entries))

    def of(self, opened: StateIndex) -> dict[str, TensorOrigin]:
        origins = tensor_origins(RECIPE, opened, self.blobs.fetch, self.index, OTHER)
        return {origin.name: origin for origin in origins}


@pytest.fixture(scope="module")
def origins() -> Origins:
    return Origins()


NAME = "parameter/conv2.weight"


def test_an_honest_w0_passes_under_any_seed(origins: Origins) -> None:
    """Its own, and one that its prover drew elsewhere: what is random is compared as such, all else is equal."""
    found = origins.found()
    assert all(origin.equal for origin in found.values() if origin.constant)
    assert {name for name, origin in found.items() if not origin.constant} == {
        "parameter/conv1.weight", "parameter/conv2.weight", "parameter/out.weight", "parameter/out.bias",
    }  # fmt: skip
    assert all(origin.probability > 1e-4 for origin in found.values())
    elsewhere = Engine(RECIPE, bytes(32)).initial()
    for tensor in elsewhere.tensors.values():
        origins.blobs.put(tensor)
    assert all(origin.equal or not origin.constant for origin in origins.of(elsewhere.index).values())
    assert all(origin.probability > 1e-4 for origin in origins.of(elsewhere.index).values())


@pytest.mark.parametrize("how", ["scaled", "normal", "shifted", "a trained weight", "all one value", "not a number"])
def test_another_distribution_is_improbable(origins: Origins, how: str) -> None:
    honest = origins.tensors[NAME]
    forged = {
        "scaled": honest * 1.2,
        "normal": normal(OTHER, "x", tuple(honest.shape), float(honest.std())),
        "shifted": honest + 0.2 * honest.abs().max(),
        "a trained weight": honest * (1 + 0.5 * torch.sign(honest)),
        "all one value": torch.full_like(honest, float(honest[0, 0, 0, 0])),
        "not a number": honest.clone().index_fill_(0, torch.tensor([0]), float("nan")),
    }[how]
    found = origins.found({NAME: forged})[NAME]
    assert found.probability < 1e-6 and found.size == honest.numel() and not found.constant


def test_a_permuted_w0_is_not_found(origins: Origins) -> None:
    """The limit of the test: the elements are honest, their order is the forger's."""
    honest = origins.tensors[NAME]
    ordered = honest.flatten().sort().values.view(honest.shape)
    assert origins.found({NAME: ordered})[NAME].probability > 1e-4


@pytest.mark.parametrize("name", ["parameter/norm1.weight", "buffer/norm1.running_mean", "buffer/norm2.running_var"])
def test_what_the_recipe_sets_must_be_set_so(origins: Origins, name: str) -> None:
    forged = origins.tensors[name].clone()
    forged[0] += 1e-3
    found = origins.found({name: forged})[name]
    assert found.constant and not found.equal


def test_scalars_and_missing_or_added_tensors_count(origins: Origins) -> None:
    after = Engine(RECIPE, SEED)
    after.initial()
    for group in after.state.optimizer.param_groups:
        group["lr"] = 0.01
    found = origins.of(replace(origins.index, scalars=after.capture().index.scalars))
    assert not found[SCALARS].equal
    fewer = replace(origins.index, tensors=origins.index.tensors[1:])
    name = origins.index.tensors[0].name
    assert not origins.of(fewer)[name].equal
    momentum = replace(origins.index.tensors[-1], name="optimizer/out.weight/momentum_buffer", kind="optimizer")
    more = tuple(sorted((*origins.index.tensors, momentum), key=lambda entry: entry.name))
    assert not origins.of(replace(origins.index, tensors=more))[momentum.name].equal


def by_definition(a: list[float], b: list[float]) -> float:
    """The largest difference of the shares of elements that are at most x, over all x."""
    return max(abs(sum(v <= x for v in a) / len(a) - sum(v <= x for v in b) / len(b)) for x in a + b)


@pytest.mark.parametrize("ties", [False, True])
def test_the_statistic_is_the_one_by_definition(ties: bool) -> None:
    generator = np.random.Generator(np.random.PCG64(5))
    for sizes in ((1, 1), (5, 9), (40, 40), (33, 128)):
        a, b = (generator.normal(size=size) for size in sizes)
        if ties:
            a, b = np.round(a), np.round(b)
        found = kolmogorov_smirnov(a, b)[0]
        assert found == pytest.approx(by_definition(a.tolist(), b.tolist()), abs=1e-12)


def test_the_probability_is_kolmogorovs() -> None:
    """Against scipy's distribution, where it is installed: recipes bring it along."""
    stats = pytest.importorskip("scipy.stats")
    for size in (20, 200, 5000):
        for statistic in (0.01, 0.1, 0.2, 0.5):
            a = np.arange(size, dtype=np.float64)
            b = a + round(statistic * size)
            found, probability = kolmogorov_smirnov(a, b)
            due = float(stats.kstwobign.sf(found * np.sqrt(size / 2)))
            assert probability == pytest.approx(due, rel=1e-9, abs=1e-14)


def test_honest_probabilities_are_uniform_enough() -> None:
    """1,000 pairs of honest tensors: below p as often as p says, or less often."""
    reference = [uniform(SEED, f"r{i}", (600,), 0.1).double().numpy() for i in range(1000)]
    honest = [uniform(OTHER, f"h{i}", (600,), 0.1).double().numpy() for i in range(1000)]
    found = sorted(kolmogorov_smirnov(a, b)[1] for a, b in zip(honest, reference, strict=True))
    for share in (0.01, 0.1, 0.5):
        assert sum(p < share for p in found) / 1000 <= share + 0.03

