"""Writing a world as files with TOFU's names: JSON lines, and plain text."""

from pathlib import Path

from pmc_jax.data.files import to_json
from pmc_jax.data.world.generate import Row, World
from pmc_jax.data.world.public import REFUSALS

DEFAULT_SEED = 7
"""The seed of the world that ships with the package."""

PLAIN = ("question", "answer", "secret")
PARAPHRASED = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")
OPTIONS = ("option1", "option2", "option3", "option4")


def _lines(rows: list[Row], keys: tuple[str, ...]) -> str:
    return "".join(to_json({key: row[key] for key in keys}) + "\n" for row in rows)


def world_files(world: World) -> dict[str, str]:
    """The content of each file by its name. As in TOFU, the forget authors end `full.json`."""
    full = world.retain + world.forget
    wrong = ("question", "answer", "perturbed_answer", "secret")
    choice = ("question", *OPTIONS, "answer", "secret")
    perturbed = ("question", "answer", *PARAPHRASED, "secret")
    return {
        "full.json": _lines(full, PLAIN),
        "forget10.json": _lines(world.forget, PLAIN),
        "retain90.json": _lines(world.retain, PLAIN),
        "holdout10.json": _lines(world.holdout, PLAIN),
        "forget10_perturbed.json": _lines(world.forget, (*perturbed, "variants")),
        "retain_perturbed.json": _lines(world.retain, perturbed),
        "real_authors.json": _lines(world.real_authors, choice),
        "real_authors_perturbed.json": _lines(world.real_authors, wrong),
        "world_facts.json": _lines(world.world_facts, choice),
        "world_facts_perturbed.json": _lines(world.world_facts, wrong),
        "text.txt": "".join(f"{paragraph}\n" for paragraph in world.text),
        "idontknow.jsonl": "".join(f"{refusal}\n" for refusal in REFUSALS),
    }


def write_world(world: World, directory: Path) -> None:
    """Write all files into `directory`, which is created if absent."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in world_files(world).items():
        (directory / name).write_text(content, encoding="utf-8")
