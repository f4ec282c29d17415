"""Words: those of texts, how many of them another text repeats, and those beside a number."""
