"""The process a run lives in: devices, other processes, compiled functions, progress, clocks."""
