"""The model of a command that asks it questions."""

import jax

from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.language_model import LanguageModel, ModelSource, load_language_model, resolved
from pmc_jax.runtime.memory import allow_memory
from pmc_jax.runtime.progress import stage


def load_to_ask(source: ModelSource, prompt: PromptConfig, memory: str | None) -> LanguageModel:
    """Load a model with its progress on stderr; `memory` limits what the command takes.

    Raises:
        UserError: as `load_language_model`, or if `memory` is not a size.
    """
    allow_memory(memory)
    source = resolved(source)
    if source.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    with stage(f"loading {source.path}", None, to_stderr=True):
        return load_language_model(source, prompt)
