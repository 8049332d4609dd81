"""What `polcommit.planning` says that a verifier computes, against the passes that a re-execution makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_reexecution import RECIPE, job_of

from polcommit import planning
from polcommit.recipes.digits import Digits
from polcommit.replaying import ReplayJob
from polcommit.session.reexecution import Reexecution
from polcommit.storage.blobs import BlobFolder

PASSES: list[bool] = []     # forward passes, and whether a backward pass can follow


class Counting(Digits):
    """The same recipe, which counts."""

    def loss(self, *given: Any) -> torch.Tensor:
        PASSES.append(torch.is_grad_enabled())
        return super().loss(*given)


def made(job: ReplayJob, blobs: Path) -> tuple[int, int]:
    """Steps that the worker's code executes for a job, and forward passes besides."""
    PASSES.clear()
    Reexecution(job, BlobFolder(blobs), lambda done, total: None).run(
        Counting.from_configuration(RECIPE.configuration())
    )
    return sum(PASSES), len(PASSES) - sum(PASSES)


@pytest.mark.parametrize("challenged", [1, 2, 10])
@pytest.mark.parametrize(
    ("gradients", "right", "times"),
    [(False, True, planning.EQUAL), (False, False, planning.UNEQUAL), (True, False, planning.MEASURED)],
)
def test_a_re_execution_makes_the_passes_that_are_planned(
    tmp_path: Path, challenged: int, gradients: bool, right: bool, times: int
) -> None:
    """Steps 1 and 3 over and over; with other digests than the steps have, as another environment finds them."""
    job = job_of(tmp_path, gradients=gradients)
    repeated = (job.steps * challenged)[:challenged]
    steps = repeated if right else tuple(replace(step, state=bytes(32)) for step in repeated)
    planned = planning.effort(challenged, times)
    found = made(replace(job, steps=steps, samples=(job.samples * challenged)[:challenged]), tmp_path)
    assert found == (planned.executed + planned.counted, planned.passes)
