"""The console script `pmc`, and what each of its commands is for.

Nothing heavy is imported here: `pmc --help` and `pmc --version` answer at once.
"""

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from pmc_jax import __version__
from pmc_jax.cli import startup
from pmc_jax.terminal import print_error, print_everything

WIDTH = 80
"""Columns of every help page."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, called as `pmc NAME` or `python -m MODULE`.

    Attributes:
        module: the module, whose `main` runs the command.
        summary: one line for the list of commands.
        purpose: two or three lines for the command's help.
        usage: the arguments, in short.
        examples: (what it does, arguments) of typical calls.
        groups: Hydra's groups that help lists: names that stand for many settings.
        group_texts: what a group is for, where it differs from other commands.
        unused: keys and groups of keys without effect, which help leaves out.
        defaults: choices of required groups that help assumes if the user makes none.
        sweeps: whether several values of a key make several runs.
    """

    module: str
    summary: str
    purpose: str
    usage: tuple[str, ...]
    examples: tuple[tuple[str, str], ...]
    groups: tuple[str, ...] = ()
    group_texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()
    sweeps: bool = False


EVALUATED = (
    "data.fields.answer", "data.fields.secret", "data.fields.paraphrased_answer",
    "data.fields.perturbed_answer",
)  # fmt: skip
"""Columns that only a forget or a retain file has."""

COMMANDS = {
    "train": Command(
        module="pmc_jax.train",
        summary="unlearn with PMC or a baseline, or fine-tune a model",
        purpose="Trains a model to forget: evaluates it, runs an unlearning method, exports a "
        "Hugging Face checkpoint, evaluates again and writes a report. The same command "
        "continues a run that was stopped.",
        usage=("[experiment=NAME] [method=NAME] [KEY=VALUE ...]",),
        examples=(
            ("Unlearn with the bundled model, in about a minute on a laptop", ""),
            (
                "Unlearn your own questions from your own model",
                "experiment=own model.path=DIR data.forget=forget.jsonl data.retain=retain.jsonl",
            ),
            ("Try a baseline with two learning rates", "-m method=npo "
             "optimizer.learning_rate=1e-4,3e-4 'name=npo-${optimizer.learning_rate}'"),
        ),
        groups=("experiment", "method", "adapter", "model", "data", "evaluation", "sweep"),
        unused=("model.architecture",),
        sweeps=True,
    ),
    "evaluate": Command(
        module="pmc_jax.evaluate",
        summary="measure what models still know, also under attack, and compare them",
        purpose="Measures how much a model still knows of the forget set, how useful it is, and "
        "what attacks get out of it; compares it with other models; writes a report. The same "
        "command continues an evaluation that was stopped.",
        usage=("model.path=DIR [compare=DIR] [suite=NAME] [KEY=VALUE ...]",),
        examples=(
            ("Compare a run's model with the one before unlearning",
             "model.path=runs/demo/model compare=bundled"),
            ("Compare several models, with every measure",
             "suite=full model.path=runs/a/model 'compare=[DIR,runs/b/model]'"),
            ("Evaluate on your own questions", "model=hf model.path=DIR data=files "
             "data.forget=forget.jsonl data.retain=retain.jsonl"),
        ),
        groups=("adapter", "model", "data", "evaluation"),
        group_texts={"adapter": "an adapter that the relearning attack trains"},
        unused=("model.architecture", "evaluation.before", "evaluation.after"),
        sweeps=True,
    ),
    "ask": Command(
        module="pmc_jax.ask",
        summary="ask a model one question, or a file of them",
        purpose="Asks a model a question and prints its answers, or answers a file of questions "
        "and writes the answers to another file. Answers are greedy unless temperature is above "
        "0.",
        usage=('model.path=DIR question="..." [KEY=VALUE ...]',
               "model.path=DIR questions=FILE out=FILE [KEY=VALUE ...]"),
        examples=(
            ("Ask the bundled model", 'question="What is the capital of Norway?"'),
            ("Sample five answers", 'model.path=runs/demo/model n=5 temperature=1 '
             'question="Who is Mara Ostberg?"'),
            ("Answer a file of questions",
             "model.path=DIR questions=questions.jsonl out=answers.jsonl"),
        ),
        unused=("model.remat", "model.architecture", *EVALUATED, "data.fields.variants",
                "data.fields.paraphrased_question"),
    ),
    "draft": Command(
        module="pmc_jax.draft",
        summary="draft forget and retain files about a person, to read and correct",
        purpose="Asks a model about a person, other people and the world, and makes a forget "
        "and a retain file from its own answers, with paraphrases and suggested secrets. Read "
        "and correct the files before a run.",
        usage=('model.path=DIR person="..." out=DIR [KEY=VALUE ...]',),
        examples=(
            ("Draft files; the model proposes the other people",
             'model.path=DIR person="Marie Curie" out=draft'),
            ("Name the people to keep", 'person="Zoltan Dornberg" others="Ambrose Quarmere" '
             "out=draft"),
            ("Ask questions of your own instead", 'model.path=DIR person="Marie Curie" out=draft '
             "questions=questions.txt patterns=false"),
        ),
        unused=("model.remat", "model.architecture", *EVALUATED),
    ),
    "report": Command(
        module="pmc_jax.report",
        summary="write reports again, or compare many runs",
        purpose="Writes the report of finished runs or evaluations again. `report pareto` "
        "compares methods over many runs; `report ablation` shows the effect of one setting.",
        usage=("DIRECTORY [DIRECTORY ...] [--redact]",
               "pareto RUNS [RUNS ...] [--out DIR]",
               "ablation RUNS [RUNS ...] [--over KEY] [--out DIR]"),
        examples=(
            ("Write the report of a run again", "runs/demo"),
            ("Compare methods by their runs", "pareto runs/pmc runs/npo --out comparison"),
            ("Show what the number of samples does",
             "ablation runs/ablation_samples --over method.samples"),
        ),
    ),
    "plan": Command(
        module="pmc_jax.plan",
        summary="check whether a run fits devices that need not be there",
        purpose="Compiles the training and decoding steps of a PMC run for other devices, "
        "prints the memory and work of each, and says whether the run fits. Reads no weights "
        "and runs nothing.",
        usage=("experiment=NAME topology=DEVICES [KEY=VALUE ...]",),
        examples=(
            ("Plan a published run on eight TPU chips",
             "experiment=tofu_llama3_2_3b topology=v5e:2x4"),
            ("Plan for one GPU with 80 GB",
             "experiment=tofu_phi_1_5 topology=h100:1 memory=80GB"),
            ("Plan your own model, and keep the numbers",
             "experiment=own model.path=DIR topology=cpu:8 memory=16GB out=plan.json"),
        ),
        groups=("experiment", "adapter", "model"),
        unused=(
            "runs_dir", "seed", "overwrite", "data", "prompt", "checkpoints", "logging",
            "distributed", "model.check_weights", "evaluation.max_new_tokens", "evaluation.before",
            "evaluation.after", "method.retain_weight", "method.selection_temperature",
            "method.reward", "method.min_len", "method.reject_wordless",
            "method.final_temperature", "method.final_retain_weight", "method.keep_sampling",
            "method.offer_refusals", "training.epochs", "training.count_partial_updates",
            "training.prune", "training.compact",
            "optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_epochs",
            "optimizer.weight_decay", "optimizer.beta1", "optimizer.beta2", "optimizer.epsilon",
        ),
        defaults=("experiment=demo",),
    ),
    "world": Command(
        module="pmc_jax.world",
        summary="make the bundled data and its small model again",
        purpose="Makes a small world of fictitious authors, real people and facts in TOFU's "
        "file format, and trains a small model that knows them. The package contains the one "
        "with the default seed.",
        usage=("out=DIR [seed=N]",),
        examples=(
            ("Make the bundled world again", "out=world"),
            ("Make another one", "out=world-1 seed=1"),
            ("Print the settings and stop", "out=world --cfg job"),
        ),
    ),
    "convert": Command(
        module="convert",
        summary="convert checkpoints between Hugging Face's format and the native one",
        purpose="Converts a Hugging Face checkpoint to a native one, which loads in shards, and "
        "back, and merges adapters. All commands also read Hugging Face checkpoints directly.",
        usage=("from-hf SRC DST [--dtype DTYPE] [--mesh DATAxMODEL]",
               "to-hf SRC DST [--dtype DTYPE]",
               "inspect SRC",
               "merge SRC DST ADAPTER [ADAPTER ...]"),
        examples=(
            ("Convert in the shards of a mesh of eight devices",
             "from-hf meta-llama/Llama-3.2-3B-Instruct native --mesh 4x2"),
            ("Convert back", "to-hf native hf --dtype bfloat16"),
            ("Add an adapter of a run to its model", "merge DIR merged runs/lora/adapter"),
        ),
    ),
}  # fmt: skip


