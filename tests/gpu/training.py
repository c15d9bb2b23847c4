"""Parts that train with LMTrainer in one process: the step, its losses, auto_batch, QLoRA."""

import itertools
import math
import os
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import compile_regions
from transformers import GPT2LMHeadModel, PrinterCallback, TrainerCallback, set_seed

from hfscale.arguments import AdapterArguments, shape_of
from hfscale.data.packing import collate_rows
from hfscale.models import count_trained
from hfscale.new_models import new_model
from hfscale.planning.flops import Shape, training_flops
from hfscale.planning.memory import Sharding, Step, step_memory_bytes
from hfscale.planning.shapes import new_shape
from hfscale.training.running import run_training
from hfscale.training.trainer import LMTrainer
from hfscale.training.training_args import training_arguments
from tests.gpu.bench import GB, SHORT, Bench, PeakMemory, memory_figures, mfu, speed, speed_ratio
from tests.gpu.report import Figure

WARM_UP = 2  # steps: kernels are chosen and compiled, and AdamW's state is there in the second
BF16_EPS = torch.finfo(torch.bfloat16).eps
COMPARED_STEPS = 20


def shape_of_model(model: GPT2LMHeadModel) -> Shape:
    """The sizes by which the planning formulas know a model."""
    names = set(Shape._fields)
    return Shape(**{name: value for name, value in model.config.to_dict().items() if name in names})


def step_of(training_args, max_length: int, **more: Any) -> Step:
    """A step of these TrainingArguments, as the planning formulas know it."""
    return Step(
        training_args.per_device_train_batch_size,
        max_length,
        bf16=training_args.bf16,
        activation_checkpointing=training_args.activation_checkpointing,
        accumulates=training_args.gradient_accumulation_steps > 1,
        on_cpu=training_args.use_cpu,
        **more,
    )


def tokens_of_step(training_args, max_length: int) -> int:
    """Of one optimizer step on one device."""
    rows = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    return rows * max_length


# ---- the step, by itself and against a bare loop


def small_step(bench: Bench) -> Iterator[Figure]:
    """gpt2_small."""
    return _step(bench, bench.sizes.small, bench.sizes.steps, least_mfu=50)


def large_step(bench: Bench) -> Iterator[Figure]:
    """gpt2_xl, whose step is long enough to be a round. Its 48 blocks are compiled as one, which
    all of them share: as a whole it would take minutes.
    """
    with patch.dict(os.environ, ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION="true"):
        yield from _step(bench, bench.sizes.large, 1, least_mfu=60, by_blocks=True)


def _step(
    bench: Bench, flags: tuple[str, ...], steps: int, least_mfu: float, by_blocks: bool = False
) -> Iterator[Figure]:
    """The shipped config as it stands, with and without torch.compile; the compiled one in turns
    with a bare compiled loop.
    """
    rounds = bench.sizes.rounds
    alone = StepRounds(bench, steps, rounds, None)
    yield from _train(bench, flags, alone, "LMTrainer")
    bare = BareLoop(bench, flags, by_blocks=by_blocks)
    in_turns = StepRounds(bench, steps, rounds, bare)
    kind = "torch.compile by blocks" if by_blocks else "torch.compile"
    case = f"LMTrainer, {kind}"
    limits = {"at_least": least_mfu}
    backend = bench.sizes.compile_backend
    yield from _train(bench, flags, in_turns, case, limits, torch_compile_backend=backend)
    yield speed(f"bare loop, {kind}", steps * bare.tokens, in_turns.others)
    name = "speed / bare compiled loop"
    yield speed_ratio(case, name, in_turns.seconds, in_turns.others, at_least=0.97)


def _train(
    bench: Bench,
    flags: tuple[str, ...],
    rounds: "StepRounds",
    case: str,
    mfu_limits: dict[str, float] | None = None,
    **more: Any,
) -> Iterator[Figure]:
    """Train as `pretrain` does until the rounds are over, and tell its speed and memory."""
    model, training_args, rows = make_training(bench, flags, **more)
    max_length = model.config.n_positions
    shape = shape_of_model(model)
    tokens = rounds.steps * tokens_of_step(training_args, max_length)
    trainer = make_trainer(model, training_args, rows, callbacks=[rounds])
    run_training(trainer, None)
    if training_args.torch_compile and not hasattr(trainer.model_wrapped, "_orig_mod"):
        raise RuntimeError("torch_compile was asked for, but the model was not compiled")
    measured = speed(case, tokens, rounds.seconds)
    yield measured
    flops = training_flops(shape, tokens, max_length)  # checkpointing's second pass is no use
    yield from mfu(case, flops, measured, tokens, bench.matmul_rate(), **mfu_limits or {})
    if training_args.torch_compile:  # which the plan does not count
        if rounds.peak is not None:
            yield Figure(case, "peak memory", rounds.peak / GB, "GB")
        return
    planned = step_memory_bytes(shape, step_of(training_args, max_length), Sharding())
    yield from memory_figures(case, rounds.peak, planned)


