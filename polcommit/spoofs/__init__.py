"""Published attacks and our own, as runnable adversaries: they hold what a forger would hold, and no more."""
