"""Schedules against transformers' of the same name."""

import pytest
import torch
from torchtune import training
from torchtune.errors import ConfigError


def rates(schedule, steps, **arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, **arguments)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("name", "theirs", "arguments", "extra"),
    [
        ("cosine", "get_cosine_schedule_with_warmup", {}, {}),
        ("cosine", "get_cosine_schedule_with_warmup", {"num_cycles": 1.5}, {}),
        ("linear", "get_linear_schedule_with_warmup", {}, {}),
        ("constant", "get_constant_schedule_with_warmup", {}, {}),
        ("wsd", "get_wsd_schedule", {"num_decay_steps": 30}, {"decay_type": "linear"}),
    ],
)
def test_rates_are_those_of_transformers(name, theirs, arguments, extra):
    optimization = pytest.importorskip("transformers.optimization")
    total = {} if name == "constant" else {"num_training_steps": 100}
    arguments = {"num_warmup_steps": 10, **total, **arguments}
    ours = rates(getattr(training, f"{name}_schedule"), 100, **arguments)
    assert ours == pytest.approx(rates(getattr(optimization, theirs), 100, **arguments, **extra))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_floor_is_reached_at_the_end(name):
    schedule = getattr(training, f"{name}_schedule")
    assert rates(schedule, 11, num_training_steps=10, min_lr_ratio=0.1)[-1] == pytest.approx(0.1)


def test_parts_longer_than_the_run_are_refused():
    with pytest.raises(ConfigError, match="exceed 10 steps"):
        rates(
            training.wsd_schedule, 1, num_training_steps=10, num_warmup_steps=6, num_decay_steps=5
        )


@pytest.mark.parametrize(
    ("component", "said"),
    [
        (None, ""),
        ("cosine", ""),
        ({"_component_": "cosine", "num_warmup_steps": 9}, ""),
        ({"_component_": "cosine", "num_warmup_steps": 10}, "its last step has 90% of it"),
        ({"_component_": "linear", "num_warmup_steps": 100}, "its last step has 9% of it"),
    ],
)
def test_a_run_that_ends_in_its_warm_up_is_told_what_it_comes_to(component, said):
    assert training.warmup_note(component, 10).endswith(said)
    if said:
        arguments = {"num_warmup_steps": component["num_warmup_steps"], "num_training_steps": 10}
        last = rates(training.linear_schedule, 10, **arguments)[-1]
        assert said == f"its last step has {last:.0%} of it"
    else:
        assert not training.warmup_note(component, 10)
