"""Operations of a model, against torch's own counter and the well-known formula."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchtune import training
from torchtune.data import Batch
from torchtune.distributed import World
from torchtune.models.llama import llama, llama3_8b
from torchtune.peft import lora

SIZES = dict(vocab_size=61, num_layers=3, num_heads=4, num_kv_heads=2, embed_dim=32,
             intermediate_dim=48, max_seq_len=64)  # fmt: skip


def one_document(length):
    tokens = torch.arange(length)
    return Batch(tokens, tokens, tokens, (length,), length, ("row",))


@pytest.mark.parametrize("tied", [False, True])
def test_full_training_is_what_torch_counts(tied):
    """torch counts every pair of positions in attention, so that part is taken from a full square."""
    model, length = llama(**SIZES, tied=tied), 24
    batch = one_document(length)
    with FlopCounterMode(display=False) as counter:
        logits = model(batch.tokens.unsqueeze(0))[0]
        F.cross_entropy(logits, batch.labels).backward()
    counted = counter.get_flop_counts()["Global"]
    products = counted[torch.ops.aten.mm]
    flops = training.model_flops(model)
    # the first layer's input is the embedding, which is trained, so its gradient is made too
    assert length * (flops.per_token + flops.per_supervised_token) == products
    assert flops.per_pair == 12 * SIZES["num_layers"] * SIZES["embed_dim"]


def test_eight_billion_parameters_take_six_operations_each():
    with torch.device("meta"):
        model = llama3_8b()
    flops = training.model_flops(model)
    embedding = model.model.embed_tokens.weight.numel()
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    count = sum(p.numel() for p in model.parameters())
    assert flops.per_token + flops.per_supervised_token == 6 * (count - embedding - norms)


def test_frozen_matrices_take_four_and_the_adapter_six():
    model = lora(llama(**SIZES), rank=2)
    flops = training.model_flops(model)
    inside = [(n, p.numel()) for n, p in model.named_parameters() if "layers" in n and p.dim() == 2]
    adapter = sum(size for name, size in inside if "lora" in name)
    base = sum(size for name, size in inside if "lora" not in name)
    assert flops.per_token == 4 * base + 6 * adapter
    assert flops.per_supervised_token == 4 * 61 * 32


def test_a_batch_counts_each_document_for_itself_and_no_tail():
    flops = training.ModelFlops(per_token=100, per_supervised_token=10, per_pair=1)
    tokens = torch.zeros(9, dtype=torch.long)
    batch = Batch(tokens, tokens, tokens, (3, 4, 2), 5, ("a", "b"))  # the last is a tail
    assert flops.of([batch]) == 7 * 100 + 5 * 10 + (6 + 10)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 5090", None),
    ],
)
def test_the_peak_follows_from_the_device_name(name, peak):
    assert training.peak_flops(name) == peak


def test_a_cpu_has_no_share_of_a_peak():
    assert training.flops_utilization(llama(**SIZES), [one_document(4)], World(), 1.0) is None
