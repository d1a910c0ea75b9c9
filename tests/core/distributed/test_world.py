"""What two processes tell each other, against arithmetic, and what one of them does alone."""

import os

import pytest
import torch
from torchtune.distributed import (
    World,
    clip_grad_norm,
    fill,
    gather_full,
    is_distributed,
    join_world,
)
from torchtune.errors import DataError, TuneError
from torchtune.testing import run_distributed

BIG = 2**53 + 1  # the first integer that float64 does not hold


def talk():
    """Say something on every channel; return what was heard."""
    world = join_world("cpu")
    heard = {
        "cut": cut_and_join(world),
        "place": (world.rank, world.size, world.is_main, world.data_rank, world.data_size),
        "int": world.sum(BIG + world.rank),
        "float": world.sum(0.25),
        "tensor": world.sum(torch.tensor([1.0, 2.0]) * (world.rank + 1)).tolist(),
        "max": (world.max(world.rank), world.max(-0.5)),
        "any": (world.any(world.rank == world.size - 1), world.any(False)),
        "broadcast": world.broadcast({"from": world.rank}),
        "gather": world.gather(f"rank {world.rank}"),
    }
    world.barrier()
    world.close()
    return heard


@pytest.fixture(scope="module")
def pair():
    """What both of two processes heard."""
    return run_distributed(talk, 2)


def test_two_processes_hear_each_other(pair):
    first, second = pair
    assert (first["place"], second["place"]) == ((0, 2, True, 0, 2), (1, 2, False, 1, 2))
    apart = ("place", "cut")
    assert {k: first[k] for k in first if k not in apart} == {
        k: second[k] for k in second if k not in apart
    }
    assert first["int"] == 2 * BIG + 1
    assert (first["float"], first["tensor"]) == (0.5, [3.0, 6.0])
    assert (first["max"], first["any"]) == ((1, -0.5), (True, False))
    assert (first["broadcast"], first["gather"]) == ({"from": 0}, ["rank 0", "rank 1"])


def test_a_single_process_hears_itself():
    (heard,) = run_distributed(talk, 1)
    assert heard["place"] == (0, 1, True, 0, 1)
    assert (heard["int"], heard["float"], heard["tensor"]) == (BIG, 0.25, [1.0, 2.0])
    assert (heard["broadcast"], heard["gather"]) == ({"from": 0}, ["rank 0"])


def fail(kind):
    """Fail on the second process while the first waits for it."""
    world = join_world("cpu")
    if world.rank == 1:
        if kind == "exit":
            os._exit(7)
        raise DataError("E-ROW", "bad row", where="f.jsonl:3")
    world.barrier()


def test_the_first_failing_process_is_heard_and_not_its_peers():
    with pytest.raises(DataError, match="bad row"):
        run_distributed(fail, 2, "error")


def test_a_process_that_dies_silently_is_an_error_too():
    with pytest.raises(TuneError, match="E-PROCESS"):
        run_distributed(fail, 2, "exit")


def cut_and_join(world):
    """Cut tensors unevenly, fill and gather them, and measure and clip gradients on two meshes."""
    if world.size == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    full = torch.arange(15.0).reshape(5, 3)
    other = init_device_mesh("cpu", (world.size,), mesh_dim_names=("other",))
    mine = world.mesh["data_shard"]
    layouts = [(mine, Shard(0)), (other, Shard(1)), (mine, Replicate()), None]
    parameters, filled = [], []
    for layout in layouts:
        empty = torch.zeros(5, 3)
        cut = distribute_tensor(empty, layout[0], [layout[1]]) if layout else empty
        parameter = torch.nn.Parameter(cut)
        fill(parameter, full)
        filled.append(gather_full(parameter).clone())
        parameter.grad = parameter.detach().clone()
        parameters.append(parameter)
    norm = clip_grad_norm(parameters, 1.0)
    clipped = [gather_full(parameter.grad) for parameter in parameters]
    return is_distributed(parameters[0]), filled, norm, clipped


def test_tensors_on_several_meshes_are_filled_gathered_and_clipped_as_plain_ones(pair):
    full = torch.arange(15.0).reshape(5, 3)
    plain = [torch.nn.Parameter(full.clone()) for _ in range(4)]
    for parameter in plain:
        parameter.grad = full.clone()
    expected = torch.nn.utils.clip_grad_norm_(plain, 1.0)
    for distributed, filled, norm, clipped in (heard["cut"] for heard in pair):
        assert distributed
        assert all(torch.equal(tensor, full) for tensor in filled)
        torch.testing.assert_close(norm, expected)
        for mine, theirs in zip(clipped, plain, strict=True):
            torch.testing.assert_close(mine, theirs.grad)


@pytest.mark.parametrize("max_norm", [0.5, 100.0, None])
def test_clipping_alone_is_torchs_and_none_only_measures(max_norm):
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.zeros(7, 3)) for _ in range(5)]
    theirs = [torch.nn.Parameter(torch.zeros(7, 3)) for _ in range(5)]
    for a, b in zip(mine, theirs, strict=True):
        a.grad = torch.randn(7, 3)
        b.grad = a.grad.clone()
    norm = clip_grad_norm([*mine, torch.nn.Parameter(torch.ones(1))], max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm or float("inf"))
    torch.testing.assert_close(norm, expected)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_norm_of_a_big_gradient_is_right_to_the_sixth_digit(dtype):
    parameter = torch.nn.Parameter(torch.zeros(4000, 500, dtype=dtype))
    torch.manual_seed(0)
    parameter.grad = torch.randn(4000, 500).to(dtype)
    expected = parameter.grad.double().norm().float()
    norm = clip_grad_norm([parameter], 1.0)
    torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
    # scaled in bf16, each element may be off by 2**-9
    torch.testing.assert_close(clip_grad_norm([parameter], None), torch.ones(()), rtol=2e-3, atol=0)


def test_without_gradients_the_norm_is_zero():
    assert clip_grad_norm([torch.nn.Parameter(torch.ones(2))], 1.0) == 0


def test_another_shape_does_not_fill():
    with pytest.raises(ValueError, match=r"cannot fill \(2,\) from \(3,\)"):
        fill(torch.nn.Parameter(torch.zeros(2)), torch.zeros(3))


def test_a_world_of_one_can_be_made_by_hand():
    world = World()
    assert (world.size, world.device, world.sum(3)) == (1, torch.device("cpu"), 3)
    world.close()
