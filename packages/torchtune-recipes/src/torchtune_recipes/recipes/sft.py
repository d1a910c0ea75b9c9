"""Supervised fine-tuning, full or with an adapter, on one process or many.

    tune run sft --checkpoint ./my-model --dataset ./my.jsonl
    tune run --nproc_per_node 2 sft --config llama3_2/1b_lora

Copy it with `tune cp sft my_sft.py`, change any line, and give it to `tune run` or `torchrun`.
"""

import datetime
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from shlex import quote
from typing import Annotated, Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler
from torchtune import checkpoint, data, distributed, generation, training
from torchtune.config import Component, Count, Parallel, TuneArgumentParser, build, checks
from torchtune.errors import report_errors
from torchtune.modules import Decoder
from torchtune.training import Progress, StepMetrics


@dataclass
class SFTParams:
    """Every argument of the recipe: in a YAML by its name, on the command line `name=value`."""

    # --- model
    model: Component = "auto"  # auto: from the checkpoint's own config.json
    peft: Component | None = None  # the adapter to train, such as lora; null trains all weights
    # --- tokenizer
    tokenizer: Component = "auto"  # auto: from the checkpoint's own files
    chat_template: str | None = None  # a built-in template or a path; null: the checkpoint's own
    # --- checkpointer
    checkpoint: str | None = None  # folder in Hugging Face format; null starts from random weights
    output_dir: str = "./output"  # where everything that the run writes goes
    # null refuses a folder that holds a checkpoint; auto goes on from the last one; or a step folder
    resume_from_checkpoint: bool | str | None = None
    allow_change: list[str] | None = None  # keys that a resumed run may have otherwise
    save_every_n_steps: Count | None = None  # a checkpoint is written at the end in any case
    save_every_minutes: float | None = None  # since the last save, by the main process's clock
    save_in_background: bool = False  # copy to host memory, then write while training goes on
    keep_last_n_checkpoints: Count | None = None  # null keeps all
    keep_best: bool = False  # save after a validation that is the best so far, and never prune it
    # --- dataset and dataloader
    dataset: Component | None = None  # a file, a folder, a registered name or a hub id
    dataset_val: Annotated[Component | None, "dataset"] = None  # rows to validate on
    validation_split: float = 0.0  # share of the dataset held out instead, such as 0.05
    batch_size: Count = 8  # rows of one micro-batch on one process
    batch_size_val: Count | None = None  # the same in validation; null: batch_size
    max_seq_len: int | None = None  # tokens a row; longer ones are cut; null: the model's positions
    packed: bool = False  # fill micro-batches best-fit to batch_size * max_seq_len tokens
    shuffle: bool = True  # another order in every epoch
    num_workers: int = 0  # processes that tokenize
    # --- optimizer and scheduler
    optimizer: Component = "adamw"  # adamw, sgd or any class of torch.optim
    optimizer_in_bwd: bool = False  # step each parameter in backward, and free its gradient
    # groups with options of their own: {params: regex of names, lr: 1e-4, weight_decay: 0}
    param_groups: list[dict[str, Any]] = field(default_factory=list)
    trainable: list[str] | None = None  # regexes of names: all other parameters are frozen
    lr_scheduler: Component | None = None  # cosine, linear, constant or wsd; null: a constant rate
    clip_grad_norm: float | None = None  # largest norm of the gradient; null does not clip
    # --- loss
    loss: Component = "linear_cross_entropy"  # computed without whole logits
    # --- training
    epochs: Count | None = None  # passes over the data; null: one, or as many as max_steps takes
    max_steps: Count | None = None  # optimizer steps of the whole run
    max_steps_per_epoch: Count | None = None  # optimizer steps after which an epoch is left
    gradient_accumulation_steps: Count = 1  # micro-batches a step
    run_val_every_n_steps: Count | None = None  # null: at the end of each epoch
    patience: Count | None = None  # validations without a better loss after which the run ends
    sample_prompts: list[str] = field(default_factory=list)  # answered then too, into samples.jsonl
    # benchmarks taken in the run: {tasks: [arc_easy], every_n_steps: 500, limit: 100}
    evaluate: Annotated[Component | None, "evaluator"] = None
    rehearse: bool = False  # try all that the run does in two steps on the longest rows, then stop
    compile: bool = False  # torch.compile each block: slower to start, faster after
    fp8: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] | None = None  # multiply in fp8
    # --- logging
    metric_logger: Component | list[Component] | None = None  # stdout, wandb, ...; or several
    log_every_n_steps: Count = 1  # optimizer steps a line of metrics.jsonl
    # --- environment
    # how processes share the work: {data_replicate: 1, data_shard: -1, context: 1, tensor: 1}
    parallel: Parallel = field(default_factory=Parallel)
    fsdp_reshard_after_forward: bool = True  # free whole weights between forward and backward
    fsdp_cpu_offload: bool = False  # keep weights, gradients and optimizer in the CPU's memory
    timeout_minutes: float | None = 30.0  # without a sign of life; then a hanging process is named
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU where there is one
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"  # of the weights, in memory and in the files
    master_weights: bool = False  # trained weights in fp32, computed with in dtype
    seed: int = 0  # of the order of the data, first values and dropout
    deterministic: bool = False  # deterministic kernels on a GPU; a CPU is so anyway
    # --- activation memory
    enable_activation_checkpointing: bool = False  # compute activations again in backward
    activation_checkpointing_mode: Literal["full", "selective"] = "full"  # selective keeps products
    enable_activation_offloading: bool = False  # keep what checkpointing keeps in host memory
    # --- profiler
    profiler: Component | None = None  # torch: traces of some steps into output_dir/profile

    def __post_init__(self) -> None:
        held_out = bool(self.dataset_val or self.validation_split)
        with checks(self) as check:
            check.techniques()
            check.names_keys("allow_change")
            check.at_least("max_seq_len", 2)
            check.at_least("num_workers", 0)
            for key in ("clip_grad_norm", "save_every_minutes", "timeout_minutes"):
                check.more_than(key, 0)
            check.between("validation_split", 0, 0.99)
            check.that(bool(self.dataset), "dataset", "there are no rows", "dataset=my.jsonl")
            check.auto_has_checkpoint("model", "tokenizer")
            for key in ("batch_size_val", "keep_best", "patience", "run_val_every_n_steps"):
                met = held_out or (key == "run_val_every_n_steps" and self.sample_prompts)
                needed = bool(met) or not getattr(self, key)
                check.that(needed, key, f"'{key}' needs held-out rows", "validation_split=0.05")
            both = self.dataset_val and self.validation_split
            check.that(not both, "validation_split", "cannot go together with dataset_val")
            sized = not self.packed or self.max_seq_len is not None
            check.that(sized, "packed", "'packed' needs max_seq_len", "max_seq_len=2048")


