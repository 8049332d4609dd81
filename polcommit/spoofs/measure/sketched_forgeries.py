"""Forged trajectories, as their sketches: what screens see of interpolations, splices and ramps.

A sketch is linear in the weights. Whatever a forger makes of W_0, a stolen W_T and updates of honest runs by adding and
scaling has the sketch that the same sums of sketches have; independent noise of norm s has 64 independent normal
values of that standard deviation. So these need no training beyond the honest runs that they are made of. Losses are
the honest run's, for a forger writes down what it likes. Nothing here would pass re-execution.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polcommit.spoofs.measure.honest_runs import Sketches, Trajectory


def line(own: Trajectory, stolen: Sketches, shares: Sketches) -> Trajectory:
    """From the run's W_0 straight to the stolen state; `shares` (T,) says how long each step is beside the others."""
    done = np.concatenate([[0.0], np.cumsum(shares) / shares.sum()])[:, None]
    return replace(own, sketches=(1 - done) * own.sketches[0] + done * stolen)


def even(own: Trajectory, stolen: Sketches, straightness: float, generator: np.random.Generator) -> Trajectory:
    """As `line`, in steps of one size, each with independent noise, so that the way there is longer by 1/straightness.

    `straightness` is the cosine between each step and the direction of all.
    """
    straight = line(own, stolen, np.ones(own.steps))
    drift = np.sqrt((np.diff(straight.sketches, axis=0) ** 2).mean())
    noise = generator.normal(0.0, drift * np.sqrt(1 / straightness**2 - 1), (own.steps, own.sketches.shape[1]))
    noise -= noise.mean(axis=0)             # so that the end is the stolen state
    walk = np.concatenate([np.zeros((1, noise.shape[1])), np.cumsum(noise, axis=0)])
    return replace(own, sketches=straight.sketches + walk)


def splice(own: Trajectory, step: int, size: float, generator: np.random.Generator) -> Trajectory:
    """An honest run with a jump in step `step`, from 1: `size` ordinary updates long, in a direction of its own.

    An ordinary update is the median of those of the 21 steps around.
    """
    around = own.updates[max(0, step - 11) : step + 10]
    jump = generator.normal(0.0, size * float(np.median(around)), own.sketches.shape[1])
    sketches = own.sketches.copy()
    sketches[step:] += jump
    return replace(own, sketches=sketches)


def ramp(own: Trajectory, other: Trajectory, start: int, steps: int, *, smooth: bool = False) -> Trajectory:
    """From one honest run to another in `steps` forged steps after step `start`; the update of each run goes on below.

    The drift is in proportion to the learning rate; if `smooth`, also small at both ends and large in the middle.
    """
    shape = np.array(own.rates[start : start + steps])
    if smooth:
        position = (np.arange(steps) + 0.5) / steps
        shape = shape * position * (1 - position)
    moved = np.zeros(own.steps + 1)
    moved[start + 1 : start + steps + 1] = np.cumsum(shape) / shape.sum()
    moved[start + steps + 1 :] = 1.0
    weight = moved[:, None]
    return replace(own, sketches=(1 - weight) * own.sketches + weight * other.sketches)
