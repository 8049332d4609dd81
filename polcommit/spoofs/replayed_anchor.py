"""Replay of an anchor: another prover's commitment and envelope, sent again from an account of one's own.

The forger holds nothing but what everybody can read on the ledger. Without an outer signature over run and
account, the ledger alone could not tell who the model belongs to; the copy comes later, but a forger who sees
the transaction before it is in a block can come first.
"""

from __future__ import annotations

from polcommit.events import Anchored, Registered
from polcommit.ledger.registry import Registry


def replay(ledger: Registry, account_key: bytes, mine: Registered, theirs: Anchored) -> Anchored:
    """Anchor `theirs` under the forger's own registered run."""
    _, previous = ledger.head(mine.run)
    return ledger.anchor(account_key, mine.nonce, previous, theirs.commitment, theirs.envelope)
