"""The frozen types that are hashed, signed or sent (spec §3 to §6).

A record that exists is valid in itself: types, lengths and ranges were checked. Whether it is *true* is the
verifier's business. How it becomes bytes is `polcommit.encoding`'s; nothing else packs it.
"""

from polcommit.records.challenge import (
    Challenge,
    Disclosure,
    Gradient,
    OpenedSample,
    OpenedState,
    OpeningKey,
    Openings,
    ParentClaim,
    Refusal,
    Request,
    SealedOpening,
    Sketch,
)
from polcommit.records.run import (
    Eligible,
    Envelope,
    Fingerprint,
    GenesisRecord,
    Manifest,
    RevealedHead,
    Sealed,
    Statement,
    StepRecord,
)
from polcommit.records.state import ScalarEntry, StateIndex, TensorEntry
from polcommit.records.trees import OpenedLeaf, Rate, SampleLeaf, TreeHead
from polcommit.records.verdict import (
    Budget,
    Distance,
    EarlierChallenge,
    Evidence,
    Finding,
    Flag,
    Receipt,
    Reference,
    Verdict,
    Work,
)

__all__ = [
    "Budget",
    "Challenge",
    "Disclosure",
    "Distance",
    "EarlierChallenge",
    "Eligible",
    "Envelope",
    "Evidence",
    "Finding",
    "Fingerprint",
    "Flag",
    "GenesisRecord",
    "Gradient",
    "Manifest",
    "OpenedLeaf",
    "OpenedSample",
    "OpenedState",
    "OpeningKey",
    "Openings",
    "ParentClaim",
    "Rate",
    "Receipt",
    "Reference",
    "Refusal",
    "Request",
    "RevealedHead",
    "SampleLeaf",
    "ScalarEntry",
    "Sealed",
    "SealedOpening",
    "Sketch",
    "StateIndex",
    "Statement",
    "StepRecord",
    "TensorEntry",
    "TreeHead",
    "Verdict",
    "Work",
]
