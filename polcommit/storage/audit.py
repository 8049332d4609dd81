"""pymerkle's second opinion on a root, before it is anchored: an anchor cannot be taken back.

pymerkle hashes the raw leaves itself; nothing of `polcommit.merkle` is used. Only the prover's side imports
this module: the verifier does not depend on pymerkle, which is under GPLv3.
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterable

from pymerkle import SqliteTree

from polcommit.errors import StorageError

_ANONYMOUS = ""     # SQLite's name for a private database in a temporary file: leaves need not fit in memory


def independent_root(leaf_data: Iterable[bytes]) -> bytes:
    """The root of RFC 9162 §2.1 over the leaves' data (not their hashes), as pymerkle computes it.

    Raises:
        StorageError: SQLite could not hold the leaves, for want of space.
    """
    try:
        with SqliteTree(_ANONYMOUS, "sha256", disable_cache=True) as tree:
            tree.append_entries(leaf_data, chunksize=10_000)
            return bytes(tree.get_root())
    except sqlite3.Error as error:
        raise StorageError(
            f"pymerkle could not recompute the root ({error})", hint="free space in the temporary folder and try again"
        ) from error


def confirm_root(leaf_data: Iterable[bytes], expected: bytes) -> None:
    """Return if pymerkle computes the expected root from the leaves' data; raise StorageError if not."""
    computed = independent_root(leaf_data)
    if not hmac.compare_digest(computed, expected):
        raise StorageError(
            f"pymerkle computes another root: {computed.hex()}, not {expected.hex()}",
            hint="nothing was sent; do not anchor this, run 'polcommit status RUN --check' and report it",
        )
