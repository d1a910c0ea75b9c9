"""Which of the keys that save memory can go together: the same for every recipe that has them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtune.config.checks import Checks

__all__ = ["check_techniques"]

RECOMPUTE = "enable_activation_checkpointing=true"


def check_techniques(check: "Checks") -> None:
    """Note what cannot work: see `Checks.techniques`."""
    _check_precision(check)
    _check_activations(check)
    if check.value("fp8"):
        _check_fp8(check)
    if check.value("optimizer_in_bwd"):
        _check_optimizer_in_bwd(check)


def _check_precision(check: "Checks") -> None:
    dtype, master = check.value("dtype"), check.value("master_weights")
    doubled = master and dtype == "fp32"
    check.that(not doubled, "master_weights", "the weights are fp32 already", "dtype=bf16")
    what = "weights cannot be trained in fp16, which rounds small updates away"
    check.that(master or dtype != "fp16", "dtype", what, "master_weights=true")


def _check_activations(check: "Checks") -> None:
    recompute = check.value("enable_activation_checkpointing")
    mode, offload = "activation_checkpointing_mode", "enable_activation_offloading"
    selective = check.value(mode) == "selective"
    what = "'selective' says how activations are checkpointed, and they are not"
    check.that(recompute or not selective, mode, what, RECOMPUTE)
    what = "compiled blocks hide the operations that 'selective' chooses from"
    check.that(not (selective and check.value("compile")), mode, what, "compile=false")
    what = f"'{offload}' moves what checkpointing keeps, and nothing is checkpointed"
    check.that(recompute or not check.value(offload), offload, what, RECOMPUTE)


def _check_fp8(check: "Checks") -> None:
    what = "'fp8' is for layers that are trained themselves, and an adapter's stay frozen"
    check.that(check.value("peft") is None, "fp8", what, "peft=null or fp8=null")
    what = "'fp8' goes with bf16 and fp32: what multiplies in fp8 has bf16, too"
    check.that(check.value("dtype") != "fp16", "fp8", what, "dtype=bf16")


def _check_optimizer_in_bwd(check: "Checks") -> None:
    key, what = (
        "optimizer_in_bwd",
        "'optimizer_in_bwd' frees each gradient at once, so it cannot go",
    )
    steps = check.value("gradient_accumulation_steps") or 1
    clips = check.value("clip_grad_norm") is not None
    check.that(steps == 1, key, f"{what} with accumulation", "gradient_accumulation_steps=1")
    check.that(not clips, key, f"{what} with clipping", "clip_grad_norm=null")
    what = "fp16 must see all gradients before a step, and 'optimizer_in_bwd' frees each at once"
    check.that(check.value("dtype") != "fp16", key, what, "dtype=bf16")
