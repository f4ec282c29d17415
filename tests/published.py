"""The methods' losses as their papers state them, in torch, and batches to compute them on."""

import re

import jax.numpy as jnp
import numpy as np
import torch
from flax import struct
from jax import Array
from torch.nn import functional as F

from pmc_jax.training.batch import Batch
from pmc_jax.unlearning.baselines.altpo import AltPO
from pmc_jax.unlearning.baselines.ceu import CEU
from pmc_jax.unlearning.baselines.dpo import DPO
from pmc_jax.unlearning.baselines.finetune import FineTune
from pmc_jax.unlearning.baselines.ga import GA
from pmc_jax.unlearning.baselines.gd import GD
from pmc_jax.unlearning.baselines.idk import IDK
from pmc_jax.unlearning.baselines.npo import NPO
from pmc_jax.unlearning.baselines.pdu import PDU
from pmc_jax.unlearning.baselines.retain_only import RetainOnly
from pmc_jax.unlearning.baselines.rmu import RMU
from pmc_jax.unlearning.baselines.satimp import SatImp
from pmc_jax.unlearning.baselines.simnpo import SimNPO
from pmc_jax.unlearning.baselines.undial import UNDIAL
from pmc_jax.unlearning.baselines.wga import WGA
from pmc_jax.unlearning.losses import KINDS

LAMBDA, BETA = 1.5, 0.3
ROWS, TIME, VOCAB = 3, 12, 97

CONFIGS = {
    "finetune": FineTune(),
    "ga": GA(),
    "gd": GD(retain_weight=LAMBDA),
    "gd_kl": GD(retain_weight=LAMBDA, retain_loss="kl"),
    "idk": IDK(retain_weight=LAMBDA),
    "npo": NPO(beta=BETA, retain_weight=LAMBDA),
    "simnpo": SimNPO(beta=BETA, gamma=0.7, retain_weight=LAMBDA),
    "dpo": DPO(beta=BETA, retain_weight=LAMBDA),
    "altpo": AltPO(beta=0.05, retain_weight=LAMBDA),
    "retain_only": RetainOnly(retain_weight=LAMBDA),
    "retain_only_kl": RetainOnly(retain_weight=LAMBDA, retain_loss="kl"),
    "wga": WGA(alpha=0.6, retain_weight=LAMBDA),
    "undial": UNDIAL(beta=2.5, retain_weight=LAMBDA),
    "undial_kl": UNDIAL(beta=0.5, retain_weight=LAMBDA, retain_loss="kl"),
    "ceu": CEU(skipped_tokens=2, retain_weight=LAMBDA),
    "ceu_alone": CEU(),
    "rmu": RMU(layer=1, trained_layers=2, retain_weight=LAMBDA),
    "rmu_last": RMU(layer=2, trained_layers=1, retain_weight=LAMBDA, retain_loss="nll"),
    "rmu_kl": RMU(layer=0, trained_layers=3, retain_weight=LAMBDA, retain_loss="kl"),
    "satimp": SatImp(beta1=0.8, beta2=0.4, retain_weight=LAMBDA),
    "pdu": PDU(retain_weight=LAMBDA),
}


CONTROL = np.linspace(-1, 2, 32)
"""The vector that RMU steers activations to."""


@struct.dataclass
class Answers:
    """Answers of one kind in the form that the references take, `[accumulation, rows, time]`.

    Attributes:
        tokens, segments, loss_mask: as in a `Batch`, but numbered from 1 within this kind.
        reference: N_ref of each answer.
    """

    tokens: Array
    segments: Array
    loss_mask: Array
    reference: Array


def some_answers(rng, accumulation: int, rows: int, filler: bool = True) -> Answers:
    """Answers of different lengths, one per row, with random N_ref; the last is empty filler."""
    shape = (accumulation, rows, TIME)
    length, prompt = rng.integers(6, TIME + 1, shape[:2]), rng.integers(2, 5, shape[:2])
    place = np.arange(TIME)
    mask = place < length[..., None]
    loss_mask = mask & (place >= prompt[..., None])
    if filler and rows:
        mask[-1, -1] = loss_mask[-1, -1] = False
    return Answers(
        tokens=jnp.asarray(np.where(mask, rng.integers(3, VOCAB, shape), 0), jnp.int32),
        segments=jnp.asarray(np.where(mask, np.arange(1, rows + 1)[:, None], 0), jnp.int32),
        loss_mask=jnp.asarray(loss_mask),
        reference=jnp.asarray(rng.uniform(10, 40, shape[:2])),
    )