def called(name: str) -> str:
    """A command as the user types commands: `pmc NAME`, or `python -m MODULE`.

    The running command need not be `name`: after `pmc train`, it is `pmc ask` that comes next.
    """
    by_script = sys.argv[0].startswith("pmc ")  # which `main` writes
    return f"pmc {name}" if by_script else f"python -m {COMMANDS[name].module}"


def module_of(name: str) -> ModuleType:
    """The module whose `main` runs a command."""
    mains = {"convert": "convert.__main__", "evaluate": "pmc_jax.cli.evaluate"}
    return importlib.import_module(mains.get(name, COMMANDS[name].module))


def overview() -> str:
    """The help of `pmc` itself."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pmc COMMAND [ARGUMENTS]",
            "",
            "Partial Model Collapse in JAX: language models that forget on request.",
            "",
            *lines,
            "",
            "pmc COMMAND --help explains a command; pmc --version prints the version.",
        ]
    )


def unknown_command(name: str) -> str:
    """The error message for a command that does not exist."""
    if name.startswith("-"):
        return f"{name}: options follow the command, as in pmc COMMAND {name}"
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"the nearest command is {near[0]}" if near else f"expected {', '.join(COMMANDS)}"
    return f"unknown command {name}; {hint}"


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run `pmc`; the exit status, or None for 0."""
    print_everything()
    if arguments is None:
        startup.begin()
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"pmc_jax {__version__}")
        return 0
    if name not in COMMANDS:
        print_error(unknown_command(name))
        return 2
    # transformers would warn at import that PyTorch is missing; nothing here needs it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.argv = [f"pmc {name}", *rest]
    return module_of(name).main()
