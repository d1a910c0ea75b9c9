"""How much memory a recipe's run needs on each GPU, and which of its settings need less."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchtune.config import Parallel, TuneArgumentParser, read_params
from torchtune.config.registry import trust_recipe
from torchtune.config.source_file import import_file
from torchtune.errors import ConfigError, Faults, MissingError
from torchtune.training import MemoryEstimate, estimate_memory
from torchtune.training.memory_changes import MemoryChange, memory_changes

__all__ = ["Fit", "Run", "bytes_of", "find_fits", "read_run", "room_in", "with_row"]

ROOM = 0.9
"""The share of a GPU that tensors can fill: the rest is its context's, its libraries', and gaps."""

LITTLE = 0.01
"""A change that frees a smaller share than this is not worth its price."""

_UNITS = {"": 2**30, "GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}


@dataclass(frozen=True)
class Run:
    """A run whose memory is asked for.

    Args:
        recipe: The recipe's class.
        params: What it would be run with.
        processes: GPUs, or processes on a CPU.
        row_tokens: Tokens of the longest row of a micro-batch; 0 where not known yet.
    """

    recipe: type
    params: Any
    processes: int
    row_tokens: int = 0

    @property
    def device(self) -> str:
        """Whose memory is counted: ``cpu`` where the params say so, else a GPU's, ``cuda``."""
        return "cpu" if getattr(self.params, "device", "auto") == "cpu" else "cuda"

    @property
    def rows(self) -> int:
        """Rows of a micro-batch on one process."""
        return int(getattr(self.params, "batch_size", 1))

    def estimate(self) -> MemoryEstimate:
        """Count what it holds; takes seconds."""
        return estimate_memory(
            self.recipe, self.params, rows=self.rows, row_tokens=self.row_tokens,
            processes=self.processes, device=self.device,
        )  # fmt: skip

    def changed(self, change: MemoryChange) -> "Run":
        """Return the run after a change of its keys; raises where they do not go together."""
        row = min(self.row_tokens, change.values.get("max_seq_len") or self.row_tokens)
        return replace(self, params=replace(self.params, **change.values), row_tokens=row)


@dataclass(frozen=True)
class Fit:
    """A way to need less memory.

    Args:
        words: What to add to the command.
        costs: What is paid for it.
        peak_bytes: What is needed then.
        frees_bytes: How much less that is.
        fits: Whether it is within the limit.
    """

    words: str
    costs: str
    peak_bytes: int
    frees_bytes: int
    fits: bool


def read_run(recipe: Path, words: Sequence[str], gpus: int | None) -> tuple[Run, list[str]]:
    """Read a recipe's file and its arguments, and the notes that there are to make.

    A model that is not downloaded is taken by its name where it is one of the known sizes.

    Args:
        recipe: The file; it is imported under another name than ``__main__``, so that it does not run.
        words: Its command line.
        gpus: How many; None takes as many as its `parallel` section asks for.

    Raises:
        ConfigError: The arguments are wrong, or the file has no recipe.
        MissingError: The model is not there.
    """
    module = import_file(recipe.resolve())
    trust_recipe(recipe)
    params: Any = TuneArgumentParser(getattr(module, read_params(recipe).__name__)).parse_args(
        words
    )
    notes = []
    if size := _known_size(params):
        params = replace(params, model=size)
        notes.append(f"the model is not downloaded; its size is taken to be {size}")
    parts = vars(getattr(params, "parallel", Parallel()))
    processes = gpus or math.prod(size for size in parts.values() if size > 0)
    return Run(_recipe_class(module, recipe), params, processes), notes


def _recipe_class(module: Any, path: Path) -> type:
    own = [v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__]
    for found in own:
        if isinstance(found, type) and hasattr(found, "_setup_model"):
            return found
    what = "no class in this file has the methods _setup_model and _setup_optimizer"
    raise ConfigError("E-ESTIMATE-RECIPE", what, where=str(path), do="`tune cat sft` shows one")


def _known_size(params: Any) -> str | None:
    """Return the name of the size of a model whose folder is not there, None where it is."""
    from torchtune.models.llama import HUB_NAMES

    folder = getattr(params, "checkpoint", None)
    automatic = getattr(params, "model", None) in ("auto", {"_component_": "auto"})
    if not folder or not automatic or (Path(folder) / "config.json").is_file():
        return None
    sizes = {Path(name).name: size for size, name in HUB_NAMES.items()}
    return sizes.get(Path(folder).name)


def with_row(run: Run, row_tokens: int | None, say: Callable[[str], None]) -> Run:
    """Return `run` with the tokens of its longest row: as given, packed, or read from local data.

    Args:
        run: The run.
        row_tokens: What the user said; None finds it out.
        say: Told what takes long, and what was assumed.

    Raises:
        ConfigError: Nothing says how long a row is.
    """
    limit = getattr(run.params, "max_seq_len", None)
    if row_tokens:
        return replace(run, row_tokens=row_tokens)
    if getattr(run.params, "packed", False) and limit:
        return replace(run, row_tokens=limit)
    found = _longest_row(run, say)
    if not found and limit:
        say(f"the data is not read: every row is taken to have {limit:,} tokens (max_seq_len)")
    if not found and not limit:
        what = "how long the rows are is not known without the data"
        raise ConfigError("E-ESTIMATE-ROWS", what, do="--row-tokens 2048, or max_seq_len=2048")
    return replace(run, row_tokens=int(found or limit or 0))


