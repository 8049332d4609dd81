"""What is asked of a re-execution, and what it answers (spec §6, V8 to V12): plain records, no torch.

The verifier decides from reports; running the steps is `Replayer`'s, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from polcommit.encoding import Bytes32, Record
from polcommit.records import Fingerprint, OpenedSample, OpenedState, StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayJob(Record):
    """Steps to re-execute from opened states and samples, whose bytes lie in a folder of blobs."""

    TAG: ClassVar[str] = "replay-job"
    recipe: str
    configuration: tuple[tuple[str, str], ...]
    claimed: Fingerprint                    # environment that the steps claim; settings like threads are taken from it
    seed: Bytes32
    sketch_seed: Bytes32
    steps: tuple[StepRecord, ...]           # to re-execute, with what is committed of each
    samples: tuple[tuple[int, ...], ...]    # per step: indices of its raw samples, in order
    states: tuple[OpenedState, ...]
    sketched: tuple[int, ...]               # opened states whose sketches are wanted
    opened: tuple[OpenedSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedStep(Record):
    """One step, re-executed. `again` is the digest of a second execution, made where the first differed."""

    TAG: ClassVar[str] = "replayed-step"
    step: int
    batch: Bytes32
    state: Bytes32
    again: Bytes32 | None
    loss: float
    learning_rate: float
    clipped: bool
    skipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport(Record):
    """What a re-execution saw. `refuted` is (check, what, step, expected, found) where it found a contradiction."""

    TAG: ClassVar[str] = "replay-report"
    environment: Fingerprint
    recipe_source: Bytes32
    initial: Bytes32                                            # digest of W_0's full state
    steps: tuple[ReplayedStep, ...]
    sketches: tuple[tuple[int, tuple[float, ...]], ...]
    refuted: tuple[str, str, int | None, str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegenerateJob(Record):
    """States and samples of the prover's own run that a challenge asks for."""

    TAG: ClassVar[str] = "regenerate-job"
    states: tuple[int, ...]                 # steps whose full state is wanted
    sketched: tuple[int, ...]               # kept states whose sketches are wanted
    sketch_seed: Bytes32
    samples: tuple[int, ...]                # dataset indices


@dataclass(frozen=True, slots=True, kw_only=True)
class RegenerateReport(Record):
    """Indices of the states, whose bytes lie in the folder of blobs, and the sketches."""

    TAG: ClassVar[str] = "regenerate-report"
    states: tuple[OpenedState, ...]
    sketches: tuple[tuple[int, tuple[float, ...]], ...]


class Replayer(Protocol):
    """Re-executes steps somewhere; `polcommit.session` has the one that does so in a process of its own."""

    def replay(self, job: ReplayJob, blobs: Path, progress: Callable[[int, int], None] | None = None) -> ReplayReport:
        """Run the job over the blobs in that folder.

        Raises:
            Unavailable: the recipe is not installed, the process died, or there is no torch.
        """
