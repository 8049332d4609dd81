"""What is asked of a re-execution, and what it answers (spec §6, V8 to V12): plain records, no torch.

The verifier decides from reports; running the steps is `Replayer`'s, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from polcommit.encoding import Bytes32, Record
from polcommit.records import Fingerprint, Gradient, OpenedSample, OpenedState, Request, StateIndex, StepRecord


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
    kept: tuple[int, ...]                   # steps of the kept states, without W_0: the recipe's rates there are wanted
    opened: tuple[OpenedSample, ...]
    last: int                               # step of the last state, which is among `states`: W_T of the head
    epochs: tuple[int, ...]                 # first steps of the environment epochs
    gradients: tuple[Gradient, ...] | None          # of every step, for a comparison in gradient space
    next_states: tuple[OpenedState, ...] | None     # likewise
    origin_seed: Bytes32 | None             # where W_0 is to be tested against its distribution: seed of the reference


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDistance(Record):
    """One tensor, opened and re-executed: a gradient, or what a step added to a buffer. Norms are Euclidean."""

    name: str                               # of the parameter or buffer, without prefix
    distance: float                         # ‖opened − re-executed‖
    opened: float
    here: float
    size: int                               # elements
    zeros: int                              # elements that are exactly zero in one of the two only


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Record):
    """One step compared in gradient space (spec §6, V10): ĝ as opened, g′ as computed here. All float64.

    Elements in which ĝ and g′ are the same, and not finite, are in no distance and in no norm.
    """

    finite: tuple[bool, bool]               # whether all of ĝ, and of g′, is finite
    missing: tuple[str, ...]                # parameters with a gradient in one of the two only
    distance: float                         # ‖ĝ − g′‖ over all trained parameters
    opened: float                           # ‖ĝ‖
    here: float                             # ‖g′‖
    preconditioned: tuple[float, float] | None      # (‖D(ĝ−g′)‖, ‖Dĝ‖) with D = 1/(√v̂ + ε), v̂ after the update
    tensors: tuple[TensorDistance, ...]
    buffers: tuple[TensorDistance, ...]     # increments of floating buffers
    update: tuple[str, float]               # worst tensor after `apply` on ĝ, and its deviation by what is allowed
    exact: str | None                       # what differs of what must be equal: an integer, counter, scalar, form
    exact_only: str | None                  # why the optimizer's update has no bound: 'bit-exact only'
    towards: float                          # cosine of ĝ − g′ with W_t − W_T (0 where the residual is zero)
    stride: float                           # lr·‖ĝ‖/(1−μ), or lr·‖Dĝ‖ where preconditioned: reach per unit of α
    rounding: float                         # norm over the parameters of what the comparison of updates lets pass
    loss: float                             # here
    learning_rate: float                    # as are these three: what `apply` on ĝ did
    clipped: bool
    skipped: bool


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
    measured: Measured | None               # where gradients were given
    contribution: tuple[float, float] | None        # L(θ) − L(θ + βΔ) on the step's own batch, and on another


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates(Record):
    """The learning rates of some steps, by the recipe's schedule: what a tolerance adds up to goes by them."""

    steps: int
    total: float                            # of the rates
    squares: float                          # of their squares


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorOrigin(Record):
    """A tensor of W_0 against its claimed distribution: the two-sample Kolmogorov-Smirnov test (Jia et al. §V-D4)."""

    name: str
    size: int
    statistic: float
    probability: float                      # of a statistic at least that large, were the distributions equal
    constant: bool                          # the recipe sets every element to one value: equal or not, no test
    equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport(Record):
    """What a re-execution saw. `refuted` is (check, what, step, expected, found) where it found a contradiction."""

    TAG: ClassVar[str] = "replay-report"
    environment: Fingerprint
    recipe_source: Bytes32
    initial: Bytes32                                            # digest of W_0's full state
    steps: tuple[ReplayedStep, ...]
    sketches: tuple[tuple[int, tuple[float, ...]], ...]
    kept_rates: tuple[float, ...]                               # learning rates that the recipe has at the kept steps
    refuted: tuple[str, str, int | None, str, str] | None
    flops: int | None                                           # of one step, counted at re-execution
    residuals: tuple[float, ...]                                # cosines of the steps' residuals, pair by pair
    rates: tuple[Rates, ...]                                    # of each environment epoch; empty where too long
    span: float | None                                          # ‖W_T − W_0‖; W_0 as opened, or as the recipe makes it
    origin: tuple[TensorOrigin, ...] | None                     # where asked for
    initial_index: StateIndex | None                            # of W_0 as the recipe initialises it from the seed


@dataclass(frozen=True, slots=True, kw_only=True)
class RegenerateJob(Record):
    """What a challenge asks of the prover's own run. Which steps the sketches add is found out on the way."""

    TAG: ClassVar[str] = "regenerate-job"
    request: Request
    seed: Bytes32                           # of the draw
    drawn: tuple[int, ...]
    kept: tuple[int, ...]                   # kept states up to the head: all are sketched
    opened_kept: tuple[int, ...]
    gradients: bool                         # whether gradients and next states are wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class RegenerateReport(Record):
    """Indices of the states and gradients, whose bytes lie in the folder of blobs, as do the samples'; sketches."""

    TAG: ClassVar[str] = "regenerate-report"
    added: tuple[int, ...]                  # these three as `draws.Added` has them
    fine: tuple[int, ...]
    pinned: tuple[int, ...]
    states: tuple[OpenedState, ...]
    sketches: tuple[tuple[int, tuple[float, ...]], ...]
    gradients: tuple[Gradient, ...] | None
    next_states: tuple[OpenedState, ...] | None


class Replayer(Protocol):
    """Re-executes steps somewhere; `polcommit.session` has the one that does so in a process of its own."""

    def replay(self, job: ReplayJob, blobs: Path, progress: Callable[[int, int], None] | None = None) -> ReplayReport:
        """Run the job over the blobs in that folder.

        Raises:
            Unavailable: the recipe is not installed, the process died, or there is no torch.
        """
