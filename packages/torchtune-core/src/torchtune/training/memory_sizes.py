"""The numbers that the memory of a training step follows from, of a model and of its settings."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torchtune.distributed import World
from torchtune.modules.kernels import kernels_of

__all__ = ["ModelSizes", "Settings"]


@dataclass(frozen=True)
class ModelSizes:
    """How many numbers there are in a model and in what it keeps of a token.

    Args:
        parameters: In the whole model.
        trained: Of them, those that are trained.
        trained_inside: Of those, the ones in the blocks.
        block: Parameters of the largest block.
        outside: Parameters outside of the blocks.
        head: Elements of the output matrix.
        head_trained: Whether it is trained.
        vocab: Its rows.
        dim: Its columns: the size of a hidden state.
        blocks: How many there are.
        kept: What a block keeps of a token for backward.
        passed: Of that, what its parts hand on, each token of which is with one process of those
            that cut a matrix together; the layers of `model` have the sizes of this one's parts.
        widest: Numbers of a token that the backward of a block's widest part makes at once.
        heads: Query heads of a block.
        adapter: What a LoRA adapter of rank 1 on all linear layers has.
        frozen_size: Bytes of a frozen number.
        trained_size: Bytes of a trained one.
    """

    parameters: int
    trained: int
    trained_inside: int
    block: int
    outside: int
    head: int
    head_trained: bool
    vocab: int
    dim: int
    blocks: int
    kept: int
    passed: int
    widest: int
    heads: int
    adapter: int
    frozen_size: int
    trained_size: int

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSizes":
        """Measure a model that has ``blocks``."""
        blocks: Any = getattr(model, "blocks", [model])
        parameters = list(model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        frozen = [p for p in parameters if not p.requires_grad]
        inside = [sum(p.numel() for p in block.parameters()) for block in blocks]
        head = max(parameters, key=lambda p: p.shape[0] if p.dim() == 2 else 0)
        linears = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
        count = sum(p.numel() for p in parameters)
        return cls(
            parameters=count,
            trained=sum(p.numel() for p in trained),
            trained_inside=sum(
                p.numel() for b in blocks for p in b.parameters() if p.requires_grad
            ),
            block=max(inside),
            outside=count - sum(inside),
            head=head.numel(),
            head_trained=head.requires_grad,
            vocab=head.shape[0],
            dim=head.shape[-1],
            blocks=len(blocks),
            kept=max(_kept(block) for block in blocks),
            passed=max(_passed(block) for block in blocks),
            widest=max(_widest(block) for block in blocks),
            heads=max(_heads(block) for block in blocks),
            adapter=sum(linear.in_features + linear.out_features for linear in linears),
            frozen_size=frozen[0].element_size() if frozen else 0,
            trained_size=trained[0].element_size() if trained else 0,
        )

    def changed(self, values: dict[str, Any]) -> "ModelSizes":
        """Return the sizes of the same model under other keys of its recipe."""
        sizes, half = self, torch.bfloat16.itemsize
        if values.get("dtype") == "bf16":
            sizes = replace(sizes, frozen_size=half, trained_size=half)
        if values.get("master_weights") is False:
            sizes = replace(sizes, trained_size=half)
        if values.get("peft") == "lora":
            adapter = 8 * sizes.adapter  # lora's own rank
            sizes = replace(
                sizes, parameters=sizes.parameters + adapter, trained=adapter, head_trained=False,
                trained_inside=adapter, frozen_size=sizes.trained_size,
            )  # fmt: skip
        return sizes


def _kept(block: nn.Module) -> int:
    """Return what a block keeps of a token, in numbers.

    A group of linear layers, such as attention, keeps what each of them makes, and what those take
    that are trained: the first ones' common input, and the last one's, which attention keeps in any
    case. What the last one makes stands for the residual stream, that the next norm keeps.
    """
    total = _passed(block)
    for group, (*first, last) in _groups(block):
        total += sum(linear.out_features for linear in first)
        total += first[0].in_features if any(map(_trains, first)) else 0
        total += last.in_features if _trains(last) or hasattr(group, "head_dim") else 0
    return total


def _passed(block: nn.Module) -> int:
    return sum(linears[-1].out_features for _, linears in _groups(block))


def _groups(block: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
    for group in block.modules():
        if linears := [child for child in group.children() if isinstance(child, nn.Linear)]:
            yield group, linears


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _widest(block: nn.Module) -> int:
    widths = [m.in_features for m in block.modules() if isinstance(m, nn.Linear)]
    return 3 * max(widths, default=0)


def _heads(block: nn.Module) -> int:
    for group, linears in _groups(block):
        head_dim: Any = getattr(group, "head_dim", None)
        if head_dim:
            return linears[-1].in_features // int(head_dim)
    return 0


@dataclass(frozen=True)
class Settings:
    """What of a run's settings its memory hangs on.

    Args:
        tokens: Of one micro-batch, on one process or on those that cut its matrices together.
        row_tokens: Of its longest row.
        micro_batches: In a step.
        shards: Over how many processes the weights are cut.
        replicas: How many whole models there are.
        tensor: Over how many each matrix is cut.
        several: Whether there are several processes.
        recompute: The share of a block's activations that backward makes anew.
        inputs_on_host: Whether blocks' inputs are kept in the host's memory.
        states_on_host: Whether weights, gradients and optimizer are.
        in_backward: Whether each gradient is used and freed in backward.
        compute_size: Bytes of a number in the computation.
        fp8: Whether the blocks' products are in fp8, to which their matrices are cast.
        reshard: Whether gathered weights are given back after forward.
        chunk_tokens: Positions whose logits exist at once.
        states: Numbers that the optimizer keeps of each trained one.
        state_size: Bytes of such a number; None: as many as a trained one has.
        on_gpu: Whether a GPU computes.
    """

    tokens: int
    row_tokens: int
    micro_batches: int
    shards: int
    replicas: int
    tensor: int
    several: bool
    recompute: float
    inputs_on_host: bool
    states_on_host: bool
    in_backward: bool
    compute_size: int
    fp8: bool
    reshard: bool
    chunk_tokens: int
    states: int
    state_size: int | None
    on_gpu: bool

    @classmethod
    def of(cls, params: Any, row_tokens: int, world: World) -> "Settings":
        """Read them from a recipe's `params`."""

        def key(name: str, default: Any) -> Any:
            return getattr(params, name, default)

        loss, optimizer = key("loss", None), key("optimizer", None)
        optimizer = optimizer.get("_component_") if isinstance(optimizer, dict) else optimizer
        selective = key("activation_checkpointing_mode", "full") == "selective"
        replicas = world.mesh["data_replicate"].size() if world.mesh else 1
        kernels = kernels_of(world.device)
        on_gpu = kernels != "cpu"
        return cls(
            tokens=key("batch_size", 1) * row_tokens // world.context_size,
            row_tokens=row_tokens,
            micro_batches=key("gradient_accumulation_steps", 1),
            shards=world.size // replicas,
            replicas=replicas,
            tensor=world.tensor_size,
            several=world.size > 1,
            recompute=key("enable_activation_checkpointing", False) * (0.5 if selective else 1.0),
            inputs_on_host=kernels == "cuda" and key("enable_activation_offloading", False),
            states_on_host=on_gpu and key("fsdp_cpu_offload", False),
            in_backward=key("optimizer_in_bwd", False),
            compute_size=4 if key("dtype", "bf16") == "fp32" else 2,
            fp8=key("fp8", None) is not None,
            reshard=key("fsdp_reshard_after_forward", True),
            chunk_tokens=loss.get("chunk_tokens", 1024) if isinstance(loss, dict) else 1024,
            states=0 if optimizer == "sgd" else 2,
            state_size=1 if optimizer == "adamw_8bit" else None,
            on_gpu=on_gpu,
        )
