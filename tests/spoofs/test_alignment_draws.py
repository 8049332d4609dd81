"""Honest draws for the alignment test: real re-executions, counted as they should be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from handmade import by_hand

from polcommit.profiles import Spread
from polcommit.spoofs.measure.alignment_draws import DRAWN, Draw, draws, rejected, summary, upper_bound, without_onednn


def test_draws_are_real_repeat_and_resume(tmp_path: Path) -> None:
    cache = tmp_path / "draws.jsonl"
    first = draws("adamw", 0.003, 2, cache)
    kept = cache.read_text().splitlines()
    again = draws("adamw", 0.003, 3, cache)
    assert again[:2] == first == draws("adamw", 0.003, 2)
    assert cache.read_text().splitlines()[:2] == kept and len(cache.read_text().splitlines()) == 3
    for draw in again:
        assert len(draw.towards) == len(draw.distances) == len(draw.preconditioned) == DRAWN
        assert len(draw.pairs) == math.comb(DRAWN, 2)
        assert all(0 <= distance < 1e-3 for distance in draw.distances)
        assert all(-1 <= cosine <= 1 for cosine in (*draw.towards, *draw.pairs))
    assert first[0].towards != first[1].towards, "each is a run of its own"


def test_draws_of_sgd_have_nothing_preconditioned() -> None:
    (draw,) = draws("sgd", 0.05, 1)
    assert draw.preconditioned == () and max(draw.distances) > 0


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (Draw((0.0,) * 4, (), (0.0,) * 4, (0.0,) * 6), False),
        (Draw((0.0,) * 4, (), (1.0,) * 4, (0.0,) * 6), True),
        (Draw((0.0,) * 4, (), (0.0,) * 4, (1.0,) * 6), True),
        (Draw((0.4,) * 4, (), (0.0,) * 4, (0.0,) * 6), True),
    ],
)
def test_a_draw_is_judged_by_the_verifiers_own_test(draw: Draw, expected: bool) -> None:
    assert rejected(draw, by_hand(aligned=Spread(mean=0.0, sd=0.1, bound=0.9))) == expected


def test_a_summary_counts_what_is_refuted() -> None:
    good, bad = Draw((0.0,) * 4, (), (0.1,) * 4, (0.0,) * 6), Draw((0.0,) * 4, (), (1.0,) * 4, (0.0,) * 6)
    found = summary([good, good, bad], by_hand(aligned=Spread(mean=0.0, sd=0.1, bound=0.9)))
    assert (found["draws"], found["rejected"], found["largest mean towards"]) == (3, 1, 1.0)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("rejects", "count", "level"),
    [(0, 3000, 0.95), (0, 3300, 0.95), (1, 5000, 0.95), (3, 40, 0.99)],
)
def test_the_upper_bound_is_where_so_few_rejects_become_a_surprise(rejects: int, count: int, level: float) -> None:
    rate = upper_bound(rejects, count, level)
    fewer = math.fsum(math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(rejects + 1))
    assert fewer == pytest.approx(1 - level, rel=1e-6)
    assert upper_bound(count, count) == 1.0


def test_three_thousand_draws_without_a_reject_bound_the_rate_below_one_in_a_thousand() -> None:
    assert upper_bound(0, 3000) < 1e-3 < upper_bound(0, 2900)


def test_kernels_are_put_back() -> None:
    enabled = torch._C._get_mkldnn_enabled()
    with without_onednn():
        assert not torch._C._get_mkldnn_enabled()
    assert torch._C._get_mkldnn_enabled() == enabled