class SFTRecipe:
    """Fine-tune a model on the tokens of a dataset that are to be learnt."""

    def __init__(self, params: SFTParams) -> None:
        if params.rehearse:
            params = replace(params, shuffle=False, metric_logger=None, profiler=None)
        self.params = params
        self.dtype = distributed.DTYPES[params.dtype]

    def setup(self) -> None:
        """Make every part; whatever can fail cheaply fails here."""
        p = self.params
        self.world = distributed.join_world(p.device, p.parallel, timeout_minutes=p.timeout_minutes)
        distributed.check_dtype(self.dtype, self.world.device)
        training.set_seed(p.seed + self.world.seed_offset, deterministic=p.deterministic)
        self.stop = training.StopSignal()
        self.log = training.RunLog(speaks=self.world.is_main, every_n_steps=p.log_every_n_steps)
        self.run = checkpoint.RunFolder(p.output_dir, self.world, resume=p.resume_from_checkpoint)
        if p.rehearse:
            self.stop.close()  # there is nothing to save: Ctrl-C ends at once
            self.run = checkpoint.RehearsalFolder(self.run)
        self.saves = checkpoint.SaveSchedule(self.world, p.save_every_n_steps, p.save_every_minutes)
        self.saved = checkpoint.read_info(self.run.resume_from) if self.run.resume_from else {}
        self.model = self._setup_model()
        self.form = self._setup_chat_format()
        self.steps, self.held_out = self._setup_data()
        self.total_steps = self.steps.total(epochs=p.epochs, max_steps=p.max_steps)
        self.log.say("steps", f"{self.total_steps:,}, {self.steps.per_epoch:,} an epoch")
        self.loss = build("loss", p.loss)
        self.evaluator = build("evaluator", p.evaluate) if p.evaluate else None
        self.optimizer = self._setup_optimizer()
        self.update = self._setup_update()
        self.scheduler = self._setup_lr_scheduler()
        self.memory = self._plan_memory()
        self.identity, self.resumed = self._setup_resume()
        self.progress = self.load_checkpoint() or Progress()
        self.profiler = self._setup_profiler()
        self._setup_loggers()

    def _setup_model(self) -> Decoder:
        """Build the model without values, which `load_checkpoint` gives it."""
        p = self.params
        with torch.device("meta"):
            model: Decoder = build("model", p.model, checkpoint=p.checkpoint)
            if p.peft is not None:
                model = build("peft", p.peft, model)
        model = model.to(self.dtype)
        if p.trainable is not None:
            model = training.train_only(model, p.trainable)
        if p.master_weights:
            model = distributed.master_weights(model)
        if p.fp8 is not None:
            model = training.train_in_fp8(model, p.fp8, self.world)
        model = distributed.tensor_parallel(model, self.world)
        model = distributed.context_parallel(model, self.world)
        if p.compile:
            model = training.compile_blocks(model)
        if p.enable_activation_checkpointing:
            selective = p.activation_checkpointing_mode == "selective"
            keep = training.keep_products if selective else None
            model = training.checkpoint_activations(model, keep=keep)
        if p.enable_activation_offloading:
            model = training.offload_activations(model)
        model = distributed.shard(
            model, self.world, compute_dtype=self.dtype if p.master_weights else None,
            reshard_after_forward=p.fsdp_reshard_after_forward, cpu_offload=p.fsdp_cpu_offload,
        )  # fmt: skip
        return model.to_empty(device="cpu" if p.fsdp_cpu_offload else self.world.device)

    def _setup_chat_format(self) -> data.ChatFormat:
        """Load the tokenizer and its chat template; a resumed run keeps the day it was told."""
        tokenizer = build("tokenizer", self.params.tokenizer, checkpoint=self.params.checkpoint)
        day = self.world.broadcast(self.saved.get("date", datetime.date.today().isoformat()))
        return data.ChatFormat(tokenizer, self.params.chat_template, date=day)

    def _setup_data(self) -> tuple[data.Steps, data.Documents | None]:
        """Tokenize the rows; return the optimizer steps and the held-out documents."""
        p, positions = self.params, self.model.max_positions
        self.max_seq_len = data.row_limit(p.max_seq_len, positions=positions)
        documents, held_out = self._documents("dataset"), None
        if p.dataset_val is not None:
            held_out = self._documents("dataset_val")
        elif p.validation_split:
            documents, held_out = data.split_documents(documents, p.validation_split, p.seed)
        if p.rehearse:
            documents = documents.select(documents.lengths.argsort(descending=True))
        steps = data.Steps(
            documents, batch_size=p.batch_size, max_seq_len=self.max_seq_len,
            gradient_accumulation_steps=p.gradient_accumulation_steps, packed=p.packed,
            max_steps_per_epoch=p.max_steps_per_epoch, shuffle=p.shuffle, seed=p.seed,
            rank=self.world.data_rank, size=self.world.data_size,
        )  # fmt: skip
        return steps, held_out

    def _documents(self, key: str) -> data.Documents:
        rows, p = build("dataset", getattr(self.params, key)), self.params
        documents = data.tokenize_rows(
            rows, self.form, max_seq_len=self.max_seq_len, workers=p.num_workers, world=self.world,
        )  # fmt: skip
        if documents.report and documents.report.templated:
            self.form.tokenizer.chat_template = self.form.template  # saved with every checkpoint
        self.log.say(key, documents.report)
        return documents

    def _setup_optimizer(self) -> torch.optim.Optimizer:
        make = partial(build, "optimizer", self.params.optimizer)
        return training.grouped_optimizer(self.model, make, self.params.param_groups)

    def _setup_update(self) -> training.Update:
        early = self.params.optimizer_in_bwd
        return training.build_update(self.optimizer, self.world, self.dtype, in_backward=early)

    def _setup_lr_scheduler(self) -> LRScheduler | None:
        wanted, steps = self.params.lr_scheduler, self.total_steps
        if wanted is None:
            return None
        return build("lr_scheduler", wanted, self.optimizer, num_training_steps=steps)

    def _setup_profiler(self) -> Any:
        if (wanted := self.params.profiler) is None or not self.world.is_main:
            return None
        profiler = build("profiler", wanted, output_dir=str(self.run.path), say=self.log.say)
        profiler.start()
        return profiler

    def _setup_loggers(self) -> None:
        """Open the main process's loggers, at the checkpoint's step where the run goes on."""
        p, done, folder = self.params, self.progress, self.run.path
        loggers = list[training.Logger]()
        if self.world.is_main:
            for name in ("metrics.jsonl", "samples.jsonl"):
                checkpoint.cut_lines(folder / name, done.step)
            loggers = training.build_loggers(p.metric_logger, output_dir=folder, progress=done)
        self.log.start(loggers, config=asdict(p), total=self.total_steps)

    def _plan_memory(self) -> training.MemoryPlan:
        p, longest = self.params, int(self.steps.documents.lengths.max())
        row = self.max_seq_len if p.packed else longest
        plan = training.plan_memory(self.model, p, row_tokens=row, world=self.world)
        self.log.say("model", f"{plan.parameters:,} parameters, {plan.trained:,} of them trained")
        self.log.say("memory", plan)
        self.log.say("note", training.run_notes(self.model, self.optimizer, p, self.total_steps))
        return plan

    def _setup_resume(self) -> tuple[dict[str, Any], training.Resumed]:
        """Record what makes this run what it is; say how the run gone on with differs from it."""
        p, world = self.params, self.world
        digest = partial(checkpoint.weights_digest, p.checkpoint) if p.checkpoint else lambda: None
        base = checkpoint.on_main(world, digest)
        now = training.run_conditions(
            p, rows=self.steps.identity(), model=self.model.hf_config, base_sha256=base,
            total_steps=self.total_steps, world=world,
        )  # fmt: skip
        resumed = training.check_same_run(self.saved.get("conditions", now), now, p)
        record = partial(training.record_run, self.run.path, p, base_sha256=base)
        checkpoint.on_main(world, record, self.run.path)
        return {"conditions": now, "base_sha256": base}, resumed

    def load_checkpoint(self) -> Progress | None:
        """Fill the model from the base and, when resuming, all from the step folder."""
        step, fresh_settings = self.run.resume_from, self.resumed.new_settings
        filled = checkpoint.load_step(self.model, base=self.params.checkpoint, step=step)
        training.init_weights(self.model, seed=self.params.seed, skip=filled)
        if step is None:
            return None
        self.log.say("note", "\n".join(self.resumed.notes))
        info = checkpoint.load_training_state(
            step, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler,
            world=self.world, settings=not fresh_settings,
        )  # fmt: skip
        progress = Progress(**info["progress"])
        if fresh_settings:
            training.replay_schedule(self.scheduler, progress.step)
        self.log.say("resume", step)
        return progress

    def train(self) -> None:
        """Step until the run is over; save at its end, or when told to stop."""
        if self._is_over():
            self.log.say("done", f"{self.progress.step:,} steps; there is nothing left to do")
            return
        p, steps = self.params, self.steps.after(self.progress)
        with training.explain_out_of_memory(self.memory), self.log:
            while not self._is_over():
                self._step(next(steps))
                told_to_stop = self.stop.agree(self.world)
                best = p.keep_best and self.progress.best_step == self.progress.step
                if self.saves.due(self.progress.step, best=best) or told_to_stop:
                    self.save_checkpoint(background=p.save_in_background and not told_to_stop)
                self.run.poll()  # what went wrong in the background comes out here, on all ranks
                if told_to_stop:
                    raise training.interrupted(self.progress.step, self.run.path)
        self.save_checkpoint()

    def rehearse(self) -> None:
        """Do once all that the run is to do, on its longest rows, in a folder that then vanishes."""
        p, steps = self.params, self.steps.after()
        with training.explain_out_of_memory(self.memory), self.log:
            self._step(next(steps))
            self.save_checkpoint()
            metrics = self._step(batches := next(steps))
            saved = self.run.resume_from = self.run.path / "step_000001"
            self.progress = self.load_checkpoint() or Progress()
            repeated = self._step(batches)
            self.log.log({}, self.progress, self._look(at_once=True))
        found = training.rehearsed(metrics, repeated, self.total_steps, p, saved, self.world)
        self.log.say("rehearsal", found)

    def _step(self, batches: list[data.Batch]) -> StepMetrics:
        """Take one optimizer step, look at the model where it is time to, and log."""
        metrics = training.train_step(
            self.model, self.optimizer, batches, self.world, loss=self.loss, update=self.update,
            max_norm=self.params.clip_grad_norm, scheduler=self.scheduler, step=self.progress.step + 1,
        )  # fmt: skip
        self.progress = self.progress.after(metrics, steps_per_epoch=self.steps.per_epoch)
        self.log.log(metrics.figures(), self.progress, self._look())
        if self.profiler is not None:
            self.profiler.step()
        return metrics

    def _look(self, *, at_once: bool = False) -> dict[str, float]:
        """Validate, answer the sample prompts and evaluate, each where it is time for it."""
        p, step, figures = self.params, self.progress.step, dict[str, float]()
        last = step == self.total_steps
        if at_once or last or step % (p.run_val_every_n_steps or self.steps.per_epoch) == 0:
            if self.held_out is not None:
                batches = self.steps.held_out(self.held_out, batch_size=p.batch_size_val)
                loss = training.evaluate(self.model, batches, self.world, loss=self.loss)
                figures["val_loss"], self.progress = loss, self.progress.validated(loss)
            generation.write_samples(
                self.run.path / "samples.jsonl", p.sample_prompts or ["Hello"] * at_once,
                model=self.model, form=self.form, step=step, world=self.world, say=self.log.say,
            )  # fmt: skip
        if self.evaluator is not None and (at_once or self.evaluator.due(step, last=last)):
            figures |= self.evaluator(self.model, self.form.tokenizer, self.world, few=at_once)
        return figures

    def _is_over(self) -> bool:
        impatient = self.progress.validations_since_best >= (self.params.patience or float("inf"))
        return impatient or self.progress.step >= self.total_steps

    def save_checkpoint(self, *, background: bool = False) -> None:
        """Write the step folder, unless it is there, and prune the old ones."""
        if self.saved.get("progress") != asdict(self.progress):
            saved = self.identity | {"date": self.form.date, "progress": asdict(self.progress)}
            with self.run.writing(self.progress.step, background=background) as folder:
                checkpoint.save_step(
                    folder, model=self.model, dtype=self.dtype, base=self.params.checkpoint,
                    tokenizer=self.form.tokenizer, optimizer=self.optimizer,
                    scheduler=self.scheduler, world=self.world, info=saved,
                )  # fmt: skip
            self.saved = saved
        if not background:
            self.run.wait()  # for one that is still being written
        best = {self.progress.best_step} if self.params.keep_best else set()
        self.run.prune(self.params.keep_last_n_checkpoints, keep=best)
        self.log.draw(self.run.path, at_once=self._is_over() or self.stop.agreed)

    def cleanup(self) -> None:
        """Close what is open and say what to do next."""
        if self.profiler is not None:
            self.profiler.stop()
        self.log.close()
        self.stop.close()
        self.run.close()
        if self.params.rehearse:
            self.log.say("next", "the same command without --rehearse")
        else:
            self.log.say("result", f"{self.run.place}/latest, its losses in loss.png")
            place = quote(self.run.place)
            self.log.say("next", f'tune generate --checkpoint {place} --prompt "..."')
        self.world.close()


if __name__ == "__main__":
    with report_errors():
        recipe = SFTRecipe(TuneArgumentParser(SFTParams).parse_args())
        recipe.setup()
        recipe.rehearse() if recipe.params.rehearse else recipe.train()
        recipe.cleanup()
