"""What a spoof is: a class, with a stated threat model, that anyone can add and see tried.

There are two kinds. A `TrajectorySpoof` makes up the states of a training run; the same code submits them to plain
Proof-of-Learning and to polcommit, through a `Stage` that says what the forger is free to choose there. A
`ProtocolSpoof` attacks what stands around the states (keys, ledger, draw, openings), which plain Proof-of-Learning
does not have.

A spoof that cannot be tried in a setting raises `PreconditionNotMet` and is reported as not tried, never as stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from polcommit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from polcommit.spoofs.cost import Meter
    from polcommit.spoofs.opponent.arena import Arena
    from polcommit.spoofs.opponent.attempt import Attempt
    from polcommit.training.loading import FetchedBatch
    from polcommit.training.recipe import Recipe
    from polcommit.training.replay import Engine
    from polcommit.training.step import StepResult

FAMILIES = (
    "structurally correct", "retraining", "stochastic", "starting point", "precedence", "data", "smuggling",
    "protocol", "adaptive",
)  # fmt: skip

#: What a forger can be assumed to know (Fang et al., EuroS&P 2023, §3).
KNOWLEDGE = ("W_T", "architecture", "data", "delta", "Q", "k", "transcript", "envelope", "tolerance", "screens")


class PreconditionNotMet(UsageError):
    """The spoof cannot be tried here: the message names what is missing. Not the same as being stopped."""


class Spoof:
    """One attack. The class's docstring says how it works and what it is expected to achieve."""

    name: ClassVar[str]                                     # 'infinitesimal-update'
    family: ClassVar[str]                                   # one of FAMILIES
    title: ClassVar[str]                                    # a line: what the forger does
    source: ClassVar[str]                                   # paper and section, or 'polcommit'
    knows: ClassVar[frozenset[str]] = frozenset({"W_T", "architecture", "data"})
    goal: ClassVar[str] = "W_T"     # what is claimed: the stolen 'W_T', or a model of one's 'own', not made as claimed

    def __init__(self) -> None:
        #: What came of it besides the verdict: 'converged' where it had to converge, how far it got, by short names.
        self.notes: dict[str, float | bool | str] = {}


class TrajectorySpoof(Spoof, ABC):
    """Makes up states; what is wrong with them is for re-execution to find."""

    @abstractmethod
    def forge(self, stage: Stage) -> None:
        """Commit a state for every step 1 to `stage.steps`, in order.

        Raises:
            PreconditionNotMet: this stage, recipe or setting lacks what the attack needs.
        """


class ProtocolSpoof(Spoof, ABC):
    """Attacks polcommit's own keys, ledger, draws or openings."""

    @abstractmethod
    def attack(self, arena: Arena) -> Attempt:
        """Carry it out, to a verdict. Raises PreconditionNotMet."""


@dataclass(slots=True)
class Stage(ABC):
    """Where a made-up trajectory is submitted. The forger's engine holds the state that it is working on.

    `free` says what is the forger's to choose here: 'start' (W_0), 'order' (which samples a step takes), 'rate' (the
    learning rate of each step), 'optimizer' (its state at a checkpoint), 'data' (the samples themselves).
    """

    recipe: Recipe
    engine: Engine                                          # at W_0
    stolen: Mapping[str, torch.Tensor]                      # W_T: 'parameter/…' and 'buffer/…' by entry name
    steps: int
    meter: Meter
    seed: int                                               # of the forger's own random choices
    free: frozenset[str]
    known: Mapping[str, float] = field(default_factory=dict)    # 'Q', 'k', 'delta' (L2), where the forger knows them
    losses: bool = True     # the loss of each step is part of what is submitted, so a forger has to have a likely one

    def require(self, *choices: str) -> None:
        """Raise PreconditionNotMet unless all of these are the forger's to choose."""
        missing = sorted(set(choices) - self.free)
        if missing:
            raise PreconditionNotMet(f"{', '.join(missing)} cannot be chosen here")

    @abstractmethod
    def batches(self) -> Iterator[FetchedBatch]:
        """The batches of steps 1 to `steps`, as the order here demands.

        What the engine holds when the first one is asked for is W_0: where 'start' is free, it is set before.
        """

    @abstractmethod
    def commit(self, batch: FetchedBatch, result: StepResult) -> None:
        """Say that the state which the engine holds now is the state after `result.step`, trained on `batch`."""
