"""Answer prompts with a checkpoint: what a run wrote, an adapter on its base, or any Llama folder.

    tune generate --checkpoint ./output --prompt "Name three rivers."

Only answers go to stdout. Copy it with `tune cp generate my_generate.py` and change any line.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torchtune import checkpoint, data
from torchtune.config import MISSING, TuneArgumentParser, checks
from torchtune.distributed import check_dtype, join_world
from torchtune.errors import ConfigError, MissingError, report_errors
from torchtune.generation import generate, pack_linears
from torchtune.models import auto
from torchtune.modules import Decoder
from torchtune.peft import adapter_names, lora_from_config


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
        self.folder, self.base = self._find_checkpoint()
        self.model = self.load_checkpoint()
        self.tokenizer, self.form = self._setup_tokenizer()

    def _setup_prompts(self) -> list[str]:
        p = self.params
        if p.prompts is None:
            return [p.prompt] if isinstance(p.prompt, str) else list(p.prompt or [])
        if not Path(p.prompts).is_file():
            raise MissingError("E-FILE", f"there is no file {p.prompts!r}", where="prompts")
        return Path(p.prompts).read_text(encoding="utf-8").splitlines()

    def _find_checkpoint(self) -> tuple[Path, Path]:
        """Return the folder to answer with, and that of the whole weights: its base, or itself."""
        given = Path(self.params.checkpoint).expanduser()
        folder = checkpoint.latest_step(given) or given
        if not (folder / "adapter_config.json").is_file():
            if self.params.base is not None:
                what = "a base is for adapters; this checkpoint holds whole weights"
                raise ConfigError("E-BASE", what, where="base", do="leave it out")
            return folder, folder
        said = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        base, do = Path(self.params.base or said or "?").expanduser(), "say where it is: --base DIR"
        if not (base / "config.json").is_file():
            what = f"the adapter's base is not at {str(base)!r}"
            raise MissingError("E-BASE", what, where=str(folder), do=do)
        wanted = _saved(folder).get("base_sha256")
        if wanted and wanted != checkpoint.weights_digest(base):
            what = f"{str(base)!r} holds other weights than the adapter was trained on"
            raise ConfigError("E-BASE", what, where=str(folder), do=do)
        return folder, base

    def load_checkpoint(self) -> Decoder:
        """Build the model and fill it from the base and the adapter."""
        with torch.device("meta"):
            model = auto(self.base)
            if self.folder != self.base:
                lora_from_config(model, _read_json(self.folder / "adapter_config.json"))
        dtype = self._dtype(model.hf_config)
        model = model.to(dtype).to_empty(device=self.world.device)
        adapter = adapter_names(model)
        checkpoint.load_model(model, self.base, skip=adapter)
        if adapter:
            checkpoint.load_adapter(model, self.folder, names=adapter)
        return pack_linears(model.requires_grad_(False).eval())

    def _dtype(self, config: dict[str, Any]) -> torch.dtype:
        named = {"bf16": torch.bfloat16, "fp32": torch.float32}
        own = config.get("dtype", config.get("torch_dtype"))
        dtype = named.get(self.params.dtype, torch.float32 if own == "float32" else torch.bfloat16)
        check_dtype(dtype, self.world.device)
        return dtype

    def _setup_tokenizer(self) -> tuple[data.Tokenizer, data.ChatFormat | None]:
        """Return the tokenizer, and the chat format where there is a template to use."""
        files = ("tokenizer.json", "tokenizer.model")
        own = any((self.folder / file).is_file() for file in files)
        tokenizer = data.auto_tokenizer(self.folder if own else self.base)
        if self.params.raw or tokenizer.chat_template is None:
            if self.params.system is not None:
                what = "a system message needs a chat template, and this checkpoint has none"
                raise MissingError("E-CHAT-TEMPLATE", what, where="system")
            return tokenizer, None
        return tokenizer, data.ChatFormat(tokenizer, date=_saved(self.folder).get("date"))

    def generate(self) -> None:
        """Answer all prompts, in order."""
        p, tokens, start = self.params, 0, time.perf_counter()
        for first in range(0, len(self.texts), p.batch_size):
            texts = self.texts[first : first + p.batch_size]
            answers = generate(
                self.model,
                [self._tokens(text) for text in texts],
                max_new_tokens=p.max_new_tokens,
                temperature=p.temperature,
                top_k=p.top_k,
                top_p=p.top_p,
                seed=p.seed + first,
                stop_tokens=self.tokenizer.stop_ids if self.form is None else self.form.stop_ids,
            )
            tokens += sum(map(len, answers))
            for text, answer in zip(texts, answers, strict=True):
                self._print(text, self.tokenizer.decode(answer))
        rate = tokens / (time.perf_counter() - start)
        print(f"{tokens:,} tokens, {rate:.1f} a second", file=sys.stderr)

    def _tokens(self, text: str) -> list[int]:
        """Return the ids of a prompt, up to where the answer begins."""
        if self.form is not None:
            said = self.params.system
            system = [] if said is None else [data.Message("system", said)]
            return self.form.prompt([*system, data.Message.task(text)])
        begin = [self.tokenizer.bos_id] if self.tokenizer.adds_bos else []
        return [token for token in begin if token is not None] + self.tokenizer.encode(text)

    def _print(self, prompt: str, answer: str) -> None:
        if self.world.is_main:
            line = {"prompt": prompt, "answer": answer}
            print(json.dumps(line) if self.params.json else answer, flush=True)

    def cleanup(self) -> None:
        """Leave the world."""
        self.world.close()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError("E-FILE-DAMAGED", f"{path.name}: {error}", where=str(path)) from None


def _saved(folder: Path) -> dict[str, Any]:
    """Return what the run that wrote `folder` says of itself; nothing for others' folders."""
    return checkpoint.read_info(folder) if (folder / "training_state").is_dir() else {}


if __name__ == "__main__":
    with report_errors():
        recipe = GenerateRecipe(TuneArgumentParser(GenerateParams).parse_args())
        recipe.setup()
        recipe.generate()
        recipe.cleanup()
