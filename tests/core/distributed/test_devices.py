"""Devices are chosen from facts, so that a machine without a GPU can test what one with it does."""

import pytest
import torch
from torchtune.distributed import DeviceFacts, check_dtype, choose_device, device_facts
from torchtune.errors import ConfigError, MissingError

NOTHING = DeviceFacts()
TWO_OLD = DeviceFacts(cuda_devices=2)
LAPTOP = DeviceFacts(mps=True, mps_bf16=True)


@pytest.mark.parametrize(
    ("wanted", "facts", "processes", "found"),
    [
        ("auto", NOTHING, 1, "cpu"),
        ("auto", TWO_OLD, 2, "cuda:1"),
        ("auto", LAPTOP, 1, "mps"),
        ("auto", LAPTOP, 2, "cpu"),
        ("cpu", TWO_OLD, 8, "cpu"),
    ],
)
def test_the_best_device_that_every_process_can_have_is_chosen(wanted, facts, processes, found):
    last = processes - 1
    assert str(choose_device(wanted, facts, local_rank=last, local_size=processes)) in (
        found,
        f"{found}:0",
    )


@pytest.mark.parametrize(
    ("wanted", "facts", "processes", "kind", "words"),
    [
        ("gpu", TWO_OLD, 1, ConfigError, "no device is called 'gpu'"),
        ("cuda", NOTHING, 1, MissingError, "no CUDA device"),
        ("mps", NOTHING, 1, MissingError, "no MPS device"),
        ("auto", TWO_OLD, 3, MissingError, "3 processes need a CUDA device each; there are 2"),
        ("mps", LAPTOP, 2, MissingError, "2 processes cannot share"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused(wanted, facts, processes, kind, words):
    with pytest.raises(kind, match=words) as caught:
        choose_device(wanted, facts, local_size=processes)
    assert caught.value.exit_code == (2 if kind is ConfigError else 3)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_bf16_is_refused_where_there_is_none(device):
    with pytest.raises(MissingError, match="no bf16"):
        check_dtype(torch.bfloat16, torch.device(device), NOTHING)
    check_dtype(torch.float32, torch.device(device), NOTHING)
    check_dtype(torch.float16, torch.device(device), NOTHING)
    check_dtype(torch.bfloat16, torch.device("cpu"), NOTHING)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_said_of_a_cpu_is_so(dtype):
    check_dtype(dtype, torch.device("cpu"), NOTHING)
    layer = torch.nn.Linear(3, 3, dtype=dtype)
    layer(torch.ones(2, 3, dtype=dtype)).sum().backward()
    assert layer.weight.grad.dtype == dtype


def test_the_facts_are_those_of_torch():
    assert device_facts().cuda_devices == torch.cuda.device_count()
