"""What a recipe's state looks like, and putting an opened state back (V8).

The index of an opened state comes from the prover. Before a byte of it is used or anything is allocated, it is
compared with what the recipe itself builds: the same tensors with the same kind, dtype and shape, the same
aliases, the same scalars with the same hyperparameters. For each parameter the optimizer's slots are all
there, or none is (a parameter that was never updated). What they look like is found out on a throwaway build,
by one optimizer step with zero gradients.

State is restored by copying into the tensors that the recipe built: memory format changes gradients, and
`optimizer.load_state_dict` casts moments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polcommit.errors import PolcommitError, Refuted, UsageError
from polcommit.records import StateIndex, TensorEntry
from polcommit.training.randomness import isolated, reseed
from polcommit.training.scalars import VARYING, decode_scalars, encode_scalars, fit
from polcommit.training.state import Survey, TrainingState, parameter_names, survey
from polcommit.training.tree import TORCH_DTYPES, content, dtype_name, tensor_from_bytes

Fetch = Callable[[TensorEntry], bytes | bytearray | memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A tensor, less its values."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, kind: str, tensor: torch.Tensor) -> Form:
        return cls(
            kind=kind, dtype=dtype_name(tensor), shape=tuple(tensor.shape), stride=tensor.stride(), device=tensor.device
        )

    def empty(self) -> torch.Tensor:
        """An uninitialised tensor of this form."""
        return torch.empty_strided(self.shape, self.stride, dtype=TORCH_DTYPES[self.dtype], device=self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What states of a recipe consist of. `slots` and `slot_scalars` are by parameter name, without prefix."""

    tensors: Mapping[str, Form]
    slots: Mapping[str, Mapping[str, Form]]
    slot_scalars: Mapping[str, Mapping[str, object]]
    scalars: Mapping[str, tuple[object, ...]]           # path -> values in a fresh build, and after one step
    aliases: tuple[tuple[str, str], ...]
    varying: frozenset[str]

    def check(self, index: StateIndex) -> dict[str, Any]:
        """Return the scalars of an index that has exactly this schema, by path.

        Raises:
            Refuted: V8: a tensor or scalar is missing, unknown, or not of the right form.
            EncodingError: the scalars are not an encoding of any.
        """
        scalars = decode_scalars(index.scalars.values)
        used = self._parameters_with_slots({entry.name for entry in index.tensors} | scalars.keys())
        forms = dict(self.tensors)
        due = {path: (templates, False) for path, templates in self.scalars.items()}
        for parameter in used:
            forms |= self.slots[parameter]
            due |= {path: ((value,), True) for path, value in self.slot_scalars[parameter].items()}
        _check_names("tensors", forms.keys(), [entry.name for entry in index.tensors])
        for entry in index.tensors:
            _check_form(forms[entry.name], entry)
        if index.scalars.aliases != self.aliases:
            raise Refuted("V8", "tied tensors", expected=self.aliases, found=index.scalars.aliases)
        _check_names("scalars", due.keys(), list(scalars))
        return {path: self._fit(path, *due[path], value) for path, value in scalars.items()}

    def _fit(self, path: str, templates: tuple[object, ...], free: bool, value: object) -> Any:
        if path.startswith("counter/"):
            if type(value) is not int:
                raise Refuted("V8", f"scalar {path}", expected="a whole number", found=repr(value))
            return value
        free = free or path.rpartition("/")[2] in self.varying
        return fit(templates, value, path, varying=self.varying, free=free)

    def _parameters_with_slots(self, names: set[str]) -> list[str]:
        return [
            parameter
            for parameter in self.slots
            if not names.isdisjoint(self.slots[parameter].keys() | self.slot_scalars[parameter].keys())
        ]


def schema(factory: Callable[[], TrainingState]) -> Schema:
    """The schema of the states that `factory` builds. Builds one, steps its optimizer once, and drops it.

    Raises:
        UsageError: the state holds what cannot be committed, or its optimizer cannot be stepped with zero gradients.
    """
    with isolated():
        reseed(0)
        state = factory()
        built = survey(state)
        if state.optimizer.state:
            raise UsageError("build() returned an optimizer that has been stepped already")
        _probe(state)
        probed = survey(state)
    names = sorted(parameter_names(state.model).values())
    slots: dict[str, dict[str, Form]] = {name: {} for name in names}
    slot_scalars: dict[str, dict[str, object]] = {name: {} for name in names}
    for path, (kind, tensor) in probed.tensors.items():
        if kind == "optimizer":
            slots[_parameter_of(path)][path] = Form.of(kind, tensor)
    for path, value in probed.scalars.items():
        if path.startswith("optimizer/"):
            slot_scalars[_parameter_of(path)][path] = value
    return Schema(
        tensors={name: Form.of(*item) for name, item in built.tensors.items()},
        slots=slots,
        slot_scalars=slot_scalars,
        scalars={path: (built.scalars[path], probed.scalars.get(path)) for path in _kept(built)},
        aliases=built.aliases,
        varying=VARYING | state.varying,
    )


