"""The home of torch: what a recipe is, its training state as bytes, and steps that run twice to the same bits.

Nothing here knows of run folders, ledgers or commands. Nothing is ever unpickled that came from elsewhere.
"""
