"""Where the adapters are wired together: what the commands and `polcommit.record` are made of.

Nothing is imported here: recording needs torch and no chain, anchoring a chain and no torch, checking a bundle
neither.
"""
