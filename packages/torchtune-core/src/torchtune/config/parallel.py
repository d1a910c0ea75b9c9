"""How the processes of a run share its work: the ``parallel:`` section of a config."""

import math
from dataclasses import asdict, dataclass

from torchtune.config.checks import checks
from torchtune.errors import ConfigError

__all__ = ["Parallel"]


@dataclass(frozen=True)
class Parallel:
    """In how many parts each thing is cut; the product is the number of processes.

    Outermost first: neighbours in `tensor` talk most and so have neighbouring ranks, best on one
    machine. The default shards weights over all processes.

    Raises:
        ConfigError: A number is not a count; several come as `Faults`.
    """

    data_replicate: int = 1  # groups of processes that each hold the whole model, sharded inside
    data_shard: int = -1  # parts of the weights, each with rows of its own; -1: what is left
    context: int = 1  # parts of each row's tokens, for long rows
    tensor: int = 1  # parts of each matrix, for big models; best within one machine

    def __post_init__(self) -> None:
        with checks(self) as check:
            for key in ("data_replicate", "context", "tensor"):
                what = f"'{key}' must be at least 1, found {getattr(self, key)}"
                check.that(getattr(self, key) >= 1, key, what, "only data_shard can be -1")
            counts = self.data_shard >= 1 or self.data_shard == -1
            what = f"'data_shard' must be at least 1, or -1, found {self.data_shard}"
            check.that(counts, "data_shard", what)

    def sizes(self, processes: int) -> dict[str, int]:
        """Return the four sizes by name, outermost first, for that many processes.

        Raises:
            ConfigError: Their product is another number.
        """
        sizes = asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if self.data_shard == -1 and processes % fixed == 0:
            return {**sizes, "data_shard": processes // fixed}
        if self.data_shard == -1 or fixed != processes:
            raise self._refused(sizes, processes, fixed)
        return sizes

    def _refused(self, sizes: dict[str, int], processes: int, fixed: int) -> ConfigError:
        cut = {name: size for name, size in sizes.items() if size not in (1, -1)}
        told = " x ".join(f"{name} {size}" for name, size in cut.items())
        needs = f"a multiple of {fixed}" if self.data_shard == -1 else str(fixed)
        what = f"{told or 'data_shard 1'} needs {needs} processes; there are {processes}"
        where = "parallel" if len(cut) != 1 else f"parallel.{next(iter(cut))}"
        return ConfigError("E-PARALLEL", what, where=where, do=_valid(cut, processes, fixed))


def _valid(cut: dict[str, int], processes: int, fixed: int) -> str:
    """Say what would be valid: another value of one key, the others as they are, or more processes."""
    others = {name: fixed // size for name, size in cut.items() if name != "data_shard"}
    ways = [f"parallel.{name}={_divisors(processes // other)}" for name, other in others.items()
            if processes % other == 0]  # fmt: skip
    rest = fixed // cut.get("data_shard", 1)
    if "data_shard" in cut and processes % rest == 0:
        ways.insert(0, "parallel.data_shard=-1")
    return ", or ".join([*ways, f"start {fixed} processes"])


def _divisors(number: int) -> str:
    found = [str(n) for n in range(1, number + 1) if number % n == 0]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"
