"""The spoofs themselves, a module for each kind, and the tools that only they use.

What a spoof gets from elsewhere: `base` (what it is), `forging` and `checkpoint` (weights, steps, states), and the
opponent that it is tried against.
"""
