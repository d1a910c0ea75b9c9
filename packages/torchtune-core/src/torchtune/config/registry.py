"""Which components a config may name, and where each is; imports none of them until named.

A config file is untrusted. A short name reaches what this table or an installed entry point
(group ``torchtune.components``, name ``slot.name``, value ``module:attribute``) holds. A dotted
path reaches classes, and registered functions, that were defined in an allowed namespace; it may
not step through a module that another module merely imported.
"""

import importlib
import importlib.util
import inspect
import sys
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from torchtune.config.names import nearest
from torchtune.config.source_file import import_file, module_name
from torchtune.errors import ConfigError, MissingError, TuneError

__all__ = ["allowed_names", "locate", "target_of", "trust", "trust_recipe"]

LLAMA_SIZES = (
    *("llama2_7b", "llama2_13b", "llama2_70b", "llama3_8b", "llama3_70b"),
    *("llama3_1_8b", "llama3_1_70b", "llama3_1_405b", "llama3_2_1b", "llama3_2_3b"),
    *("llama3_3_70b", "code_llama_7b", "code_llama_13b", "code_llama_34b", "code_llama_70b"),
    *("smollm2_135m", "smollm2_360m", "smollm2_1_7b", "tinyllama_1_1b"),
)
COMPONENTS = {
    "model.auto": "torchtune.models:auto",
    "model.llama": "torchtune.models.llama:llama",
    **{f"model.{size}": f"torchtune.models.llama:{size}" for size in LLAMA_SIZES},
    "tokenizer.auto": "torchtune.data:auto_tokenizer",
    "tokenizer.tokenizer_json": "torchtune.data:tokenizer_json",
    "tokenizer.sentencepiece": "torchtune.data:sentencepiece",
    "tokenizer.llama3_tiktoken": "torchtune.data:llama3_tiktoken",
    "dataset.rows": "torchtune.data:load_rows",
    "dataset.alpaca": "torchtune.data:alpaca",
    "dataset.alpaca_cleaned": "torchtune.data:alpaca_cleaned",
    "peft.lora": "torchtune.peft:lora",
    "optimizer.adamw": "torchtune.training:adamw",
    "optimizer.adamw_8bit": "torchtune.training:adamw_8bit",
    "optimizer.sgd": "torch.optim:SGD",
    "lr_scheduler.cosine": "torchtune.training:cosine_schedule",
    "lr_scheduler.linear": "torchtune.training:linear_schedule",
    "lr_scheduler.constant": "torchtune.training:constant_schedule",
    "lr_scheduler.wsd": "torchtune.training:wsd_schedule",
    "loss.linear_cross_entropy": "torchtune.losses:LinearCrossEntropy",
    "metric_logger.jsonl": "torchtune.training:JsonlLogger",
    "metric_logger.stdout": "torchtune.training:StdoutLogger",
    "profiler.torch": "torchtune.training:torch_profiler",
}
EXTRAS = {
    "chat_page.gradio": "ui",
    "evaluator.lm_eval": "eval",
    "metric_logger.mlflow": "mlflow",
    "metric_logger.tensorboard": "tensorboard",
    "metric_logger.wandb": "wandb",
}
"""The extra of torchtune-integrations that brings a component, said where it is not installed."""

MAIN = "__main__"
NAMESPACES = ("torchtune", "torch.optim", "torch.nn")
_trusted: set[str] = set()
_recipe: list[Path] = []  # the file whose own code may be named, as __main__


def trust(package: str) -> None:
    """Let configs name what is defined in `package`, for the rest of this process.

    Call it with what the user named outside the config (``--trust my_package``), never with
    anything that a config says.

    Raises:
        ConfigError: The package is Python's own, all of which no config needs.
    """
    if package.split(".")[0] in sys.stdlib_module_names:
        what = f"'{package}' is part of Python; only packages of your own can be trusted"
        raise ConfigError("E-TRUST", what, where="--trust")
    _trusted.add(package)


def trust_recipe(path: str | Path | None) -> None:
    """Let configs name what the recipe file itself defines, as ``__main__.NAME``."""
    _recipe[:] = [Path(path).resolve()] if path else []


@lru_cache(maxsize=1)
def _plugins() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group="torchtune.components")}


def _table() -> dict[str, str]:
    return {**_plugins(), **COMPONENTS}


def allowed_names(slot: str) -> list[str]:
    """Return the short names that a config may give for `slot`, sorted."""
    start = f"{slot}."
    return sorted(name.removeprefix(start) for name in _table() if name.startswith(start))


def target_of(slot: str, name: str) -> str | None:
    """Return ``module:attribute`` of a short name, None where there is no such name."""
    return _table().get(f"{slot}.{name}")


