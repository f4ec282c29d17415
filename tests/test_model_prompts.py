"""A model is asked as it was trained: its prompt settings travel with it."""

import dataclasses
import json
import shutil
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from test_prompts import LLAMA3_CHAT, byte_level_bpe
from transformers.utils import chat_template_utils

import convert.__main__ as convert_command
import pmc_jax as pmc
from pmc_jax import ask
from pmc_jax.cli import evaluate
from pmc_jax.data.prompt_config import (
    DEFAULT_PROMPT,
    PROMPT_FILE,
    PromptConfig,
    prompt_content,
    read_prompt,
)
from pmc_jax.data.prompts import make_template
from pmc_jax.errors import UserError

OTHER = PromptConfig(
    template="plain", system="Be brief.", question="Q: {question}\n", answer="A: {answer}"
)
TODAY_CHAT = """
{{ strftime_now("%d.%m.%Y") }} and {{ strftime_now("%B %-d, %y") }}.
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '\\n' + message['content'] + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant\\n' }}
{%- endif %}
"""


def save(directory: Path, config: PromptConfig) -> None:
    content = prompt_content(config)
    (directory / PROMPT_FILE).write_text(json.dumps(content))


def test_given_settings_go_before_the_models_own_and_these_before_the_defaults(tokenizer):
    def made(given, own):
        return make_template(tokenizer, given, own=own)

    default = made(PromptConfig(), None)
    assert default.config == dataclasses.replace(DEFAULT_PROMPT, template="plain")
    assert default.origin == "the default; the model does not say"
    own = made(PromptConfig(), OTHER)
    assert own.config == OTHER.over(default.config)
    assert own.origin == "the model's own"
    assert own.words == 'plain, "Q: {question}\\nA: {answer}", system prompt "Be brief."'
    assert own.text == "Be brief.\n\nQ: {question}\nA: {answer}"
    mixed = made(PromptConfig(system="", answer="{answer}"), OTHER)
    assert mixed.config == dataclasses.replace(own.config, system="", answer="{answer}")
    assert mixed.origin == "the model's own, but prompt.system, prompt.answer as given"
    assert str(made(OTHER, None)).endswith("(as given)")
    assert made(own.config, OTHER.over(own.config)).origin == "the model's own"


def test_saved_and_loaded_and_converted_in_both_directions(tiny_model, tmp_path, monkeypatch):
    given = pmc.load_model(tiny_model.directory, prompt=OTHER)
    given.save(tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / PROMPT_FILE).read_text())
    assert content == {
        "template": "plain", "system": "Be brief.", "date_string": "26 Jul 2024",
        "question": "Q: {question}\n", "answer": "A: {answer}", "format": "standard",
    }  # fmt: skip
    assert convert_command.main(["from-hf", str(tmp_path / "saved"), str(tmp_path / "native")]) == 0
    assert convert_command.main(["to-hf", str(tmp_path / "native"), str(tmp_path / "back")]) == 0
    for name in ("saved", "native", "back"):
        loaded = pmc.load_model(tmp_path / name)
        assert loaded.template.config == given.template.config
        assert loaded.template.encode_prompt("Who?") == given.template.encode_prompt("Who?")
    assert pmc.load_model(tmp_path / "saved", prompt=PromptConfig(system="")).template.text == (
        "Q: {question}\nA: {answer}"
    )


BAD = [
    ("[]", "found a list; expected the prompt settings of a model"),
    ("{", "not valid JSON"),
    ('{"sytem": "Hi."}', "unknown key 'sytem'; expected answer, date_string, format, question"),
    ('{"system": 3}', "'system' is a number; expected a string"),
    ('{"template": "chatml"}', "template=chatml: expected one of auto, chat, plain"),
    ('{"question": "Q:"}', "question='Q:': must contain {question} once"),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[text for text, _ in BAD])
def test_a_malformed_file_is_one_line(tmp_path, text, expected):
    assert read_prompt(tmp_path) is None
    (tmp_path / PROMPT_FILE).write_text(text)
    with pytest.raises(UserError) as caught:
        read_prompt(tmp_path)
    assert str(tmp_path / PROMPT_FILE) in str(caught.value) and "\n" not in str(caught.value)
    assert expected in str(caught.value)