def make_training(bench: Bench, flags: tuple[str, ...], **more: Any) -> tuple[Any, Any, Any]:
    """Model with random weights, TrainingArguments and rows, as `pretrain` makes them, but on the
    device at once: a CPU takes long to draw the weights of gpt2_xl.
    """
    args, training_args = bench.pretrain(flags, **more)
    set_seed(training_args.seed)
    with torch.device(bench.device):
        model = new_model(bench.tokenizer(), **shape_of(args))
    steps = WARM_UP + 2 * bench.sizes.rounds * bench.sizes.steps
    rows_of_step = tokens_of_step(training_args, 1)
    rows = bench.rows(
        args.max_position_embeddings, least_documents=2, at_least=steps * rows_of_step
    )
    return model, training_args, rows


def make_trainer(model, training_args, rows, **more: Any) -> LMTrainer:
    """As `pretrain` makes it, without what is printed."""
    trainer = LMTrainer(
        model=model, args=training_args, train_dataset=rows, data_collator=collate_rows, **more
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class StepRounds(TrainerCallback):
    """Times rounds of steps of a Trainer, in turns with another loop where there is one, and ends
    the training after the last. The steps of a round run as they come: only between rounds the
    GPU is waited for.

    Args:
        steps: in a round.
        rounds: at most.
        other: called once to warm up, then after each round.
    """

    def __init__(self, bench: Bench, steps: int, rounds: int, other: "BareLoop | None"):
        self.steps = steps
        self.seconds: list[float] = []
        self.others: list[float] = []
        self.peak: int | None = None
        self._bench = bench
        self._rounds = rounds
        self._other = other
        self._memory = PeakMemory(bench)  # before the model goes to the device
        self._started = 0.0
        self._next_end = WARM_UP

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != self._next_end:
            return
        self._bench.synchronize()
        now = time.perf_counter()
        if state.global_step == WARM_UP:
            self.peak = self._memory.read()
            if self._other is not None:
                self._other.run(WARM_UP)
        else:
            self.seconds.append(now - self._started)
            if self._other is not None:
                self.others.append(self._bench.seconds(lambda: self._other.run(self.steps)))
        if len(self.seconds) == self._rounds or (self.seconds and not self._bench.has_time()):
            control.should_training_stop = True
        self._next_end += self.steps
        self._started = time.perf_counter()


class BareLoop:
    """The shortest honest loop over the same model, rows, optimizer, clipping and precision: the
    loss inside the compiled model, nothing logged, nothing checked.
    """

    def __init__(self, bench: Bench, flags: tuple[str, ...], *, by_blocks: bool = False):
        model, args, rows = make_training(bench, flags)
        self.tokens = tokens_of_step(args, model.config.n_positions)
        self._bench = bench
        self._args = args
        self.model = model.train()
        model.loss_type = "ForCausalLM"
        if args.activation_checkpointing:
            model.activation_checkpointing_enable()
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.weight_decay,
            fused=True,
        )
        compiler = compile_regions if by_blocks else torch.compile
        self._compiled = compiler(model, backend=bench.sizes.compile_backend)
        self._batches = self._endless(rows)

    def _endless(self, rows) -> Iterator[dict[str, torch.Tensor]]:
        loader = torch.utils.data.DataLoader(
            rows,
            batch_size=self._args.per_device_train_batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=collate_rows,
            num_workers=self._args.dataloader_num_workers,
            pin_memory=self._bench.on_gpu,
        )
        while True:
            yield from loader

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean of a batch."""
        device = self._bench.device
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=self._args.bf16):
            return self._compiled(**batch, use_cache=False).loss

    def run(self, steps: int) -> None:
        """So many optimizer steps."""
        passes = self._args.gradient_accumulation_steps
        for _ in range(steps):
            for batch in itertools.islice(self._batches, passes):
                (self.loss(batch) / passes).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._args.max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()


# ---- losses


def losses(bench: Bench) -> Iterator[Figure]:
    """The losses of 20 steps on this device, in bf16 and float32, beside the CPU's in float32."""
    curves = {
        ("bf16", bench.device): _curve(bench, bf16=True, use_cpu=not bench.on_gpu),
        ("float32", bench.device): _curve(bench, bf16=False, use_cpu=not bench.on_gpu),
    }
    reference = _curve(bench, bf16=False, use_cpu=True)
    yield Figure("CPU, float32", f"loss of step {COMPARED_STEPS}", reference[-1])
    for (precision, device), curve in curves.items():
        off = max(abs(loss / other - 1) for loss, other in zip(curve, reference, strict=True))
        most = BF16_EPS if precision == "bf16" else 1e-4
        case = f"{device}, {precision}, against the CPU in float32"
        yield Figure(case, "largest relative difference of a loss", off, "", at_most=most)


