"""Where figures go, and what keeps a logger that fails from stopping the run."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from torchtune.config import build
from torchtune.errors import MissingError, TuneError
from torchtune.training.progress import Progress

__all__ = [
    "GuardedLogger",
    "JsonlLogger",
    "Logger",
    "StdoutLogger",
    "build_loggers",
    "without_secrets",
]

SLOT = "metric_logger"
LONG_NUMBERS = ("tokens", "supervised_tokens", "tokens_per_second")

SECRET_KEY = re.compile(r"(^|_)(api_?key|access_key|auth_token|hf_token|password|secret)$", re.I)
SECRET_TEXT = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)|\b(hf|sk|ghp)_[A-Za-z0-9]{16,}")
HIDDEN = "[hidden]"


class Logger(Protocol):
    """Whoever listens to a run; only the main process has one.

    A config names loggers under ``metric_logger``; what the recipe offers to their constructors
    by name is ``output_dir``, the run's folder, and ``progress``, from which a run goes on: step 0
    is a fresh one. A logger that shows files sends them in `close`, when all of them are written.
    """

    def log_config(self, config: dict[str, Any]) -> None:
        """Take the resolved `config`, once, before the first step."""

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Take the figures of one step: `metrics` by name, and how far the run is, `progress`."""

    def close(self) -> None:
        """Finish writing; called when the run has done all its steps, not when it breaks off."""


class JsonlLogger:
    """One JSON object a line, flushed line by line, so that a killed run keeps what it logged.

    Args:
        file: Lines are added at its end; ``metrics.jsonl`` in `output_dir` where not given.
        output_dir: The run's folder; the recipe gives it.
    """

    def __init__(self, file: str | Path | None = None, output_dir: str | Path = ".") -> None:
        path = Path(file) if file is not None else Path(output_dir, "metrics.jsonl")
        self._file = path.open("a", encoding="utf-8")

    def log_config(self, config: dict[str, Any]) -> None:
        """Do nothing: `config` has a file of its own."""

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Write one line: step and epoch of `progress`, then the `metrics`."""
        line = {"step": progress.step, "epoch": progress.epoch, **metrics}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class StdoutLogger:
    """One readable line a step on stdout, for logs that are read as text; the bar is on stderr."""

    def log_config(self, config: dict[str, Any]) -> None:
        """Do nothing: `config` has a file of its own."""

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Print step and epoch of `progress`, and every figure of `metrics` by its name."""
        figures = [f"step {progress.step}", f"epoch {progress.epoch}"]
        figures += [_readable(name, value) for name, value in metrics.items()]
        tqdm.write("  ".join(figures), file=sys.stdout)  # above the bar, not into it
        sys.stdout.flush()

    def close(self) -> None:
        """Do nothing: every line is out."""


def _readable(name: str, value: float) -> str:
    if name == "peak_memory_bytes":
        return f"peak_memory {value / 2**30:.2f} GiB"
    if name.endswith("loss"):
        return f"{name} {value:.4f}"
    return f"{name} {value:,.0f}" if name in LONG_NUMBERS else f"{name} {value:.3g}"


class GuardedLogger:
    """Hands everything on to a logger until it fails; then says so once and leaves it out.

    A run of days is worth more than a curve of it, so whatever a logger raises, a lost connection
    or a bug, becomes one line on stderr. What is wrong with the config or is not installed is
    known before the first step, and stops the run there.

    Args:
        name: What the warning calls the logger.
        make: Opens it.

    Raises:
        ConfigError: An argument of the logger is wrong.
        MissingError: A package that it needs is not installed.
    """

    def __init__(self, name: str, make: Callable[[], Logger]) -> None:
        self._name = name
        self._logger: Logger | None = None
        try:
            self._logger = make()
        except TuneError:
            raise
        except ImportError as error:
            what = f"the metric logger '{name}' needs what cannot be imported: {error}"
            raise MissingError("E-PACKAGE", what, where=SLOT) from error
        except Exception as error:  # a stranger's code may raise anything
            self._leave_out(error)

    def log_config(self, config: dict[str, Any]) -> None:
        """Hand `config` on."""
        self._try(lambda logger: logger.log_config(config))

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Hand `metrics` and `progress` on."""
        self._try(lambda logger: logger.log(metrics, progress))

    def close(self) -> None:
        """Close the logger."""
        self._try(lambda logger: logger.close())

    def _try(self, call: Callable[[Logger], None]) -> None:
        if self._logger is None:
            return
        try:
            call(self._logger)
        except Exception as error:  # a stranger's code may raise anything
            self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        self._logger = None
        said = " ".join(str(error).split())[:300]
        text = f"the metric logger '{self._name}' failed, and the run goes on without it"
        tqdm.write(f"{'warning':11}{text}\n{'':11}{type(error).__name__}: {said}", file=sys.stderr)


def build_loggers(
    component: Any, *, output_dir: str | Path, progress: Progress | None = None
) -> list[Logger]:
    """Return ``metrics.jsonl``, opened, and the loggers that a config names, each behind a `GuardedLogger`.

    Args:
        component: One component, a list of them, or None; ``jsonl`` is there in any case.
        output_dir: The run's folder, given to loggers that take ``output_dir``.
        progress: How far the run is before its first step, given to those that take ``progress``.

    Raises:
        ConfigError: A name or an argument is not allowed.
        MissingError: A package that a logger needs is not installed.
    """
    given = component if isinstance(component, list) else [component] if component else []
    named = [{"_component_": one} if isinstance(one, str) else one for one in given]
    listed = [{"_component_": "jsonl"}, *(one for one in named if one != {"_component_": "jsonl"})]
    offered = {"output_dir": str(output_dir), "progress": progress or Progress()}
    return [_guarded(one, offered) for one in listed]


def _guarded(component: dict[str, Any], offered: dict[str, Any]) -> Logger:
    return GuardedLogger(component["_component_"], lambda: build(SLOT, component, **offered))


def without_secrets(value: Any) -> Any:
    """Return plain values without what must not leave this machine: it is replaced by ``[hidden]``.

    These are the values of keys such as ``api_key`` and ``password``, passwords in URLs, and texts
    that begin as access tokens do (``hf_``, ``sk_``, ``ghp_``).

    Args:
        value: A configuration: mappings and lists of plain values.
    """
    if isinstance(value, dict):
        return {key: _hidden(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return SECRET_TEXT.sub(HIDDEN, value) if isinstance(value, str) else value


def _hidden(key: str, value: Any) -> Any:
    secret = isinstance(value, str) and SECRET_KEY.search(key)
    return HIDDEN if secret else without_secrets(value)