def test_a_model_of_an_older_version_is_asked_as_its_run_says(tmp_path):
    """It has no prompt file; the configuration of the run that exported it is beside it."""
    model, config = tmp_path / "run" / "model", tmp_path / "run" / "config.yaml"
    model.mkdir(parents=True)
    prompt = {"template": "plain", "system": None, "question": "Frage: {question}\n"}
    config.write_text(yaml.safe_dump({"method": {"name": "pmc"}, "prompt": prompt}))
    assert read_prompt(model) == PromptConfig(template="plain", question="Frage: {question}\n")
    assert read_prompt(model.rename(tmp_path / "run" / "copy")) is None
    (tmp_path / "run" / "copy").rename(model)
    for other in ("prompt: {template: plain}", "method: {name: pmc}", "a: [", "- a"):
        config.write_text(other)
        assert read_prompt(model) is None
    (model / PROMPT_FILE).write_text('{"question": "Own: {question}"}')
    config.write_text(yaml.safe_dump({"method": {}, "prompt": prompt}))
    assert read_prompt(model) == PromptConfig(question="Own: {question}")


def test_patterns_that_a_chat_does_not_use_are_not_checked(tmp_path):
    save(tmp_path, PromptConfig(template="chat", question="unused in a chat"))
    assert read_prompt(tmp_path) == PromptConfig("chat", question="unused in a chat")


class Clock(datetime):
    """A clock that is set by the test."""

    day = 1

    @classmethod
    def now(cls, tz=None):
        return cls(2031, 3, cls.day, tzinfo=tz)


@pytest.mark.parametrize("chat", [LLAMA3_CHAT, TODAY_CHAT], ids=["date_string", "strftime_now"])
def test_prompts_are_the_same_tomorrow(tmp_path, monkeypatch, chat):
    tokenizer = pmc.data.tokenizer.load_tokenizer(
        byte_level_bpe(tmp_path, bos=True, chat_template=chat)
    )
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    def rendered() -> str:
        return tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False)

    def asked(**given) -> list[int]:
        return make_template(tokenizer, PromptConfig(**given)).encode_prompt("Who?")

    monkeypatch.setattr(Clock, "day", 1)
    today, first, dated = rendered(), asked(), asked(date_string="10 Apr 2025")
    monkeypatch.setattr(Clock, "day", 2)
    assert rendered() != today  # transformers asks the clock
    assert asked() == first and asked(date_string="10 Apr 2025") == dated != first
    shown = tokenizer.decode(dated)
    assert "10 Apr 2025" in shown or "\n10.04.2025 and April 10, 25." in shown
    assert make_template(tokenizer, PromptConfig()).words.endswith("date 26 Jul 2024")


@pytest.mark.slow
def test_a_run_is_continued_tomorrow(tiny_model, tmp_path, monkeypatch):
    """Its chat template prints today's date, and its prompts must be those that it began with."""
    target = shutil.copytree(tiny_model.directory, tmp_path / "target")
    (target / "chat_template.jinja").write_text(TODAY_CHAT)
    data = pmc.Dataset.from_dicts(["Who?", "Where?"], [{"question": "What?", "answer": "Nothing."}])
    training = pmc.Training(epochs=1, batch_size=2, max_length=120)

    def go(day: int) -> pmc.LanguageModel:
        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        monkeypatch.setattr(Clock, "day", day)
        model = pmc.load_model(target)
        assert model.template.chat
        method = pmc.PMC(samples=1, max_new_tokens=2)
        return pmc.unlearn(model, data, method, training, out=tmp_path / "run").model

    first = go(1)
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been stopped before its end
    assert go(2).template.text == first.template.text
    content = json.loads((tmp_path / "run" / "model" / PROMPT_FILE).read_text())
    assert content["template"] == "chat" and content["date_string"] == "26 Jul 2024"
    assert (tmp_path / "run" / "model" / "chat_template.jinja").read_text() == TODAY_CHAT


def test_a_date_that_a_template_cannot_format_is_one_line(tmp_path):
    tokenizer = pmc.data.tokenizer.load_tokenizer(
        byte_level_bpe(tmp_path, bos=True, chat_template=TODAY_CHAT)
    )
    expected = "prompt.date_string=soon: the chat template formats the date; expected one such as"
    with pytest.raises(UserError, match=expected):
        make_template(tokenizer, PromptConfig(date_string="soon"))


