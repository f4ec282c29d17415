"""`python -m pmc_jax.evaluate`, the command.

Imported, the name belongs to the function of the Python API, `pmc_jax.evaluate(model, data)`.
"""

import sys

if __name__ == "__main__":
    from pmc_jax.cli.evaluate import main

    main()
else:
    from pmc_jax.evaluation.run import evaluate

    sys.modules[__name__] = evaluate  # type: ignore[assignment]
