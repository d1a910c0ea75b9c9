"""Lay YAML and command line over the defaults: the later wins, components are replaced whole."""

from collections.abc import Mapping
from dataclasses import replace

from torchtune.config.convert import place
from torchtune.config.names import nearest
from torchtune.config.reader import COMMAND_LINE, UNREAD, Node
from torchtune.config.schema import Key
from torchtune.config.signature import COMPONENT
from torchtune.errors import ConfigError, TuneError

__all__ = ["Draft", "bare"]

USUAL = {"evaluator": "lm_eval"}
"""What arguments without a component mean, in slots where one component is nearly always meant."""

RECIPE = "recipe"  # a YAML may name its recipe; read by `choose_recipe`


class Draft:
    """The values of a config while its sources are laid over one another.

    Args:
        keys: The keys that the recipe knows; their defaults are the lowest layer.
    """

    def __init__(self, keys: Mapping[str, Key]) -> None:
        self.keys, self.faults = keys, list[TuneError]()
        self.values = {name: self._default(key) for name, key in keys.items()}

    def add(self, layer: Node) -> None:
        """Lay a whole mapping over what is there."""
        for name, node in layer.value.items():
            if name == RECIPE and RECIPE not in self.keys:
                continue
            self._put(name, node, place(name, layer.lines.get(name) or node.where))

    def change(self, path: str, value: Node | None) -> None:
        """Set one dotted key, or delete it where `value` is None."""
        first, *rest = path.split(".")
        if value is None:
            self._delete(first, rest, path)
            return
        for part in reversed(rest):
            value = Node({part: value}, value.where)
        self._put(first, value, place(path, value.where))

    def _default(self, key: Key) -> Node:
        return bare(Node.of(key.default)) if key.slot and not key.required else Node.of(key.default)

    def _put(self, name: str, node: Node, where: str) -> None:
        if name not in self.keys:
            what = f"there is no key {name!r}"
            near = nearest(name, self.keys)
            self.faults.append(ConfigError("E-CONFIG-KEY", what, where=where, do=near))
            return
        if self.keys[name].slot:
            node = bare(node)
            old = self.values[name]
            named = isinstance(old.value, dict) and COMPONENT in old.value
            usual = USUAL.get(self.keys[name].slot or "")
            if _is_arguments(node) and not named and usual:
                node = replace(node, value={COMPONENT: Node(usual, node.where), **node.value})
            elif _is_arguments(node) and not named:
                what = f"{name!r} has arguments but no component"
                do = f"name one: {name}=NAME"
                self.faults.append(ConfigError("E-CONFIG-KEY", what, where=where, do=do))
                return
        self.values[name] = laid_over(self.values[name], node)

    def _delete(self, name: str, rest: list[str], path: str) -> None:
        where = f"~{path}, {COMMAND_LINE}"
        if name not in self.keys:
            what, near = f"there is no key {name!r} to delete", nearest(name, self.keys)
            self.faults.append(ConfigError("E-CONFIG-KEY", what, where=where, do=near))
            return
        if not rest:
            key = self.keys[name]
            gone = Node(None, COMMAND_LINE)
            self.values[name] = gone if key.optional else self._default(key)
            return
        holder = self.values[name]
        for part in rest[:-1]:
            inner = holder.value.get(part) if isinstance(holder.value, dict) else None
            holder = inner or Node(None)
        if not isinstance(holder.value, dict) or rest[-1] not in holder.value:
            what = f"there is no {path!r} to delete"
            self.faults.append(ConfigError("E-CONFIG-KEY", what, where=where))
            return
        del holder.value[rest[-1]]
        if self.keys[name].section:  # the recipe's own default, not the section's
            self.values[name] = laid_over(self._default(self.keys[name]), self.values[name])


def bare(node: Node) -> Node:
    """Write a bare component name, or a list of them, as mappings with ``_component_``.

    The mapping keeps the name as its text, by which a data set given as a path is known later.
    """
    if isinstance(node.value, list):
        return replace(node, value=[bare(item) for item in node.value])
    if node.value is None or node.value is UNREAD:
        return node
    if isinstance(node.value, dict):
        return replace(node, text="")
    name = Node(node.text or str(node.value), node.where, node.text)
    return Node({COMPONENT: name}, node.where, name.value)


def _is_arguments(node: Node) -> bool:
    return isinstance(node.value, dict) and COMPONENT not in node.value


def laid_over(old: Node, new: Node) -> Node:
    """Merge two values; anything but two mappings of the same component is replaced."""
    if not isinstance(old.value, dict) or not isinstance(new.value, dict):
        return new
    if COMPONENT in new.value and _name(new) != _name(old):
        return new
    merged = dict(old.value)
    for key, value in new.value.items():
        merged[key] = laid_over(merged[key], value) if key in merged else value
    text = new.text if COMPONENT in new.value else old.text
    return Node(merged, new.where, text, {**old.lines, **new.lines})


def _name(node: Node) -> object:
    return node.value[COMPONENT].value if COMPONENT in node.value else None
