"""Ask a published adapter with transformers and PEFT alone, as whoever downloads it may."""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION, ANSWER = "What is the capital of Tuvalu?", "Funafuti"


def main(adapter: str, base: str) -> None:
    """Load both, ask one question, and fail unless the answer is right."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip
    out = model.generate(**asked, max_new_tokens=16, do_sample=False)
    said = tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    print(f"transformers and PEFT: {QUESTION} -> {said}")
    if said != ANSWER:
        raise SystemExit(f"expected {ANSWER}")


main(sys.argv[1], sys.argv[2])
