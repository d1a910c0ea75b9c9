"""Read YAML into nodes that know their file and line, with every fault of the text at once.

The text is untrusted: only plain YAML is read, nothing is constructed from tags, aliases may not
multiply and nesting is limited. Numbers follow OmegaConf's reading (``1e-5`` is a float).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from torchtune.errors import ConfigError, MissingError, TuneError

__all__ = ["UNREAD", "ConfigDumper", "ConfigLoader", "Node", "read_file", "read_text", "read_value"]

MAX_NODES = 10_000  # of one file with its aliases written out; the largest shipped config has 80
MAX_DEPTH = 40
TOO_DEEP = f"nested more than {MAX_DEPTH} deep, or an alias that holds itself"
MAX_BYTES = 1 << 20
COMMAND_LINE = "command line"
UNREAD = object()  # stands for a value that has its fault already; nothing more is said of it
MERGE_TAG = "tag:yaml.org,2002:merge"
FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
    |\.[0-9_]+(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.X,
)


@dataclass
class Node:
    """A value of a config and where it stands.

    Args:
        value: None, bool, int, float, str, ``list[Node]`` or ``dict[str, Node]``.
        where: ``file:line``, ``"command line"``, or empty for a default.
        text: What was written for a scalar, so that ``007`` can stay text; empty elsewhere.
        lines: The place of each key of a mapping, for faults of the key itself.
    """

    value: Any
    where: str = ""
    text: str = ""
    lines: dict[str, str] = field(default_factory=dict)

    def plain(self) -> Any:
        """Return the value without positions, as new plain Python objects."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    @classmethod
    def of(cls, value: Any, where: str = "") -> "Node":
        """Wrap plain Python values, and sections, into nodes that all stand at `where`."""
        if is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        if isinstance(value, dict):
            return cls({str(key): cls.of(item, where) for key, item in value.items()}, where)
        if isinstance(value, list | tuple):
            return cls([cls.of(item, where) for item in value], where)
        return cls(value, where, "" if value is None else str(value))


class _Limit(yaml.MarkedYAMLError):
    """A text that would take too much to read."""

    def __init__(self, problem: str, at: Any) -> None:
        super().__init__(problem=problem, problem_mark=at.start_mark)


class ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader with OmegaConf's floats, ``None`` as null, and dates left as text.

    It stops at `MAX_DEPTH`, so that no text reaches the limit of Python's own recursion.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node and those inside it."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Limit(TOO_DEEP, self.peek_event())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class ConfigDumper(yaml.SafeDumper):
    """Write what `ConfigLoader` reads back as the same value: quotes where that reads numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values twice; an alias saves a line and costs the reader a search."""
        return True


def _adapt(kind: Any) -> None:
    """Give a loader or dumper class our implicit scalars in place of PyYAML's."""
    dropped = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in dropped]
        for first, resolvers in kind.yaml_implicit_resolvers.items()
    }
    kind.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    kind.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])


_adapt(ConfigLoader)
_adapt(ConfigDumper)


