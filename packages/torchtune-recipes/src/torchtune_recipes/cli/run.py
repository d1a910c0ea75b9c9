"""Run a recipe: here with one process, through torchrun with several."""

import argparse
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from torchtune.config import Parallel, TuneArgumentParser, read_params, validate
from torchtune.errors import ConfigError, Faults, TuneError

from torchtune_recipes import catalog

__all__ = [
    "TORCHRUN_OPTIONS",
    "TORCHRUN_SWITCHES",
    "add_arguments",
    "missing_devices",
    "refuse",
    "run",
    "torchrun_words",
]

TORCHRUN_OPTIONS = {
    "nnodes": "number of machines, N or MIN:MAX",
    "nproc-per-node": "processes on each machine: a number, auto, gpu or cpu",
    "node-rank": "this machine's number, from 0",
    "master-addr": "address of machine 0",
    "master-port": "its port",
    "local-addr": "address of this machine",
    "rdzv-backend": "how machines find each other: static, c10d, ...",
    "rdzv-endpoint": "HOST:PORT to meet at",
    "rdzv-id": "name of the job",
    "rdzv-conf": "further settings, K=V,K=V",
    "max-restarts": "how often all workers start again, from the last checkpoint, after one has died",
    "monitor-interval": "seconds between looks at the workers",
    "shutdown-timeout": "seconds that workers have to save when the launcher is stopped",
    "start-method": "how workers start: spawn, fork or forkserver",
    "role": "name of the workers' role",
    "log-dir": "folder of the workers' logs",
    "redirects": "which streams go to those logs",
    "tee": "which streams go to the logs and the console",
    "local-ranks-filter": "show only these ranks' output",
    "duplicate-stdout-filters": "words of the stdout lines to repeat",
    "duplicate-stderr-filters": "words of the stderr lines to repeat",
    "logs-specs": "a class of the user's own for the logs",
    "event-log-handler": "where torchrun's events go",
    "numa-binding": "bind workers to NUMA nodes: node, socket, ...",
    "signals-to-handle": "signals that reach the workers",
}
"""torchrun's options that take a value, known here so that torch need not be loaded for ``--help``."""

TORCHRUN_SWITCHES = {
    "standalone": "one machine, on a free port",
    "virtual-local-rank": "show each worker its device as number 0",
    "module": "RECIPE is a module of the user's, as in python -m",
    "no-python": "RECIPE is a file that can be executed by itself",
    "run-path": "start workers by forking or spawning, not as programs",
}
"""torchrun's options that take no value."""

_SHORT = {"redirects": "-r", "tee": "-t", "module": "-m"}
_EXAMPLES = """\
examples:
  tune run sft --checkpoint ./my-model --dataset ./my.jsonl peft=lora
  tune run --nproc-per-node 2 sft --config llama3_2/1b_lora optimizer.lr=1e-4
  tune run --nproc-per-node 8 --max-restarts 3 sft --config llama3_2/1b_lora
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare torchrun's options, the recipe, and whatever follows it."""
    parser.epilog = _EXAMPLES
    parser.usage = "tune run [torchrun options] RECIPE [--config CONFIG] [key=value ...]"
    options = parser.add_argument_group("torchrun options")
    for name, about in TORCHRUN_OPTIONS.items():
        options.add_argument(*_spellings(name), metavar="X", help=about)
    for name, about in TORCHRUN_SWITCHES.items():
        options.add_argument(*_spellings(name), action="store_true", help=about)
    parser.add_argument("recipe", metavar="RECIPE", help="a name that `tune ls` shows, or a file")
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="--config NAME|FILE, key=value, ~key; `tune run RECIPE --help` lists the keys",
    )


def run(args: argparse.Namespace) -> int:
    """Check the arguments before torch is loaded, then run the recipe's file."""
    recipe = _module_file(args.recipe) if args.module else catalog.resolve_recipe(args.recipe)
    words = with_config_path(_take_processes(args))
    if "-h" in words or "--help" in words:
        sys.argv[0] = f"tune run {args.recipe}"
        TuneArgumentParser(read_params(recipe)).parse_args(["--help"])
    devices = missing_devices(_workers(args))

    def here(params: object) -> Sequence[TuneError]:
        return [*devices(params), *_wrong_product(params, _processes(args))]

    refuse(validate(recipe, None, words, here=True, machine=here)[0])
    if not _several(args):
        return _run_here(recipe, words)
    from torchtune.distributed import launch

    return launch([*torchrun_words(args), args.recipe if args.module else str(recipe), *words])


