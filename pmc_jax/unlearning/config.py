"""Settings of the PMC algorithm."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PMCConfig:
    """What to sample, how to select, and how much retain data holds the rest in place.

    Attributes:
        samples: n, responses drawn per question and visit.
        temperature, top_k, top_p: how they are drawn (temperature, then top-k, then
            top-p; 0 and 1 switch the filters off).
        max_new_tokens: longest response; None leaves it to `max_length`.
        selection_temperature: τ of Bradley–Terry selection; 0 takes the best sample.
        min_len: responses of fewer words are penalised by exp(-words); 0 is off.
        reject_wordless: a response without any [a-z0-9] word never counts as best.
        retain_weight: λ.
        retain_per_forget: retain pairs in a step for each forget question.
    """

    samples: int = 5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    selection_temperature: float = 0.0
    min_len: int = 2
    reject_wordless: bool = True
    retain_weight: float = 1.0
    retain_per_forget: int = 1
