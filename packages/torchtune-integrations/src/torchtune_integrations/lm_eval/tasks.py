"""The harness's tasks by name, with what can go wrong said in time."""

import importlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from torchtune.config.names import nearest
from torchtune.errors import ConfigError, Faults, MissingError, TuneError

from torchtune_integrations.lm_eval.installed import check_installed

__all__ = ["SEEDS", "Tasks", "load_tasks", "undisturbed"]

Tasks = dict[str, Any]
"""What the harness's ``TaskManager.load`` returns: ``tasks``, ``groups`` and ``group_map``."""

SEEDS = (0, 1234)
"""The harness's own, of Python and numpy, for tasks that shuffle their documents."""


def load_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    unsafe: bool = False,
) -> Tasks:
    """Return tasks with their data.

    The harness's own 14,000 tasks are looked through only where `include_path` does not have all
    that are named, as that takes seconds.

    Args:
        names: Tasks, groups or tags; ``*`` stands for anything; or paths of YAML files.
        include_path: A folder with task files of the user's own.
        num_fewshot: Examples before each question; a task that fixes it at 0 stays there.
        unsafe: Whether tasks may run code that the model wrote.

    Raises:
        ConfigError: E-EVAL-TASK for a name that there is not; E-EVAL-UNSAFE.
        MissingError: E-PACKAGE, E-EVAL-PATH; E-EVAL-DATA where a task's data cannot be had.
    """
    check_installed("tasks")
    if include_path is not None and not Path(include_path).is_dir():
        what = f"there is no folder {str(include_path)!r} with tasks"
        raise MissingError("E-EVAL-PATH", what, where="include_path")
    with undisturbed():
        manager, found = _find(names, include_path)
        loaded: Tasks = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in found:
            for part, content in _load(manager, name).items():
                loaded[part].update(content)
    for name, task in loaded["tasks"].items():
        _prepare(name, task, num_fewshot, unsafe)
    return loaded


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the harness's talk off the terminal, and the random state as it was."""
    import numpy

    own, arrays = random.getstate(), numpy.random.get_state()
    sink = StringIO()
    try:
        with redirect_stdout(sink), redirect_stderr(sink):
            random.seed(SEEDS[0])
            numpy.random.seed(SEEDS[1])
            yield
    finally:
        random.setstate(own)
        numpy.random.set_state(arrays)


def _find(names: Sequence[str], include_path: str | Path | None) -> tuple[Any, list[str]]:
    """Return the manager that knows all names, and the tasks they mean."""
    TaskManager = importlib.import_module("lm_eval.tasks").TaskManager
    files = [name for name in names if name.endswith((".yaml", ".yml")) and Path(name).is_file()]
    others = [name for name in names if name not in files]
    if include_path is not None or not others:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        found = {name: manager.match_tasks([name]) for name in others}
        local = set(manager.all_subtasks)
        if all(found[name] and local.issuperset(found[name]) for name in others):
            return manager, [*files, *_flat(found)]
    manager = TaskManager(include_path=include_path)
    found = {name: manager.match_tasks([name]) for name in others}
    faults = [_unknown(name, manager.all_tasks) for name in others if not found[name]]
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return manager, [*files, *_flat(found)]


def _flat(found: dict[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(task for tasks in found.values() for task in tasks))


def _unknown(name: str, known: Sequence[str]) -> TuneError:
    do = nearest(name, known) or "`lm-eval ls tasks` shows them; --include-path adds your own"
    return ConfigError("E-EVAL-TASK", f"there is no task {name!r}", where="tasks", do=do)


def _load(manager: Any, name: str) -> Tasks:
    try:
        loaded: Tasks = manager.load([name])
    except ImportError as error:
        what = f"the task {name!r} needs {error.name!r}, which is not installed"
        raise MissingError("E-EVAL-DATA", what, where="tasks", do=f"{error}") from error
    except OSError as error:  # no such file, no network, no such data set
        do = "paths in a task file are relative to the current folder"
        if not isinstance(error, FileNotFoundError):
            do = "it is downloaded once, with a network; or evaluate on local files: --include-path"
        what = f"the data of the task {name!r} cannot be had: {_first_line(error)}"
        raise MissingError("E-EVAL-DATA", what, where=str(Path.cwd()), do=do) from error
    except (KeyError, TypeError, ValueError) as error:
        what = f"the task {name!r} cannot be loaded: {_first_line(error)}"
        raise ConfigError("E-EVAL-TASK", what, where="tasks") from error
    return loaded


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _prepare(name: str, task: Any, num_fewshot: int | None, unsafe: bool) -> None:
    if getattr(task, "UNSAFE_CODE", False) and not unsafe:
        what = f"the task {name!r} runs code that the model has written"
        do = "if you want that, and in a sandbox: --confirm-run-unsafe-code"
        raise ConfigError("E-EVAL-UNSAFE", what, where="tasks", do=do)
    if getattr(task, "MULTIMODAL", False):
        what = f"the task {name!r} shows the model more than text"
        raise ConfigError("E-EVAL-TASK", what, where="tasks", do="take another one")
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
