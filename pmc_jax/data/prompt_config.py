"""The settings of a prompt, and the file of a model directory that holds them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from pmc_jax.data.files import kind_of, read_object, read_text
from pmc_jax.errors import UserError
from pmc_jax.settings import check, free_text, one_of

PROMPT_FILE = "pmc_prompt.json"
"""The file of a model directory that says how the model was trained to be asked."""


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a question becomes a prompt. None: as the model was trained, else a default.

    Attributes:
        template: "chat": the tokenizer's chat template; "plain": `question` and `answer`;
            "auto" (the default): chat if the tokenizer can.
        system: system prompt; also begins a plain prompt. "" (the default): none.
        date_string: date in some chat templates; the default is 26 Jul 2024.
        question: plain prompt, with "{question}"; the default is "Question: {question}\\nAnswer:".
        answer: plain response, with "{answer}"; the default is " {answer}".
        format: "standard" (the default): prompt and answer are encoded separately;
            "openunlearning": encoded together and then split, as OpenUnlearning does.
    """

    template: str | None = one_of(None, "auto", "chat", "plain")
    system: str | None = free_text(None)
    date_string: str | None = None
    question: str | None = free_text(None)
    answer: str | None = free_text(None)
    format: str | None = one_of(None, "standard", "openunlearning")

    def over(self, other: PromptConfig) -> PromptConfig:
        """These settings, and those of `other` where these say nothing."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(other, **given)


# The date is the default of the Llama 3 templates. With today's date, a run that is continued
# tomorrow would have other prompts.
DEFAULT_PROMPT = PromptConfig(
    template="auto",
    system="",
    date_string="26 Jul 2024",
    question="Question: {question}\nAnswer:",
    answer=" {answer}",
    format="standard",
)


def read_prompt(directory: Path) -> PromptConfig | None:
    """How the model in `directory` was trained to be asked; None if it does not say.

    A model that an older version exported says it in the configuration of its run, beside it.

    Raises:
        UserError: if its file is not as `prompt_content` writes it.
    """
    path = directory / PROMPT_FILE
    content = read_object(path, missing_ok=True, expected="the prompt settings of a model")
    if not path.exists():
        path = directory.parent / "config.yaml"
        if directory.name != "model" or not (content := prompt_of_run(path)):
            return None
    names = {field.name for field in dataclasses.fields(PromptConfig)}
    for key, value in content.items():
        if key not in names:
            known = ", ".join(sorted(names))
            raise UserError(f"{path}: unknown key '{key}'; expected {known}")
        if value is not None and not isinstance(value, str):
            raise UserError(f"{path}: '{key}' is {kind_of(value)}; expected a string")
    found = PromptConfig(**content)
    try:
        check(found, "")
        if found.template != "chat":
            check_patterns(found.over(DEFAULT_PROMPT), "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def prompt_of_run(path: Path) -> dict[str, Any]:
    """The prompt settings in the configuration of a training run; empty if it is not one."""
    try:
        settings = yaml.safe_load(read_text(path, missing_ok=True))
    except yaml.YAMLError:
        return {}
    if not isinstance(settings, dict) or not isinstance(settings.get("method"), dict):
        return {}
    found = settings.get("prompt")
    return found if isinstance(found, dict) else {}


def prompt_content(config: PromptConfig) -> dict[str, str]:
    """The content of a model's prompt file."""
    return dict(vars(config))


def check_patterns(config: PromptConfig, prefix: str = "prompt.") -> None:
    """Check the plain prompt and response.

    Raises:
        UserError: if one has no place, or several, for its text.
    """
    for name in ("question", "answer"):
        pattern = getattr(config, name)
        if pattern.count(f"{{{name}}}") != 1:
            raise UserError(f"{prefix}{name}={pattern!r}: must contain {{{name}}} once")


def origin_of(given: PromptConfig, own: PromptConfig | None) -> str:
    """Where the prompt comes from, in words."""
    changed = [
        f"prompt.{name}"
        for name, value in vars(given).items()
        if value is not None and (own is None or value != getattr(own, name))
    ]
    if own is None:
        return "as given" if changed else "the default; the model does not say"
    return "the model's own" + (f", but {', '.join(changed)} as given" if changed else "")
