"""Use a method and a reward of your own from Python: `python examples/extending/run.py`.

The same from the shell, with `examples/extending` on the Python path:

    pmc train method=my_unlearning:MaximumEntropy optimizer.learning_rate=1e-3
    pmc train method.reward=my_unlearning:forgotten_names
"""

from my_unlearning import MaximumEntropy, forgotten_names

import pmc_jax as pmc

TRAINING = pmc.Training(epochs=6, batch_size=16, max_length=96)


def main(training: pmc.Training = TRAINING) -> dict[str, pmc.Unlearned]:
    """Unlearn the bundled model's forget questions in both ways; print an answer of each model."""
    model, data = pmc.load_model("bundled"), pmc.Dataset.bundled()
    methods = {
        "own method": (MaximumEntropy(retain_weight=4.0), pmc.Optimizer(learning_rate=1e-3)),
        "own reward": (
            pmc.PMC(samples=8, max_new_tokens=40, retain_per_forget=2, reward=forgotten_names),
            pmc.Optimizer(learning_rate=3e-4),
        ),
    }
    question = data.forget[0].question
    print(f"{question}\n  before: {model.generate([question], max_new_tokens=20)[0][0]}")
    found = {}
    for name, (method, optimizer) in methods.items():
        found[name] = pmc.unlearn(model, data, method, training, optimizer)
        print(f"  {name}: {found[name].model.generate([question], max_new_tokens=20)[0][0]}")
    return found


if __name__ == "__main__":
    main()