def _longest_row(run: Run, say: Callable[[str], None]) -> int | None:
    """Tokenize a local data set as the run would; None where it, or the tokenizer, is elsewhere."""
    from torchtune.distributed import fake_world
    from torchtune.training import RunLog
    from torchtune.training.fake_weights import fake_weights

    dataset = getattr(run.params, "dataset", None)
    source = dataset.get("source") if isinstance(dataset, dict) else dataset
    if not isinstance(source, str) or not Path(source).exists():
        return None
    say(f"reading {source}")
    recipe: Any = run.recipe(run.params)
    recipe.saved, recipe.log = {}, RunLog(speaks=False)
    try:
        with fake_world() as recipe.world, fake_weights():
            recipe.model = recipe._setup_model()
        recipe.form = recipe._setup_chat_format()
        steps, _ = recipe._setup_data()
    except (
        AttributeError,
        MissingError,
    ):  # a recipe of another form, or a tokenizer not downloaded
        return None
    return int(steps.documents.lengths.max())


def find_fits(
    run: Run, needed: int, limit: int, say: Callable[[str], None]
) -> tuple[list[Fit], Fit | None]:
    """Estimate what single changes of the settings would free, and some of them together.

    Args:
        run: The run that does not fit.
        needed: The bytes that it needs.
        limit: The bytes that there are.
        say: Told of each change before it is counted.

    Returns:
        The changes that free something, best first: those that fit, and among them those that leave
        the result as it is. And, where none fits alone, as few as fit together, or the most that
        can be done; None where nothing helps.
    """
    changes = memory_changes(run.params, on_gpu=run.device != "cpu", row_tokens=run.row_tokens)
    found = []
    for number, change in enumerate(changes, 1):
        say(f"counting {number} of {len(changes) + 1}: {change.overrides}")
        if fit := _after(run, [change], needed, limit):
            found.append((change, fit))
    more = replace(run, processes=2 * run.processes)
    say(f"counting {len(changes) + 1} of {len(changes) + 1}: --gpus {more.processes}")
    found = [(change, fit) for change, fit in found if fit.frees_bytes > LITTLE * needed]
    fits = [fit for _, fit in found]
    fits += [fit for fit in [_more_gpus(more, needed, limit)] if fit.frees_bytes > LITTLE * needed]
    same = {fit.words for change, fit in found if change.same_result}
    fits.sort(key=lambda fit: (not fit.fits, fit.words not in same, -fit.frees_bytes))
    helpful = [change for change, _ in found]
    if any(fit.fits for fit in fits):
        return fits, None
    freed = {fit.words: fit.frees_bytes for _, fit in found}
    helpful.sort(key=lambda change: (not change.same_result, -freed[change.overrides]))
    return fits, _together(run, helpful, needed, limit, say)


def _after(run: Run, changes: Sequence[MemoryChange], needed: int, limit: int) -> Fit | None:
    try:
        for change in changes:
            run = run.changed(change)
        peak = run.estimate().peak_bytes
    except (ConfigError, Faults, MissingError):  # the keys do not go together
        return None
    values = {key: value for change in changes for key, value in change.values.items()}
    whole = MemoryChange(values, "; ".join(change.costs for change in changes), True)
    return Fit(whole.overrides, whole.costs, peak, needed - peak, peak <= room_in(limit))


def _more_gpus(run: Run, needed: int, limit: int) -> Fit:
    peak = run.estimate().peak_bytes
    words, costs = f"--gpus {run.processes}", "twice the GPUs"
    return Fit(words, costs, peak, needed - peak, peak <= room_in(limit))


def _together(
    run: Run, changes: Sequence[MemoryChange], needed: int, limit: int, say: Callable[[str], None]
) -> Fit | None:
    """Take change after change until the run fits; those that do not go with the others are left."""
    taken, best = list[MemoryChange](), None
    for change in changes:
        say(f"counting them together: {change.overrides}")
        fit = _after(run, [*taken, change], needed, limit)
        if fit is None or (best is not None and fit.peak_bytes >= best.peak_bytes):
            continue
        taken.append(change)
        best = fit
        if fit.fits:
            break
    return best


def room_in(memory: int) -> int:
    """Return how many bytes of a GPU's `memory` tensors can fill."""
    return int(ROOM * memory)


def bytes_of(text: str) -> int:
    """Return the bytes of a size such as ``80GB``, ``24GiB`` or ``80``, which is in GiB.

    Raises:
        ConfigError: It is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2].upper() not in _UNITS:
        what = f"{text!r} is no size of a memory"
        raise ConfigError("E-USAGE", what, where="--gpu-memory", do="such as 80GB or 24GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
