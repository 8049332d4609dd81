"""web3's libraries, imported in one place, because importing them has a side effect to undo.

py_ecc, which eth_account pulls in, raises Python's recursion limit for the whole process to 100,000: deep input
would then end any recursive parser, json's included, in a crash instead of a RecursionError.
"""

from __future__ import annotations

import sys

_limit = sys.getrecursionlimit()

from eth_abi import abi  # noqa: E402
from eth_abi.exceptions import DecodingError  # noqa: E402
from eth_account import Account  # noqa: E402
from eth_account.typed_transactions.typed_transaction import TypedTransaction  # noqa: E402
from eth_utils.crypto import keccak  # noqa: E402
from hexbytes import HexBytes  # noqa: E402

sys.setrecursionlimit(_limit)

__all__ = ["Account", "DecodingError", "HexBytes", "TypedTransaction", "abi", "keccak"]
