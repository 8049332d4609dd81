"""Randomness and nonce in, steps out; and what a draw of that size detects (spec §5.2).

The figure counts uniformly drawn steps only. It says how likely a draw meets at least one of m forged steps,
not how m relates to the cost of forging.
"""

from __future__ import annotations

import math

from polcommit import prf
from polcommit.encoding import tagged_hash
from polcommit.errors import UsageError
from polcommit.records import Request
from polcommit.records.challenge import MAX_DRAWN


def draw(seed: bytes, request: Request, steps: int) -> tuple[int, ...]:
    """The challenged steps, rising, of a head that covers steps 1 to `steps`.

    'random' and 'mixed' draw uniformly without replacement from `seed` (32 bytes); 'list' takes what the request
    lists; 'top-q' draws nothing: its steps, like the ones that 'mixed' adds, follow from the sketches (`screens`).

    Raises:
        UsageError: the head has fewer steps than the request wants.
    """
    if request.strategy == "list":
        if request.steps[-1] > steps:
            raise UsageError(f"step {request.steps[-1]} of {steps}", hint=f"steps count from 1 to {steps}")
        return request.steps
    if request.strategy == "top-q":
        return ()
    if request.count > steps:
        raise UsageError(f"cannot draw {request.count} of {steps} steps", hint=f"ask for at most {steps}")
    return tuple(index + 1 for index in prf.sample_without_replacement(seed, steps, request.count))


def detection(population: int, forged: int, drawn: int) -> float:
    """Probability that a uniform draw of `drawn` of `population` steps meets one of `forged`: 1 - C(N-m, n)/C(N, n)."""
    if not 0 <= forged <= population or not 0 <= drawn <= population:
        raise UsageError(f"{forged} forged and {drawn} drawn of {population} steps")
    if not forged or not drawn:
        return 0.0          # and not the -0.0 of below
    if drawn + forged > population:
        return 1.0
    # Divisions and multiplications only: IEEE 754 rounds them alike everywhere, which a logarithm of the C library
    # is not, and a reader compares the figure in a verdict with its own.
    misses = 1.0
    for i in range(drawn):
        misses *= (population - forged - i) / (population - i)
    return 1.0 - misses


def forged_steps(population: int, fraction: float) -> int:
    """m: the number of steps that make up at least this fraction of the run."""
    if not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction}", hint="a share of the steps, above 0 and at most 1")
    return min(population, max(1, math.ceil(fraction * population - 1e-9)))


def draws_needed(population: int, fraction: float, probability: float) -> int:
    """The least n that detects, with this probability, a run with this fraction of its steps forged."""
    if not 0 < probability < 1:
        raise UsageError(f"probability {probability}", hint="above 0 and below 1")
    forged = forged_steps(population, fraction)
    misses = 1.0            # as in `detection`, one draw after the other: a head may claim any number of steps
    for drawn in range(1, min(population, MAX_DRAWN) + 1):
        misses *= max(0, population - forged - drawn + 1) / (population - drawn + 1)
        if 1.0 - misses >= probability:
            return drawn
    raise UsageError(f"no {MAX_DRAWN} steps detect that little", hint="ask for a larger fraction or less probability")


def kept_steps(keep: int, anchored: tuple[int, ...]) -> tuple[int, ...]:
    """Steps whose full state the prover keeps, up to the last anchored one: 0, every `keep`, and each head's."""
    last = max(anchored)
    return tuple(sorted({*range(0, last + 1, keep), *anchored}))


def opened_kept(seed: bytes, kept: tuple[int, ...], last: int, *, first: bool = False) -> tuple[int, ...]:
    """Kept states that are opened to check the sketches: the last one, and up to three more from the draw's seed.

    With `first`, W_0 as well: of a run whose beginning the beacon does not fix.
    """
    others = [step for step in kept if step != last]
    own = tagged_hash("kept-seed", seed)        # a stream of its own: not the numbers that drew the steps
    chosen = prf.sample_without_replacement(own, len(others), min(3, len(others))) if others else []
    return tuple(sorted({last, *((0,) if first else ()), *(others[position] for position in chosen)}))
