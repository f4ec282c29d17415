"""What an unlearning method is, and the registry of methods.

A method is one file: a frozen dataclass of settings that derives from `Method`, with

1. `examples_of`: the questions and answers that it trains on, encoded;
2. `prepare`: what it computes once from the target model (PMC's original answers, N_ref, …);
3. `step_examples`: the answers that one optimizer step trains on;
4. `loss`: its loss for these answers, to which training adds λ times the retain loss;
5. `sentence`: what the report says that the model was trained on.

The loop, the optimizer, checkpoints, evaluation and the report are the same for all methods. None
of them depends on which method it is.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pmc_jax.data.encode import check_tokens
from pmc_jax.data.rows import ForgetPair, ForgetQuestion
from pmc_jax.decoding import Sampling
from pmc_jax.errors import UserError
from pmc_jax.language_model import LanguageModel
from pmc_jax.model import ModelConfig
from pmc_jax.model.specs import Params
from pmc_jax.model.trainable import Trainable, joined_weights
from pmc_jax.settings import bounded, one_of
from pmc_jax.unlearning.losses import KL, NLL, Targets, TokenLoss, token_mean
from pmc_jax.unlearning.schedule import Training
from pmc_jax.unlearning.target_model import frozen_params

Tokens = Sequence[int]


class Example(NamedTuple):
    """A prompt, an answer with its end token (both as token ids), and N_ref of the answer."""

    prompt: Tokens
    answer: Tokens
    reference: float = 0.0


@dataclasses.dataclass(frozen=True)
class Task:
    """What every method receives. It holds no forget answer.

    Attributes:
        model: the target model; its weights are passed separately, since training donates them.
        training: how long to train, and how steps are divided.
        seed: data order, draws of retain pairs and random numbers depend only on it and the step.
        prompts: the forget questions, encoded as prompts.
        retain: the retain pairs.
        refusals: the data set's refusals, one text each; empty if it has none.
        questions: the forget questions as texts.
        part: what is trained; None: all weights.
    """

    model: LanguageModel
    training: Training
    seed: int
    prompts: Sequence[Tokens]
    retain: Sequence[Example]
    refusals: Sequence[str] = ()
    questions: Sequence[ForgetQuestion] = ()
    part: Trainable | None = None

    def key(self, stream: int = 0) -> PRNGKeyArray:
        """The RNG key of one stream of random numbers.

        0 is for PMC's samples, 1 for evaluation, 2 for AltPO's alternatives, 3 for PMC's samples
        after a beginning, 4 for adapters, 5 for rehearsal; take 16 or more for your own method.
        """
        return jax.random.fold_in(jax.random.key(self.seed), stream)

    def answered(
        self, questions: Sequence[ForgetQuestion | ForgetPair], answers: Sequence[str]
    ) -> list[Example]:
        """Questions with these answers, encoded.

        Raises:
            UserError: for a token that the model does not have.
        """
        pairs = [
            self.model.template.encode_pair(row.question, answer, row.system)
            for row, answer in zip(questions, answers, strict=True)
        ]
        used = {0, *(token for _, answer in pairs for token in answer)}
        check_tokens(used, self.model.config.vocab_size)
        return [Example(*pair) for pair in pairs]


@dataclasses.dataclass(frozen=True)
class TaskWithAnswers(Task):
    """What a method receives that trains on the answers to be forgotten (`Method.sees_answers`).

    Attributes:
        forget: the forget questions with their true answers.
    """

    forget: Sequence[ForgetPair] = ()

    def true_answers(self) -> list[Example]:
        """The forget questions with their true answers, encoded."""
        return self.answered(self.forget, [row.answer for row in self.forget])


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a method trains on.

    Attributes:
        visited: how many questions an epoch visits.
        forget: the answer to each of them; empty for a method without fixed answers.
        preferred: for each answer, one or more answers that are preferred to it and take turns by
            epoch; empty for most methods.
        retain: the pairs that the retain loss draws from; empty for a method without one.
    """

    visited: int
    forget: Sequence[Example] = ()
    preferred: Sequence[Sequence[Example]] = ()
    retain: Sequence[Example] = ()


