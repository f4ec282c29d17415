"""Comparing texts: their words, and how many of them another text repeats."""
