"""The PMC objective."""

from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class LossRows:
    """Prompt and response sequences, one or several to a row.

    Attributes:
        tokens: prompt, response and end token, the next sequence behind them.
        segments: 0 at padding, else a number of the sequence, its own within the row.
        loss_mask: True at the response and end tokens, which carry loss.
        retain: of the tokens with loss, which belong to retain pairs; the others to collapse.
    """

    tokens: Int[Array, "*rows time"]
    segments: Int[Array, "*rows time"]
    loss_mask: Bool[Array, "*rows time"]
    retain: Bool[Array, "*rows time"]


@struct.dataclass
class PMCLoss:
    """The objective's two expectations, and their weighted sum."""

    loss: Float[Array, ""]
    collapse_loss: Float[Array, ""]
    retain_loss: Float[Array, ""]


def loss_tokens(rows: LossRows) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """How many tokens of collapse and of retain sequences carry loss."""
    return (rows.loss_mask & ~rows.retain).sum(), (rows.loss_mask & rows.retain).sum()


def pmc_loss(
    nll: Float[Array, "rows time"],
    rows: LossRows,
    totals: tuple[Int[Array, ""], Int[Array, ""]],
    retain_weight: float | Float[Array, ""],
) -> PMCLoss:
    """E[-log p(x̂ | q)] + λ E[-log p(y | q)], each a mean over tokens.

    `nll` are token NLLs as `token_nll` gives them. `totals` are the loss tokens of the
    whole optimizer batch, of which `rows` may be a part: the parts' losses and
    gradients then add up to those of the whole, whatever their token counts.
    """
    collapse = (nll * (rows.loss_mask & ~rows.retain)).sum() / totals[0].clip(1)
    retain = (nll * (rows.loss_mask & rows.retain)).sum() / totals[1].clip(1)
    return PMCLoss(collapse + retain_weight * retain, collapse, retain)