class StepExamples(NamedTuple):
    """What one optimizer step trains on besides retain pairs, with the method's new state.

    Attributes:
        forget: `answers_per_question` answers to each of the step's questions, with answers to the
            same question one after another; or no answers at all.
        preferred: for each of these, an answer that is preferred to it; or no answers at all.
        state: the method's new state.
        measures: numbers for this step's line in `metrics.jsonl`.
        seconds: the time spent, by part, without the time of laying out the batch.
        note: text for the progress line; "" for none.
    """

    forget: Sequence[Example]
    preferred: Sequence[Example]
    state: Any
    measures: Mapping[str, int | float] = {}
    seconds: Mapping[str, float] = {}
    note: str = ""


class Drawn(NamedTuple):
    """How a method samples responses: their number, the sampler and the length limit.

    With `forced`, some responses have a forced beginning, which makes prompts longer. `drafts` is
    the largest number of drafts that a question has.
    """

    samples: int
    sampling: Sampling
    max_new_tokens: int | None
    forced: bool = False
    drafts: int = 0


M = TypeVar("M", bound="Method", covariant=True)


@dataclasses.dataclass(frozen=True)
class Run(Generic[M]):
    """What stays the same from a run's first step to its last.

    Attributes:
        method: the method and its settings.
        task: what the method received.
        examples: what the method trains on.
        prepared: what `prepare` computed before the first step, as JSON values.
    """

    method: M
    task: Task
    examples: Examples
    prepared: Mapping[str, Any]

    forced: ClassVar[bool] = False
    """Whether prompts end with words that a response is forced to begin with (`beginnings`)."""

    @property
    def sampling_key(self) -> PRNGKeyArray:
        """The RNG key of the responses that steps sample, and of selection among them."""
        return self.task.key()

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        return self.task.training.total_updates(self.examples.visited)

    def weights(self, trained: Params, frozen: Mapping[str, Any]) -> Params:
        """The weights to compute with: the trained part, joined with the base in `frozen`."""
        return joined_weights(self.task.part, trained, frozen)

    def questions(self, step: int) -> list[int]:
        """The questions that a step visits."""
        return self.task.training.visited(self.task.seed, step, self.examples.visited)

    def epoch(self, step: int) -> int:
        """The epoch of a step, from 0."""
        return step // self.task.training.updates_per_epoch(self.examples.visited)

    def at_step(self, step: int, first: float, final: float | None) -> float:
        """A setting that changes linearly from `first` to `final`; None: it is constant."""
        if final is None:
            return first
        return first + (final - first) * step / max(self.total - 1, 1)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method and its settings. Subclasses override what differs from fine-tuning on answers.

    Attributes:
        name: the method's name on the command line.
    """

    name: str = ""

    sentence: ClassVar[str] = ""
    """The end of a sentence in the report: "The model was trained for n steps …"."""

    sees_answers: ClassVar[bool] = False
    """Whether the method trains on forget answers, and therefore receives `TaskWithAnswers`."""

    unlearns: ClassVar[bool] = True
    """Whether a run gets a verdict on what it has forgotten."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Settings that name files which the method reads."""

    def check(self) -> None:
        """Check settings that depend on each other; bounds of single ones are checked before.

        Raises:
            UserError: naming the setting.
        """

    def examples_of(self, task: Task) -> Examples:
        """What the method trains on, read and encoded before anything is written.

        Every method must override this.

        Raises:
            UserError: if a file is malformed, or if a setting does not fit this model.
        """
        raise NotImplementedError(f"{type(self).__name__} must override examples_of")

    def prepare(self, task: Task, examples: Examples, params: Params) -> dict[str, Any]:
        """Compute something once, before the first step, from the target model's weights `params`.

        The result is a JSON object: its keys are strings, and NumPy values must become lists and
        numbers. It is stored with the checkpoints, so that a resumed run does not need
        the target model to compute it again.
        """
        return {}

    def with_prepared(
        self, task: Task, examples: Examples, prepared: Mapping[str, Any]
    ) -> Examples:
        """The examples, completed with what `prepare` computed."""
        return examples

    def frozen(self, task: Task, params: Params) -> dict[str, Any]:
        """Arrays that every step reads and no step changes.

        "params" are the target model's weights, or only the ones that training changes; a token
        loss with `target` compares with them. "control" is what a token loss with a `layer` and
        without `target` compares with. Copy what you keep (`frozen_params`), since training
        donates `params`.

        Args:
            params: the weights that training changes, laid out as `task.part` says. It is empty
                with an adapter, because the target model is the model without the adapter.
        """
        if any(loss.target for loss in self.token_losses(task.model.config).values()):
            config, dtype = task.model.config, task.model.dtype
            return {"params": frozen_params(params, config, dtype, task.part)}
        return {}

    def initial_state(self, task: Task) -> Any:
        """The method's state, which is passed from step to step and stored in checkpoints.

        It is a pytree (dicts, lists, `flax.struct` dataclasses) of NumPy arrays whose shapes do
        not change.
        """
        return {}

    def lines(self, run: "Run[Method]") -> list[str]:
        """Lines to print before the first step."""
        return []

    def files(self, run: "Run[Method]", questions: Sequence[str]) -> dict[str, list[Any]]:
        """JSON lines to write to the run's directory, by file name."""
        return {}

    def step_examples(
        self, run: "Run[Method]", state: Any, params: Params, step: int, questions: Sequence[int]
    ) -> StepExamples:
        """What an optimizer step trains on; `params` are the current weights."""
        examples, epoch = run.examples, run.epoch(step)
        forget = [examples.forget[i] for i in questions] if examples.forget else []
        turns = [examples.preferred[i] for i in questions] if examples.preferred else []
        return StepExamples(forget, [own[epoch % len(own)] for own in turns], state)

    @property
    def drawn(self) -> Drawn | None:
        """The responses that every step samples; None for a method that samples none."""
        return None

    def trained_weights(self, config: ModelConfig) -> Params | None:
        """Arrays that broadcast to the weights, True where a weight is trained; None: all."""
        return None

    def token_losses(self, config: ModelConfig) -> dict[str, TokenLoss]:
        """The loss of a token, by the kind of its sequence (`losses.KINDS`)."""
        return {"forget": NLL, "preferred": NLL, "retain": NLL}

    def forget_mask(
        self, mask: Bool[Array, "*rows time"], segments: Int[Array, "*rows time"]
    ) -> Bool[Array, "*rows time"]:
        """The tokens of forget answers that carry loss, out of all their tokens."""
        return mask

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The method's loss without λ times the retain loss."""
        return token_mean(forget)

    def retain_term(self, retain: Targets) -> Float[Array, ""]:
        """The retain loss r."""
        return token_mean(retain)

    def retain_weight_at(self, run: "Run[Method]", state: Any, step: int) -> float:
        """λ at a step; 0 for a method without a retain loss."""
        return 0.0

    def after_step(self, run: "Run[Method]", state: Any, step: int, retain_loss: float) -> Any:
        """The method's state after a step with this retain loss r (0 without retain pairs)."""
        return state

    @property
    def answers_per_question(self) -> int:
        """Answers to a forget question in a step."""
        return 1

    @property
    def retain_pairs(self) -> int:
        """Retain pairs in a step for each forget question."""
        return 0


