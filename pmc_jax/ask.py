"""Ask a model one question, or a file of them: `pmc ask`.

Each line of the file is a JSON object with a `question`, and perhaps a `system` prompt. Each
line of the answers is an object with `question`, `answers` and `token_ids`.
"""

from pathlib import Path

import jax

from pmc_jax.cli.config import AskConfig
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.data.files import write_json_lines
from pmc_jax.data.records import read_records
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.language_model import load_language_model
from pmc_jax.runtime.progress import stage


def read_questions(cfg: AskConfig) -> list[tuple[str, str | None]]:
    """(question, system prompt) from the command line or the file.

    Raises:
        UserError: if the arguments contradict each other, or the answers would replace a file.
    """
    if (cfg.question is None) == (cfg.questions is None):
        raise UserError('expected either question="…" or questions=FILE out=FILE')
    if cfg.out is not None and Path(cfg.out).is_dir():
        raise UserError(f"out={cfg.out} is a directory; expected a file")
    if cfg.out is not None and Path(cfg.out).exists() and not cfg.overwrite:
        raise UserError(f"out={cfg.out} exists already; overwrite=true replaces it")
    if cfg.question is not None:
        return [(cfg.question, None)]
    if cfg.out is None:
        raise UserError(f"questions={cfg.questions} needs out=FILE for the answers")
    records = read_records(Path(str(cfg.questions)))
    return [(record.text("question"), record.optional_text("system")) for record in records]


def ask(cfg: AskConfig) -> None:
    """Decode `n` answers to each question, and print them or write them to a file."""
    questions = read_questions(cfg)
    if cfg.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    model = load_language_model(cfg.model, cfg.prompt)
    template = model.template
    prefix = template.encode_prefix(cfg.prefix) if cfg.prefix else []
    with stage("asking", len(questions)) as progress:
        responses = generate(
            model.for_decoding().params,
            [template.encode_prompt(text, system) + prefix for text, system in questions],
            cfg=model.config,
            sampling=Sampling(cfg.temperature, cfg.top_k, cfg.top_p, stop_ids=template.stop_ids),
            key=jax.random.key(cfg.seed),
            limits=[cfg.max_new_tokens] * len(questions),
            samples=cfg.n,
            rows=cfg.decode_batch,
            dtype=cfg.model.dtype,
            on_batch=lambda prompts, _: progress.update(progress.done + prompts),
        )
    answers = [
        {
            "question": question,
            "answers": [template.decode(prefix + tokens) for tokens in row],
            "token_ids": row,
        }
        for (question, _), row in zip(questions, responses, strict=True)
    ]
    if cfg.out is not None:
        write_json_lines(Path(cfg.out), answers)
        print(f"{len(answers)} questions answered in {cfg.out}")
        return
    for answer in answers[0]["answers"]:
        print(answer)


main = entry_point(ask, "ask", AskConfig)

if __name__ == "__main__":
    main()
