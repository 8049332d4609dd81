"""The Ethereum side: the registry's client, keystores, and a local chain to develop on.

This package is the only importer of web3's libraries, and loads none of them itself: import what is needed
from `registry`, `accounts`, `devnet` or `artifacts`. Nothing here judges: which chain is the right one and
what an event proves is decided by policy and verifier.
"""
