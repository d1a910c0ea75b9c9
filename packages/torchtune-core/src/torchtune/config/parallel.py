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

    Args:
        data_replicate: How many groups of processes hold the whole model, each sharded inside.
        data_shard: In how many parts the weights of a group are cut; each has rows of its own.
        context: In how many parts the tokens of a micro-batch are cut.
        tensor: In how many parts a matrix is cut.

    Raises:
        ConfigError: A number is not a count; several come as `Faults`.
    """

    # groups of processes that each hold the whole model, sharded inside; -1: what is left
    data_replicate: int = 1
    data_shard: int = -1  # parts of the weights, each with rows of its own; -1: what is left
    context: int = 1  # parts of each row's tokens, for long rows
    tensor: int = 1  # parts of each matrix, for big models; best within one machine

    def __post_init__(self) -> None:
        with checks(self) as check:
            for key in ("context", "tensor"):
                what = f"'{key}' must be at least 1, found {getattr(self, key)}"
                do = "only data_replicate or data_shard can be -1"
                check.that(getattr(self, key) >= 1, key, what, do)
            for key in ("data_replicate", "data_shard"):
                size = getattr(self, key)
                what = f"'{key}' must be at least 1, or -1, found {size}"
                check.that(size >= 1 or size == -1, key, what)
            both = self.data_replicate == self.data_shard == -1
            what = "'data_replicate' and 'data_shard' cannot both be what is left"
            check.that(not both, "data_replicate", what)

    def sizes(self, processes: int) -> dict[str, int]:
        """Return the four sizes by name, outermost first, for that many processes.

        Raises:
            ConfigError: Their product is another number.
        """
        sizes = asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        left = [name for name, size in sizes.items() if size == -1]
        if left and processes % fixed == 0:
            return {**sizes, left[0]: processes // fixed}
        if left or fixed != processes:
            raise _refused(sizes, processes, fixed)
        return sizes


def _refused(sizes: dict[str, int], processes: int, fixed: int) -> ConfigError:
    cut = {name: size for name, size in sizes.items() if size not in (1, -1)}
    told = " x ".join(f"{name} {size}" for name, size in cut.items())
    takes_rest = -1 in sizes.values()
    needs = f"a multiple of {fixed}" if takes_rest else str(fixed)
    what = f"{told or 'data_shard 1'} needs {needs} processes; there are {processes}"
    where = "parallel" if len(cut) != 1 else f"parallel.{next(iter(cut))}"
    ways = _valid(cut, processes, fixed, takes_rest)
    return ConfigError("E-PARALLEL", what, where=where, do=ways)


def _valid(cut: dict[str, int], processes: int, fixed: int, takes_rest: bool) -> str:
    """Say what would be valid: another value of one key, the others as they are, or more processes."""
    others = {name: fixed // size for name, size in cut.items() if name != "data_shard"}
    ways = [f"parallel.{name}={_divisors(processes // other)}" for name, other in others.items()
            if processes % other == 0]  # fmt: skip
    rest = fixed // cut.get("data_shard", 1)
    if "data_shard" in cut and not takes_rest and processes % rest == 0:
        ways.insert(0, "parallel.data_shard=-1")
    return ", or ".join([*ways, f"start {fixed} processes"])


def _divisors(number: int) -> str:
    found = [str(n) for n in range(1, number + 1) if number % n == 0]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"
