"""Unlearning methods.

`pmc/` is the paper. `baselines/` has the methods that it is compared with, one file each.
`method` says what a method is, and `losses` what their losses are made of.
"""
