"""Optimizer, train step, the PMC loop, and checkpoints."""
