"""Memory and FLOPs of a run on devices that need not be there."""
