"""Recipes shipped with the project: `digits` and `gpt`."""
