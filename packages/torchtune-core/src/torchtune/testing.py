"""For tests of ours and of plug-ins: several processes, a tiny checkpoint, tiny data."""

import contextlib
import importlib.util
import io
import json
import os
import pickle
import runpy
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torchtune.errors import TuneError

__all__ = ["check_config", "run_distributed", "tiny_checkpoint", "tiny_rows"]

R = TypeVar("R")


def run_distributed(
    function: Callable[..., R], processes: int, *args: Any, timeout: float = 120.0
) -> list[R]:
    """Call ``function(*args)`` in each of `processes` fresh processes; return the results by rank.

    The function finds ``RANK`` and ``WORLD_SIZE`` set and calls `torchtune.distributed.join_world`
    itself, as a recipe does; it may leave without closing its world. Each process has one thread
    and sees no GPU. With one process the function runs here, in a world of one.

    Args:
        function: Defined at the top of an importable module or of a file, such as a test.
        processes: How many.
        args: Picklable.
        timeout: Seconds after which all are killed.

    Raises:
        TuneError: The first failing process's own error if it was one of ours; else E-PROCESS
            with its traceback, or what it printed before it died.
        TimeoutError: `timeout` has passed.
    """
    if processes == 1:
        with _without_ranks():
            return [function(*args)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_call(folder, function, args)
        # The parent holds the store on a port of the system's choice: no two runs can collide.
        store = _open_store()
        workers = [_start(folder, rank, processes, store.port) for rank in range(processes)]
        try:
            _wait(workers, folder, time.monotonic() + timeout)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(processes)]


