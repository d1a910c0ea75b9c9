"""Each thing to know of a run's settings is a line; where there is none, nothing is said."""

from types import SimpleNamespace

import torch
from torchtune import training
from torchtune.models.llama import llama


def notes(dtype, lr, warmup):
    model = llama(vocab_size=32, num_layers=1, num_heads=2, num_kv_heads=2, embed_dim=16, intermediate_dim=32,
                  max_seq_len=16).to(dtype)  # fmt: skip
    scheduler = {"_component_": "linear", "num_warmup_steps": warmup}
    params = SimpleNamespace(lr_scheduler=scheduler)
    optimizer = training.adamw(model.parameters(), lr=lr)
    return training.run_notes(model, optimizer, params, 10).splitlines()


def test_each_note_has_a_line():
    rounds, rises = notes(torch.bfloat16, 1e-5, 100)
    assert "bf16" in rounds
    assert "warm-up" in rises


def test_nothing_is_said_where_nothing_is_to_be_known():
    assert notes(torch.float32, 1e-5, 2) == []
