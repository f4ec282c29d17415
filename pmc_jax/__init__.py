"""Partial Model Collapse (PMC) in JAX: language models that forget on request.

The method is that of Scholten, Xhonneux, Schwinn and Günnemann, "Model Collapse
Is Not a Bug but a Feature in Machine Unlearning for LLMs" (arXiv 2507.04219).
"""

__version__ = "0.1.0"