def restore(state: TrainingState, index: StateIndex, fetch: Fetch, expected: Schema) -> None:
    """Copy an opened state into the tensors that the recipe built; on any error the state is left half copied.

    `fetch` returns a tensor's raw little-endian bytes in C order. They are checked against the entry's content.

    Raises:
        Refuted: V8: the index has not the recipe's schema, or the bytes are not those that it names.
        EncodingError: the index or the bytes are not an encoding of anything.
    """
    scalars = expected.check(index)
    slots = _empty_slots(state, index, expected)
    live = {name: tensor for name, (_, tensor) in survey(state).tensors.items()}
    for entry in index.tensors:
        destination = slots[entry.name] if entry.name in slots else live[entry.name]
        with torch.no_grad():
            destination.copy_(opened_tensor(entry, fetch))
    _restore_slots(state, slots, scalars)
    _restore_settings(state, scalars)


def opened_tensor(entry: TensorEntry, fetch: Fetch) -> torch.Tensor:
    """A fresh tensor of an opened entry, on the CPU.

    Raises:
        Refuted: V8: the bytes are not those that the entry names.
        EncodingError: they do not fill its dtype and shape.
    """
    data = memoryview(fetch(entry)).cast("B")
    found = content(data)
    if found != entry.content:
        raise Refuted("V8", f"content of {entry.name}", expected=entry.content, found=found)
    return tensor_from_bytes(entry.dtype, entry.shape, data)


def _probe(state: TrainingState) -> None:
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state.optimizer.step()
            if state.scheduler is not None:
                state.scheduler.step()
    except PolcommitError:
        raise
    except Exception as error:  # whatever an optimizer makes of a missing closure, or of dense gradients
        name = type(state.optimizer).__name__
        raise UsageError(f"{name} cannot be stepped with zero gradients ({error}), so it is not supported") from error


def _parameter_of(path: str) -> str:
    return path.removeprefix("optimizer/").rpartition("/")[0]


def _kept(found: Survey) -> list[str]:
    """The paths that have an encoding: `encode_scalars` leaves functions out."""
    return list(decode_scalars(encode_scalars(found.scalars)))


def _check_names(what: str, expected: Any, found: list[str]) -> None:
    for name in found:
        if name not in expected:
            raise Refuted("V8", f"{what} of the state", expected="those that the recipe builds", found=f"also {name}")
    missing = expected - set(found)
    if missing:
        raise Refuted("V8", f"{what} of the state", expected=min(missing), found="no such entry")


def _check_form(form: Form, entry: TensorEntry) -> None:
    due, found = (form.kind, form.dtype, form.shape), (entry.kind, entry.dtype, entry.shape)
    if due != found:
        raise Refuted("V8", f"form of {entry.name}", expected=due, found=found)


def _empty_slots(state: TrainingState, index: StateIndex, expected: Schema) -> dict[str, torch.Tensor]:
    """The optimizer tensors that the index names: those that are there already, or new ones of the right form."""
    names = parameter_names(state.model)
    there = {
        f"optimizer/{names[id(parameter)]}/{key}": value
        for parameter, slots in state.optimizer.state.items()
        for key, value in slots.items()
        if isinstance(value, torch.Tensor)
    }
    tensors: dict[str, torch.Tensor] = {}
    for entry in index.tensors:
        if entry.kind == "optimizer":
            form = expected.slots[_parameter_of(entry.name)][entry.name]
            old = there.get(entry.name)
            tensors[entry.name] = old if old is not None and Form.of("optimizer", old) == form else form.empty()
    return tensors


def _restore_slots(state: TrainingState, slots: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> None:
    held = {path: value for path, value in scalars.items() if path.startswith("optimizer/")} | dict(slots)
    by_parameter: dict[str, dict[str, Any]] = {}
    for path, value in held.items():
        by_parameter.setdefault(_parameter_of(path), {})[path.rpartition("/")[2]] = value
    names = parameter_names(state.model)
    state.optimizer.state.clear()
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            if names[id(parameter)] in by_parameter:
                state.optimizer.state[parameter] = by_parameter[names[id(parameter)]]


def _restore_settings(state: TrainingState, scalars: Mapping[str, Any]) -> None:
    def part(prefix: str) -> dict[str, Any]:
        return {path.removeprefix(prefix): value for path, value in scalars.items() if path.startswith(prefix)}

    for i, group in enumerate(state.optimizer.param_groups):
        group.update({key: value for key, value in part(f"group/{i}/").items() if key != "params"})
    try:
        if state.scheduler is not None:
            # what was left out of the encoding, functions, stays what the recipe built
            state.scheduler.load_state_dict(_overlaid(state.scheduler.state_dict(), part("scheduler/")))
        if state.scaler is not None and state.scaler.is_enabled():
            settings = part("scaler/")
            _check_scaler(settings)
            state.scaler.load_state_dict(settings)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise Refuted("V8", "state of scheduler or scaler", expected="one that loads", found=error) from error
    state.counters.clear()
    state.counters.update(part("counter/"))


def _overlaid(current: dict[str, Any], opened: dict[str, Any]) -> dict[str, Any]:
    """`opened`, with the functions that only `current` has, at any depth."""
    result = dict(opened)
    for key, value in current.items():
        if key not in opened:
            result[key] = value
        elif type(value) is dict and isinstance(opened[key], dict):
            result[key] = _overlaid(value, opened[key])
    return result


def _check_scaler(settings: Mapping[str, Any]) -> None:
    """The scaler keeps its scale as a float32 tensor and its tracker as an int32 one."""
    with np.errstate(over="ignore"):
        exact = float(np.float32(settings["scale"])) == settings["scale"]
    tracker = settings["_growth_tracker"]
    if not exact or type(tracker) is not int or not 0 <= tracker < 1 << 31:
        raise Refuted("V8", "state of the scaler", expected="a float32 scale", found=dict(settings))
