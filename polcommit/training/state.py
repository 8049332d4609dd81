"""The full training state, and its capture: whatever the next step depends on, by name (spec §3.3).

    parameter/<name>                every parameter
    buffer/<name>                   every buffer, non-persistent ones too
    optimizer/<parameter>/<key>     the optimizer's tensors for a parameter
    group/<i>/<key>                 tensors among an optimizer group's settings (kind 'other')

and, as scalars: the same for what is not a tensor, 'group/<i>/params' (names), 'scheduler/<key>',
'scaler/<key>' and 'counter/<name>'. A tensor under several names is held once, under the first of them in
order; the others are recorded as aliases.

Not covered: attributes of a module or optimizer outside its parameters, buffers and state, hooks, and code. A
recipe that keeps state there does not re-execute, and the self-checks say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from polcommit.errors import UsageError
from polcommit.records import ScalarEntry, StateIndex, TensorEntry
from polcommit.training.scalars import encode_scalars
from polcommit.training.tree import dtype_name, raw_bytes, tensor_content


@dataclass(slots=True, eq=False)
class TrainingState:
    """What a recipe builds: model, optimizer, and whatever else a step changes.

    `counters` are whole numbers that the recipe's `apply` may keep. `varying` names settings of optimizer or
    scheduler, besides the learning rate, that change while training (say 'momentum', for a cyclic schedule); all
    others must stay what the recipe built.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    scaler: torch.amp.GradScaler | None = None
    counters: dict[str, int] = field(default_factory=dict)
    varying: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A full state's index, and its tensors by entry name.

    The tensors are the live ones: they change with the next step. Copy, or write, before that.
    """

    index: StateIndex
    tensors: Mapping[str, torch.Tensor]

    def content(self, entry: TensorEntry) -> memoryview:
        """Raw little-endian bytes, C order, of one of the entries: what `restore` fetches."""
        return raw_bytes(self.tensors[entry.name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Everything in a state, by name, before anything is hashed."""

    tensors: dict[str, tuple[str, torch.Tensor]]        # name -> (kind, live tensor), sorted by name
    aliases: tuple[tuple[str, str], ...]
    scalars: dict[str, object]


def capture(state: TrainingState) -> Captured:
    """Hash everything in the state.

    Raises:
        UsageError: the state holds something that cannot be committed; the message says where.
        EncodingError: a tensor is sparse, quantized, or of an unusual dtype.
    """
    found = survey(state)
    entries = tuple(
        TensorEntry(
            name=name, kind=kind, dtype=dtype_name(tensor), shape=tuple(tensor.shape), content=tensor_content(tensor)
        )
        for name, (kind, tensor) in found.tensors.items()
    )
    scalars = ScalarEntry(values=encode_scalars(found.scalars), aliases=found.aliases)
    tensors = {name: tensor.detach() for name, (_, tensor) in found.tensors.items()}
    return Captured(index=StateIndex(tensors=entries, scalars=scalars), tensors=tensors)


def survey(state: TrainingState) -> Survey:
    """Collect everything in the state. Raises UsageError as `capture` does."""
    tensors, aliases = _members(state.model)
    scalars: dict[str, object] = {}
    slots: dict[str, tuple[str, torch.Tensor]] = {}
    for name, kind, value in _optimizer_items(state):
        if isinstance(value, torch.Tensor):
            slots[name] = (kind, value)
        else:
            scalars[name] = value
    storages = {_storage(tensor) for _, tensor in tensors.values()}
    for name, (_, tensor) in slots.items():
        if _storage(tensor) in storages:
            raise UsageError(f"training state: {name} shares its storage with another tensor")
        storages.add(_storage(tensor))
    if state.scheduler is not None:
        scalars |= {f"scheduler/{key}": value for key, value in state.scheduler.state_dict().items()}
    if state.scaler is not None:
        scalars |= {f"scaler/{key}": value for key, value in state.scaler.state_dict().items()}
    for key, value in state.counters.items():
        if type(value) is not int:
            raise UsageError(f"training state: counter {key} is {value!r}, not a whole number")
        scalars[f"counter/{key}"] = value
    return Survey(tensors=dict(sorted((tensors | slots).items())), aliases=aliases, scalars=scalars)


def parameter_names(model: nn.Module) -> dict[int, str]:
    """The first name, in order, of every parameter, by its id()."""
    names: dict[int, str] = {}
    for name, parameter in sorted(model.named_parameters(remove_duplicate=False), key=lambda pair: pair[0]):
        names.setdefault(id(parameter), name)
    return names


def _members(model: nn.Module) -> tuple[dict[str, tuple[str, torch.Tensor]], tuple[tuple[str, str], ...]]:
    """Parameters and buffers, each storage once, and the aliases of those that have several names."""
    named: list[tuple[str, str, torch.Tensor]] = [
        *((f"parameter/{name}", "parameter", found) for name, found in model.named_parameters(remove_duplicate=False)),
        *((f"buffer/{name}", "buffer", found) for name, found in model.named_buffers(remove_duplicate=False)),
    ]
    first: dict[object, str] = {}
    tensors: dict[str, tuple[str, torch.Tensor]] = {}
    aliases: list[tuple[str, str]] = []
    for name, kind, tensor in sorted(named, key=lambda item: item[0]):
        holder = first.setdefault(_storage(tensor), name)
        if holder == name:
            tensors[name] = (kind, tensor)
        else:
            aliases.append((name, holder))
    return tensors, tuple(aliases)


def _storage(tensor: torch.Tensor) -> object:
    """Equal for two tensors that are the same view of the same memory."""
    if tensor.numel() == 0:
        return id(tensor)
    start = tensor.untyped_storage().data_ptr()
    return str(tensor.device), start, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _optimizer_items(state: TrainingState) -> Iterator[tuple[str, str, object]]:
    """(name, kind, value) of everything in the optimizer: slots, then settings of the groups."""
    names = parameter_names(state.model)
    optimizer = state.optimizer
    for i, group in enumerate(optimizer.param_groups):
        if any(id(parameter) not in names for parameter in group["params"]):
            raise UsageError(f"optimizer group {i} holds a parameter that is not one of the model's")
        yield f"group/{i}/params", "other", [names[id(parameter)] for parameter in group["params"]]
        for key, value in group.items():
            if key not in ("params", "param_names"):
                yield f"group/{i}/{key}", "other", value
    for parameter, slots in optimizer.state.items():
        if id(parameter) not in names:
            raise UsageError("the optimizer keeps state for a parameter that is not one of the model's")
        for key, value in slots.items():
            if not isinstance(key, str) or "/" in key:
                raise UsageError(f"the optimizer keeps state under {key!r}, which is no plain name")
            yield f"optimizer/{names[id(parameter)]}/{key}", "optimizer", value
