"""Answer prompts with a checkpoint: what a run wrote, an adapter on its base, or any Llama folder.

    tune generate --checkpoint ./output --prompt "Name three rivers."
    tune generate --model Llama-3.2-1B-Instruct --prompts questions.jsonl --json > answers.jsonl

Only answers go to stdout. Copy it with `tune cp generate my_generate.py` and change any line.
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from typing import Literal

from torchtune.config import Parallel, TuneArgumentParser, checks
from torchtune.distributed import in_turns, join_world
from torchtune.errors import report_errors
from torchtune.generation import (
    Answer,
    LoadedCheckpoint,
    Prompt,
    Sampling,
    compile_decoding,
    generate_text,
    load_checkpoint,
    placed_prompts,
    stream_text,
)


@dataclass
class GenerateParams:
    """Every argument of the recipe: in a YAML by its name, on the command line `name=value`."""

    # --- model
    # a run's output folder (its latest step is taken), a step folder, an adapter of PEFT's, or a
    # model in Hugging Face format
    checkpoint: str | None = None
    # instead: the name of a model in ./models, where `tune download` puts it
    model: str | None = None
    base: str | None = None  # the base's folder; null: where the adapter says that it is
    # --- prompt
    prompt: str | list[str] | None = None  # the text, or several texts
    # a file of prompts: .txt has one a line, .jsonl a `prompt` or `messages` a row
    prompts: str | None = None
    system: str | None = None  # a system message before each prompt
    # continue the text as it stands; else it is put into the chat template, if there is one
    raw: bool = False
    # --- sampling
    max_new_tokens: int = 256  # the most tokens of an answer
    # 0: always the likeliest token; above: draw. Here and below the checkpoint's
    # generation_config.json is not asked: an answer is what these keys say
    temperature: float = 0.0
    top_k: int | None = None  # draw among this many likeliest tokens
    top_p: float | None = None  # draw among the fewest likeliest with this much probability
    min_p: float | None = None  # draw among those at least this share as likely as the likeliest
    repetition_penalty: float = 1.0  # above 1: less of what the prompt and the answer have already
    seed: int = 0  # of the draws
    stop: str | list[str] | None = None  # an answer ends before this text, or the first of several
    batch_size: int = 8  # prompts answered at once
    # --- output
    json: bool = False  # print one JSON object a line: prompt, answer
    # show an answer while it is written; null: on a terminal, if there is one prompt
    stream: bool | None = None
    # --- environment
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU where there is one
    dtype: Literal["auto", "bf16", "fp32"] = "auto"  # auto: fp32 if the checkpoint is, else bf16
    compile: bool = False  # tokens by torch.compile: pays on a GPU, for many answers
    # each process has a whole model and takes its turn; data_shard or tensor cut one too big for that
    parallel: Parallel = field(default_factory=lambda: Parallel(data_replicate=-1, data_shard=1))

    def __post_init__(self) -> None:
        with checks(self) as check:
            for key in ("max_new_tokens", "batch_size", "top_k"):
                check.at_least(key, 1)
            check.at_least("temperature", 0)
            check.more_than("top_p", 0)
            check.between("top_p", 0, 1)
            check.between("min_p", 0, 1)
            check.more_than("repetition_penalty", 0)
            given = (self.checkpoint is not None) + (self.model is not None)
            check.that(given == 1, "checkpoint", "one of 'checkpoint' and 'model' is needed")
            given = (self.prompt is not None) + (self.prompts is not None)
            check.that(given == 1, "prompt", "one of 'prompt' and 'prompts' is needed")
            both = self.raw and self.system is not None
            check.that(not both, "system", "'raw' text has no system message")
            check.that("" not in self.stops, "stop", "a stop text must not be empty")
            both = self.json and self.stream is True
            check.that(not both, "stream", "a line of JSON holds a whole answer: it cannot stream")
            check.that(self.parallel.context == 1, "parallel.context", "'context' is for training")
            cut = self.parallel.data_shard != 1 or self.parallel.tensor != 1
            check.that(not (cut and self.compile), "compile", "a model that is cut is not compiled")

    @property
    def stops(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class GenerateRecipe:
    """Load a model and its tokenizer, and answer prompts."""

    def __init__(self, params: GenerateParams) -> None:
        self.params = params

    def setup(self) -> None:
        """Find the files, and make model and tokenizer."""
        p = self.params
        self.world = join_world(p.device, p.parallel)
        self.prompts = self._setup_prompts()
        self.loaded = self.load_checkpoint()
        self.ids = self.loaded.placed_ids(self.prompts, system=p.system, raw=p.raw)

    def _setup_prompts(self) -> list[tuple[str, Prompt]]:
        p = self.params
        if p.prompts is not None:
            return placed_prompts(p.prompts)
        texts = [p.prompt] if isinstance(p.prompt, str) else list(p.prompt or [])
        return [(f"prompt[{number}]", text) for number, text in enumerate(texts)]

    def load_checkpoint(self) -> LoadedCheckpoint:
        """Build the model and fill it from the base and the adapter."""
        p, world = self.params, self.world
        path = p.checkpoint or p.model or ""
        loaded = load_checkpoint(path, base=p.base, dtype=p.dtype, pack=not p.compile, world=world)
        if p.compile:
            compile_decoding(loaded.model)
        return loaded

    def generate(self) -> None:
        """Answer all prompts, in order."""
        p, one = self.params, len(self.prompts) == 1
        wanted = one and sys.stdout.isatty() and not p.json if p.stream is None else p.stream
        streams = self.world.broadcast(wanted)  # other machines' processes have no terminal
        self._stream() if streams else self._batches()
        if self.world.is_main and self.loaded.form is not None:
            path = shlex.quote(p.checkpoint or p.model or "")
            print(f"next: tune chat --checkpoint {path}", file=sys.stderr)

    def _stream(self) -> None:
        p = self.params
        for number, ids in enumerate(self.ids):
            pieces = stream_text(
                self.loaded, ids, max_new_tokens=p.max_new_tokens,
                sampling=self._sampling(number), stop=p.stops,
            )  # fmt: skip
            for piece in pieces:
                self._say(piece, end="")
            self._say("")

    def _batches(self) -> None:
        tokens, start = 0, time.perf_counter()
        firsts = range(0, len(self.prompts), self.params.batch_size)
        made = in_turns(firsts, self._answers, self.world)
        for first, answers in zip(firsts, made, strict=True):
            tokens += sum(len(answer.tokens) for answer in answers)
            for (_, prompt), answer in zip(self.prompts[first:], answers, strict=False):
                self._say_answer(prompt, answer.text)
        rate = tokens / (time.perf_counter() - start)
        if self.world.is_main:
            print(f"{tokens:,} tokens, {rate:.1f} a second", file=sys.stderr)

    def _answers(self, first: int) -> list[Answer]:
        """Answer the batch of prompts that begins with number `first`."""
        p, loaded = self.params, self.loaded
        return generate_text(
            loaded.model, loaded.tokenizer, self.ids[first : first + p.batch_size],
            max_new_tokens=p.max_new_tokens, sampling=self._sampling(first),
            stop_tokens=loaded.stop_ids, stop=p.stops,
        )  # fmt: skip

    def _sampling(self, first: int) -> Sampling:
        p = self.params
        return Sampling(
            temperature=p.temperature, top_k=p.top_k, top_p=p.top_p, min_p=p.min_p,
            repetition_penalty=p.repetition_penalty, seed=p.seed + first,
        )  # fmt: skip

    def _say_answer(self, prompt: Prompt, answer: str) -> None:
        asked = prompt if isinstance(prompt, str) else [turn.as_dict() for turn in prompt]
        self._say(json.dumps({"prompt": asked, "answer": answer}) if self.params.json else answer)

    def _say(self, text: str, end: str = "\n") -> None:
        if self.world.is_main:
            print(text, end=end, flush=True)

    def cleanup(self) -> None:
        """Leave the world."""
        self.world.close()


if __name__ == "__main__":
    with report_errors():
        recipe = GenerateRecipe(TuneArgumentParser(GenerateParams).parse_args())
        recipe.setup()
        recipe.generate()
        recipe.cleanup()
