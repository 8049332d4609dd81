"""Honest runs, re-executed here and elsewhere: every one of them has to be accepted.

For each recipe and optimizer two runs are for calibration, under other seeds than all the others. The others are
judged: bit for bit in the environment that trained them, and within the tolerance of that profile in each of the other
environments. Training, re-execution, calibration and judgement are polcommit's own, in processes as they use them;
there is no ledger. What is drawn is a few steps of short runs of small nets: a rate of rejects is bounded by how many
there are, and not proved.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polcommit.encoding import decode, encode
from polcommit.errors import Refuted
from polcommit.profiles import Profile
from polcommit.replaying import ReplayJob, ReplayReport
from polcommit.session.calibrate import ReferenceJob, ReferenceRun
from polcommit.session.environments import EnvironmentSettings, has_capability
from polcommit.session.fitting import Group, fit
from polcommit.spoofs import figures
from polcommit.spoofs.alignment_draws import upper_bound
from polcommit.spoofs.honest_jobs import Job, run_jobs
from polcommit.spoofs.honest_runs import SCHEDULES, Trajectory, VariedDigits, VariedGpt, VariedResNet, recipes, train
from polcommit.spoofs.honest_screens import false_flags
from polcommit.storage.tensors import TensorFolder
from polcommit.tolerance import check_alignment, judge, reach
from polcommit.training.environment import set_determinism
from polcommit.training.loading import Loader
from polcommit.training.recipe import Recipe
from polcommit.training.replay import Engine
from polcommit.transcript import state_digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