RANK_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@contextmanager
def _without_ranks() -> Any:
    kept = {key: os.environ.pop(key) for key in RANK_KEYS if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _open_store() -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _write_call(folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    module = sys.modules[function.__module__]
    where = {"path": sys.path, "module": module.__name__, "file": getattr(module, "__file__", None)}
    (folder / "where.json").write_text(json.dumps(where))
    (folder / "call.pickle").write_bytes(pickle.dumps((function, args)))


def _start(folder: Path, rank: int, size: int, port: int) -> "subprocess.Popen[bytes]":
    ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    environment = {
        **os.environ,
        **{key: str(value) for key, value in ranks.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    code = "import sys; from torchtune.testing import _work; _work(sys.argv[1], sys.argv[2])"
    with (folder / f"{rank}.output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(rank)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _wait(workers: Sequence["subprocess.Popen[bytes]"], folder: Path, deadline: float) -> None:
    while any(worker.poll() is None for worker in workers):
        if any(worker.returncode for worker in workers):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"the processes were still running\n{_output(folder)}")
        time.sleep(0.01)
    if any(worker.returncode for worker in workers):
        raise _first_error(folder)


def _first_error(folder: Path) -> TuneError:
    # Peers of a failed process fail after it, when their collectives break.
    errors = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        error: TuneError = pickle.loads(errors[0].read_bytes())
        return error
    return TuneError("E-PROCESS", f"a process died\n{_output(folder)}")


def _output(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.output")))


def _work(name: str, rank: str) -> None:
    import traceback

    folder = Path(name)
    try:
        function, args = _read_call(folder)
        _write(folder / f"{rank}.result", function(*args))
        _leave()
    except TuneError as error:
        _write(folder / f"{rank}.error", error)
    except BaseException:  # whatever it was, it is raised again by the parent
        text = f"rank {rank} failed\n{traceback.format_exc()}"
        _write(folder / f"{rank}.error", TuneError("E-PROCESS", text))
    else:
        return
    os._exit(1)  # at once: a tidy exit would wait for peers that wait for this process


def _read_call(folder: Path) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    where = json.loads((folder / "where.json").read_text())
    sys.path[:] = where["path"]
    if where["file"] and not _is_importable(where["module"], where["file"]):
        _load_file(where["module"], where["file"])
    function, args = pickle.loads((folder / "call.pickle").read_bytes())
    return function, args


def _is_importable(module: str, file: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin == file


def _load_file(module: str, file: str) -> None:
    """Make `module` importable by its name, as pytest does for files outside of packages."""
    parents = module.split(".")[:-1]
    for count in range(1, len(parents) + 1):
        parent = ".".join(parents[:count])
        sys.modules.setdefault(parent, types.ModuleType(parent))
    # A script's own name is __main__; under another one its guarded part does not run.
    spec = importlib.util.spec_from_file_location(module.replace("__main__", "__script__"), file)
    if spec is None or spec.loader is None:
        raise TuneError("E-PROCESS", f"{file} cannot be loaded")
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])


def _write(path: Path, value: object) -> None:
    aside = path.with_suffix(".aside")
    aside.write_bytes(pickle.dumps(value))
    aside.replace(path)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()  # a process that leaves early makes gloo abort in its peers
        dist.destroy_process_group()


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def tiny_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    chat_template: str | None = CHATML,
    **config: Any,
) -> Path:
    """Write a random Llama of about 35,000 parameters as the hub has them; return its folder.

    Equal arguments give equal files. The tokenizer has one token a byte and four special ones
    (ids 0 to 3: ``<s> </s> <|im_start|> <|im_end|>``), and puts ``<s>`` in front.

    Args:
        folder: Made where it does not exist.
        seed: Of the weights.
        dtype: Of the stored weights: ``float32`` or ``bfloat16``.
        chat_template: Jinja, ChatML by default; None leaves it out.
        config: Other values for keys of config.json, such as ``hidden_size=64`` or
            ``tie_word_embeddings=True``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**_tiny_config(dtype), **config}
    _write_json(folder / "config.json", settings)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 3]})
    _write_weights(folder / "model.safetensors", settings, seed)
    _write_tokenizer(folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _tiny_config(dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }


def _weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, hidden, vocabulary = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    head = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = (head * config[key] for key in ("num_attention_heads", "num_key_value_heads"))
    block = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def _write_weights(path: Path, config: dict[str, Any], seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in _weight_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        # norms near one, the rest small: so the first loss is near the logarithm of the vocabulary
        values = 1.0 + 0.1 * values if len(shape) == 1 else values / shape[1] ** 0.5
        weights[name] = values.to(getattr(torch, config["torch_dtype"]))
    save_file(weights, path, metadata={"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(folder / "tokenizer_config.json", {**names, "clean_up_tokenization_spaces": False})


def tiny_rows(folder: str | Path, count: int, *, form: str = "alpaca") -> Path:
    """Write `count` short question-and-answer rows as JSONL; return the file.

    Args:
        folder: Made where it does not exist.
        count: How many rows, of lengths that differ.
        form: ``alpaca``, ``messages`` (OpenAI's), ``sharegpt``, ``qa`` or ``text``.
    """
    path = Path(folder) / f"{form}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (_ROW_FORMS[form](*_question(number)) for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _question(number: int) -> tuple[str, str]:
    items = " ".join(str(number * 7 % 10 + i) for i in range(number % 5 + 1))
    return f"Repeat: {items}", items


_ROW_FORMS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "alpaca": lambda question, answer: {"instruction": question, "input": "", "output": answer},
    "messages": lambda question, answer: {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    },
    "sharegpt": lambda question, answer: {
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer},
        ]
    },
    "qa": lambda question, answer: {"question": question, "answer": answer},
    "text": lambda question, answer: {"text": f"{question}\n{answer}"},
}


def check_config(
    config: str | Path, recipe: str | Path, *, rows: str | Path | None = None, steps: int = 2
) -> list[dict[str, Any]]:
    """Check a config, and let its recipe run it on a tiny model; return the lines of its metrics.

    Only the model's sizes, the tokenizer's files, the rows and the output folder are replaced, no
    other key. The recipe's file runs in this process, as the program that it is.

    Args:
        config: The YAML.
        recipe: The recipe's file; ``tune ls --json`` says where those that ship are.
        rows: The data; by default `tiny_rows`, enough for one epoch of `steps` steps.
        steps: Optimizer steps, where the config does not say ``max_steps`` or ``epochs``.

    Raises:
        ConfigError: The config has faults; several come as `Faults`.
        TuneError: The recipe fails; what it said is in the message.
    """
    from torchtune.config import TuneArgumentParser, read_params

    params: Any = TuneArgumentParser(read_params(recipe)).parse_args(["--config", str(config)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows or tiny_rows(folder, _rows_of(params, steps))
        words = ["--config", str(config), *_replacements(params, folder, Path(rows).resolve())]
        _run_file(recipe, words)
        lines = (folder / "output" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


TINY_BUILDER = {
    **{"vocab_size": 260, "embed_dim": 32, "intermediate_dim": 64, "num_layers": 2},
    **{"num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
}
"""Arguments that make a builder's model the one of `tiny_checkpoint`."""


def _rows_of(params: Any, steps: int) -> int:
    """Return how many of the rows of `tiny_rows`, of some 60 tokens, `steps` steps take."""
    count = steps * params.batch_size * params.gradient_accumulation_steps
    return count * max(1, params.max_seq_len // 60) if params.packed else count


def _replacements(params: Any, folder: Path, rows: Path) -> list[str]:
    model = tiny_checkpoint(folder / "model", max_position_embeddings=2**17)
    words = [f"output_dir={folder / 'output'}"]
    words += [f"checkpoint={model}"] if params.checkpoint else []
    if params.model["_component_"] != "auto":
        words += [f"model.{key}={value}" for key, value in TINY_BUILDER.items()]
    if params.tokenizer["_component_"] != "auto":
        words += ["tokenizer=tokenizer_json", f"tokenizer.path={model / 'tokenizer.json'}"]
    datasets = [key for key in ("dataset", "dataset_val") if getattr(params, key)]
    return words + [f"{key}.source={rows}" for key in datasets]


def _run_file(path: str | Path, words: Sequence[str]) -> None:
    said, before = io.StringIO(), sys.argv
    sys.argv = [str(path), *words]
    try:
        with contextlib.redirect_stderr(said):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise TuneError("E-CHECK-CONFIG", f"{path} failed: {said.getvalue()}") from None
    finally:
        sys.argv = before
