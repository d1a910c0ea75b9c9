"""``${other.key}`` and ``${oc.env:NAME}``, the latter only for names that hold no secret."""

import re
from collections.abc import Iterator
from typing import Any

from torchtune.config.convert import place
from torchtune.config.reader import UNREAD, Node
from torchtune.errors import ConfigError, TuneError

__all__ = ["ENVIRONMENT", "interpolate"]

ENVIRONMENT = ("HOME", "USER", "PWD", "TMPDIR", "SCRATCH", "DATA_DIR", "MODEL_DIR", "OUTPUT_DIR")
"""What a config may read of the environment: places and the user's name. Configs are published
(in the output folder, by metric loggers), so a token must never get into one."""

KEY = r"\.*[A-Za-z_]\w*(?:\.\w+|\[\w+\])*"
SIMPLE = re.compile(rf"\$\{{\s*(?:{KEY}|oc\.env:\s*(\w+)\s*(?:,[\w./ -]*)?)\s*\}}")
ESCAPED = re.compile(r"\\\$\{")
RAISED = "KeyError raised while resolving interpolation: "  # OmegaConf's, before what it is
Path = tuple[str | int, ...]


def interpolate(values: dict[str, Node]) -> list[TuneError]:
    """Replace every interpolation in `values` by what it names; return what could not be.

    Only the two simple forms are known, so that no text can call a resolver of OmegaConf, whose
    resolvers are shared by the whole process and may read or run anything.
    """
    faults: list[TuneError] = []
    leaves = [leaf for key, node in values.items() for leaf in _leaves(node, (key,))]
    allowed = []
    for path, node in leaves:
        fault = _refused(node.value)
        if fault is None:
            allowed.append((path, node))
        else:
            fault.where = place(_written(path), node.where)
            faults.append(fault)
            node.value = UNREAD
    if allowed:
        _resolve(values, allowed, faults)
    return faults


def _leaves(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    """Yield every text that holds an interpolation, or an escaped one, with its path."""
    if isinstance(node.value, dict):
        for name, item in node.value.items():
            yield from _leaves(item, (*path, name))
    elif isinstance(node.value, list):
        for index, item in enumerate(node.value):
            yield from _leaves(item, (*path, index))
    elif isinstance(node.value, str) and "${" in node.value:
        yield path, node


def _refused(text: str) -> ConfigError | None:
    """Return the fault of a text with anything but the two simple forms and ``\\${``."""
    bare = ESCAPED.sub("", text)
    secret = [name for name in SIMPLE.findall(bare) if name and name not in ENVIRONMENT]
    if "${" in SIMPLE.sub("", bare) or "\\\\${" in text:  # two backslashes escape one another
        what = f"unknown interpolation in {text[:80]!r}; known are ${{key}} and ${{oc.env:NAME}}"
        return ConfigError("E-CONFIG-INTERPOLATION", what, do=r"write \${ to mean the text itself")
    if secret:
        what = f"a config may not read ${secret[0]}; it may read {', '.join(ENVIRONMENT)}"
        return ConfigError("E-CONFIG-INTERPOLATION", what)
    return None


def _written(path: Path) -> str:
    words = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(words).lstrip(".").removesuffix("._component_")


def _resolve(
    values: dict[str, Node], leaves: list[tuple[Path, Node]], faults: list[TuneError]
) -> None:
    from omegaconf import Container, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.create({name: _known(node.plain()) for name, node in values.items()})
    for path, node in leaves:
        try:
            found: Any = config
            for part in path:
                found = found[part]
            if isinstance(found, Container):
                found = OmegaConf.to_container(found, resolve=True)
        except OmegaConfBaseException as error:
            what = str(error).splitlines()[0].removeprefix(RAISED).strip('"')
            where = place(_written(path), node.where)
            faults.append(ConfigError("E-CONFIG-INTERPOLATION", what, where=where))
            found = UNREAD
        made = Node.of(found, node.where)
        node.value, node.text = made.value, made.text


def _known(value: Any) -> Any:
    """Return a plain value that OmegaConf takes: null where a fault was found."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None
