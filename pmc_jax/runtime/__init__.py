"""Processes, compiled functions, progress and timing of a run."""
