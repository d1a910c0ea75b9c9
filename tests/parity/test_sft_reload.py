"""What sft writes loads in transformers and PEFT, with the same logits."""

import pytest
import torch
from torchtune.checkpoint import load_adapter
from torchtune.models import from_pretrained
from torchtune.peft import adapter_names, lora

transformers = pytest.importorskip("transformers")
IDS = torch.randint(3, 512, (2, 24), generator=torch.Generator().manual_seed(0))


def test_a_full_run_loads_in_transformers(runs):
    metrics = runs.run("full", "max_steps=4")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    folder = runs.folder / "full/latest"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours, base = from_pretrained(folder, dtype=torch.float32), from_pretrained(runs.base)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=0)
    assert (ours(IDS) - base.float()(IDS)).abs().max() > 0.1
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Once upon a time"
    assert tokenizer(text).input_ids == [1, *ours_encode(folder, text)]


@pytest.mark.parametrize(
    ("row", "saved"),
    [({"text": "Once upon a time"}, False), ({"question": "Why?", "answer": "Because."}, True)],
)
def test_the_template_that_was_used_is_saved_and_no_other(row, saved, runs):
    import json

    (runs.folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    runs.rows = runs.folder / "rows.jsonl"
    runs.run("one", "max_steps=1", "dataset.split=train")
    assert (runs.folder / "one/latest/chat_template.jinja").exists() == saved


def ours_encode(folder, text):
    from torchtune.data import auto_tokenizer

    return auto_tokenizer(folder).encode(text)


def test_an_adapter_loads_in_peft(runs):
    peft = pytest.importorskip("peft")
    runs.run(
        "adapter", "max_steps=4", "peft=lora", "peft.rank=4", "peft.targets=[q_proj,down_proj]"
    )
    folder = runs.folder / "adapter/latest"
    base = transformers.AutoModelForCausalLM.from_pretrained(runs.base, dtype=torch.float32)
    plain = base(IDS).logits
    theirs = peft.PeftModel.from_pretrained(base, folder)
    ours = lora(
        from_pretrained(runs.base, dtype=torch.float32), rank=4, targets=["q_proj", "down_proj"]
    )
    load_adapter(ours, folder, names=adapter_names(ours))
    logits = theirs(IDS).logits
    torch.testing.assert_close(ours(IDS), logits, atol=1e-4, rtol=0)
    assert (logits - plain).abs().max() > 0.01
