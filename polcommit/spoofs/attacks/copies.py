"""A run as an opening shows it, and copies of it: as it is, or with hidden units in another order.

A colluding verifier hands on what was opened to it: states, records, data. That is the whole run where all of its steps
were challenged, and no secret of its prover's is among it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from polcommit import prf
from polcommit import transcript as hashes
from polcommit.encoding import decode, encode
from polcommit.records import GenesisRecord, StateIndex, StepRecord, TensorEntry
from polcommit.session import bundle
from polcommit.session.run import genesis_record, seed_of
from polcommit.spoofs.base import PreconditionNotMet
from polcommit.storage.blobs import BlobFolder
from polcommit.storage.runfolder import RunFolder
from polcommit.storage.tensors import tensor_size
from polcommit.training.environment import fingerprint
from polcommit.training.tree import raw_bytes, tensor_content, tensor_from_bytes

#: A layer, its normalisation, and the layer that takes its outputs, by the names that the shipped recipes give them:
#: the order of what lies between does not matter. Of `digits` that is all there is between input and output; of the
#: residual nets what is inside a block, and of `gpt` inside a feed-forward part. Streams that blocks add to, and
#: attention heads, keep their order.
HIDDEN = (
    ("conv1", "norm1", "conv2"), ("conv2", "norm2", "conv3"), ("conv2", "norm2", "out"), ("expand", None, "contract"),
)  # fmt: skip

Change = Callable[[TensorEntry, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class ShownRun:
    """What a verifier has seen of a run of which it challenged every step."""

    genesis: GenesisRecord
    records: Mapping[int, StepRecord]
    states: Mapping[int, StateIndex]
    blobs: BlobFolder

    @classmethod
    def read(cls, evidence: Path, work: Path) -> ShownRun:
        """From a bundle with openings in clear; contents go into the folder `work`."""
        found = bundle.read(evidence)
        found.extract(work)
        disclosure, openings = found.evidence.disclosure, found.evidence.openings
        assert disclosure is not None and openings is not None, "the bundle has openings in clear"
        first, *rest = disclosure.leaves
        return cls(
            genesis=decode(first.record, GenesisRecord),
            records={leaf.index: decode(leaf.record, StepRecord) for leaf in rest},
            states={state.step: state.index for state in openings.states},
            blobs=BlobFolder(work),
        )

    def copy_into(self, folder: RunFolder, change: Change | None = None) -> None:
        """Write it as the run of `folder`: its own genesis and samples, and these states; `change`d, if that is given.

        The samples named are those that the folder's own order demands.
        """
        leaves, manifest = folder.dataset_leaves(), folder.manifest
        seed = seed_of(folder)
        with folder.lock(), folder.journal() as journal:
            folder.add_environment(1, fingerprint(folder.settings.device))
            for step in range(manifest.steps + 1):
                index = self._put(folder, step, change)
                state = hashes.state_digest(index)
                if step == 0:
                    journal.append(encode(genesis_record(folder, state)))
                    continue
                due = prf.batch_indices(seed, step, len(leaves), manifest.batch)
                samples = hashes.samples_digest(leaves[index] for index in due)
                journal.append(encode(replace(self.records[step], samples=samples, state=state)))
            journal.sync()

    def _put(self, folder: RunFolder, step: int, change: Change | None) -> StateIndex:
        index = self.states[step]
        if change is None:
            folder.states.put(step, index, self._content)
            return index
        tensors = {entry.name: change(entry, self.tensor(entry)).contiguous() for entry in index.tensors}
        entries = tuple(replace(entry, content=tensor_content(tensors[entry.name])) for entry in index.tensors)
        changed = replace(index, tensors=entries)
        folder.states.put(step, changed, lambda entry: raw_bytes(tensors[entry.name]))
        return changed

    def _content(self, entry: TensorEntry) -> bytes:
        return self.blobs.get(entry.content, tensor_size(entry))

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        """A tensor of one of the states."""
        return tensor_from_bytes(entry.dtype, entry.shape, memoryview(self._content(entry))).clone()


def permutation(model: nn.Module, generator: torch.Generator) -> Change:
    """Hidden units in another order, wherever HIDDEN knows some; the function computed stays the same.

    Raises:
        PreconditionNotMet: the model has none that are known.
    """
    moved: dict[str, dict[int, torch.Tensor]] = {}      # tensor of the model -> dimension -> new order
    for place, inner, norm, outer, width in hidden_units(model):
        order = torch.randperm(width, generator=generator)
        for layer in (inner, norm):
            if layer is not None:
                inside = place.get_submodule(layer)
                names = [name for held in (inside.named_parameters(), inside.named_buffers()) for name, _ in held]
                for name in names:
                    moved.setdefault(f"{prefix_of(model, place)}{layer}.{name}", {})[0] = order
        moved.setdefault(f"{prefix_of(model, place)}{outer}.weight", {})[1] = order

    def change(entry: TensorEntry, tensor: torch.Tensor) -> torch.Tensor:
        name = entry.name.partition("/")[2]
        name = name if entry.kind != "optimizer" else name.rpartition("/")[0]
        for dimension, order in moved.get(name, {}).items():
            tensor = _reordered(tensor, dimension, order)
        return tensor

    return change


def _reordered(tensor: torch.Tensor, dimension: int, order: torch.Tensor) -> torch.Tensor:
    """One dimension in another order of its units, each of which may have several places in a row: a flattened image.

    A tensor without such a dimension, a step count for instance, is as it was.
    """
    if tensor.dim() <= dimension or tensor.shape[dimension] % len(order):
        return tensor
    places = torch.arange(tensor.shape[dimension]).reshape(len(order), -1)
    return tensor.index_select(dimension, places[order].reshape(-1))


def hidden_units(model: nn.Module) -> list[tuple[nn.Module, str, str | None, str, int]]:
    """(module, layer, its normalisation, next layer, units) of all that HIDDEN names. Raises PreconditionNotMet."""
    found = list(_hidden_units(model))
    if not found:
        raise PreconditionNotMet(f"which hidden units of {type(model).__name__} can be reordered is not known")
    return found


def _hidden_units(model: nn.Module) -> Iterator[tuple[nn.Module, str, str | None, str, int]]:
    for place in model.modules():
        held = dict(place.named_children())
        for inner, norm, outer in HIDDEN:
            if inner in held and outer in held and (norm is None or norm in held):
                weight = held[inner].weight
                assert isinstance(weight, torch.Tensor)
                yield place, inner, norm, outer, weight.shape[0]


def prefix_of(model: nn.Module, place: nn.Module) -> str:
    """What stands before the names of a module's own parts: '' for the model itself, 'layers.0.' below it."""
    name = next(name for name, module in model.named_modules() if module is place)
    return f"{name}." if name else ""
