"""What saves work while a method samples responses and keeps the best of each question.

No selected response depends on it, except by rounding: `tests/test_savings.py` compares whole runs
in float64. The algorithm calls each of these in one line, and nothing here imports it.

- `pruning`: a sample that can no longer be selected is not decoded any further.
- `drafts`: samples that begin like a known response are decoded only from where they leave it.
- `shapes`: all steps share a few padded shapes, so that little is compiled.
- `arguments`: all of them, as arguments of `decoding.generate`.

Waves and compaction are settings of `decoding` (`Training.wave`, `Training.compact`).
"""
