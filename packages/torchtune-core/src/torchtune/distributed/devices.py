"""Which device a process computes on, decided from facts that a test can make up."""

from dataclasses import dataclass

import torch

from torchtune.errors import ConfigError, MissingError

__all__ = [
    "DTYPES",
    "DeviceFacts",
    "available_backends",
    "check_dtype",
    "choose_device",
    "device_facts",
]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What configs and options call the floating point types."""


@dataclass(frozen=True)
class DeviceFacts:
    """What this machine can compute on.

    Args:
        cuda_devices: How many CUDA devices this process sees.
        cuda_bf16: Whether they compute in bfloat16 without emulation.
        mps: Whether Apple's GPU can be used.
        mps_bf16: Whether it knows bfloat16.
    """

    cuda_devices: int = 0
    cuda_bf16: bool = False
    mps: bool = False
    mps_bf16: bool = False


def device_facts() -> DeviceFacts:
    """Return what torch says there is; nothing else asks it."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    return DeviceFacts(
        cuda_devices=cuda,
        cuda_bf16=cuda > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
        mps=mps,
        mps_bf16=mps and torch.backends.mps.is_macos_or_newer(14, 0),
    )


def available_backends() -> list[str]:
    """Return by which backends processes could speak to each other here, of ``nccl`` and ``gloo``."""
    import torch.distributed as dist  # late: one process does without

    if not dist.is_available():
        return []
    able = {"nccl": dist.is_nccl_available(), "gloo": dist.is_gloo_available()}
    return [name for name, there in able.items() if there]


def choose_device(
    wanted: str, facts: DeviceFacts, *, local_rank: int = 0, local_size: int = 1
) -> torch.device:
    """Return the device of the process `local_rank` of the `local_size` on this machine.

    Args:
        wanted: ``auto`` (cuda where there is one, else mps for a single process, else cpu),
            ``cpu``, ``cuda`` or ``mps``.
        facts: What the machine has; see `device_facts`.
        local_rank: This process's number on this machine.
        local_size: How many processes of the run are on this machine.

    Raises:
        ConfigError: `wanted` is none of the four.
        MissingError: The device is not there, or there are fewer than processes.
    """
    if wanted not in ("auto", "cpu", "cuda", "mps"):
        do = "use auto, cpu, cuda or mps"
        raise ConfigError("E-DEVICE", f"no device is called {wanted!r}", where="device", do=do)
    if wanted == "auto":
        wanted = _best(facts, local_size)
    if wanted == "cuda":
        _check_cuda(facts, local_size)
        return torch.device("cuda", local_rank)
    if wanted == "mps":
        _check_mps(facts, local_size)
    return torch.device(wanted)


def _best(facts: DeviceFacts, local_size: int) -> str:
    if facts.cuda_devices:
        return "cuda"
    return "mps" if facts.mps and local_size == 1 else "cpu"


def _check_cuda(facts: DeviceFacts, local_size: int) -> None:
    if not facts.cuda_devices:
        raise MissingError(
            "E-DEVICE", "torch sees no CUDA device", where="device", do="use device=cpu or auto"
        )
    if local_size > facts.cuda_devices:
        raise MissingError(
            "E-DEVICE-COUNT",
            f"{local_size} processes need a CUDA device each; there are {facts.cuda_devices}",
            where="device",
            do=f"start at most {facts.cuda_devices} processes on this machine, or use device=cpu",
        )


def _check_mps(facts: DeviceFacts, local_size: int) -> None:
    if not facts.mps:
        raise MissingError(
            "E-DEVICE", "torch sees no MPS device", where="device", do="use device=cpu or auto"
        )
    if local_size > 1:
        raise MissingError(
            "E-DEVICE-COUNT",
            f"{local_size} processes cannot share the one MPS device",
            where="device",
            do="start one process, or use device=cpu",
        )


def check_dtype(dtype: torch.dtype, device: torch.device, facts: DeviceFacts | None = None) -> None:
    """Refuse bfloat16 on a device without it. float16 and float32 are known to all.

    A CPU computes both halves, if slowly; float16 needs a scaled loss to train.

    Args:
        dtype: The weights' or the compute dtype.
        device: Where the model will be.
        facts: What the machine has; None asks `device_facts`.

    Raises:
        MissingError: `device` cannot compute in `dtype`.
    """
    if dtype != torch.bfloat16 or device.type == "cpu":
        return
    facts = facts or device_facts()
    able = {"cuda": facts.cuda_bf16, "mps": facts.mps_bf16}.get(device.type, True)
    if not able:
        do = "use dtype=fp32; to train, dtype=fp16 with master_weights=true is faster"
        what = f"this {device.type} device has no bf16"
        raise MissingError("E-DTYPE", what, where="dtype", do=do)
