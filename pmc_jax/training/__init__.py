"""The training loop, its batches, objective, step and optimizer: the same for every method."""
