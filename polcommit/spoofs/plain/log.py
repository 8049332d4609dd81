"""What a prover of plain Proof-of-Learning hands in: P = (W, I, H, A) of Jia et al., Algorithm 1.

It is a plain record of what somebody says. Nobody has signed it, and nothing in it was fixed at any time. Checkpoints
and made-up data may lie in files: whoever asks for one has it read, and should not hold on to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from polcommit.errors import UsageError
from polcommit.spoofs.checkpoint import Checkpoint
from polcommit.training.loading import FetchedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedStep:
    """I, H and A of one step."""

    step: int                           # from 1
    indices: tuple[int, ...]            # of the samples, in order
    digest: bytes                       # of the batch as fed
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A complete submission."""

    seed: bytes                                 # of the run's randomness: part of A, and the prover's choice
    interval: int                               # k: steps between checkpoints
    steps: tuple[LoggedStep, ...]               # 1 to T
    checkpoints: Mapping[int, Checkpoint]       # after step 0, k, 2k, … and T
    #: By step: data that no index of the data set leads to. The prover sends it along.
    supplied: Mapping[int, FetchedBatch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if [logged.step for logged in self.steps] != list(range(1, len(self.steps) + 1)):
            raise UsageError("the log's steps are not 1 to T")
        missing = {0, *(last for _, last in intervals(len(self.steps), self.interval))} - self.checkpoints.keys()
        if missing:
            raise UsageError(f"the log has no checkpoint after step {min(missing)}")


def intervals(steps: int, interval: int) -> Iterator[tuple[int, int]]:
    """(first, last) step of each stretch between two checkpoints; the last one may be shorter."""
    for start in range(0, steps, interval):
        yield start + 1, min(start + interval, steps)


def by_epoch(steps: int, interval: int, epoch: int) -> list[list[tuple[int, int]]]:
    """The intervals of each epoch of `epoch` steps: an interval belongs to the epoch of its first step."""
    epochs: list[list[tuple[int, int]]] = []
    for first, last in intervals(steps, interval):
        while len(epochs) <= (first - 1) // epoch:
            epochs.append([])
        epochs[(first - 1) // epoch].append((first, last))
    return [stretches for stretches in epochs if stretches]
