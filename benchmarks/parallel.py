"""What several processes gain and what sharding costs.

    python benchmarks/parallel.py overhead [--device cuda] [--size NAME] [--tokens N] [--rounds N]
    python benchmarks/parallel.py scaling [--size NAME] [--tokens N] [--rounds N]

`overhead` takes training steps with a plain model and with one that FSDP2 shards over one process,
in turns, and prints the median ratio of the times of two neighbouring steps: what the wrapping costs
where it gains nothing. `scaling` takes the same step on one process and on two that share the model,
one thread each, in turns, and prints how many times the tokens a second two have. Weights are
random and in bf16; a step has --tokens supervised tokens a process, clipping and AdamW. What sharding
costs goes by the parameters and not by the tokens, so its share falls as a step grows.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torchtune.data import Batch
from torchtune.distributed import World, join_world, shard
from torchtune.losses import LinearCrossEntropy
from torchtune.models.llama import SIZES, llama
from torchtune.testing import run_distributed
from torchtune.training import init_weights, train_step

NAMES = ("data_replicate", "data_shard", "context", "tensor")


def step_of(world: World, sizes: dict, tokens: int) -> Callable[[], tuple[float, float]]:
    """Return a function that takes one training step, and says its wall and CPU seconds."""
    with torch.device("meta"):
        model = llama(**sizes).to(torch.bfloat16)
    model = shard(model, world).to_empty(device=world.device)
    init_weights(model, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    generator = torch.Generator().manual_seed(world.data_rank)
    ids = torch.randint(0, sizes["vocab_size"], (tokens + 1,), generator=generator)
    positions = torch.arange(512).repeat(tokens // 512)
    batch = Batch(ids[:-1], ids[1:], positions, (512,) * (tokens // 512), tokens)
    loss = LinearCrossEntropy()

    def step() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        train_step(model, optimizer, [batch], world, loss=loss, max_norm=1.0)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu

    return step


def overhead(device: str, sizes: dict, tokens: int, rounds: int) -> None:
    """Print the ratio of a step sharded over one process to a plain one."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    plain = World(device=torch.device(device))
    dist.init_process_group(rank=0, world_size=1, store=dist.HashStore())
    mesh = init_device_mesh(device, (1, 1, 1, 1), mesh_dim_names=NAMES)
    steps = [
        step_of(world, sizes, tokens) for world in (plain, World(device=plain.device, mesh=mesh))
    ]
    for step in steps * 2:
        step()
    pairs = [[step() for step in steps] for _ in range(rounds)]
    dist.destroy_process_group()
    print(f"{tokens} tokens, {torch.get_num_threads()} threads, {rounds} pairs, FSDP2 / plain")
    for clock, name in enumerate(("wall", "CPU")):
        times = [[taken[clock] for taken in pair] for pair in pairs]
        ratio = statistics.median(sharded / plain for plain, sharded in times)
        middle = [statistics.median(side) * 1e3 for side in zip(*times, strict=True)]
        print(f"{name} time: {middle[1]:.0f} ms / {middle[0]:.0f} ms, ratio {ratio:.3f}")


def in_turns(sizes: dict, tokens: int, rounds: int) -> list[tuple[float, float]]:
    """Return the seconds of a step alone and of a step together, again and again."""
    together = join_world("cpu")
    both = step_of(together, sizes, tokens)
    single = step_of(World(), sizes, tokens) if together.is_main else None
    pairs = []
    for _ in range(rounds + 1):
        alone = single()[0] if single else 0.0
        together.barrier()
        pairs.append((alone, both()[0]))
    return pairs[1:]


def scaling(sizes: dict, tokens: int, rounds: int) -> None:
    """Print how many times the tokens a second of one process two have."""
    pairs = run_distributed(in_turns, 2, sizes, tokens, rounds, timeout=3600)[0]
    alone, both = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    gain = statistics.median(2 * one / two for one, two in pairs)
    print(f"{tokens} tokens a process, one thread each, {rounds} pairs")
    print(f"one process {alone:.0f} ms, two {both:.0f} ms for twice the tokens: {gain:.2f} times")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["overhead", "scaling"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="smollm2_135m", choices=[*SIZES])
    parser.add_argument("--layers", type=int, help="fewer than the size has, to try this script")
    parser.add_argument("--tokens", type=int, default=4096, help="a multiple of 512")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sizes = dict(SIZES[args.size])
    sizes["num_layers"] = args.layers or sizes["num_layers"]
    if args.what == "overhead":
        overhead(args.device, sizes, args.tokens, args.rounds)
    else:
        scaling(sizes, args.tokens, args.rounds)


if __name__ == "__main__":
    main()
