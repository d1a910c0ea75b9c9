"""The quickstart: a small base model and a LoRA fine-tune of it, in about a minute on two cores."""
