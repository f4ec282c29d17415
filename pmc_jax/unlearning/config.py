"""Settings of the methods: one type each, so that a key of another method is an error."""

import dataclasses
from typing import TypeGuard

from pmc_jax.settings import bounded, free_text, one_of, path_to


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """What every method has.

    Attributes:
        name: the name by which `METHODS` finds the type.
    """

    name: str = ""


@dataclasses.dataclass(frozen=True)
class RetainingConfig(MethodConfig):
    """A method with a retain loss. With λ = 0, methods other than PMC draw no retain pairs.

    Attributes:
        retain_weight: λ, the weight of the retain loss.
        retain_per_forget: retain pairs per forget question in a step.
    """

    retain_weight: float = bounded(1.0, least=0)
    retain_per_forget: int = bounded(1, least=0)


def has_retain_term(method: MethodConfig) -> TypeGuard[RetainingConfig]:
    """Whether the loss has a λ r that is not 0 throughout."""
    return isinstance(method, RetainingConfig) and method.retain_weight > 0


@dataclasses.dataclass(frozen=True)
class PMCConfig(RetainingConfig):
    """Partial Model Collapse: training on the model's own best samples.

    Attributes:
        samples: n, responses sampled per question and visit.
        temperature: sampling temperature.
        top_k: sample from the k most likely tokens; 0 is off.
        top_p: sample from the most likely tokens of this total probability, after top_k; 1 is
            off.
        max_new_tokens: longest response in tokens; None: what `max_length` leaves.
        selection_temperature: τ of Bradley–Terry selection; 0 selects the best sample.
        min_len: penalise responses with fewer words by exp(-words); 0 is off.
        reject_wordless: never select a response without any [a-z0-9] word.
        final_temperature: temperature at the last step; None: no change.
        final_retain_weight: λ at the last step; None: no change.
        keep_sampling: sample a question again after a response with score 0.

    The last three are not in the paper. The two final values are reached linearly. With
    `keep_sampling`, a question is trained on the newest of its best responses.
    """

    name: str = "pmc"
    samples: int = bounded(5, least=1)
    temperature: float = bounded(1.0, least=0)
    top_k: int = bounded(0, least=0)
    top_p: float = bounded(1.0, above=0, most=1)
    max_new_tokens: int | None = bounded(None, least=1)
    selection_temperature: float = bounded(0.0, least=0)
    min_len: int = bounded(2, least=0)
    reject_wordless: bool = True
    final_temperature: float | None = bounded(None, above=0)
    final_retain_weight: float | None = bounded(None, least=0)
    keep_sampling: bool = False


@dataclasses.dataclass(frozen=True)
class BaselineConfig(RetainingConfig):
    """A method other than PMC that has a retain term.

    Attributes:
        retain_loss: "nll": of the retain answers, as in PMC; "kl": divergence from the target
            model on them.
    """

    retain_loss: str = one_of("nll", "nll", "kl")


@dataclasses.dataclass(frozen=True)
class FineTuneConfig(MethodConfig):
    """Ordinary fine-tuning, which makes target models and retrained ones.

    Attributes:
        pairs: which question-answer pairs to train on.
    """

    name: str = "finetune"
    pairs: str = one_of("all", "all", "retain", "forget")


@dataclasses.dataclass(frozen=True)
class GAConfig(MethodConfig):
    """Gradient ascent."""

    name: str = "ga"


@dataclasses.dataclass(frozen=True)
class GDConfig(BaselineConfig):
    """Gradient difference."""

    name: str = "gd"


@dataclasses.dataclass(frozen=True)
class IDKConfig(BaselineConfig):
    """Training on refusals.

    Attributes:
        refusals: text file, one refusal a line; None: idontknow.jsonl of the data if it
            exists, or else "I don't know.".
    """

    name: str = "idk"
    refusals: str | None = path_to(None)


@dataclasses.dataclass(frozen=True)
class NPOConfig(BaselineConfig):
    """Negative preference optimisation.

    Attributes:
        beta: β, the inverse temperature.
    """

    name: str = "npo"
    beta: float = bounded(0.1, above=0)


@dataclasses.dataclass(frozen=True)
class SimNPOConfig(BaselineConfig):
    """NPO per token, without a reference model.

    Attributes:
        beta: β, the inverse temperature.
        gamma: γ, the margin; β multiplies it.
    """

    name: str = "simnpo"
    beta: float = bounded(4.5, above=0)
    gamma: float = 0.0


