"""Settings of the methods: one type each, so that a key of another method is an error."""

import dataclasses
from typing import TypeGuard


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """What every method has: `name`, by which `METHODS` finds its type."""

    name: str = ""


@dataclasses.dataclass(frozen=True)
class RetainingConfig(MethodConfig):
    """A method that holds the rest in place by a retain loss.

    Attributes:
        retain_weight: λ; a method other than PMC whose λ is 0 has no retain pairs in its steps.
        retain_per_forget: retain pairs in a step for each forget question.
    """

    retain_weight: float = 1.0
    retain_per_forget: int = 1


def has_retain_term(method: MethodConfig) -> TypeGuard[RetainingConfig]:
    """Whether the loss has a λ r that is not 0 throughout."""
    return isinstance(method, RetainingConfig) and method.retain_weight > 0


@dataclasses.dataclass(frozen=True)
class PMCConfig(RetainingConfig):
    """What to sample, how to select, and how much retain data holds the rest in place.

    Attributes:
        samples: n, responses drawn per question and visit.
        temperature, top_k, top_p: how they are drawn (temperature, then top-k, then
            top-p; 0 and 1 switch the filters off).
        max_new_tokens: longest response; None leaves it to `max_length`.
        selection_temperature: τ of Bradley–Terry selection; 0 takes the best sample.
        min_len: responses of fewer words are penalised by exp(-words); 0 is off.
        reject_wordless: a response without any [a-z0-9] word never counts as best.

    What follows is not in the paper, whose algorithm has all of it off:

    Attributes:
        final_temperature, final_retain_weight: where `temperature` and λ have come to at the last
            step, linearly from the first; None: they stay as they are.
        keep_sampling: a question is sampled at every visit, and trained on its newest response
            of the least score, rather than on the first one that scored 0 to the end.
    """

    name: str = "pmc"
    samples: int = 5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    selection_temperature: float = 0.0
    min_len: int = 2
    reject_wordless: bool = True
    final_temperature: float | None = None
    final_retain_weight: float | None = None
    keep_sampling: bool = False


@dataclasses.dataclass(frozen=True)
class BaselineConfig(RetainingConfig):
    """A method other than PMC that has a retain term.

    Attributes:
        retain_loss: "nll": of the retain answers, as PMC has it; "kl": the divergence from the
            target model at their tokens.
    """

    retain_loss: str = "nll"


@dataclasses.dataclass(frozen=True)
class FineTuneConfig(MethodConfig):
    """Ordinary fine-tuning, which makes target models and retrained ones.

    Attributes:
        pairs: "all" trains on forget and retain pairs alike, "retain" or "forget" on these.
    """

    name: str = "finetune"
    pairs: str = "all"


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
        refusals: a text file with one refusal a line; None: the data set's
            `idontknow.jsonl`, or else "I don't know.".
    """

    name: str = "idk"
    refusals: str | None = None


@dataclasses.dataclass(frozen=True)
class NPOConfig(BaselineConfig):
    """Negative preference optimisation at inverse temperature β."""

    name: str = "npo"
    beta: float = 0.1


@dataclasses.dataclass(frozen=True)
class SimNPOConfig(BaselineConfig):
    """NPO without a reference model, per token, with margin γ (multiplied by β)."""

    name: str = "simnpo"
    beta: float = 4.5
    gamma: float = 0.0


@dataclasses.dataclass(frozen=True)
class DPOConfig(BaselineConfig):
    """Direct preference optimisation of refusals over the forget answers.

    Attributes:
        refusals: as in `IDKConfig`.
    """

    name: str = "dpo"
    beta: float = 0.1
    refusals: str | None = None


@dataclasses.dataclass(frozen=True)
class AltPOConfig(BaselineConfig):
    """DPO of alternative answers over the forget answers; alternatives take turns by epoch.

    Attributes:
        alternatives: a JSON-lines file of alternatives; None: sampled from the target model.
        samples: responses drawn for each question.
        kept: how many of them become alternatives: those least like the answer.
        temperature, max_new_tokens: how they are drawn, as in `PMCConfig`.
        prompt: "instruct" asks by `instruction`, "question" asks the question itself, "auto"
            is "instruct" where the prompts are a chat template's.
    """

    name: str = "altpo"
    beta: float = 0.1
    alternatives: str | None = None
    samples: int = 20
    kept: int = 5
    temperature: float = 1.0
    max_new_tokens: int | None = None
    prompt: str = "auto"
    instruction: str = (
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
    """Gradient ascent on tokens weighted by their probability to the power of `alpha`."""

    name: str = "wga"
    alpha: float = 1.0


@dataclasses.dataclass(frozen=True)
class SatImpConfig(BaselineConfig):
    """Gradient ascent on tokens weighted by saturation (β₁) and importance (β₂)."""

    name: str = "satimp"
    beta1: float = 5.0
    beta2: float = 1.0
    retain_weight: float = 10.0


@dataclasses.dataclass(frozen=True)
class CEUConfig(BaselineConfig):
    """Distillation to the model's own distribution without the true token (CE-U).

    Attributes:
        skipped_tokens: so many first tokens of each answer carry no loss.
    """

    name: str = "ceu"
    skipped_tokens: int = 1
    retain_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class UNDIALConfig(BaselineConfig):
    """Self-distillation from the target model whose logits of true tokens are lowered by β."""

    name: str = "undial"
    beta: float = 10.0
    retain_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class RMUConfig(BaselineConfig):
    """Representation misdirection: activations at forget answers steered to a random vector.

    Attributes:
        layer: whose output is steered, from 0; None: 7 of 32 layers, and as deep in others.
        trained_layers: so many layers up to `layer` are updated, in their down-projections.
        steering: c, the length of the vector.
        retain_loss: "activations": their distance from the target model's; or as elsewhere.
    """

    name: str = "rmu"
    layer: int | None = None
    trained_layers: int = 3
    steering: float = 6.5
    retain_weight: float = 1200.0
    retain_loss: str = "activations"


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