@dataclasses.dataclass(frozen=True)
class RetainingMethod(Method):
    """A method with a retain loss, which preserves other answers.

    Attributes:
        retain_weight: λ, the weight of the retain loss.
        retain_per_forget: retain pairs in a step for each forget question.
        retain_loss: "nll": the NLL of the retain answers; "kl": the divergence from the target
            model at their tokens.
    """

    retain_weight: float = bounded(1.0, least=0)
    retain_per_forget: int = bounded(1, least=0, most=2**10)
    retain_loss: str = one_of("nll", "nll", "kl")

    def retain_weight_at(self, run: Run[Method], state: Any, step: int) -> float:
        """λ at a step."""
        return self.retain_weight

    @property
    def retain_pairs(self) -> int:
        """Retain pairs in a step for each forget question."""
        return self.retain_per_forget

    def token_losses(self, config: ModelConfig) -> dict[str, TokenLoss]:
        """The NLL of every token; for retain answers, the loss that `retain_loss` names."""
        retain = KL if self.retain_loss == "kl" and self.retain_pairs else NLL
        return {**super().token_losses(config), "retain": retain}


@dataclasses.dataclass(frozen=True)
class BaselineMethod(RetainingMethod):
    """A method that PMC is compared with. It trains on forget answers and has a retain loss.

    If λ is 0, its steps have no retain pairs.
    """

    sees_answers: ClassVar[bool] = True

    @property
    def has_retain_term(self) -> bool:
        """Whether the loss has a retain term."""
        return self.retain_weight > 0

    @property
    def retain_pairs(self) -> int:
        """Retain pairs in a step for each forget question; none without a retain term."""
        return self.retain_per_forget if self.has_retain_term else 0

    def retained(self, task: Task) -> Sequence[Example]:
        """The retain pairs, if the loss has a retain term."""
        return task.retain if self.has_retain_term else ()

    def examples_of(self, task: Task) -> Examples:
        """The true answers, and the retain pairs."""
        assert isinstance(task, TaskWithAnswers), "sees_answers must be True to see true answers"
        return Examples(len(task.prompts), task.true_answers(), retain=self.retained(task))