def answers_by_kind(rng, accumulation: int = 2, **kinds: int) -> dict[str, Answers]:
    """Answers of every kind. Forget and preferred answers have their filler in the same rows."""
    rows = {"forget": ROWS, "preferred": ROWS, "retain": ROWS + 1} | kinds
    return {name: some_answers(rng, accumulation, n) for name, n in rows.items()}


def batch_of(answers: dict[str, Answers]) -> Batch:
    """One batch with the rows of all kinds one after another, and segments numbered throughout."""
    parts, first = [answers[kind] for kind in KINDS], 0
    sizes, segments = [], []
    for part in parts:
        segments.append(jnp.where(part.segments > 0, part.segments + first, 0))
        sizes.append(part.reference.shape[1])
        first += sizes[-1]
    return Batch(
        tokens=jnp.concatenate([part.tokens for part in parts], axis=1),
        segments=jnp.concatenate(segments, axis=1),
        loss_mask=jnp.concatenate([part.loss_mask for part in parts], axis=1),
        reference=jnp.concatenate([part.reference for part in parts], axis=1),
        sizes=(sizes[0], sizes[1], sizes[2]),
    )


def sequences(rows: Answers):
    """(tokens, target mask, N_ref) of each answer that is not filler."""
    for part in range(rows.tokens.shape[0]):
        for answer in range(rows.reference.shape[1]):
            mask = np.asarray(rows.segments[part]) == answer + 1
            if mask.any():
                yield (
                    torch.tensor(np.asarray(rows.tokens[part])[mask]).long(),
                    torch.tensor(np.asarray(rows.loss_mask[part])[mask]),
                    float(rows.reference[part, answer]),
                )


def answer_logits(model, rows: Answers) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The answer tokens of each row and the logits that predict them."""
    found = []
    for tokens, target, _ in sequences(rows):
        logits = model(tokens[None]).logits[0]
        found.append((logits[:-1][target[1:]], tokens[1:][target[1:]]))
    return found


def token_losses(model, rows: Answers) -> list[torch.Tensor]:
    """The NLLs of each answer's tokens."""
    return [
        F.cross_entropy(logits, tokens, reduction="none")
        for logits, tokens in answer_logits(model, rows)
    ]


def divergence(model, target, rows: Answers) -> torch.Tensor:
    """The mean over answer tokens of KL(target ‖ model)."""
    with torch.no_grad():
        theirs = torch.cat([logits for logits, _ in answer_logits(target, rows)])
    ours = torch.cat([logits for logits, _ in answer_logits(model, rows)])
    return F.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True
    )


