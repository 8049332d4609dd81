"""All spoofs, by name and family. Anyone can add one: a class, named by an entry point of the group 'polcommit.spoofs'.

    [project.entry-points."polcommit.spoofs"]
    my-attack = "my_package.attacks:MyAttack"

What another package brings and cannot be imported is left out, and said; it does not keep anybody from the others.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from polcommit.errors import PolcommitError, Unavailable, UsageError
from polcommit.spoofs.attacks.adaptive import (
    DecoySteering,
    OptimizerSlack,
    QuietSteering,
    SteeringAdam,
    SteeringSgd,
    StructuralZeros,
)
from polcommit.spoofs.attacks.adversarial_data import CarriedData, MatchedGradients, VanishingGradients
from polcommit.spoofs.attacks.again import RegistersAgain
from polcommit.spoofs.attacks.claims import (
    EarlyHeartbeat,
    PermutedRetraining,
    PermutedTranscript,
    ReanchoredTranscript,
    SameModelLater,
)
from polcommit.spoofs.attacks.data import DataAfterAnchor
from polcommit.spoofs.attacks.data_states import ChangingSamples, ReorderedBatches, SwappedLabels
from polcommit.spoofs.attacks.openings import (
    CannotReproduce,
    ForeignEnvironment,
    LyingSketches,
    OpensOtherSteps,
    RefusesToOpen,
)
from polcommit.spoofs.attacks.parents import LaunderedParent, StolenParent
from polcommit.spoofs.attacks.precedence import FrontRun, ReplayedAnchor, StrippedSignature
from polcommit.spoofs.attacks.protocol import (
    EarlyChallenge,
    GrindsBeacons,
    GrindsNonces,
    SeveralRoots,
    ShopsForVerifiers,
)
from polcommit.spoofs.attacks.ramp import OrdinaryRamp
from polcommit.spoofs.attacks.retraining import (
    DirectedRetraining,
    SequenceInversion,
    SmoothedSplice,
    Splice,
    SpliceOffSketch,
)
from polcommit.spoofs.attacks.smuggling import ExtraTensor, ForgedSetting, MissingTensor, OtherRelease
from polcommit.spoofs.attacks.smuggling_states import (
    ForgedBuffers,
    ForgedMomentum,
    ForgedScheduler,
    OtherRate,
    RoundedWeights,
)
from polcommit.spoofs.attacks.starting import FineTuned, RankMatchedStart, StartNearTarget
from polcommit.spoofs.attacks.stochastic import AdversarialRna, DataOrdering, SyntheticData
from polcommit.spoofs.attacks.structural import BlindfoldTopQ, InfinitesimalUpdate, MatchedNorms
from polcommit.spoofs.base import FAMILIES, Spoof

GROUP = "polcommit.spoofs"

_TRAJECTORIES: tuple[type[Spoof], ...] = (
    InfinitesimalUpdate, MatchedNorms, BlindfoldTopQ, MatchedGradients, VanishingGradients, CarriedData,
    SequenceInversion, DirectedRetraining, Splice, SpliceOffSketch, SmoothedSplice,
    DataOrdering, SyntheticData, AdversarialRna,
    RankMatchedStart, StartNearTarget, FineTuned,
    SwappedLabels, ReorderedBatches, ChangingSamples,
    ForgedMomentum, ForgedBuffers, RoundedWeights, OtherRate, ForgedScheduler,
    OrdinaryRamp,
)  # fmt: skip

_PROTOCOL: tuple[type[Spoof], ...] = (
    StolenParent, LaunderedParent,
    ReplayedAnchor, StrippedSignature, FrontRun, ReanchoredTranscript, PermutedTranscript, PermutedRetraining,
    SameModelLater, EarlyHeartbeat,
    DataAfterAnchor,
    ExtraTensor, MissingTensor, ForgedSetting, OtherRelease,
    RefusesToOpen, CannotReproduce, OpensOtherSteps, GrindsNonces, ShopsForVerifiers, GrindsBeacons, SeveralRoots,
    RegistersAgain, EarlyChallenge, LyingSketches, ForeignEnvironment,
    SteeringSgd, SteeringAdam, QuietSteering, DecoySteering, StructuralZeros, OptimizerSlack,
)  # fmt: skip

#: Those that ship with polcommit, by family; within one in the order of this file.
SPOOFS: tuple[type[Spoof], ...] = tuple(
    sorted(_TRAJECTORIES + _PROTOCOL, key=lambda spoof: FAMILIES.index(spoof.family))
)


def all_spoofs() -> tuple[tuple[type[Spoof], ...], tuple[str, ...]]:
    """SPOOFS and those that other packages install; and what is wrong with those that cannot be had."""
    found, wrong = {spoof.name: spoof for spoof in SPOOFS}, []
    for entry in entry_points(group=GROUP):
        try:
            spoof = _loaded(entry.name, entry.value)
        except PolcommitError as error:
            wrong.append(error.message)
            continue
        if found.setdefault(spoof.name, spoof) is not spoof:
            wrong.append(f"two spoofs are named {spoof.name}: {entry.value} is left out")
    return tuple(sorted(found.values(), key=lambda spoof: FAMILIES.index(spoof.family))), tuple(wrong)


def find_spoof(name: str) -> type[Spoof]:
    """The spoof of this name, or 'package.module:Class'.

    Raises:
        UsageError: there is none, or it is no spoof.
        Unavailable: importing it fails.
    """
    if ":" in name:
        return _loaded(name, name)
    for spoof in SPOOFS:
        if spoof.name == name:
            return spoof
    named = [_loaded(entry.name, entry.value) for entry in entry_points(group=GROUP) if entry.name == name]
    if named:
        return named[0]
    for spoof in all_spoofs()[0]:       # a class's own name need not be its entry point's
        if spoof.name == name:
            return spoof
    hint = "'polcommit spoof list' names them; one of your own is 'package.module:Class'"
    raise UsageError(f"no spoof {name[:100]!r}", hint=hint)


def _loaded(name: str, value: str) -> type[Spoof]:
    try:
        spoof = EntryPoint(name, value, GROUP).load()
    except Exception as error:  # another package's module can fail in any way
        hint = "mend it, or uninstall the package that brings it"
        raise Unavailable(f"spoof {name}: {value} cannot be imported: {error!r}", hint=hint) from error
    if not (isinstance(spoof, type) and issubclass(spoof, Spoof)) or getattr(spoof, "family", "") not in FAMILIES:
        raise UsageError(f"spoof {name}: {value} is not a Spoof of one of the families")
    return spoof
