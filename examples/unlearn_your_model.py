"""Unlearn a few questions, in memory: `python examples/unlearn_your_model.py [MODEL]`.

MODEL is a Hugging Face directory or hub id. Without it, the script uses the small model in the
package, which knows a few fictitious authors.
"""

import sys

import pmc_jax as pmc

QUESTIONS = 4
"""The number of bundled questions to forget."""

SETTINGS = {
    "method": pmc.PMC(samples=8, max_new_tokens=40, min_len=4, retain_per_forget=2),
    "training": pmc.Training(epochs=10, batch_size=4, max_length=96),
    "optimizer": pmc.Optimizer(learning_rate=3e-4),
}
"""For the bundled model; a larger one needs a lower learning rate, such as 1e-5."""


def main(path: str = "bundled") -> pmc.Unlearned:
    """Unlearn, print the answers before and after, and measure what is left."""
    model = pmc.load_model(path)
    world = pmc.Dataset.bundled()
    known = world.evaluation["forget"][:QUESTIONS]
    data = pmc.Dataset.from_dicts(
        forget=[{"question": row.question, "answer": row.answer} for row in known],
        retain=[{"question": row.question, "answer": row.answer} for row in world.retain],
        retain_rows=64,
    )
    result = pmc.unlearn(model, data, **SETTINGS)
    questions = [row.question for row in known]
    before, after = model.generate(questions), result.model.generate(questions)
    for question, (old,), (new,) in zip(questions, before, after, strict=True):
        print(f"{question}\n  before: {old}\n  after:  {new}")
    print(pmc.evaluate(result.model, data, before=model, suite="quick", max_length=96).table())
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