def refuse(faults: Sequence[TuneError]) -> None:
    """Raise all `faults` as one error, if there are any."""
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)


def missing_devices(processes: int) -> Callable[[object], Sequence[TuneError]]:
    """Return a check of params against this machine's devices; it loads torch when called.

    Args:
        processes: How many processes this machine is to run.
    """

    def check(params: object) -> Sequence[TuneError]:
        from torchtune.distributed import DTYPES, check_dtype, choose_device, device_facts

        try:
            wanted = getattr(params, "device", "auto")
            device = choose_device(wanted, device_facts(), local_size=processes)
            if (dtype := getattr(params, "dtype", "")) in DTYPES:
                check_dtype(DTYPES[dtype], device)
        except TuneError as error:
            return [error]
        return []

    return check


def _wrong_product(params: object, processes: int | None) -> list[TuneError]:
    """Return what is wrong with `parallel:` for that many processes; nothing where that is unknown."""
    parallel = getattr(params, "parallel", None)
    if isinstance(parallel, Parallel) and processes is not None:
        try:
            parallel.sizes(processes)
        except TuneError as error:
            return [error]
    return []


def _take_processes(args: argparse.Namespace) -> list[str]:
    """Take ``--nproc-per-node`` from behind the recipe, where it is typed as well; return the rest."""
    words, rest = iter(args.arguments), list[str]()
    for word in words:
        name, given, value = word.partition("=")
        if name not in _spellings("nproc-per-node"):
            rest.append(word)
        elif not (found := value if given else next(words, "")):
            raise ConfigError("E-USAGE", f"{name} needs a number of processes", do=f"{name} 2")
        else:
            args.nproc_per_node = found
    return rest


def with_config_path(words: Sequence[str]) -> list[str]:
    """Put the path of a shipped config in the place of its name."""
    found = list(words)
    for i, word in enumerate(words):
        if word == "--config" and i + 1 < len(words):
            found[i + 1] = str(catalog.resolve_config(words[i + 1]))
        elif word.startswith("--config="):
            found[i] = f"--config={catalog.resolve_config(word.partition('=')[2])}"
    return found


def _workers(args: argparse.Namespace) -> int:
    """Return how many processes this machine will run; 1 where torchrun finds the number."""
    wanted = args.nproc_per_node or os.environ.get("PET_NPROC_PER_NODE", "1")
    return int(wanted) if wanted.isdigit() else 1


def _processes(args: argparse.Namespace) -> int | None:
    """Return how many processes there will be on all machines; None where torchrun finds it."""
    nodes = args.nnodes or os.environ.get("PET_NNODES", "1")
    workers = args.nproc_per_node or os.environ.get("PET_NPROC_PER_NODE", "1")
    known = nodes.isdigit() and workers.isdigit()
    return int(nodes) * int(workers) if known else None


def _spellings(name: str) -> list[str]:
    long = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
    return [*long, _SHORT[name]] if name in _SHORT else [*long]


def _several(args: argparse.Namespace) -> bool:
    """Say whether torchrun is needed: for more than one process, or for what its options do."""
    given = vars(args)
    names = (name.replace("-", "_") for name in (*TORCHRUN_OPTIONS, *TORCHRUN_SWITCHES))
    values = {name: given[name] or os.environ.get(f"PET_{name.upper()}") for name in names}
    alone = {"nnodes": ("1", "1:1"), "nproc_per_node": ("1",), "max_restarts": ("0",)}
    return any(value and value not in alone.get(name, ()) for name, value in values.items())


def torchrun_words(args: argparse.Namespace) -> list[str]:
    """Return torchrun's options as it takes them.

    Args:
        args: What the parser of `add_arguments` made of the command line.
    """
    given = vars(args)
    words = [f"--{name}" for name in TORCHRUN_SWITCHES if given[name.replace("-", "_")]]
    for name in TORCHRUN_OPTIONS:
        value = given[name.replace("-", "_")]
        words += [f"--{name}", value] if value is not None else []
    return words


def _module_file(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        do = "without -m, RECIPE is a name that `tune ls` shows, or a file"
        raise ConfigError("E-RECIPE-FILE", f"there is no module {name!r}", do=do)
    return Path(spec.origin)


def _run_here(recipe: Path, arguments: list[str]) -> int:
    """Run the file in this process as ``python FILE ...`` would."""
    sys.argv = [str(recipe), *arguments]
    sys.path.insert(0, str(recipe.resolve().parent))
    runpy.run_path(str(recipe), run_name="__main__")
    return 0
