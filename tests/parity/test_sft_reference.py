"""The recipe against a plain loop around transformers' model, on padded batches."""

import pytest
import torch
from torchtune.data import auto_tokenizer, load_rows, tokenize_rows

transformers = pytest.importorskip("transformers")
STEPS, ROWS = 4, 8


def padded(documents, indices):
    """Return ids, labels and mask `[rows, longest]` of some documents, as transformers wants them."""
    spans = [slice(documents.offsets[i], documents.offsets[i + 1]) for i in indices]
    ids = [documents.tokens[span].long() for span in spans]
    labels = [torch.where(documents.trained[s], documents.tokens[s].long(), -100) for s in spans]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
    return pad(ids, batch_first=True), pad(labels, batch_first=True, padding_value=-100), mask


def plain_loop(base, documents, dtype):
    """Return the losses and gradient norms of the first steps."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    losses, norms = [], []
    for step in range(STEPS):
        ids, labels, mask = padded(documents, range(step * ROWS, (step + 1) * ROWS))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_steps_are_those_of_transformers(dtype, tolerance, runs):
    rows = load_rows(runs.rows, split="train[:120]")
    documents = tokenize_rows(rows, auto_tokenizer(runs.base), max_seq_len=192, progress=False)
    exact = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    losses, norms = plain_loop(runs.base, documents, exact)
    metrics = runs.run(dtype, f"max_steps={STEPS}", "shuffle=false", f"dtype={dtype}")
    assert [line["loss"] for line in metrics] == pytest.approx(losses, rel=tolerance)
    assert [line["grad_norm"] for line in metrics] == pytest.approx(norms, rel=5 * tolerance)