def _curve(bench: Bench, *, bf16: bool, use_cpu: bool) -> list[float]:
    """The loss of each step of the same training."""
    shape = bench.sizes.cpu_shape
    values = {
        "output_dir": str(bench.folder / "losses"),
        "max_steps": COMPARED_STEPS,
        "per_device_train_batch_size": bench.sizes.cpu_rows,
        "learning_rate": 6e-4,
        "lr_scheduler_type": "constant",
        "bf16": bf16,
        "use_cpu": use_cpu,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if bench.on_gpu:
        values["tf32"] = False
    training_args = training_arguments(values, width=shape["n_embd"])
    set_seed(0)
    model = new_model(bench.tokenizer(), **shape)
    trainer = make_trainer(model, training_args, bench.rows(shape["n_positions"]))
    run_training(trainer, None)
    wanted = "cpu" if use_cpu else bench.device
    if trainer.model.device.type != wanted:
        raise RuntimeError(f"meant to train on {wanted}, but trained on {trainer.model.device}")
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


# ---- auto_batch


def auto_batch(bench: Bench) -> Iterator[Figure]:
    """A step of more rows than memory holds, split by `auto_batch`, beside the same step in the
    config's micro-batches.
    """
    case = "gpt2_small, --auto_batch"
    args, training_args = bench.pretrain(bench.sizes.small)
    rows = bench.sizes.most_rows or _more_than_fits(bench, args, training_args)
    batch_size = training_args.per_device_train_batch_size
    split, pieces = _first_steps(bench, True, rows, 1)
    whole, _ = _first_steps(bench, False, batch_size, rows // batch_size)
    yield Figure(case, "rows of a step", rows, "rows")
    yield Figure(case, "rows of a micro-batch that fits", math.ceil(rows / pieces), "rows")
    yield Figure(case, "rows of a micro-batch of the config", batch_size, "rows")
    for name in ("loss", "grad_norm"):
        off = abs(split[name] / whole[name] - 1)
        figure = f"relative difference of the first {name}"
        yield Figure(f"{case}, against the config's", figure, off, "", at_most=BF16_EPS)


def _more_than_fits(bench: Bench, args, training_args) -> int:
    """The first power of two of rows that the plan says does not fit, by half as much again."""
    shape = new_shape(shape_of(args), bench.sizes.vocab_size)
    memory = 1.5 * torch.cuda.get_device_properties(0).total_memory
    rows = training_args.per_device_train_batch_size
    step = step_of(training_args, args.max_position_embeddings)
    while (
        sum(step_memory_bytes(shape, step._replace(batch_size=rows), Sharding()).values()) < memory
    ):
        rows *= 2
    return rows


def _first_steps(
    bench: Bench, is_auto: bool, batch_size: int, passes: int
) -> tuple[dict[str, float], int]:
    """What is logged of the first of two steps, and into how many pieces a batch was split."""
    sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": passes}
    more = sizes | SHORT | {"max_steps": 2, "logging_steps": 1}
    model, training_args, rows = make_training(bench, bench.sizes.small, **more)
    trainer = make_trainer(model, training_args, rows, auto_batch=is_auto)
    run_training(trainer, None)
    return next(log for log in trainer.state.log_history if "loss" in log), trainer._pieces


# ---- QLoRA


def qlora(bench: Bench) -> Iterator[Figure]:
    """LoRA on 4-bit weights beside LoRA on float32 ones, of gpt2_medium's shape."""
    from hfscale.adapters import load_for_training

    args, training_args = bench.pretrain(_medium(bench))
    set_seed(0)
    base = str(bench.folder / "base")
    with torch.device(bench.device):
        new_model(bench.tokenizer(), **shape_of(args)).save_pretrained(base)
    bench.tokenizer().save_pretrained(base)
    first_losses = {}
    for case, load_in_4bit in {"LoRA": False, "QLoRA": True}.items():
        rounds = StepRounds(bench, 1, bench.sizes.rounds, None)
        adapter = AdapterArguments(model=base, lora_r=16, load_in_4bit=load_in_4bit)
        model = load_for_training(adapter, None)
        at_least = (WARM_UP + bench.sizes.rounds) * tokens_of_step(training_args, 1)
        rows = bench.rows(args.max_position_embeddings, least_documents=2, at_least=at_least)
        trainer = make_trainer(model, training_args, rows, callbacks=[rounds])
        training_args.logging_steps = 1
        run_training(trainer, None)
        first_losses[case] = next(log["loss"] for log in trainer.state.log_history if "loss" in log)
        tokens = tokens_of_step(training_args, args.max_position_embeddings)
        yield Figure(case, "trained", count_trained(model), "parameters")
        yield speed(case, tokens, rounds.seconds)
        step = step_of(
            training_args, args.max_position_embeddings, lora_r=16, load_in_4bit=load_in_4bit
        )
        shape = new_shape(shape_of(args), bench.sizes.vocab_size)
        planned = step_memory_bytes(shape, step, Sharding())
        yield from memory_figures(case, rounds.peak, planned)
        del model, trainer
    off = abs(first_losses["QLoRA"] / first_losses["LoRA"] - 1)
    yield Figure("QLoRA, against LoRA", "relative difference of the first loss", off)


def _medium(bench: Bench) -> tuple[str, ...]:
    """What a trial makes smaller stays so."""
    config, path, *smaller = bench.sizes.small
    medium = path.replace("gpt2_small", "gpt2_medium")
    rows = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1")
    return (config, medium, *smaller, *rows)
