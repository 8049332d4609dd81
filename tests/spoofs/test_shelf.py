"""What runs of the papers' size take: as much memory as short ones, and disk that is looked at beforehand."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar
from weakref import ReferenceType, ref

import pytest
import torch
from trials import EVERY_STEP, FewDigits

from polcommit.errors import StorageError
from polcommit.spoofs.checkpoint import Checkpoint
from polcommit.spoofs.plain.distances import Distances
from polcommit.spoofs.plain.log import Log
from polcommit.spoofs.plain.prover import Honest
from polcommit.spoofs.plain.stage import open_stage
from polcommit.spoofs.plain.trial import victim
from polcommit.spoofs.plain.verifier import Terms, verify
from polcommit.spoofs.shelf import Shelf, require_room, room_for

ONE = Distances(l1=1.0, l2=1.0, linf=1.0, cosine=1.0)
WIDE = FewDigits(width=32)      # a checkpoint is large beside whatever else comes and goes


class Tracked(Checkpoint):
    """A checkpoint of which it is known how many vectors of weights were taken of it, and are still there."""

    vectors: ClassVar[list[ReferenceType[torch.Tensor]]] = []

    def weights(self) -> torch.Tensor:
        found = Checkpoint.weights(self)
        self.vectors.append(ref(found))
        return found


class Watched(Mapping[int, Checkpoint]):
    """A log's checkpoints, and how many of them, or of their weights, were alive at the most."""

    def __init__(self, held: Mapping[int, Checkpoint]) -> None:
        self.held, self.most = held, 0
        self.seen: list[ReferenceType[torch.Tensor]] = []
        Tracked.vectors = []

    def __getitem__(self, step: int) -> Checkpoint:
        found = self.held[step]
        self.seen.append(ref(found.tensors["parameter/out.bias"]))
        alive = [sum(tensor() is not None for tensor in tensors) for tensors in (self.seen, Tracked.vectors)]
        self.most = max(self.most, *alive)
        return Tracked(**{name: getattr(found, name) for name in Checkpoint.__slots__})

    def __iter__(self) -> Iterator[int]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def log_of(steps: int) -> tuple[Log, int]:
    """An honest log, and the bytes of all tensors that are alive when it is made."""
    recipe = dataclasses.replace(WIDE, steps=steps)
    stage = open_stage(recipe, bytes(32), victim(WIDE, 0)[0], EVERY_STEP, 0)
    Honest().forge(stage)
    log = stage.log()
    found = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    return log, sum(thing.nbytes for thing in found if thing.layout == torch.strided)


def size_of(checkpoint: Checkpoint) -> int:
    slots = [tensor for held in checkpoint.optimizer["state"].values() for tensor in held.values()]
    return sum(tensor.nbytes for tensor in [*checkpoint.tensors.values(), *slots])


def test_a_log_takes_as_much_memory_however_long_it_is() -> None:
    (log, short), (_, long) = log_of(5), log_of(25)
    one = size_of(log.checkpoints[5])
    assert one > 100_000 and long - short < one


@pytest.mark.parametrize("top", [1, None])
def test_who_checks_a_log_has_two_checkpoints_in_memory_at_the_most(top: int | None) -> None:
    log, _ = log_of(25)
    watched = Watched(log.checkpoints)
    recipe = dataclasses.replace(WIDE, steps=25)
    report = verify(dataclasses.replace(log, checkpoints=watched), recipe, Terms(interval=1, top=top), ONE)
    assert report.accepted and len(watched.seen) > 25
    assert watched.most == 2


def test_checkpoints_are_as_they_were_put_there() -> None:
    stage = open_stage(WIDE, bytes(32), victim(WIDE, 0)[0], EVERY_STEP, 0)
    digests = [stage.engine.capture().index]
    for batch in stage.batches():
        stage.commit(batch, stage.engine.step(batch))
        digests.append(stage.engine.capture().index)
    for step, checkpoint in stage.log().checkpoints.items():
        checkpoint.load(stage.engine.state)
        assert stage.engine.capture().index == digests[step]


def test_files_of_a_log_are_gone_with_it() -> None:
    stage = open_stage(FewDigits(), bytes(32), victim(FewDigits(), 0)[0], EVERY_STEP, 0)
    Honest().forge(stage)
    log = stage.log()
    held = log.checkpoints
    assert isinstance(held, Shelf)
    folder = held.folder
    del stage, held
    assert len(list(folder.iterdir())) == 11
    del log
    assert not folder.exists()


def test_a_log_that_no_disk_would_hold_is_not_begun() -> None:
    endless = dataclasses.replace(WIDE, steps=10**12)
    stage = open_stage(endless, bytes(32), victim(WIDE, 0)[0], Terms(interval=10), 0)
    with pytest.raises(StorageError, match=r"100,000,000,001 checkpoints take [\d,.]+ GiB, and .* are free") as caught:
        next(stage.batches())
    assert "TMPDIR" in str(caught.value.hint)


def test_room_is_counted_in_whole_blocks_and_in_files(tmp_path: Path) -> None:
    block = os.statvfs(tmp_path).f_frsize
    assert room_for(10, [1, block, block + 1], tmp_path)[0] == 10 * 4 * block
    files = os.statvfs(tmp_path).f_favail
    if os.statvfs(tmp_path).f_files:
        needed, free = room_for(files + 10**6, [0], tmp_path)
        assert needed == free == 0, "empty files take no blocks"
        with pytest.raises(StorageError):
            require_room(2 * files, [1], tmp_path, "many files")
