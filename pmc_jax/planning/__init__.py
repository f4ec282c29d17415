"""Memory and FLOPs of a run on devices that this machine need not have."""
