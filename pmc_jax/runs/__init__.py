"""What a run leaves: its directory, checkpoints, metrics, fingerprints and summary."""
