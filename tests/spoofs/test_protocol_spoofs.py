"""Attacks on keys, ledger, draw and openings: each is carried out, and what stops it is what is meant to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from trials import FewDigits

from polcommit.recipes.resnet import ResNet20Cifar10, ResNet50Cifar100
from polcommit.records import TensorEntry
from polcommit.spoofs.attacks.copies import permutation
from polcommit.spoofs.base import PreconditionNotMet, ProtocolSpoof
from polcommit.spoofs.catalogue import SPOOFS, find_spoof
from polcommit.spoofs.opponent.arena import Arena
from polcommit.spoofs.opponent.attempt import Attempt
from polcommit.spoofs.opponent.setting import Setting
from polcommit.training.recipe import Recipe

SETTING = Setting(recipe=FewDigits(steps=10, width=4))

#: What ends each, where the forger's run is registered beforehand: (outcome, check).
REGISTERED = {
    "stolen-parent": ("inconclusive", "V12"),
    "laundered-parent": ("inconclusive", "V12"),
    "replayed-anchor": ("rejected", "V3"),
    "stripped-signature": ("rejected", "V3"),
    "front-run-commitment": ("rejected", "V4"),
    "reanchored-transcript": ("rejected", "V12"),
    "permuted-transcript": ("rejected", "V12"),
    "permuted-retraining": ("rejected", "V12"),
    "same-model-later": ("rejected", "V13"),
    "early-heartbeat": ("rejected", "V10"),
    "data-after-anchor": ("rejected", "V9"),
    "extra-tensor": ("rejected", "V8"),
    "missing-tensor": ("rejected", "V10"),
    "forged-optimizer-settings": ("rejected", "V10"),
    "other-release": ("rejected", "V13"),
    "refuses-to-open": ("inconclusive", "V6"),
    "cannot-reproduce": ("rejected", "V10"),
    "opens-other-steps": ("rejected", "V7"),
    "grinds-nonces": ("rejected", "V6"),
    "grinds-beacons": ("rejected", "V10"),
    "several-roots": ("rejected", "V4"),
    "registers-again": ("rejected", "V5"),
    "early-challenge": ("rejected", "V6"),
    "foreign-environment": ("inconclusive", "V10"),
}
#: Where it is not, and the forger names the victim's beacon as its seed.
POST_HOC = {
    "reanchored-transcript": ("rejected", "V9"),
    "same-model-later": ("rejected", "V13"),
    "permuted-retraining": ("missed", None),
}


@pytest.fixture(scope="module")
def registered() -> Iterator[Arena]:
    with Arena.open(SETTING) as arena:
        yield arena


@pytest.fixture(scope="module")
def post_hoc() -> Iterator[Arena]:
    with Arena.open(replace(SETTING, mode="post hoc")) as arena:
        yield arena


def tried(arena: Arena, name: str) -> Attempt:
    return arena.try_out(find_spoof(name)())


@pytest.mark.parametrize("name", REGISTERED)
def test_what_stops_it(registered: Arena, name: str) -> None:
    outcome, check = REGISTERED[name]
    attempt = tried(registered, name)
    found = attempt.findings[-1 if attempt.outcome == "rejected" else 0]
    assert (attempt.outcome, found.check) == (outcome, check), attempt.why


def test_shopping_for_verifiers_leaves_its_traces(registered: Arena) -> None:
    """The first verdict is missing in the second bundle; steps that screens add may be met besides."""
    spoof = find_spoof("shops-for-verifiers")()
    attempt = registered.try_out(spoof)
    assert attempt.outcome in ("rejected", "inconclusive") and spoof.notes["first verdict"] == "rejected"
    assert {finding.check for finding in attempt.findings} & {"V6", "V10"}


def test_lying_about_sketches_does_not_hide_a_step_that_is_drawn(registered: Arena) -> None:
    """Whichever comes first: a sketch that is checked, or the step."""
    attempt = tried(registered, "lying-sketches")
    assert attempt.outcome == "rejected" and attempt.findings[-1].check in ("V8", "V10")


def test_every_protocol_spoof_is_tried_here() -> None:
    protocol = {spoof.name for spoof in SPOOFS if issubclass(spoof, ProtocolSpoof) and spoof.family != "adaptive"}
    assert protocol == {*REGISTERED, "lying-sketches", "shops-for-verifiers"}


@pytest.mark.parametrize("name", POST_HOC)
def test_a_post_hoc_run_under_the_victims_beacon_is_another_run(post_hoc: Arena, name: str) -> None:
    """Its seed counts with account and key: what is trained honestly is accepted, and is not the victim's model."""
    outcome, check = POST_HOC[name]
    attempt = tried(post_hoc, name)
    assert attempt.outcome == outcome and not attempt.registered, attempt.why
    assert (attempt.findings[-1].check if attempt.findings else None) == check


