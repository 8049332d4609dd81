"""Steps of a recipe, from a seed, in any process: recording, self-checks, regeneration and verification alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch.utils.flop_counter import FlopCounterMode

from polcommit import prf
from polcommit.errors import NotReproducible, PolcommitError, Refuted, UsageError
from polcommit.records import StateIndex
from polcommit.training.loading import FetchedBatch
from polcommit.training.randomness import isolated, reseed
from polcommit.training.recipe import Recipe
from polcommit.training.scalars import decode_scalars
from polcommit.training.schema import Fetch, Schema, restore, schema
from polcommit.training.state import Captured, TrainingState, capture, survey
from polcommit.training.step import StepResult, require_learning_rate, run_step


class Engine:
    """A recipe's training state under a run's seed (32 bytes), and the steps on it."""

    def __init__(self, recipe: Recipe, seed: bytes) -> None:
        self.recipe = recipe
        self.seed = seed
        self.state = self._build()

    @cached_property
    def schema(self) -> Schema:
        """What states of the recipe look like. Builds a second state for a moment."""
        return schema(self.recipe.build)

    def initial(self) -> Captured:
        """Start over from W_0, and capture it."""
        self.state = self._build()
        self.recipe.initialize(self.state, self.seed)
        return self.capture()

    def initial_from(self, given: Mapping[str, torch.Tensor]) -> Captured:
        """Start over from W_0 with these parameters and buffers, by entry name, and capture it.

        What is left out, and whatever else there is, is as `initial` has it.

        Raises:
            UsageError: the recipe's model has no such tensor, or one of another dtype or shape.
        """
        self.initial()
        live = {
            name: tensor
            for name, (kind, tensor) in survey(self.state).tensors.items()
            if kind in ("parameter", "buffer")
        }
        for name, tensor in given.items():
            if name not in live:
                raise UsageError(f"W_0 holds {name}, which the recipe's model does not have")
            due, found = _form(live[name]), _form(tensor)
            if due != found:
                raise UsageError(f"{name} of W_0 is {found}, the recipe's model has {due}")
        with torch.no_grad():
            for name, tensor in given.items():
                live[name].copy_(tensor)
        return self.capture()

    def capture(self) -> Captured:
        """Hash the state as it is. The tensors are live: copy or write them before the next step."""
        return capture(self.state)

    def restore(self, index: StateIndex, fetch: Fetch) -> None:
        """Put an opened or kept state in place. After an error the engine must be restored again before use.

        Raises:
            Refuted: V8: not the recipe's schema, or bytes other than the index names.
            EncodingError: the index or the bytes are not an encoding of anything.
        """
        restore(self.state, index, fetch, self.schema)
        found = self.capture().index
        difference = first_difference(index, found)
        if difference is not None:
            raise Refuted("V8", "restored state", expected="the opened one", found=f"another {difference}")

    def step(
        self, batch: FetchedBatch, *, check_schedule: bool = True, between: Callable[[], None] | None = None
    ) -> StepResult:
        """Run the step that the batch belongs to; `between` as for `run_step`.

        Raises:
            UsageError: the learning rate was not the schedule's (unless told not to check).
        """
        for module, training in self._modes.items():
            module.training = training          # an evaluation in between may have switched to eval mode
        micro_batches = to_device(batch, self.recipe.device)
        result = run_step(self.recipe, self.state, self.seed, batch.step, micro_batches, between=between)
        if check_schedule:
            require_learning_rate(self.recipe, result)
        return result

    def replay(
        self, index: StateIndex, fetch: Fetch, batch: FetchedBatch, *, between: Callable[[], None] | None = None
    ) -> tuple[StepResult, Captured]:
        """Restore an opened state and run one step on it: whatever is wrong with what was opened, one of our errors.

        The learning rate is reported, not checked: that is V7's.

        Raises:
            Refuted, EncodingError: as `restore`.
            NotReproducible: the recipe's code failed on the opened state or samples.
        """
        self.restore(index, fetch)
        try:
            return self.step(batch, check_schedule=False, between=between), self.capture()
        except PolcommitError:
            raise
        except Exception as error:  # the recipe's own code, on data that a prover chose
            raise NotReproducible(f"step {batch.step}: re-execution failed: {error!r}"[:500]) from error

    def flops(self, index: StateIndex, fetch: Fetch, batch: FetchedBatch) -> int | None:
        """Floating-point operations of one step, as torch counts them: matrix products, convolutions and attention.

        By an execution of its own, for counting may change which kernels run. None where counting fails.
        """
        try:
            with FlopCounterMode(display=False) as counter:
                self.replay(index, fetch, batch)
        except (NotReproducible, RuntimeError, TypeError):      # the recipe's code, under a dispatch mode
            return None
        return int(counter.get_total_flops())

    def _build(self) -> TrainingState:
        with isolated():
            reseed(prf.step_seed(self.seed, 0, 0))      # steps count from 1, so this stream is the build's
            state = self.recipe.build()
        self._modes = {module: module.training for module in state.model.modules()}
        return state


def first_difference(a: StateIndex, b: StateIndex) -> str | None:
    """The first tensor, by name, or scalar in which two states differ, such as 'tensor buffer/norm.running_mean'."""
    here, there = ({entry.name: entry for entry in index.tensors} for index in (a, b))
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            return f"tensor {name}"
    if a.scalars == b.scalars:
        return None
    if a.scalars.aliases != b.scalars.aliases:
        return "set of tied tensors"
    mine, other = (decode_scalars(index.scalars.values) for index in (a, b))
    for path in sorted(mine.keys() | other.keys()):
        # repr tells 0.0 from -0.0 and 1 from True, which == does not
        if path not in mine or path not in other or repr(mine[path]) != repr(other[path]):
            return f"scalar {path}"
    return "encoding of the scalars"


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def to_device(batch: FetchedBatch, device: str) -> list[object]:
    return [_moved(micro_batch, torch.device(device)) for micro_batch in batch.micro_batches]


def _moved(value: object, device: torch.device) -> object:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        moved = [_moved(item, device) for item in value]
        return moved if isinstance(value, list) else tuple(moved)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value
