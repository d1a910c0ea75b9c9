"""Which changes make a resumed run another one, and how schedules follow those that were allowed."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch
from torchtune import training
from torchtune.config import Component, TuneArgumentParser
from torchtune.distributed import World
from torchtune.errors import ConfigError

ROWS = {"data_sha256": "1f" * 32, "rows_per_step": 8, "packed_tokens": 0, "seed": 0}


@dataclass
class Params:
    """Some keys of a recipe, of every kind."""

    checkpoint: str | None = "base"
    output_dir: str = "out"
    dataset: Component = field(default_factory=lambda: {"_component_": "alpaca"})
    batch_size: int = 8
    packed: bool = False
    seed: int = 0
    optimizer: Component = field(default_factory=lambda: {"_component_": "adamw", "lr": 0.1})
    lr_scheduler: Component | None = None
    peft: Component | None = None
    max_steps: int | None = None
    compile: bool = False
    allow_change: list[str] = field(default_factory=list)


@dataclass
class LaterParams(Params):
    """The same in a later version: one key more."""

    dropout: float = 0.0


MODEL = {"model_type": "llama", "rope_theta": 1e4, "transformers_version": "4.51"}


def conditions(params: Params, base="ab" * 32, total=6, world=None, model=MODEL, **rows) -> dict:
    found = training.run_conditions(
        params, rows=ROWS | rows, model=model, base_sha256=base, total_steps=total,
        world=world or World(),
    )  # fmt: skip
    return json.loads(json.dumps(found))  # as a checkpoint keeps them


SAVED = conditions(Params())


def check(*words: str, kind=Params, saved=SAVED, **facts) -> training.Resumed:
    params = TuneArgumentParser(kind).parse_args(["optimizer.lr=0.1", *words])
    return training.check_same_run(saved, conditions(params, **facts), params)


def refused(*words: str, **facts) -> str:
    with pytest.raises(ConfigError, match="E-RESUME-CHANGED") as caught:
        check(*words, **facts)
    return str(caught.value)


def test_the_same_run_has_nothing_to_say():
    assert check() == ([], False)
    assert check("output_dir=other", "max_steps=3", "dataset=elsewhere.csv") == ([], False)


def test_every_change_is_named_at_once_with_what_it_was_and_is():
    said = refused("seed=5", "optimizer.betas=[0.8, 0.9]", "packed=true")
    assert "seed (was 0, is 5)" in said
    assert "optimizer.betas (was [0.9, 0.999], is [0.8, 0.9])" in said
    assert said.endswith("--allow-change packed,seed,optimizer.betas")


def test_an_edited_config_of_the_base_is_another_run_but_not_a_label_in_it():
    said = refused(model=MODEL | {"rope_theta": 5e5})
    assert "checkpoint (was a config.json of sha256" in said
    assert check("allow_change=[checkpoint]", model=MODEL | {"rope_theta": 5e5}).notes
    assert check(model=MODEL | {"transformers_version": "5.0", "eos_token_id": 7}) == ([], False)


def test_whole_weights_are_not_gone_on_with_as_an_adapter_nor_the_other_way_round():
    given = ("peft=lora", "allow_change=[peft]")
    assert "peft (was null, is lora)" in refused(*given)
    adapter = conditions(Params(peft={"_component_": "lora", "rank": 4}))
    assert "begin a new run" in refused("allow_change=[peft]", saved=adapter)
    more = ("peft=lora", "peft.rank=8", "allow_change=[peft.rank]")
    assert "peft.rank (was 4, is 8)" in refused(*more, saved=adapter)
    wanted = ("peft=lora", "peft.rank=4", "peft.dropout=0.1", "allow_change=[peft.dropout]")
    assert check(*wanted, saved=adapter).notes


def test_another_component_is_one_change():
    said = refused("optimizer=sgd", "optimizer.lr=0.1", "lr_scheduler=cosine")
    assert "optimizer (was adamw, is sgd), lr_scheduler (was null, is cosine)" in said


def test_what_stands_for_a_key_is_compared_in_its_place():
    assert "dataset (was tokens of sha256 1f1f1f1f, is tokens" in refused(data_sha256="2e" * 32)
    assert "checkpoint (was weights of sha256 abababab, is" in refused(base="cd" * 32)
    assert "batch_size (was 8 rows a step" in refused("batch_size=4", rows_per_step=4)
    assert "batch_size (was 8 rows a step" in refused(rows_per_step=16)  # twice the processes
    assert "(was false, is true)\n" in refused("packed=true", packed_tokens=192)


def test_what_changes_rounding_alone_is_noted():
    notes, _ = check("batch_size=4", "compile=true", world=World(size=2))
    assert len(notes) == 1 and notes[0].endswith("equal to rounding, not to the bit")
    for change in ("batch_size (was 8, is 4)", "compile (was false", "world_size (was 1, is 2)"):
        assert change in notes[0]


def test_what_is_allowed_may_change_and_is_noted():
    allowed = ("--allow-change", "seed,optimizer")
    notes, new_settings = check("seed=5", "optimizer.lr=0.2", *allowed)
    assert new_settings and "optimizer.lr (was 0.1, is 0.2)" in "\n".join(notes)
    assert not check("seed=5", "--allow-change", "seed").new_settings
    assert "seed" not in refused("seed=5", "optimizer.lr=0.2", "--allow-change", "seed")
    assert "optimizer.lr " in refused("optimizer.lr=0.2", "--allow-change", "optimizer.betas")


def test_an_allowed_name_that_is_no_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no key 'optimizer\.lrr'") as caught:
        check("--allow-change", "optimizer.lrr")
    assert caught.value.do == "did you mean 'optimizer.lr'?"


def test_a_schedule_follows_another_length_of_the_run():
    saved = conditions(replace(Params(), lr_scheduler={"_component_": "cosine"}))
    notes, new_settings = check("lr_scheduler=cosine", saved=saved, total=12)
    assert new_settings and "6 steps and has 12" in notes[0]
    assert check(total=12) == ([], False)  # nothing hangs on it without a schedule


def test_a_key_that_a_later_version_brings_binds_unless_it_has_its_default():
    assert check(kind=LaterParams) == ([], False)
    assert "dropout (was 0.0, is 0.1)" in refused("dropout=0.1", kind=LaterParams)


def test_a_replayed_schedule_is_where_it_would_be():
    def schedule():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        return training.cosine_schedule(optimizer, num_training_steps=9, num_warmup_steps=2)

    for step in (0, 1, 5):
        stepped, replayed = schedule(), schedule()
        for _ in range(step):
            stepped.optimizer.step()
            stepped.step()
        training.replay_schedule(replayed, step)
        assert replayed.state_dict() == stepped.state_dict()
        assert replayed.get_last_lr() == stepped.get_last_lr()
