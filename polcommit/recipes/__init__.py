"""Recipes shipped with the project: `digits`, `gpt`, `resnet20-cifar10` and `resnet50-cifar100`."""