BUILT_IN = {
    "pmc": "pmc_jax.unlearning.pmc:PMC",
    "finetune": "pmc_jax.unlearning.baselines.finetune:FineTune",
    "ga": "pmc_jax.unlearning.baselines.ga:GA",
    "gd": "pmc_jax.unlearning.baselines.gd:GD",
    "idk": "pmc_jax.unlearning.baselines.idk:IDK",
    "npo": "pmc_jax.unlearning.baselines.npo:NPO",
    "simnpo": "pmc_jax.unlearning.baselines.simnpo:SimNPO",
    "dpo": "pmc_jax.unlearning.baselines.dpo:DPO",
    "altpo": "pmc_jax.unlearning.baselines.altpo:AltPO",
    "retain_only": "pmc_jax.unlearning.baselines.retain_only:RetainOnly",
    "wga": "pmc_jax.unlearning.baselines.wga:WGA",
    "satimp": "pmc_jax.unlearning.baselines.satimp:SatImp",
    "ceu": "pmc_jax.unlearning.baselines.ceu:CEU",
    "undial": "pmc_jax.unlearning.baselines.undial:UNDIAL",
    "rmu": "pmc_jax.unlearning.baselines.rmu:RMU",
    "pdu": "pmc_jax.unlearning.baselines.pdu:PDU",
}
"""The methods of the package by name, as `module:class`."""


def imported(setting: str, reference: str) -> Any:
    """Import the object that `package.module:name` names.

    Args:
        setting: the setting that holds the reference, for the error.

    Raises:
        UserError: if there is no such module, or it has no such name.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{setting}={reference}: cannot be imported ({error}); expected package.module:Name, "
            "importable from the current directory or the Python path"
        ) from error


def resolve(name: str) -> type[Method]:
    """The class of a method, from its name or from `package.module:Name`.

    Raises:
        UserError: if there is no such method, or the class is not a method.
    """
    found = imported("method", BUILT_IN.get(name, name))
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method={name}: is not a subclass of pmc_jax.unlearning.method.Method")
    if "__dataclass_fields__" not in vars(found):
        raise UserError(f"method={name}: expected @dataclasses.dataclass(frozen=True) on the class")
    own = BUILT_IN.get(found.name)
    if not found.name or (own and found is not imported("method", own)):
        raise UserError(
            f"method={name}: expected a default for the field `name` that no method of the "
            f"package has, found {found.name!r}"
        )
    return found


@cache
def methods() -> Mapping[str, type[Method]]:
    """The methods of the package by name."""
    return {name: resolve(name) for name in BUILT_IN}