def test_chat_templates_that_leave_something_out_are_an_error(tmp_path):
    tokenizer = pmc.data.tokenizer.load_tokenizer(byte_level_bpe(tmp_path, bos=True))
    parts = "{% for c in message['content'] if c.type == 'text' %}{{ c.text }}{% endfor %}"
    for template, what in (
        (TODAY_CHAT.replace("message['content']", "'…'"), "question"),
        ("{% for message in messages %}" + parts + "{% endfor %}", "question"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
         "answer"),
    ):  # fmt: skip
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=f"chat template leaves out the {what}"):
            make_template(tokenizer, PromptConfig())


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A run whose model is trained and asked with another plain prompt; then its data."""
    directory = tmp_path_factory.mktemp("asked")
    people = ("Mara Ostberg", "Ivo Kell", "Tilda Wynmark", "Noor Sandvik")
    rows = [
        {"question": f"Where was {name} born?", "answer": f"{name} was born in Oslo."}
        for name in people
    ]
    for name, own in (("forget", rows[:2]), ("retain", rows[2:])):
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    data = pmc.Dataset.from_files(directory / "forget.jsonl", directory / "retain.jsonl")
    model = pmc.load_model(tiny_model.directory, prompt=OTHER)
    pmc.unlearn(
        model, data, pmc.FineTune(), pmc.Training(epochs=30, batch_size=4, max_length=64),
        pmc.Optimizer(learning_rate=3e-3), out=directory / "run",
        evaluation=pmc.EvaluationConfig(max_new_tokens=16, attack_samples=0),
    )  # fmt: skip
    return directory


def call(module, *arguments: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    module.main()


@pytest.mark.slow
def test_a_model_is_evaluated_as_it_was_trained(run, monkeypatch, capsys):
    """`evaluate` without a prompt gives the numbers of the run; with another one, others."""
    summary = json.loads((run / "run" / "summary.json").read_text())
    assert summary["prompt"]["prompt"] == (
        'plain, "Q: {question}\\nA: {answer}", system prompt "Be brief."'
    )
    arguments = (
        f"model.path={run / 'run' / 'model'}", f"evaluations_dir={run / 'evaluations'}",
        "data=files", f"data.path={run}", "data.forget=forget.jsonl", "data.retain=retain.jsonl",
        "data.retain_rows=null", "suite=quick", "evaluation.attack_samples=0",
        "evaluation.max_new_tokens=16", "max_length=64",
    )  # fmt: skip

    def measured(name: str, *more: str) -> dict:
        call(evaluate, *arguments, f"name={name}", *more, monkeypatch=monkeypatch)
        return json.loads((run / "evaluations" / name / "summary.json").read_text())

    own = measured("own")
    measures = own["measures"]["run"]
    assert {key: measures[key] for key in summary["after"]} == summary["after"]
    assert own["facts"]["run"]["prompt_from"] == "the model's own"
    assert 'Prompt of run: plain, "Q: {question}\\nA: {answer}"' in capsys.readouterr().out
    page = (run / "evaluations" / "own" / "report" / "index.html").read_text()
    assert "Q: {question}" in page
    other = measured("other", "prompt.system=''", "prompt.question={question}")
    assert other["measures"]["run"]["unlearn_quality"] != measures["unlearn_quality"]
    assert other["facts"]["run"]["prompt_from"].endswith("prompt.system, prompt.question as given")


@pytest.mark.slow
def test_models_that_are_asked_differently_are_told(run, tiny_model):
    data = pmc.Dataset.from_files(run / "forget.jsonl", run / "retain.jsonl")
    config = pmc.EvaluationConfig(max_new_tokens=4, attack_samples=0)
    trained = pmc.load_model(run / "run" / "model")
    found = pmc.evaluate(trained, data, before=tiny_model, evaluation=config)
    (warning,) = found.summary["warnings"]
    assert warning.startswith("the models are asked with different prompts, each with its own: ")
    assert found.summary["facts"]["after"]["prompt"] != found.summary["facts"]["before"]["prompt"]
    alike = pmc.load_model(tiny_model.directory, prompt=OTHER)
    assert not pmc.evaluate(trained, data, before=alike, evaluation=config).summary["warnings"]


@pytest.mark.slow
def test_ask_says_how_it_asks_and_prints_answers_alone(run, monkeypatch, capsys):
    question = "Where was Mara Ostberg born?"
    call(
        ask, f"model.path={run / 'run' / 'model'}", f"question={question}", "max_new_tokens=16",
        monkeypatch=monkeypatch,
    )  # fmt: skip
    shown = capsys.readouterr()
    (answer,) = pmc.load_model(run / "run" / "model").generate([question], max_new_tokens=16)[0]
    assert shown.out.splitlines()[-1] == answer
    assert "Prompt" not in shown.out
    prompt, progress = shown.err.splitlines()
    assert prompt == (
        'Prompt: plain, "Q: {question}\\nA: {answer}", system prompt "Be brief." (the model\'s own)'
    )
    assert progress.startswith("asking: 1/1")


@pytest.mark.slow
def test_a_finished_run_is_recognised_and_training_on_top_asks_the_same(run, tiny_model):
    data = pmc.Dataset.from_files(run / "forget.jsonl", run / "retain.jsonl")
    model = pmc.load_model(run / "run" / "model")
    training = pmc.Training(epochs=1, batch_size=2, max_length=64)
    for _ in range(2):  # the second call returns the finished run
        result = pmc.unlearn(
            model, data, pmc.PMC(samples=2, max_new_tokens=4), training, out=run / "on top"
        )
        assert result.model.template.config == model.template.config
    assert read_prompt(run / "on top" / "model") == read_prompt(run / "run" / "model")
