"""Partial Model Collapse (PMC) in JAX: make language models forget.

    import pmc_jax as pmc

    model = pmc.load_model("path/or/hub-id")
    data = pmc.Dataset.from_files(forget="forget.jsonl", retain="retain.jsonl")
    result = pmc.unlearn(model, data, method=pmc.PMC(samples=8))
    print(result.model.generate(["Where was …?"]))
    result.model.save("unlearned/")

The names in `__all__` are the public API, which stays stable. Everything is imported on first use,
so `import pmc_jax` itself imports neither JAX nor transformers.

The method is from Scholten, Xhonneux, Schwinn and Günnemann, "Model Collapse Is Not a Bug but a
Feature in Machine Unlearning for LLMs" (arXiv 2507.04219, ICLR 2026).
"""

import importlib
from typing import TYPE_CHECKING, Any

from pmc_jax.cli.startup import begin_module

__version__ = "0.2.0"

begin_module()

if TYPE_CHECKING:
    from pmc_jax import theory
    from pmc_jax.api import Unlearned, load_model, unlearn
    from pmc_jax.data import Controls, Dataset
    from pmc_jax.data.prompt_config import PromptConfig
    from pmc_jax.drafting import Draft, draft_data
    from pmc_jax.errors import Stopped, UserError
    from pmc_jax.evaluation.context import RobustnessConfig
    from pmc_jax.evaluation.quality import EvaluationConfig
    from pmc_jax.evaluation.run import Evaluation, evaluate
    from pmc_jax.evaluation.tofu import RetainLog
    from pmc_jax.language_model import Adapter, LanguageModel
    from pmc_jax.model.forward import forward
    from pmc_jax.model.trainable import LoRA
    from pmc_jax.runs.checkpoints import CheckpointConfig
    from pmc_jax.runs.metrics import LoggingConfig
    from pmc_jax.training.loop import StepRecord
    from pmc_jax.training.optimizer import Optimizer
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
    from pmc_jax.unlearning.method import Method
    from pmc_jax.unlearning.pmc import PMC, pmc_loss, select
    from pmc_jax.unlearning.pmc.reward import rouge_reward as reward
    from pmc_jax.unlearning.schedule import Training

_WHERE = {
    # what a notebook needs
    "load_model": "api",
    "unlearn": "api",
    "evaluate": "evaluation.run",
    "Unlearned": "api",
    "Dataset": "data",
    "LanguageModel": "language_model",
    "Adapter": "language_model",
    "Evaluation": "evaluation.run",
    "Controls": "data",
    "draft_data": "drafting",
    "Draft": "drafting",
    "RetainLog": "evaluation.tofu",
    "StepRecord": "training.loop",
    "UserError": "errors",
    "Stopped": "errors",
    # settings
    "Training": "unlearning.schedule",
    "Optimizer": "training.optimizer",
    "LoRA": "model.trainable",
    "EvaluationConfig": "evaluation.quality",
    "RobustnessConfig": "evaluation.context",
    "PromptConfig": "data.prompt_config",
    "CheckpointConfig": "runs.checkpoints",
    "LoggingConfig": "runs.metrics",
    # methods
    "Method": "unlearning.method",
    "PMC": "unlearning.pmc",
    "AltPO": "unlearning.baselines.altpo",
    "CEU": "unlearning.baselines.ceu",
    "DPO": "unlearning.baselines.dpo",
    "FineTune": "unlearning.baselines.finetune",
    "GA": "unlearning.baselines.ga",
    "GD": "unlearning.baselines.gd",
    "IDK": "unlearning.baselines.idk",
    "NPO": "unlearning.baselines.npo",
    "PDU": "unlearning.baselines.pdu",
    "RMU": "unlearning.baselines.rmu",
    "RetainOnly": "unlearning.baselines.retain_only",
    "SatImp": "unlearning.baselines.satimp",
    "SimNPO": "unlearning.baselines.simnpo",
    "UNDIAL": "unlearning.baselines.undial",
    "WGA": "unlearning.baselines.wga",
    # pure functions
    "forward": "model.forward",
    "pmc_loss": "unlearning.pmc",
    "reward": "unlearning.pmc.reward:rouge_reward",
    "select": "unlearning.pmc",
    # a module
    "theory": "theory",
}
"""The public names, and the modules that define them."""

__all__ = [
    "CEU",
    "DPO",
    "GA",
    "GD",
    "IDK",
    "NPO",
    "PDU",
    "PMC",
    "RMU",
    "UNDIAL",
    "WGA",
    "Adapter",
    "AltPO",
    "CheckpointConfig",
    "Controls",
    "Dataset",
    "Draft",
    "Evaluation",
    "EvaluationConfig",
    "FineTune",
    "LanguageModel",
    "LoRA",
    "LoggingConfig",
    "Method",
    "Optimizer",
    "PromptConfig",
    "RetainLog",
    "RetainOnly",
    "RobustnessConfig",
    "SatImp",
    "SimNPO",
    "StepRecord",
    "Stopped",
    "Training",
    "Unlearned",
    "UserError",
    "__version__",
    "draft_data",
    "evaluate",
    "forward",
    "load_model",
    "pmc_loss",
    "reward",
    "select",
    "theory",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _WHERE:
        raise AttributeError(f"module 'pmc_jax' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    found = importlib.import_module(f"pmc_jax.{module}")
    if module != name:
        found = getattr(found, attribute or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
