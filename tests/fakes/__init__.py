"""A chain in memory, and an honest prover and verifier in pure Python: the tests' stand-ins for web3 and torch.

`MemoryLedger` keeps the contract's rules; what it lets happen can happen on a chain. A run's states are made by
hashing the state and the batch before them, so that re-execution is a pure function, and anything that a prover
changes shows. A cheating prover is a subclass of `Prover`, or an honest opening with something replaced.
"""

from fakes.chain import MemoryLedger, named, policy_for
from fakes.proving import Opening, Prover
from fakes.replaying import HonestReplayer
from fakes.scene import Scene, Verifier, changed, scene
from fakes.training import (
    ELSEWHERE,
    ENVIRONMENT,
    RECIPE,
    SOURCE,
    SURGE,
    Floats,
    Outcome,
    State,
    execute,
    floats,
    initial_state,
    moved,
    packed,
    values_of,
)

__all__ = [
    "ELSEWHERE", "ENVIRONMENT", "RECIPE", "SOURCE", "SURGE", "Floats", "HonestReplayer", "MemoryLedger",
    "Opening", "Outcome", "Prover", "Scene", "State", "Verifier", "changed", "execute", "floats",
    "initial_state", "moved", "named", "packed", "policy_for", "scene", "values_of",
]  # fmt: skip
