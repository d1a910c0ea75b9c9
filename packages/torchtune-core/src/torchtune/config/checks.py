"""Checks of values and of their combinations, collected so that all are reported together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torchtune.config.names import nearest, split_names
from torchtune.config.schema import keys_of, minimum_of
from torchtune.config.techniques import check_techniques
from torchtune.errors import ConfigError, Faults, TuneError

__all__ = ["Checks", "checks"]


class Checks:
    """Collects what is wrong with the fields of `params`, an instance of Params; made by `checks`.

    A key may be dotted to reach an argument of a component (``"peft.rank"``). A value that is
    null or not given passes every check of a range.
    """

    def __init__(self, params: object) -> None:
        self.params, self.faults = params, list[TuneError]()

    def value(self, key: str) -> Any:
        """Return the value of a key, None where it or a component on its way is not given."""
        found: Any = self.params
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
        return found

    def component(self, key: str) -> str | None:
        """Return the name of the component of a key, None where it is null."""
        found = self.value(key)
        return found.get("_component_") if isinstance(found, dict) else found

    def that(self, condition: bool, key: str, what: str, do: str = "") -> None:
        """Note a fault of `key` unless `condition` holds: `what` is wrong, and what to `do`."""
        if not condition:
            self.faults.append(ConfigError("E-CONFIG-VALUE", what, where=key, do=do))

    def names_keys(self, key: str) -> None:
        """Note a fault of each item of the list `key` that names no key of the params.

        Items may hold several names with commas between them, and be dotted.
        """
        known = [field.name for field in fields(self.params)]  # type: ignore[arg-type]
        for name in split_names(self.value(key)):
            first = name.partition(".")[0]
            self.that(first in known, key, f"there is no key {first!r}", nearest(first, known))

    def at_least(self, key: str, minimum: float) -> None:
        """Note a fault unless the key's value is `minimum` or more; NaN is a fault."""
        found = self.value(key)
        if isinstance(found, int | float):
            self.that(found >= minimum, key, f"'{key}' must be at least {minimum}, found {found}")

    def more_than(self, key: str, bound: float) -> None:
        """Note a fault unless the key's value is greater than `bound`; NaN is a fault."""
        found = self.value(key)
        if isinstance(found, int | float):
            self.that(found > bound, key, f"'{key}' must be more than {bound}, found {found}")

    def between(self, key: str, low: float, high: float) -> None:
        """Note a fault unless the key's value is in ``[low, high]``; NaN is a fault."""
        found = self.value(key)
        if isinstance(found, int | float):
            what = f"'{key}' must be from {low} to {high}, found {found}"
            self.that(low <= found <= high, key, what)

    def auto_has_checkpoint(self, *keys: str) -> None:
        """Note a fault of each of the `keys` that is ``auto`` where ``checkpoint`` is not given."""
        for key in keys:
            given = self.component(key) != "auto" or self.value("checkpoint")
            self.that(bool(given), key, f"'{key}: auto' needs a checkpoint", "checkpoint=DIR")

    def techniques(self) -> None:
        """Note what cannot work among the keys for precision and memory.

        A key that the params do not have counts as not given. The keys are ``dtype``,
        ``master_weights``, ``compile``, ``enable_activation_checkpointing``,
        ``activation_checkpointing_mode``, ``enable_activation_offloading``, ``optimizer_in_bwd``,
        ``clip_grad_norm``, ``gradient_accumulation_steps``, ``fp8`` and ``peft``.
        """
        check_techniques(self)


@contextmanager
def checks(params: object) -> Iterator[Checks]:
    """Collect the checks of `params` made inside the block, and raise their faults at its end.

    A key whose type is `Count` is held to it without a word in the block.

    Raises:
        ConfigError: One check failed; ``where`` is its key, to which the parser adds file and line.
        Faults: Several did.

    Example:
        >>> def __post_init__(self) -> None:
        ...     with checks(self) as check:
        ...         check.more_than("clip_grad_norm", 0)
        ...         check.that(self.epochs or self.max_steps, "max_steps", "nothing ends the run")
    """
    found = Checks(params)
    for name, key in keys_of(type(params)).items():
        minimum = minimum_of(key.type)
        if minimum is not None:
            found.at_least(name, minimum)
    yield found
    if found.faults:
        raise found.faults[0] if len(found.faults) == 1 else Faults(found.faults)