@pytest.mark.parametrize("mode", ["registered", "post_hoc"])
def test_a_stolen_model_that_a_post_hoc_parent_ends_at_is_nobodys_start(
    request: pytest.FixtureRequest, mode: str
) -> None:
    """It cannot be re-executed; a child's own registration does not count, and neither does a friend's word."""
    spoof = find_spoof("laundered-parent")()
    attempt = request.getfixturevalue(mode).try_out(spoof)
    assert spoof.notes["distance of the parent to W_T"] == 0.0
    assert str(spoof.notes["verdict on the parent"]).startswith("rejected: V10")
    found = "inconclusive: V12: verdict on the parent run"
    assert (spoof.notes["its true verdict"], spoof.notes["a friend's"]) == (found, found)
    assert attempt.outcome == "inconclusive" and not attempt.registered


def test_grinding_chooses_where_a_run_begins_and_no_more(registered: Arena) -> None:
    spoof = find_spoof("grinds-beacons")()
    assert registered.try_out(spoof).outcome == "rejected"
    assert spoof.notes["registrations, and anchored ones"] == "5 and 1"
    assert spoof.notes["an honest run from the next best"] == "accepted"


def test_a_rejected_post_hoc_run_is_registered_again_until_a_small_draw_misses(post_hoc: Arena) -> None:
    """It is accepted, and says how often its account has registered; who asks for detection does not take it."""
    spoof = find_spoof("registers-again")()
    attempt = post_hoc.try_out(spoof)
    assert str(spoof.notes["first verdict"]).startswith("rejected: V10"), "every step was drawn"
    assert attempt.outcome == "accepted" and attempt.probability < 0.2
    times = 1 + int(spoof.notes["registered again"])
    assert spoof.notes["registrations, and anchored ones"] == f"{times} and {times}"
    assert spoof.notes["who asks for 90 % detection says"] == "inconclusive"


def test_reordered_states_do_not_re_execute(post_hoc: Arena) -> None:
    """Under the victim's beacon the order of the data is another one all the same."""
    attempt = tried(post_hoc, "permuted-transcript")
    assert (attempt.outcome, attempt.findings[-1].check) == ("rejected", "V9")


def test_a_victim_of_front_running_is_accepted_all_the_same(registered: Arena) -> None:
    spoof = find_spoof("front-run-commitment")()
    registered.try_out(spoof)
    assert spoof.notes == {"came first": True, "verdict on the victim": "accepted"}


def test_which_units_are_hidden_must_be_known() -> None:
    with pytest.raises(PreconditionNotMet, match="hidden units of Linear"):
        permutation(torch.nn.Linear(2, 2), torch.Generator())


def model_of(recipe: Recipe) -> torch.nn.Module:
    """In float64, and with other statistics than those of a fresh net, all of them different."""
    model = recipe.build().model.double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn + 0.5 if "running_var" in name else (drawn - 0.5) / 2)
    return model


@pytest.mark.parametrize(
    ("recipe", "inputs", "moved"),
    [
        (SETTING.recipe, (3, 1, 8, 8), {"conv1.weight", "norm2.running_var", "conv2.weight", "out.weight"}),
        (ResNet20Cifar10(width=4), (2, 3, 32, 32), {"stages.0.0.conv1.weight", "stages.0.0.conv2.weight"}),
        (ResNet50Cifar100(width=4), (2, 3, 32, 32), {"stages.0.0.conv2.weight", "stages.0.0.conv3.weight"}),
    ],
    ids=["digits", "resnet20", "resnet50"],
)
def test_reordering_keeps_the_function(recipe: Recipe, inputs: tuple[int, ...], moved: set[str]) -> None:
    model, other = model_of(recipe), model_of(recipe)
    change = permutation(model, torch.Generator().manual_seed(1))
    parameters = dict(model.named_parameters())
    found = {}
    for name, tensor in model.state_dict().items():
        kind = "parameter" if name in parameters else "buffer"
        entry = TensorEntry(
            name=f"{kind}/{name}", kind=kind, dtype="float32", shape=tuple(tensor.shape), content=bytes(32)
        )
        found[name] = change(entry, tensor)
    other.load_state_dict(found)
    assert moved <= {name for name, tensor in model.state_dict().items() if not torch.equal(found[name], tensor)}
    images = torch.rand(inputs, dtype=torch.float64)
    assert torch.allclose(model(images), other(images), rtol=1e-9)
