"""polcommit as a spoof's opponent: chain, keys, contract and verifier as they are, and one who cheats them."""
