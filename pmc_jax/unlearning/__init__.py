"""Unlearning methods.

`pmc/` is the paper. `beginnings` and `offers` are options of it that the paper does not have, and
`savings/` is what only saves time in it. `baselines/` has the methods that it is compared with, one
file each. `method` says what a method is, and `losses` what their losses are made of.
"""
