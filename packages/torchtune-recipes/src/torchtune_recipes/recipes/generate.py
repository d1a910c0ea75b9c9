"""Answer prompts with a checkpoint: what a run wrote, an adapter on its base, or any Llama folder.

    tune generate --checkpoint ./output --prompt "Name three rivers."

Only answers go to stdout. Copy it with `tune cp generate my_generate.py` and change any line.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchtune.config import MISSING, TuneArgumentParser, checks
from torchtune.distributed import join_world
from torchtune.errors import MissingError, report_errors
from torchtune.generation import LoadedCheckpoint, Sampling, generate, load_checkpoint


@dataclass
class GenerateParams:
    """Every argument of the recipe: in a YAML by its name, on the command line `name=value`."""

    # --- model
    # a run's output folder (its latest step is taken), a step folder, an adapter of PEFT's, or a
    # model in Hugging Face format
    checkpoint: str = MISSING
    base: str | None = None  # the base's folder; null: where the adapter says that it is
    # --- prompt
    prompt: str | list[str] | None = None  # the text, or several texts
    prompts: str | None = None  # a file with one prompt a line
    system: str | None = None  # a system message before each prompt
    # continue the text as it stands; else it is put into the chat template, if there is one
    raw: bool = False
    # --- sampling
    max_new_tokens: int = 256  # the most tokens of an answer
    temperature: float = 0.0  # 0: always the likeliest token; above: draw
    top_k: int | None = None  # draw among this many likeliest tokens
    top_p: float | None = None  # draw among the fewest likeliest with this much probability
    seed: int = 0  # of the draws
    batch_size: int = 8  # prompts answered at once
    # --- output
    json: bool = False  # print one JSON object a line: prompt, answer
    # --- environment
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU where there is one
    dtype: Literal["auto", "bf16", "fp32"] = "auto"  # auto: fp32 if the checkpoint is, else bf16

    def __post_init__(self) -> None:
        with checks(self) as check:
            check.at_least("max_new_tokens", 1)
            check.at_least("batch_size", 1)
            check.at_least("temperature", 0)
            check.at_least("top_k", 1)
            check.more_than("top_p", 0)
            check.between("top_p", 0, 1)
            given = (self.prompt is not None) + (self.prompts is not None)
            check.that(given == 1, "prompt", "one of 'prompt' and 'prompts' is needed")
            both = self.raw and self.system is not None
            check.that(not both, "system", "'raw' text has no system message")


class GenerateRecipe:
    """Load a model and its tokenizer, and answer prompts."""

    def __init__(self, params: GenerateParams) -> None:
        self.params = params

    def setup(self) -> None:
        """Find the files, and make model and tokenizer."""
        self.world = join_world(self.params.device)
        self.texts = self._setup_prompts()
        self.loaded = self.load_checkpoint()

    def _setup_prompts(self) -> list[str]:
        p = self.params
        if p.prompts is None:
            return [p.prompt] if isinstance(p.prompt, str) else list(p.prompt or [])
        if not Path(p.prompts).is_file():
            raise MissingError("E-FILE", f"there is no file {p.prompts!r}", where="prompts")
        return Path(p.prompts).read_text(encoding="utf-8").splitlines()

    def load_checkpoint(self) -> LoadedCheckpoint:
        """Build the model and fill it from the base and the adapter."""
        p = self.params
        return load_checkpoint(p.checkpoint, base=p.base, dtype=p.dtype, device=self.world.device)

    def generate(self) -> None:
        """Answer all prompts, in order."""
        p, tokens, start = self.params, 0, time.perf_counter()
        for first in range(0, len(self.texts), p.batch_size):
            texts = self.texts[first : first + p.batch_size]
            answers = generate(
                self.loaded.model,
                [self.loaded.prompt_ids(t, system=p.system, raw=p.raw) for t in texts],
                max_new_tokens=p.max_new_tokens,
                sampling=Sampling(
                    temperature=p.temperature, top_k=p.top_k, top_p=p.top_p, seed=p.seed + first
                ),
                stop_tokens=self.loaded.stop_ids if not p.raw else self.loaded.tokenizer.stop_ids,
            )
            tokens += sum(map(len, answers))
            for text, answer in zip(texts, answers, strict=True):
                self._print(text, self.loaded.tokenizer.decode(answer))
        rate = tokens / (time.perf_counter() - start)
        print(f"{tokens:,} tokens, {rate:.1f} a second", file=sys.stderr)

    def _print(self, prompt: str, answer: str) -> None:
        if self.world.is_main:
            line = {"prompt": prompt, "answer": answer}
            print(json.dumps(line) if self.params.json else answer, flush=True)

    def cleanup(self) -> None:
        """Leave the world."""
        self.world.close()


if __name__ == "__main__":
    with report_errors():
        recipe = GenerateRecipe(TuneArgumentParser(GenerateParams).parse_args())
        recipe.setup()
        recipe.generate()
        recipe.cleanup()
