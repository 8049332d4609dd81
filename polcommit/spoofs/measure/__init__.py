"""What docs/soundness.md and docs/screens.md state, measured: one module for each part of `scripts/soundness`."""
