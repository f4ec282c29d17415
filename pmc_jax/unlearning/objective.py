"""The PMC objective."""

from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class LossRows:
    """Prompt and response sequences, right-padded.

    Attributes:
        tokens: prompt, response and end token.
        mask: False at padding.
        loss_mask: True at the response and end tokens, which carry loss.
        retain: True for retain rows, False for collapse rows.
    """

    tokens: Int[Array, "*rows time"]
    mask: Bool[Array, "*rows time"]
    loss_mask: Bool[Array, "*rows time"]
    retain: Bool[Array, "*rows"]


@struct.dataclass
class PMCLoss:
    """The objective's two expectations, and their weighted sum."""

    loss: Float[Array, ""]
    collapse_loss: Float[Array, ""]
    retain_loss: Float[Array, ""]


def loss_tokens(rows: LossRows) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """How many tokens of collapse rows and of retain rows carry loss."""
    retain = rows.loss_mask & rows.retain[..., None]
    collapse = rows.loss_mask & ~rows.retain[..., None]
    return collapse.sum(), retain.sum()


def pmc_loss(
    nll: Float[Array, "rows time"],
    rows: LossRows,
    totals: tuple[Int[Array, ""], Int[Array, ""]],
    retain_weight: float,
) -> PMCLoss:
    """E[-log p(x̂ | q)] + λ E[-log p(y | q)], each a mean over tokens.

    `nll` are token NLLs as `token_nll` gives them. `totals` are the loss tokens of the
    whole optimizer batch, of which `rows` may be a part: the parts' losses and
    gradients then add up to those of the whole, whatever their token counts.
    """
    collapse = (nll * (rows.loss_mask & ~rows.retain[:, None])).sum() / totals[0].clip(1)
    retain = (nll * (rows.loss_mask & rows.retain[:, None])).sum() / totals[1].clip(1)
    return PMCLoss(collapse + retain_weight * retain, collapse, retain)
