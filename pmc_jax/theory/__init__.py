"""Why models collapse: categorical distributions that are fitted to their own samples.

`relearning` and `collapse` have the paper's model collapse (arXiv 2507.04219, Proposition C.3)
and its partial form. `curated` has collapse under selection by reward (Ferbach et al. 2024,
arXiv 2407.09499). docs/theory.md states the results, with proofs and the tests that check
them. This package imports only JAX and NumPy, nothing else of `pmc_jax`.
"""

from pmc_jax.theory.collapse import Collapse, collapse
from pmc_jax.theory.curated import (
    argmax_update,
    bradley_terry_limit,
    bradley_terry_monte_carlo,
    bradley_terry_update,
    curated_sample,
)
from pmc_jax.theory.recursion import iterate, retain_closed_form, retain_update
from pmc_jax.theory.relearning import draw, frequencies, relearn, trajectory
from pmc_jax.theory.statistics import (
    collapse_time,
    heterozygosity,
    kl_divergence,
    mean_and_variance,
    outside_mass,
    total_variation,
)

__all__ = [
    "Collapse",
    "argmax_update",
    "bradley_terry_limit",
    "bradley_terry_monte_carlo",
    "bradley_terry_update",
    "collapse",
    "collapse_time",
    "curated_sample",
    "draw",
    "frequencies",
    "heterozygosity",
    "iterate",
    "kl_divergence",
    "mean_and_variance",
    "outside_mass",
    "relearn",
    "retain_closed_form",
    "retain_update",
    "total_variation",
    "trajectory",
]
