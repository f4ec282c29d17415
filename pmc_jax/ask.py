"""Ask a model one question, or a file of them: `pmc ask`.

Each row of the file has a `question`, and perhaps a `system` prompt; `data.fields.*` names other
columns. Each line of the answers is an object with `question`, `answers` and `token_ids`.
"""

import sys
from pathlib import Path

import jax

from pmc_jax.cli.config import AskConfig
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.cli.loading import load_to_ask
from pmc_jax.data.encode import check_tokens
from pmc_jax.data.files import write_json_lines
from pmc_jax.data.records import read_records
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.runtime.progress import stage
from pmc_jax.terminal import escaped
from pmc_jax.text.counts import counted


def read_questions(config: AskConfig) -> list[tuple[str, str | None]]:
    """(question, system prompt) from the command line or the file.

    Raises:
        UserError: if the arguments contradict each other, or the answers would replace a file.
    """
    if (config.question is None) == (config.questions is None):
        raise UserError('expected either question="…" or questions=FILE out=FILE')
    if config.out is not None and Path(config.out).is_dir():
        raise UserError(f"out={config.out} is a directory; expected a file")
    if config.out is not None and Path(config.out).exists() and not config.overwrite:
        raise UserError(f"out={config.out} exists already; overwrite=true replaces it")
    if config.question is not None:
        return [(config.question, None)]
    if config.out is None:
        raise UserError(f"questions={config.questions} needs out=FILE for the answers")
    records = read_records(Path(str(config.questions)), config.data.fields.renamed())
    return [(record.text("question"), record.optional_text("system")) for record in records]


def ask(config: AskConfig) -> None:
    """Decode `n` answers to each question, and print them or write them to a file."""
    questions = read_questions(config)
    model = load_to_ask(config.model, config.prompt, config.memory)
    template = model.template
    print(f"Prompt: {template}", file=sys.stderr)
    prefix = template.encode_prefix(config.prefix) if config.prefix else []
    asked = [question for question, _ in questions]
    prompts = [template.encode_prompt(text, system) + prefix for text, system in questions]
    check_tokens({0}.union(*prompts), model.config.vocab_size)
    for warning in model.long_prompts(asked, prompts):
        print(f"warning: {warning}", file=sys.stderr)
    total = len(questions) * config.n
    with stage("asking", total, to_stderr=True) as progress, model.naming(asked):
        responses = generate(
            model.for_decoding().params,
            prompts,
            cfg=model.config,
            sampling=Sampling(
                config.temperature, config.top_k, config.top_p, stop_ids=template.stop_ids
            ),
            key=jax.random.key(config.seed),
            limits=[config.max_new_tokens] * len(questions),
            samples=config.n,
            decode_batch=config.decode_batch,
            dtype=model.dtype,
            on_batch=lambda answers, _: progress.update(progress.done + answers),
        )
    answers = [
        {
            "question": question,
            "answers": [template.decode(prefix + tokens) for tokens in row],
            "token_ids": row,
        }
        for (question, _), row in zip(questions, responses, strict=True)
    ]
    if config.out is not None:
        write_json_lines(Path(config.out), answers)
        print(f"{counted(len(answers), 'question', 'questions')} answered in {config.out}")
        return
    for answer in answers[0]["answers"]:
        print(escaped(str(answer), keep="\n\t"))


main = entry_point(ask, "ask", AskConfig)

if __name__ == "__main__":
    main()