def locate(slot: str, name: str) -> Any:
    """Import and return what a config calls `name` in `slot`.

    Raises:
        ConfigError: There is no such name, or it is not one that a config may reach.
        MissingError: A package that it needs is not installed.
    """
    target = target_of(slot, name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return _attribute(_import(module, name), attribute, name)
    if "." not in name:
        raise _unknown(slot, name)
    return _by_path(slot, name)


def _import(module: str, name: str) -> ModuleType:
    if module == MAIN:
        main = sys.modules[MAIN]
        running = Path(getattr(main, "__file__", None) or "").resolve() == _recipe[0]
        return main if running else import_file(_recipe[0])
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = f"the component '{name}' needs {error.name or module}, which cannot be imported"
        raise MissingError("E-COMPONENT-IMPORT", f"{missing}: {error}") from error


def _attribute(owner: Any, attribute: str, name: str) -> Any:
    for part in attribute.split("."):
        if not hasattr(owner, part):
            what = f"{name!r} names nothing: there is no '{part}' in {owner.__name__}"
            raise ConfigError("E-COMPONENT-NAME", what, do=nearest(part, dir(owner)))
        owner = getattr(owner, part)
    return owner


def _unknown(slot: str, name: str) -> TuneError:
    extra = EXTRAS.get(f"{slot}.{name}")
    if extra:
        what = f"the {slot} '{name}' comes with a package that is not installed"
        do = f"pip install 'torchtune-integrations[{extra}]'"
        return MissingError("E-COMPONENT-PACKAGE", what, do=do)
    names = allowed_names(slot)
    known = f"there are {', '.join(names)}" if names else "none is registered"
    what = f"no {slot} is called {name!r}; {known}, or a dotted path such as torch.optim.SGD"
    return ConfigError("E-COMPONENT-NAME", what, do=nearest(name, names))


def _refused(name: str, why: str, do: str = "") -> ConfigError:
    return ConfigError("E-COMPONENT-REFUSED", f"a config may not name {name!r}: {why}", do=do)


def _inside(module: str, namespaces: tuple[str, ...]) -> bool:
    return any(module == space or module.startswith(space + ".") for space in namespaces)


def _by_path(slot: str, path: str) -> Any:
    """Follow a dotted path under the rules for untrusted text."""
    allowed = (*NAMESPACES, *sorted(_trusted), *([MAIN] if _recipe else []))
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise _refused(path, "it is no dotted path")
    if any(part.startswith("_") for part in parts if part != MAIN):
        raise _refused(path, "a name that begins with '_' is private")
    if not _inside(path, allowed):
        spaces = ", ".join(allowed)
        root = parts[0]
        own = root not in sys.stdlib_module_names and root != "torch"
        do = f"give --trust {root} on the command line if you want its code to run" if own else ""
        raise _refused(path, f"only what lies in {spaces} may be named", do)
    module, rest = _longest_module(parts, allowed, path)
    found = _step(module, rest, path)
    _check_owner(found, path, (*allowed, *map(module_name, _recipe)))
    return found


def _longest_module(
    parts: list[str], allowed: tuple[str, ...], path: str
) -> tuple[ModuleType, list[str]]:
    """Import the longest beginning of `parts` that is a module inside an allowed namespace."""
    start = next(n for n in range(1, len(parts) + 1) if _inside(".".join(parts[:n]), allowed))
    module, count = _import(".".join(parts[:start]), path), start
    while count < len(parts) and hasattr(module, "__path__"):
        name = f"{module.__name__}.{parts[count]}"
        if importlib.util.find_spec(name) is None:
            break
        module, count = _import(name, path), count + 1
    return module, parts[count:]


def _step(module: ModuleType, rest: list[str], path: str) -> Any:
    if not rest:
        raise _refused(path, "it is a module, not a class or function")
    first = getattr(module, rest[0], None)
    if isinstance(first, ModuleType):
        raise _refused(path, f"'{rest[0]}' is a module that {module.__name__} imported")
    found = _attribute(module, rest[0], path)
    if len(rest) > 1:
        raise _refused(path, f"'{rest[0]}' is no module")
    return found


def _check_owner(found: Any, path: str, allowed: tuple[str, ...]) -> None:
    owner = getattr(found, "__module__", None) or ""
    if not callable(found) or not _inside(owner, allowed):
        raise _refused(path, f"it is defined in '{owner}', outside of {', '.join(allowed)}")
    own = (*_trusted, MAIN, *map(module_name, _recipe))
    if inspect.isclass(found) or _inside(owner, own) or _registered(found):
        return
    raise _refused(path, "a function must be a registered component, or of a trusted package")


def _registered(found: Any) -> bool:
    for target in _table().values():
        module, _, attribute = target.partition(":")
        if getattr(sys.modules.get(module), attribute, None) is found:
            return True
    return False
