"""Does W_0 look like the claimed initialisation? The Kolmogorov-Smirnov test of Jia et al., §V-D4.

Each tensor's values are compared, as a sample, with values that the recipe's own initialisation draws. The test sees
values and not places: weights permuted within a tensor, or a sample sorted to be near a stolen model, pass it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from polcommit.spoofs.checkpoint import parameters
from polcommit.training.origin import kolmogorov_smirnov
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine

DRAWS = 4           # of the initialisation, pooled: the claimed distribution, as a sample


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTest:
    """The tensor that agrees least with the claimed initialisation."""

    tensor: str
    p: float            # of that tensor, times the number of tensors (Bonferroni), at most 1
    accepted: bool


def check_start(recipe: Recipe, tensors: Mapping[str, torch.Tensor], least: float) -> StartTest:
    """Accepted unless some tensor's corrected p is below `least`. `tensors` are W_0 by entry name.

    A tensor that the initialisation makes constant (zeros, ones) must be that constant.
    """
    drawn = [_initial(recipe, index) for index in range(DRAWS)]
    worst, tensor = 1.0, ""
    for name, found in parameters(tensors).items():
        reference = np.concatenate([values[name] for values in drawn])
        sample = _values(found)
        if reference.min() == reference.max():
            p = 1.0 if np.array_equal(sample, np.full_like(sample, reference[0])) else 0.0
        else:
            p = min(1.0, kolmogorov_smirnov(sample, reference)[1] * len(drawn[0]))
        if not tensor or p < worst:
            worst, tensor = p, name
    return StartTest(tensor=tensor, p=worst, accepted=worst >= least)


def _initial(recipe: Recipe, index: int) -> dict[str, np.ndarray]:
    seed = sha256(b"the verifier's own draw of W_0" + bytes([index])).digest()
    return {name: _values(tensor) for name, tensor in parameters(Engine(recipe, seed).initial().tensors).items()}


def _values(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).reshape(-1).numpy()