def activations(model, rows: Answers, layer: int) -> list[torch.Tensor]:
    """The output of a layer at each answer's tokens."""
    seen = []
    hook = model.model.layers[layer].register_forward_hook(
        lambda _, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    for tokens, _, _ in sequences(rows):
        model(tokens[None])
    hook.remove()
    masks = [target for _, target, _ in sequences(rows)]
    return [states.reshape(len(mask), -1)[mask] for states, mask in zip(seen, masks, strict=True)]


def misdirection(method: RMU, model, target, batch: dict[str, Answers]) -> torch.Tensor:
    """RMU's forget loss, and its own retain loss if it has one, averaged as in OpenUnlearning."""

    def distance(found: list[torch.Tensor], goals: list[torch.Tensor]) -> torch.Tensor:
        each = [F.mse_loss(a, b.expand_as(a)) for a, b in zip(found, goals, strict=True)]
        return torch.stack(each).mean()

    forget = activations(model, batch["forget"], method.layer)
    loss = distance(forget, [torch.tensor(CONTROL)] * len(forget))
    if method.retain_loss == "activations":
        with torch.no_grad():
            held = activations(target, batch["retain"], method.layer)
        loss = loss + LAMBDA * distance(activations(model, batch["retain"], method.layer), held)
    return loss


def flatness(model, rows: Answers) -> torch.Tensor:
    """PDU's forget loss: the mean over answer tokens of (max z − mean z)²."""
    logits = torch.cat([logits for logits, _ in answer_logits(model, rows)])
    return ((logits.amax(-1) - logits.mean(-1)) ** 2).mean()


def is_updated(name: str, parameter: str) -> bool:
    """Whether a method updates this parameter of `transformers`."""
    method = CONFIGS[name]
    if not isinstance(method, RMU):
        return True
    first = max(method.layer - method.trained_layers + 1, 0)
    layers = "|".join(map(str, range(first, method.layer + 1)))
    return bool(re.fullmatch(rf"model\.layers\.({layers})\.mlp\.down_proj\.weight", parameter))


def published_loss(name: str, model, target, batch: dict[str, Answers]) -> torch.Tensor:
    """The losses as the papers state them, one answer after another; `target` is frozen."""
    answers = token_losses(model, batch["forget"])
    log_p = [-nll.sum() for nll in answers]
    log_ref = [-reference for _, _, reference in sequences(batch["forget"])]
    preferred = [-nll.sum() for nll in token_losses(model, batch["preferred"])]
    preferred_ref = [-reference for _, _, reference in sequences(batch["preferred"])]
    retain = LAMBDA * torch.cat(token_losses(model, batch["retain"])).mean()
    p = torch.exp(-torch.cat(answers)).detach()
    mean = lambda values: torch.stack(list(values)).mean()  # noqa: E731
    ratio = lambda a, b: [x - y for x, y in zip(a, b, strict=True)]  # noqa: E731
    match name:
        case "finetune":
            return torch.cat(answers).mean()
        case "ga":
            return -torch.cat(answers).mean()
        case "gd":
            return -torch.cat(answers).mean() + retain
        case "idk":
            return torch.cat(answers).mean() + retain
        case "npo":
            terms = (F.logsigmoid(-BETA * r) for r in ratio(log_p, log_ref))
            return -2 / BETA * mean(terms) + retain
        case "simnpo":
            gamma = BETA * CONFIGS[name].gamma  # the paper's own γ
            terms = (
                F.logsigmoid(-BETA / len(nll) * lp - gamma)
                for nll, lp in zip(answers, log_p, strict=True)
            )
            return -2 / BETA * mean(terms) + retain
        case "dpo" | "altpo":
            beta = CONFIGS[name].beta
            gained, lost = ratio(preferred, preferred_ref), ratio(log_p, log_ref)
            margins = ratio(gained, lost)
            return -2 / beta * mean(F.logsigmoid(beta * m) for m in margins) + retain
        case "gd_kl":
            return -torch.cat(answers).mean() + LAMBDA * divergence(model, target, batch["retain"])
        case "retain_only_kl":
            return LAMBDA * divergence(model, target, batch["retain"])
        case "retain_only":
            return retain
        case "ceu" | "ceu_alone":
            skipped = CONFIGS[name].skipped_tokens
            found = []
            for logits, tokens in answer_logits(model, batch["forget"]):
                goal = logits.detach().clone()
                goal[torch.arange(len(tokens)), tokens] = -torch.inf
                entropies = F.cross_entropy(logits, goal.softmax(-1), reduction="none")
                found.append(entropies[skipped:])
            return torch.cat(found).mean() + (retain if name == "ceu" else 0)
        case "undial" | "undial_kl":
            with torch.no_grad():
                goals = []
                for logits, tokens in answer_logits(target, batch["forget"]):
                    adjusted = logits - CONFIGS[name].beta * F.one_hot(tokens, VOCAB)
                    goals.append(adjusted.softmax(-1))
            ours = torch.cat([logits for logits, _ in answer_logits(model, batch["forget"])])
            if name == "undial_kl":
                retain = LAMBDA * divergence(model, target, batch["retain"])
            return F.cross_entropy(ours, torch.cat(goals)) + retain
        case "rmu":
            return misdirection(CONFIGS[name], model, target, batch)
        case "rmu_last":
            return misdirection(CONFIGS[name], model, target, batch) + retain
        case "rmu_kl":
            kl = LAMBDA * divergence(model, target, batch["retain"])
            return misdirection(CONFIGS[name], model, target, batch) + kl
        case "wga":
            return (p**0.6 * -torch.cat(answers)).mean() + retain
        case "pdu":  # without −λ ε, which has no gradient
            return flatness(model, batch["forget"]) + retain
        case "satimp":
            return (p**0.8 * (1 - p) ** 0.4 * -torch.cat(answers)).mean() + retain
