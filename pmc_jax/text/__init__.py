"""Texts compared: the words of a text, and how many of them another one holds."""
