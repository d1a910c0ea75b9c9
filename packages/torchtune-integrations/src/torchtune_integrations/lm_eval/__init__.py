"""Evaluation on the tasks of EleutherAI's lm-evaluation-harness; needs the extra `eval`.

The modules `model` and `scoring` import the harness; importing this package does not.
"""

from torchtune_integrations.lm_eval.evaluator import Evaluator

__all__ = ["Evaluator"]
