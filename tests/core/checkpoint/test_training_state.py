"""Training state: a run that stops and goes on equals one that never stopped, to the bit."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torchtune.checkpoint import load_training_state, save_training_state
from torchtune.distributed import World
from torchtune.errors import ConfigError, MissingError, TuneError

WORLD = World()
SHARD = "shard-00001-00001.safetensors"


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 1, bias=False))


def steps(model: nn.Module, optimizer, scheduler=None, *, count: int) -> None:
    """Train on random data, so that generators, optimizer and schedule all matter."""
    for _ in range(count):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            scale = 1.0 + random.random()
            loss = (model(torch.randn(4, 6)) * scale).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()


OPTIMIZERS = {
    "AdamW": {"amsgrad": True},
    "SGD": {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    "Adagrad": {},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "NAdam": {},
    "ASGD": {},
    "Rprop": {},
    "Adadelta": {},
    "Adafactor": {"lr": 0.01},
    "LBFGS": {"lr": 0.1, "history_size": 3},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_is_the_same_to_the_bit_with_every_optimizer(tmp_path, name):
    def make():
        model = make_model()
        return model, getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name])

    model, optimizer = make()
    random.seed(1)
    steps(model, optimizer, count=3)
    state = {"model": model, "optimizer": optimizer, "scheduler": None, "world": WORLD}
    save_training_state(tmp_path, **state, info={}, weights=True)
    steps(model, optimizer, count=3)

    other, fresh = make()
    steps(other, fresh, count=1)  # whatever it did before must not matter
    load_training_state(tmp_path, model=other, optimizer=fresh, scheduler=None, world=WORLD)
    steps(other, fresh, count=3)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_state_saved_before_the_first_step_is_empty_again(tmp_path):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": model, "optimizer": optimizer, "scheduler": None, "world": WORLD}
    save_training_state(tmp_path, **state, info={})
    steps(model, optimizer, count=1)
    load_training_state(tmp_path, **state)
    assert not optimizer.state


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_schedule_and_hyperparameters_go_on(tmp_path, lr):
    def make():
        model = make_model()
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}]
        own = lr.clone() if isinstance(lr, torch.Tensor) else lr  # schedules change it in place
        optimizer = torch.optim.AdamW(groups, lr=own, foreach=False)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=2)
        falls = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, falls], milestones=[2])
        return model, optimizer, both

    def kinds(optimizer) -> list[dict[str, type]]:
        return [{key: type(group[key]) for key in group} for group in optimizer.param_groups]

    model, optimizer, scheduler = make()
    steps(model, optimizer, scheduler, count=3)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "world": WORLD}
    save_training_state(tmp_path, **state, info={}, weights=True)
    steps(model, optimizer, scheduler, count=3)

    other, fresh, schedule = make()
    load_training_state(tmp_path, model=other, optimizer=fresh, scheduler=schedule, world=WORLD)
    steps(other, fresh, schedule, count=3)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert [group["lr"] for group in fresh.param_groups] == [
        group["lr"] for group in optimizer.param_groups
    ]
    assert kinds(fresh) == kinds(optimizer)


def test_info_comes_back_and_nothing_is_pickled(tmp_path):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer, count=1)
    state = {"model": model, "optimizer": optimizer, "scheduler": None, "world": WORLD}
    info = {"step": 7, "best": float("inf"), "template": "día", "list": [1, 2.5, None]}
    save_training_state(tmp_path, **state, info=info)
    assert load_training_state(tmp_path, **state) == info
    names = sorted(path.name for path in (tmp_path / "training_state").iterdir())
    assert names == [SHARD, "state.json"]


def test_weights_are_kept_in_the_training_dtype_and_frozen_ones_are_not_kept(tmp_path):
    from safetensors.torch import load_file

    model = make_model()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters())
    state = {"model": model, "optimizer": optimizer, "scheduler": None, "world": WORLD}
    save_training_state(tmp_path, **state, info={}, weights=True)
    read = load_file(tmp_path / "training_state" / SHARD)
    assert list(read) == ["weight/2.weight"] and torch.equal(*read.values(), model[2].weight)


def small(tmp_path: Path) -> dict:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer, count=1)
    state = {"model": model, "optimizer": optimizer, "scheduler": None, "world": WORLD}
    save_training_state(tmp_path, **state, info={})
    return state


def test_another_optimizer_is_refused(tmp_path):
    state = small(tmp_path)
    state["optimizer"] = torch.optim.SGD(state["model"].parameters())
    with pytest.raises(ConfigError, match=r"AdamW, not torch\.optim\.sgd\.SGD"):
        load_training_state(tmp_path, **state)


def test_other_parameters_are_refused_by_name(tmp_path):
    state = small(tmp_path)
    state["optimizer"] = torch.optim.AdamW(state["model"][0].parameters())
    with pytest.raises(ConfigError, match=r"2\.weight"):
        load_training_state(tmp_path, **state)


def test_a_schedule_that_came_or_went_is_refused(tmp_path):
    state = small(tmp_path)
    state["scheduler"] = torch.optim.lr_scheduler.ConstantLR(state["optimizer"])
    with pytest.raises(ConfigError, match="without a schedule") as caught:
        load_training_state(tmp_path, **state)
    assert caught.value.where == "lr_scheduler"


def test_new_settings_stay_and_running_means_come_back(tmp_path):
    state = small(tmp_path)
    adam = torch.optim.AdamW(state["model"].parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5**step)
    given = {"optimizer": adam, "scheduler": schedule, "settings": False}
    load_training_state(tmp_path, **state | given)
    assert schedule.get_last_lr() == [0.5] == [group["lr"] for group in adam.param_groups]
    for name, wanted in state["optimizer"].state_dict()["state"][0].items():
        assert torch.equal(adam.state_dict()["state"][0][name], wanted)


def test_state_that_new_settings_cannot_use_is_left(tmp_path):
    state = small(tmp_path)
    parameters = list(state["model"].parameters())
    for other in (torch.optim.SGD(parameters), torch.optim.AdamW(parameters, amsgrad=True)):
        load_training_state(tmp_path, **state | {"optimizer": other, "settings": False})
        assert not other.state
    state["model"].to(torch.bfloat16)
    half = torch.optim.AdamW(state["model"].parameters())
    load_training_state(tmp_path, **state | {"optimizer": half, "settings": False})
    assert {s["exp_avg"].dtype for s in half.state.values()} == {torch.bfloat16}


def test_a_folder_of_weights_alone_cannot_be_resumed(tmp_path):
    state = small(tmp_path / "full")
    with pytest.raises(MissingError, match="no training state"):
        load_training_state(tmp_path, **state)


def test_another_layout_is_refused_with_the_way_out(tmp_path):
    state = small(tmp_path)
    path = tmp_path / "training_state/state.json"
    path.write_text(path.read_text().replace('"layout": 1', '"layout": 2'))
    with pytest.raises(ConfigError, match=r"another version(.|\n)*as checkpoint"):
        load_training_state(tmp_path, **state)


def test_a_missing_shard_is_named_by_the_tensor_that_lacks(tmp_path):
    state = small(tmp_path)
    (tmp_path / "training_state" / SHARD).unlink()
    with pytest.raises(MissingError, match=r"state/0\.weight"):
        load_training_state(tmp_path, **state)


@pytest.mark.parametrize("name", ["state.json", SHARD])
def test_a_damaged_file_is_named(tmp_path, name):
    state = small(tmp_path)
    path = tmp_path / "training_state" / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(MissingError, match=name):
        load_training_state(tmp_path, **state)


def test_state_that_is_no_number_or_tensor_is_refused_when_saving(tmp_path):
    state = small(tmp_path)
    parameter = next(state["model"].parameters())
    state["optimizer"].state[parameter]["hook"] = print
    with pytest.raises(TuneError, match=r"0\.weight/hook"):
        save_training_state(tmp_path, **state, info={})


def test_state_json_holds_what_torch_says(tmp_path):
    state = small(tmp_path)
    fields = json.loads((tmp_path / "training_state/state.json").read_text())
    group = fields["optimizer"]["groups"][0]
    assert group["names"] == [name for name, _ in state["model"].named_parameters()]
    assert group["options"]["betas"] == {"$tuple": [0.9, 0.999]}
