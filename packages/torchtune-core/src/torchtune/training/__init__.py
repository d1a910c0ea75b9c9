"""Parts of a training loop: the step, schedules, progress, loggers, memory."""

from torchtune.training.activations import checkpoint_activations, compile_blocks
from torchtune.training.environment import data_digests, file_digest, record_run
from torchtune.training.initialise import init_weights
from torchtune.training.loggers import JsonlLogger, Logger
from torchtune.training.memory import MemoryPlan, explain_out_of_memory, peak_memory, plan_memory
from torchtune.training.optimizers import adamw, rounding_note
from torchtune.training.plot import plot_loss
from torchtune.training.profiling import torch_profiler
from torchtune.training.progress import Progress, StepMetrics
from torchtune.training.resume import check_resumed
from torchtune.training.run_log import RunLog
from torchtune.training.schedules import (
    constant_schedule,
    cosine_schedule,
    linear_schedule,
    wsd_schedule,
)
from torchtune.training.seed import set_seed
from torchtune.training.signals import StopSignal
from torchtune.training.step import evaluate, train_step

__all__ = [
    "JsonlLogger",
    "Logger",
    "MemoryPlan",
    "Progress",
    "RunLog",
    "StepMetrics",
    "StopSignal",
    "adamw",
    "check_resumed",
    "checkpoint_activations",
    "compile_blocks",
    "constant_schedule",
    "cosine_schedule",
    "data_digests",
    "evaluate",
    "explain_out_of_memory",
    "file_digest",
    "init_weights",
    "linear_schedule",
    "peak_memory",
    "plan_memory",
    "plot_loss",
    "record_run",
    "rounding_note",
    "set_seed",
    "torch_profiler",
    "train_step",
    "wsd_schedule",
]
