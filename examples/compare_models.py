"""Unlearn with two methods and compare the models.

`python examples/compare_models.py` runs PMC and NPO on the bundled model, in memory.
"""

import pmc_jax as pmc

TRAINING = pmc.Training(epochs=14, batch_size=16, max_length=96)
METHODS = {
    "PMC": (
        pmc.PMC(samples=8, max_new_tokens=40, min_len=4, retain_per_forget=2),
        pmc.Optimizer(learning_rate=3e-4),
    ),
    "NPO": (pmc.NPO(beta=0.1, retain_weight=4.0), pmc.Optimizer(learning_rate=1e-4)),
}


def main(training: pmc.Training = TRAINING) -> dict[str, pmc.Evaluation]:
    """Train with each method, and print unlearn quality and utility."""
    model, data = pmc.load_model("bundled"), pmc.Dataset.bundled()
    found = {}
    for name, (method, optimizer) in METHODS.items():
        result = pmc.unlearn(model, data, method, training, optimizer)
        found[name] = pmc.evaluate(
            result.model, data, suite="quick", max_length=training.max_length,
            evaluation=pmc.EvaluationConfig(max_new_tokens=40, attack_samples=8),
        )  # fmt: skip
    for name, evaluation in found.items():
        measures = evaluation.measures
        print(
            f"{name:4}  unlearn quality {measures['unlearn_quality']:5.1f}  "
            f"utility {measures['utility']:5.1f}"
        )
    return found


if __name__ == "__main__":
    main()
