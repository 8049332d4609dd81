"""Noise profiles: one encoding, one JSON form, and the pair of environments that each is for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from polcommit.encoding import decode, encode
from polcommit.errors import EncodingError, UsageError
from polcommit.profiles import ANY, Bound, Profile, Spread, digest, find, from_json, require_applies, to_json
from polcommit.records import Fingerprint

SOURCE = bytes(range(32))
CONFIGURATION = (("batch", "64"), ("peak", "0.05"), ("steps", "300"))


def profile(**changes: Any) -> Profile:
    made = Profile(
        name="digits, two threads and one",
        recipe="digits",
        recipe_source=SOURCE,
        configuration=(("batch", "64"), ("peak", "0.05")),
        differs=(("onednn", "yes", "no"), ("processor", ANY, ANY), ("variable X", "", "1")),
        holds=(("device", "cpu"), ("torch", "2.9")),
        alpha=0.01,
        alpha_preconditioned=None,
        tensors=(Bound(name="a.weight", relative=0.1, floor=1e-7, zeros=0),),
        buffers=(Bound(name="norm.running_mean", relative=1e-5, floor=1e-8, zeros=0),),
        distances=Spread(mean=1e-5, sd=1e-4, bound=0.01),
        distances_preconditioned=None,
        loss=1e-6,
        towards=Spread(mean=0.001, sd=0.08, bound=0.5),
        pairs=Spread(mean=0.01, sd=0.1, bound=0.9),
        honest=60,
        quantiles=(("gradient", 0.5, 3e-6), ("gradient", 1.0, 0.0031)),
    )
    return replace(made, **changes)


def environment(**changes: str) -> Fingerprint:
    items = {"device": "cpu", "onednn": "yes", "processor": "one", "threads": "2", "torch": "2.9"}
    return Fingerprint(items=tuple(sorted((items | changes).items())))


THERE = environment()
HERE = environment(onednn="no", processor="other", **{"variable X": "1"})


def fits(of: Profile, claimed: Fingerprint = THERE, here: Fingerprint = HERE, **changes: Any) -> bool:
    given: dict[str, Any] = {"recipe": "digits", "recipe_source": SOURCE, "configuration": CONFIGURATION}
    found = find([of], **(given | changes), claimed=claimed, here=here)
    if found is None:
        with pytest.raises(UsageError, match="noise profile 'digits, two threads and one' is of"):
            require_applies(of, **(given | changes), claimed=claimed, here=here)
    else:
        require_applies(of, **(given | changes), claimed=claimed, here=here)
    return found is of


def test_there_is_one_encoding_and_one_json_form() -> None:
    made = profile(alpha_preconditioned=0.1 + 0.2, distances_preconditioned=Spread(mean=0.0, sd=0.1, bound=0.3))
    assert decode(encode(made), Profile) == made
    text = to_json(made)
    assert from_json(text, "x.json") == made
    assert to_json(from_json(text, "x.json")) == text
    assert digest(from_json(text, "x.json")) == digest(made) != digest(profile())


def test_it_applies_to_its_pair_in_either_direction() -> None:
    assert fits(profile())
    assert fits(profile(), HERE, THERE)
    assert fits(profile(), here=environment(onednn="no", **{"variable X": "1"}))    # 'any' may also be equal


def test_it_does_not_apply_elsewhere() -> None:
    assert not fits(profile(), recipe="gpt")
    assert not fits(profile(), recipe_source=bytes(32))
    assert not fits(profile(), configuration=(("batch", "32"), ("peak", "0.05"), ("steps", "300")))
    assert not fits(profile(), configuration=(("batch", "64"), ("steps", "300")))
    assert fits(profile(), configuration=(("batch", "64"), ("peak", "0.05"), ("steps", "9")))    # left open


def test_it_does_not_apply_to_another_pair() -> None:
    assert not fits(profile(), THERE, THERE)                                        # it was measured on a difference
    assert not fits(profile(), here=environment(onednn="no", threads="1", **{"variable X": "1"}))
    assert not fits(profile(), here=environment(onednn="no"))                       # half of the difference
    # one item forwards and the other backwards: a pair that nobody measured
    assert not fits(profile(), environment(**{"variable X": "1"}), environment(onednn="no"))


def test_it_does_not_apply_where_what_must_hold_does_not() -> None:
    other = {"torch": "3.0"}
    assert not fits(profile(), environment(**other), environment(onednn="no", **{"variable X": "1"}, **other))
    assert not fits(profile(), here=environment(onednn="no", device="cuda", **{"variable X": "1"}))


@pytest.mark.parametrize(
    ("message", "claimed", "changes"),
    [
        ("is of recipe 'digits', not 'gpt'", THERE, {"recipe": "gpt"}),
        ("is of another source of recipe 'digits'", THERE, {"recipe_source": bytes(32)}),
        ("'peak' '0.05', not '0.1'", THERE, {"configuration": (("batch", "64"), ("peak", "0.1"))}),
        ("'torch' '2.9', and the claimed one has '3.0'", environment(torch="3.0"), {}),
        ("'threads' is equal there, here '8' and '2'", environment(threads="8"), {}),
    ],
)
def test_what_does_not_fit_is_named(message: str, claimed: Fingerprint, changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"recipe": "digits", "recipe_source": SOURCE, "configuration": CONFIGURATION}
    with pytest.raises(UsageError) as caught:
        require_applies(profile(), **(given | changes), claimed=claimed, here=HERE)
    assert message in caught.value.message
    assert caught.value.hint is not None and "polcommit calibrate" in caught.value.hint


def test_the_first_that_applies_is_taken() -> None:
    given: dict[str, Any] = {"recipe": "digits", "recipe_source": SOURCE, "configuration": CONFIGURATION}
    own, shipped, other = profile(alpha=0.2), profile(alpha=0.01), profile(recipe="gpt")
    assert find([other, own, shipped], **given, claimed=THERE, here=HERE) is own
    assert find([other], **given, claimed=THERE, here=HERE) is None
    assert find([], **given, claimed=THERE, here=HERE) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.0}, {"alpha": 0.51}, {"alpha": math.nan}, {"alpha": math.inf}, {"alpha": -1e-3},
        {"alpha_preconditioned": math.nan}, {"alpha_preconditioned": 0.1}, {"alpha_preconditioned": 2.0},
        {"loss": math.nan}, {"honest": 0},
        {"holds": (("torch", "2.9"), ("device", "cpu"))}, {"differs": (("a", "1", "2"), ("a", "1", "3"))},
        {"tensors": (Bound(name="a", relative=1.0, floor=0.0, zeros=0),) * 2},
        {"quantiles": (("gradient", 0.5, math.nan),)},
    ],
)  # fmt: skip
def test_one_that_makes_no_sense_does_not_exist(changes: dict[str, Any]) -> None:
    with pytest.raises(EncodingError):
        profile(**changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_nor_does_a_bound_that_bounds_nothing(value: float) -> None:
    with pytest.raises(EncodingError):
        Bound(name="a", relative=value, floor=0.0, zeros=0)
    with pytest.raises(EncodingError):
        Bound(name="a", relative=0.0, floor=value, zeros=0)
    with pytest.raises(EncodingError):
        Spread(mean=0.0, sd=value, bound=1.0)
    with pytest.raises(EncodingError):
        Spread(mean=0.0, sd=0.1, bound=value)


def damaged(change: Any) -> str:
    document = json.loads(to_json(profile()))
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("is no noise profile", "{"),
        ("is no noise profile", "[]"),
        ("is no noise profile", "[" * 100_000),
        ("has no entry 'format'", "{}"),
        ("an entry is there twice", to_json(profile()).replace('"alpha":', '"alpha": 0.4, "alpha":', 1)),
        ("NaN is no number", to_json(profile()).replace('"alpha": 0.01', '"alpha": NaN')),
        ("alpha inf", to_json(profile()).replace('"alpha": 0.01', '"alpha": 1e999')),
        ("'alpha': out of range", to_json(profile()).replace('"alpha": 0.01', f'"alpha": 1{"0" * 400}')),
        ("unknown or missing: tolerance", damaged(lambda d: d.update(tolerance=1))),
        ("unknown or missing: honest", damaged(lambda d: d.pop("honest"))),
        ("'honest': '60.0' is not of type int", damaged(lambda d: d.update(honest=60.0))),
        ("'alpha': 'True' is not of type float", damaged(lambda d: d.update(alpha=True))),
        ("'alpha': '0.01' is not of type float", damaged(lambda d: d.update(alpha="0.01"))),
        ("'holds'[0]: 3 items instead of 2", damaged(lambda d: d["holds"][0].append("x"))),
        ("'tensors': not a list", damaged(lambda d: d.update(tensors={}))),
        ("is not hexadecimal", damaged(lambda d: d.update(recipe_source="xyz"))),
        ("recipe_source: 2 bytes instead of 32", damaged(lambda d: d.update(recipe_source="abcd"))),
        ("a.weight: zeros -1", damaged(lambda d: d["tensors"][0].update(zeros=-1))),
        ("alpha 0.6: above 0 and at most 0.5", damaged(lambda d: d.update(alpha=0.6))),
    ],
)
def test_a_file_that_is_none_is_named(message: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_json(text, "noise.json")
    assert message in caught.value.message
    assert caught.value.message.startswith("noise.json")