@dataclasses.dataclass(frozen=True)
class DPOConfig(BaselineConfig):
    """Direct preference optimisation of refusals over the forget answers.

    Attributes:
        beta: β, the inverse temperature.
        refusals: text file, one refusal a line; None: idontknow.jsonl of the data if it
            exists, or else "I don't know.".
    """

    name: str = "dpo"
    beta: float = bounded(0.1, above=0)
    refusals: str | None = path_to(None)


@dataclasses.dataclass(frozen=True)
class AltPOConfig(BaselineConfig):
    """DPO of alternative answers over the forget answers; alternatives take turns by epoch.

    Attributes:
        beta: β, the inverse temperature.
        alternatives: JSONL file with alternatives; None: sample them from the target model.
        samples: responses sampled per question.
        kept: how many of them become alternatives: those least like the answer.
        temperature: sampling temperature.
        max_new_tokens: longest alternative in tokens; None: what `max_length` leaves.
        prompt: "instruct": ask with `instruction`; "question": ask the question alone; "auto":
            instruct with a chat template.
        instruction: what the model is told to do.
    """

    name: str = "altpo"
    beta: float = bounded(0.1, above=0)
    alternatives: str | None = path_to(None)
    samples: int = bounded(20, least=1)
    kept: int = bounded(5, least=1)
    temperature: float = bounded(1.0, least=0)
    max_new_tokens: int | None = bounded(None, least=1)
    prompt: str = one_of("auto", "auto", "instruct", "question")
    instruction: str = free_text(
        "Invent another answer to this question. It must sound plausible, fit everything that "
        "the question says, and replace every fact of the answer above by a different one. "
        "Give only the new answer."
    )


@dataclasses.dataclass(frozen=True)
class RetainOnlyConfig(BaselineConfig):
    """The retain loss alone: what further training does without any unlearning."""

    name: str = "retain_only"


@dataclasses.dataclass(frozen=True)
class WGAConfig(BaselineConfig):
    """Gradient ascent weighted by each token's probability.

    Attributes:
        alpha: exponent of the probability.
    """

    name: str = "wga"
    alpha: float = bounded(1.0, least=0)


@dataclasses.dataclass(frozen=True)
class SatImpConfig(BaselineConfig):
    """Gradient ascent weighted by saturation and importance of each token.

    Attributes:
        beta1: β₁, exponent of saturation (the token's probability).
        beta2: β₂, exponent of importance (one minus that).
    """

    name: str = "satimp"
    beta1: float = bounded(5.0, least=0)
    beta2: float = bounded(1.0, least=0)
    retain_weight: float = bounded(10.0, least=0)


@dataclasses.dataclass(frozen=True)
class CEUConfig(BaselineConfig):
    """Distillation to the model's own distribution without the true token (CE-U).

    Attributes:
        skipped_tokens: first tokens of each answer that carry no loss.
    """

    name: str = "ceu"
    skipped_tokens: int = bounded(1, least=0)
    retain_weight: float = bounded(0.0, least=0)


@dataclasses.dataclass(frozen=True)
class UNDIALConfig(BaselineConfig):
    """Self-distillation from the target model with lowered logits of the true tokens.

    Attributes:
        beta: β, by which the logits are lowered.
    """

    name: str = "undial"
    beta: float = bounded(10.0, above=0)
    retain_weight: float = bounded(0.0, least=0)


@dataclasses.dataclass(frozen=True)
class RMUConfig(BaselineConfig):
    """Representation misdirection: activations at forget answers steered to a random vector.

    Attributes:
        layer: the layer whose output is steered, from 0; None: layer 7 of 32, and the same
            depth in other models.
        trained_layers: layers to update, the last one being `layer`; down-projections only.
        steering: c, the length of the random vector.
        retain_loss: "activations": their distance from the target model's; "nll" and "kl": as
            in other methods.
    """

    name: str = "rmu"
    layer: int | None = bounded(None, least=0)
    trained_layers: int = bounded(3, least=1)
    steering: float = bounded(6.5, least=0)
    retain_weight: float = bounded(1200.0, least=0)
    retain_loss: str = one_of("activations", "activations", "nll", "kl")


METHODS: dict[str, type[MethodConfig]] = {
    kind.name: kind
    for kind in (
        PMCConfig,
        FineTuneConfig,
        GAConfig,
        GDConfig,
        IDKConfig,
        NPOConfig,
        SimNPOConfig,
        DPOConfig,
        AltPOConfig,
        RetainOnlyConfig,
        WGAConfig,
        SatImpConfig,
        CEUConfig,
        UNDIALConfig,
        RMUConfig,
    )
}