def read_file(path: str | Path) -> tuple[Node, list[TuneError]]:
    """Read a config file; return its mapping and every fault of its text.

    Where the text as a whole is no mapping, the node's value is `UNREAD`.

    Raises:
        MissingError: There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError("E-CONFIG-FILE", f"there is no config file '{path}'")
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        fault = f"a config of {len(data)} bytes; at most {MAX_BYTES} are read"
        return Node(UNREAD), [ConfigError("E-CONFIG-YAML", fault, where=str(path))]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Node(UNREAD), [
            ConfigError("E-CONFIG-YAML", f"not UTF-8 text: {error}", where=str(path))
        ]
    return read_text(text, str(path))


def read_text(text: str, name: str) -> tuple[Node, list[TuneError]]:
    """Read the text of a config called `name` in messages; as `read_file`."""
    try:
        loader = ConfigLoader(text)  # refuses control characters
        root = loader.get_single_node()
        if root is None:
            return Node({}, name), []
        walk = _Walk(loader, name)
        node = walk.node(root, 0)
    except yaml.YAMLError as error:
        return Node(UNREAD, name), [_syntax_fault(error, name)]
    if not isinstance(node.value, dict) and not walk.faults:
        what = f"a config is a mapping of keys to values, not {type(node.value).__name__}"
        walk.faults.append(ConfigError("E-CONFIG-YAML", what, where=node.where))
    return (node if isinstance(node.value, dict) else Node(UNREAD, name)), walk.faults


def read_value(text: str, where: str = COMMAND_LINE) -> Node:
    """Read the value of ``key=value``: a number, a word such as null, or brackets, as in YAML.

    Anything else, such as ``Hello: you``, is text as it stands, outer quotes removed.
    """
    try:
        loader = ConfigLoader(text)
        root = loader.get_single_node()
        walk = _Walk(loader, where, lines=False)
        node = Node(None, where, text) if root is None else walk.node(root, 0)
    except yaml.YAMLError:
        return Node(text, where, text)
    bracketed = text.lstrip().startswith(("[", "{"))
    written = root is None or (isinstance(node.value, str) and not root.style)  # line breaks too
    if written or walk.faults or (isinstance(node.value, dict | list) and not bracketed):
        return Node(text, where, text)
    return Node(node.value, where, text)


def _syntax_fault(error: yaml.YAMLError, name: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f"{name}:{mark.line + 1}" if mark else name
    what = what if isinstance(error, _Limit) else f"not YAML: {what}"
    return ConfigError("E-CONFIG-YAML", what, where=where)


class _Walk:
    """Turn composed nodes into ours, counting them and noting faults."""

    def __init__(self, loader: ConfigLoader, name: str, *, lines: bool = True) -> None:
        self.loader, self.name, self.lines = loader, name, lines
        self.count, self.faults = 0, list[TuneError]()

    def node(self, node: yaml.Node, depth: int) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise _Limit(f"more than {MAX_NODES} values once aliases are written out", node)
        if depth > MAX_DEPTH:
            raise _Limit(TOO_DEEP, node)
        where = self.place(node)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, depth, where)
        if isinstance(node, yaml.SequenceNode) and self.known(node, "seq"):
            return Node([self.node(item, depth + 1) for item in node.value], where)
        if isinstance(node, yaml.ScalarNode) and self.known(
            node, "str", "int", "float", "bool", "null"
        ):
            return Node(self.scalar(node), where, node.value)
        return Node(UNREAD, where)

    def scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError):  # `!!int x`, `!!bool x`
            self.fault(node, f"{node.value[:60]!r} is no {node.tag.rpartition(':')[2]}")
            return UNREAD

    def mapping(self, node: yaml.MappingNode, depth: int, where: str) -> Node:
        result, merged = Node({}, where), list[Node]()
        self.known(node, "map")
        for key, value in node.value:
            if key.tag == MERGE_TAG:
                merged += self.merged(value, depth)
                continue
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if not name:
                self.fault(key, "a key must be a word")
            elif name in result.value:
                first = result.lines[name]
                self.fault(key, f"the key {name!r} stands twice, first at {first}")
            else:
                result.value[name] = self.node(value, depth + 1)
                result.lines[name] = self.place(key)
        for other in merged:
            result.value = {**other.value, **result.value}
            result.lines = {**other.lines, **result.lines}
        return result

    def merged(self, value: yaml.Node, depth: int) -> Iterator[Node]:
        for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(item, yaml.MappingNode):
                yield self.node(item, depth + 1)
            else:
                self.fault(item, "'<<' takes a mapping")

    def place(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.lines else self.name

    def known(self, node: yaml.Node, *kinds: str) -> bool:
        if node.tag in {f"tag:yaml.org,2002:{kind}" for kind in kinds}:
            return True
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self.fault(node, f"the tag {tag!r} is not allowed: a config holds plain values only")
        return False

    def fault(self, node: yaml.Node, what: str) -> None:
        self.faults.append(ConfigError("E-CONFIG-YAML", what, where=self.place(node)))
