"""The process's random generators, and dropout that does not use them (spec §3.5).

Python's `random`, numpy's legacy global generator and torch's default generators are seeded before every
sample and every micro-batch, so no random state has to be kept. Their *output* for a seed is their own
affair: torch's differs between instruction sets, so what uses it re-executes bit for bit in the same
environment only. `exact_dropout` takes its masks from the counter-based generator and is the same everywhere.

A `numpy.random.default_rng()`, the clock and `os.urandom` are out of reach; a recipe that uses them is caught
by the self-checks, not here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch

from polcommit import prf
from polcommit.errors import UsageError


class StepStream:
    """Where exact randomness of micro-batch k (from 0) of step t (from 1) comes from; counts the calls."""

    __slots__ = ("calls", "micro_batch", "seed", "step")

    def __init__(self, seed: bytes, step: int, micro_batch: int) -> None:
        self.seed = seed
        self.step = step
        self.micro_batch = micro_batch
        self.calls = 0

    def take(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        """The next call's `count` 32-bit words: the stream "dropout" for (step, micro-batch, call), in order."""
        source = prf.stream(self.seed, "dropout", self.step, self.micro_batch, self.calls)
        self.calls += 1
        return np.frombuffer(source.digest(length=4 * count), dtype="<u4")


_stream: ContextVar[StepStream | None] = ContextVar("polcommit_step_stream", default=None)


def reseed(seed64: int) -> None:
    """Seed python's, numpy's global and torch's default generators (CPU and every CUDA device in use)."""
    random.seed(seed64)
    np.random.seed((seed64 & 0xFFFFFFFF, seed64 >> 32))
    torch.default_generator.manual_seed(seed64)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed64)


@contextmanager
def isolated() -> Iterator[None]:
    """Give every generator that `reseed` touches its state back at the end."""
    python, legacy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(host)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def step_context(seed: bytes, step: int, micro_batch: int) -> Iterator[StepStream]:
    """Set the step stream: seeds the generators, and is where `exact_dropout` takes its masks from."""
    reseed(prf.step_seed(seed, step, micro_batch))
    stream = StepStream(seed, step, micro_batch)
    token = _stream.set(stream)
    try:
        yield stream
    finally:
        _stream.reset(token)


def exact_dropout(x: torch.Tensor, p: float, training: bool = True) -> torch.Tensor:
    """Inverted dropout whose mask is the same on every device: element i (C order) is zeroed with probability p.

    Element i is kept if word i of the call's stream is at least round(p * 2**32). Masks depend on how many calls
    came before in the same micro-batch, so activation checkpointing, which calls forward again, does not fit.

    Raises:
        UsageError: p is not within 0 <= p < 1, or there is no step to take the mask from.
    """
    if not 0 <= p < 1:
        raise UsageError(f"dropout of {p}: a probability below 1 is needed")
    if not training or p == 0:
        return x
    stream = _stream.get()
    if stream is None:
        raise UsageError("exact dropout in training mode outside a step", hint="call model.eval() before evaluating")
    keep = torch.from_numpy(stream.take(x.numel()) >= np.uint32(round(p * 2**32))).view(x.shape)
    mask = keep.to(device=x.device, dtype=x.dtype) * (1.0 / (1.0 - p))
    return x * mask


class Dropout(torch.nn.Module):
    """`exact_dropout` as a module; the identity in eval mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (any shape) with elements zeroed, the rest scaled by 1 / (1 - p)."""
        return exact_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
