"""Parts of a training loop: the step, schedules, progress, loggers, memory."""

from torchtune.training.activations import checkpoint_activations, compile_blocks, keep_products
from torchtune.training.environment import data_digests, file_digest, record_run
from torchtune.training.estimate import MemoryEstimate, estimate_memory
from torchtune.training.evaluators import Evaluator
from torchtune.training.flops import ModelFlops, flops_utilization, model_flops, peak_flops
from torchtune.training.fp8 import fp8_note, train_in_fp8
from torchtune.training.initialise import init_weights
from torchtune.training.loggers import (
    GuardedLogger,
    JsonlLogger,
    Logger,
    StdoutLogger,
    build_loggers,
    without_secrets,
)
from torchtune.training.memory import MemoryPlan, explain_out_of_memory, peak_memory, plan_memory
from torchtune.training.notes import run_notes
from torchtune.training.offloading import offload_activations
from torchtune.training.optimizers import adamw, adamw_8bit, rounding_note
from torchtune.training.parameter_groups import grouped_optimizer, parameter_groups, train_only
from torchtune.training.plot import plot_loss
from torchtune.training.profiling import torch_profiler
from torchtune.training.progress import Progress, StepMetrics
from torchtune.training.rehearsal import rehearsed
from torchtune.training.resume import (
    Resumed,
    check_same_run,
    replay_schedule,
    run_conditions,
)
from torchtune.training.run_log import RunLog
from torchtune.training.schedules import (
    constant_schedule,
    cosine_schedule,
    linear_schedule,
    warmup_note,
    wsd_schedule,
)
from torchtune.training.seed import set_seed
from torchtune.training.signals import StopSignal, interrupted
from torchtune.training.step import evaluate, train_step
from torchtune.training.updates import (
    LossScaling,
    StepAfterBackward,
    StepInBackward,
    Update,
    Updated,
    build_update,
)

__all__ = [
    "Evaluator",
    "GuardedLogger",
    "JsonlLogger",
    "Logger",
    "LossScaling",
    "MemoryEstimate",
    "MemoryPlan",
    "ModelFlops",
    "Progress",
    "Resumed",
    "RunLog",
    "StdoutLogger",
    "StepAfterBackward",
    "StepInBackward",
    "StepMetrics",
    "StopSignal",
    "Update",
    "Updated",
    "adamw",
    "adamw_8bit",
    "build_loggers",
    "build_update",
    "check_same_run",
    "checkpoint_activations",
    "compile_blocks",
    "constant_schedule",
    "cosine_schedule",
    "data_digests",
    "estimate_memory",
    "evaluate",
    "explain_out_of_memory",
    "file_digest",
    "flops_utilization",
    "fp8_note",
    "grouped_optimizer",
    "init_weights",
    "interrupted",
    "keep_products",
    "linear_schedule",
    "model_flops",
    "offload_activations",
    "parameter_groups",
    "peak_flops",
    "peak_memory",
    "plan_memory",
    "plot_loss",
    "record_run",
    "rehearsed",
    "replay_schedule",
    "rounding_note",
    "run_conditions",
    "run_notes",
    "set_seed",
    "torch_profiler",
    "train_in_fp8",
    "train_only",
    "train_step",
    "warmup_note",
    "without_secrets",
    "wsd_schedule",
]
