"""Draft a forget and a retain file about a person: `pmc draft`.

The model itself answers questions about the person, about other people and about the world. The
files are a first version, which you read and correct before a run.
"""

from pathlib import Path
from shlex import quote

from pmc_jax.cli.commands import called
from pmc_jax.cli.config import DraftConfig
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.cli.loading import load_to_ask
from pmc_jax.data.files import read_text_lines, write_json_lines
from pmc_jax.drafting import draft_data, format_draft
from pmc_jax.errors import UserError
from pmc_jax.terminal import escaped
from pmc_jax.text.counts import counted

FORGET, RETAIN = "forget.jsonl", "retain.jsonl"


def free_files(out: str) -> tuple[Path, Path]:
    """The paths of the two files, which do not exist yet.

    Raises:
        UserError: if one exists; a draft may have been corrected by hand.
    """
    directory = Path(out).expanduser()
    if directory.exists() and not directory.is_dir():
        raise UserError(f"out={out} is a file; expected a directory")
    files = directory / FORGET, directory / RETAIN
    for path in files:
        if path.exists():
            raise UserError(f"{path} exists already; expected another directory, out=…")
    return files


def names_of(others: str | None) -> list[str]:
    """The names of a list with commas, or of a text file with a name a line.

    Raises:
        UserError: if the file cannot be read, or there is no name.
    """
    if others is None:
        return []
    path = Path(others).expanduser()
    is_file = others.endswith(".txt") or ("," not in others and path.is_file())
    found = read_text_lines(path) if is_file else [part.strip() for part in others.split(",")]
    found = [name for name in found if name]
    if not found:
        raise UserError(f"others={others}: no names")
    return found


def draft(config: DraftConfig) -> None:
    """Draft the two files, and print every row."""
    forget, retain = free_files(config.out)
    others = names_of(config.others)
    if config.questions is not None and not Path(config.questions).expanduser().exists():
        raise UserError(f"questions={config.questions}: no such file")
    model = load_to_ask(config.model, config.prompt, config.memory)
    found = draft_data(
        model,
        config.person,
        questions=config.questions,
        fields=config.data.fields.renamed(),
        patterns=config.patterns,
        others=others,
        people=config.people,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        decode_batch=config.decode_batch,
    )
    print(format_draft(found))
    warnings = found.dataset().warnings
    write_json_lines(forget, found.forget_rows)
    write_json_lines(retain, found.retain_rows)
    print()
    for warning in warnings:
        print(escaped(f"Warning: {warning}."))
    print(
        f"{counted(len(found.forget_rows), 'row', 'rows')} in {forget}, "
        f"{counted(len(found.retain_rows), 'row', 'rows')} in {retain}\n\n"
        "These are the model's answers, true or not. Read both files, correct and delete rows.\n"
        "Then:\n"
        f"  {called('train')} experiment=own model.path={quote(config.model.path)} "
        f"data.forget={quote(str(forget))} data.retain={quote(str(retain))}"
    )


main = entry_point(draft, "draft", DraftConfig)

if __name__ == "__main__":
    main()
