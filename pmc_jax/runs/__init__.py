"""The files of a run: its directory, checkpoints, metrics, fingerprints and summary."""
