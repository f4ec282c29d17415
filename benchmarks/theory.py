"""The speed of following many runs to collapse: `python benchmarks/theory.py`.

10,000 runs of relearning with K = 50, N = 100 and at most 2,000 rounds, until all have collapsed.
On the same machine and in the same process, it also times the two obvious implementations:
`jax.random.multinomial` in a scan, and NumPy's `Generator.multinomial` in a loop. Each runs for a
few rounds, extrapolated to the rounds that `collapse` needed.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pmc_jax.data.files import to_json
from pmc_jax.theory import collapse

RUNS, K, N, ROUNDS = 10_000, 50, 100, 2000
SHORT = 20
REPETITIONS = 3


def seconds_of(work) -> list[float]:
    """Wall time of each of several calls, after one that is not counted."""
    work(0)
    found = []
    for repetition in range(1, REPETITIONS + 1):
        started = time.perf_counter()
        work(repetition)
        found.append(time.perf_counter() - started)
    return found


def main() -> None:
    """Measure, print a table, and write `benchmarks/theory.json`."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    probs = jnp.full(K, 1 / K)
    needed = 0

    def ours(seed: int) -> None:
        nonlocal needed
        found = collapse(jax.random.split(jax.random.key(seed), RUNS), probs, N, ROUNDS)
        assert (found.time > 0).all()
        needed = max(needed, int(found.time.max()))

    @jax.jit
    def scan(key: jax.Array) -> jax.Array:
        def step(p, key):
            return jax.random.multinomial(key, N, p, dtype=jnp.float32) / N, None

        start = jnp.broadcast_to(probs, (RUNS, K))
        return jax.lax.scan(step, start, jax.random.split(key, SHORT))[0]

    def multinomial_scan(seed: int) -> None:
        scan(jax.random.key(seed)).block_until_ready()

    def numpy_loop(seed: int) -> None:
        rng, p = np.random.default_rng(seed), np.full((RUNS, K), 1 / K)
        for _ in range(SHORT):
            p = rng.multinomial(N, p) / N

    rows = {"pmc_jax.theory.collapse": seconds_of(ours)}
    for name, work in (
        ("numpy Generator.multinomial loop", numpy_loop),
        ("scan over jax.random.multinomial", multinomial_scan),
    ):
        rows[name] = [needed / SHORT * seconds for seconds in seconds_of(work)]
    result = {
        "runs": RUNS, "K": K, "N": N, "rounds_needed": needed, "seconds": rows,
        "extrapolated_from_rounds": SHORT, "device": jax.devices()[0].device_kind,
    }  # fmt: skip
    (Path(__file__).parent / "theory.json").write_text(to_json(result, indent=2) + "\n")
    ours_median = float(np.median(rows["pmc_jax.theory.collapse"]))
    print(f"{RUNS:,} runs, K={K}, N={N}, all collapsed after {needed} rounds\n")
    print(f"{'':<36}{'median s':>10}{'min':>8}{'max':>8}{'ratio':>8}")
    for name, found in rows.items():
        median = float(np.median(found))
        print(
            f"{name:<36}{median:>10.1f}{min(found):>8.1f}{max(found):>8.1f}"
            f"{median / ours_median:>7.1f}x"
        )


if __name__ == "__main__":
    main()
