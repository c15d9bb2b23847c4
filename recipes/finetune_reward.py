"""Tune a model by rewards that can be checked (GRPO or RLOO, over TRL's trainers): it answers each
prompt several times, and what earned more than the others of its group becomes likelier.

    hfscale finetune_task --config sums
    hfscale finetune_reward --config tiny_cpu
    hfscale finetune_reward --config tiny_cpu --method rloo --reward my_file.py:function
"""

import importlib.util
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Literal

from hfscale.arguments import AdapterArguments, TaskArguments
from hfscale.config import parse_args
from hfscale.finished_run import Run, load_run
from hfscale.process import InputError, run


@dataclass
class FinetuneRewardArguments(TaskArguments, AdapterArguments):
    method: Literal["grpo", "rloo"] = field(
        default="grpo",
        metadata={
            "help": "grpo: rewards beside their group's mean and spread; rloo: beside the mean of "
            "the group's others"
        },
    )
    reward: list[str] = field(
        default_factory=lambda: ["exact_match"],
        metadata={
            "help": "exact_match, pattern (answer_pattern is found), tests (test_code passes), or "
            "my_file.py:function of prompts, completions and the examples' columns; several are "
            "added up"
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "of each reward in the sum; default: 1"}
    )
    answer_pattern: str | None = field(
        default=None,
        metadata={
            "help": "regular expression: what of an answer exact_match compares is its first "
            "group, or all that it matches"
        },
    )
    allow_code_execution: bool = field(
        default=False, metadata={"help": "let reward tests run what the model wrote, in a sandbox"}
    )
    num_generations: int = field(
        default=8, metadata={"help": "answers to each prompt, a group", "min": 2, "max": 10_000}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "of the answers to learn from", "min": 0.01, "max": 100}
    )
    beta: float = field(
        default=0.001,
        metadata={
            "help": "weight of the KL divergence from the model at the start; 0: no such model is "
            "kept",
            "min": 0,
            "max": 1e6,
        },
    )
    num_iterations: int = field(
        default=1,
        metadata={
            "help": "steps on the same answers; only from 2 on is anything clipped",
            "min": 1,
        },
    )
    epsilon: float = field(
        default=0.2,
        metadata={
            "help": "the ratio of new to old probabilities counts from 1 - epsilon to 1 + epsilon",
            "min": 1e-6,
            "max": 1e6,
        },
    )
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] | None = field(
        default=None,
        metadata={"help": "of method grpo, how tokens are averaged, as in trl.GRPOConfig"},
    )
    scale_rewards: Literal["group", "batch", "none"] = field(
        default="group",
        metadata={"help": "of method grpo, by whose standard deviation advantages are divided"},
    )
    resume: Literal["auto"] | None = field(
        default=None, metadata={"help": "auto: go on from the newest checkpoint"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "delete an earlier run in output_dir first"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "show some groups with their rewards, then stop"}
    )
    training: dict = field(default_factory=dict)


def main(argv: list[str] | None = None) -> Run | None:
    args = parse_args(FinetuneRewardArguments, argv, recipe=__file__)
    started = time.perf_counter()
    check_settings(args)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made

    from transformers import set_seed

    from hfscale.adapters import load_for_training
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.folders import check_output_dir
    from hfscale.models import context_limit
    from hfscale.rewards.examples import check_held_apart, check_taught, prompt_rows
    from hfscale.rewards.functions import (
        RewardSettings,
        compile_pattern,
        load_rewards,
        try_rewards,
    )
    from hfscale.rewards.measure import Judges
    from hfscale.rewards.record import write_rewards
    from hfscale.rewards.trainer import reward_config
    from hfscale.tasks.examples import count_dropped, load_task, task_prompt
    from hfscale.tasks.fitting import fit_examples
    from hfscale.tasks.measures import sample_texts
    from hfscale.training.record import write_run

    # What can be checked before data and model are loaded.
    settings = RewardSettings(
        compile_pattern(args.answer_pattern), args.metric_options, args.allow_code_execution
    )
    rewards = load_rewards(args.reward, settings)
    training_args = reward_config(args)
    if not args.dry_run:
        output_dir = str(training_args.output_dir)
        check_output_dir(output_dir, resume=args.resume, overwrite=args.overwrite)
    set_seed(training_args.seed)

    # Model: a checkpoint that knows the form of the answers.
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    model = load_for_training(args, tokenizer)

    # Data: prompts to answer, and what their answers are rewarded by; some are held out.
    counts: dict = {}
    with training_args.main_process_first(desc="preparing the data"):
        examples = load_task(args, seed=training_args.seed, counts=counts)
    task = task_prompt(args, examples)
    check_taught(args, args.model, task)
    max_length = context_limit(model) or 1024
    examples, shortened = fit_examples(
        examples, tokenizer, args, max_length, for_training=False, counts=counts
    )
    check_held_apart(examples)
    try_rewards(rewards, examples["train"])
    rows = prompt_rows(examples, tokenizer)
    judges = Judges(rewards, args.reward_weights, args.temperature)
    if args.dry_run:
        show_groups(args, training_args, model, tokenizer, examples["train"], judges)
        return None

    # Training, and the answers to all held-out prompts before and after.
    trainer, trace, metrics, before, after = train(
        args, training_args, model, tokenizer, examples, rows, judges, task
    )

    # What is written: how the task is asked, what rewards taught, model card and run.json.
    if trainer.is_world_process_zero():
        output_dir = str(training_args.output_dir)
        held_out = examples["validation"]
        save_beside(args, output_dir, tokenizer, task)
        signs = write_rewards(output_dir, args, trace, metrics, before, after, held_out)
        samples = sample_texts(held_out, after.greedy.texts)
        data = {
            "shortened": shortened,
            "examples": counts,
            "dropped": count_dropped(counts),
            "signs_of_hacking": [sign["sign"] for sign in signs if sign["found"]],
        }
        write_run(
            trainer,
            __file__,
            args,
            argv,
            rows,
            rows,
            metrics,
            samples,
            data,
            seconds=time.perf_counter() - started,
        )
        show_results(args, output_dir, task, held_out, metrics, samples, signs)
        return load_run(output_dir)
    return None


def train(args, training_args, model, tokenizer, examples, rows, judges, task):
    """The trainer, what it kept of its groups, the metrics, and the held-out answers before and
    after.
    """
    from hfscale.models import load_model, load_saved_model
    from hfscale.rewards.examples import prompt_tokenizer
    from hfscale.rewards.measure import kl_from_start
    from hfscale.rewards.record import measure_answers, measure_baseline
    from hfscale.rewards.trainer import check_continuation, make_trainer
    from hfscale.tasks.examples import baseline_answers
    from hfscale.tasks.measures import load_answer_metrics
    from hfscale.training.checkpoints import newest_checkpoint
    from hfscale.training.continuation import settings_of_run
    from hfscale.training.running import prepare_output_dir, run_training

    is_chat = task.prompt is None
    held_out = examples["validation"]
    trust = {"trust_remote_code": args.trust_remote_code}
    task_metrics = load_answer_metrics(args, **trust)
    settings = settings_of_run(args, training_args, model, tokenizer, rows)
    checkpoint = newest_checkpoint(training_args, settings) if args.resume else None
    check_continuation(checkpoint, args.num_iterations)
    bare = prompt_tokenizer(tokenizer, rows["train"], is_chat=is_chat)
    trainer, trace = make_trainer(args, training_args, model, rows, judges.rewards, bare)
    metrics = measure_baseline(baseline_answers(args.baseline, examples), held_out, task_metrics)
    prepare_output_dir(trainer, overwrite=args.overwrite)
    judged = (held_out, tokenizer, args, judges, task_metrics)
    before, metrics_before = measure_answers(trainer, *judged, prefix="before_eval")
    run_training(trainer, checkpoint, settings, documents=rows)
    after, metrics_after = measure_answers(trainer, *judged, prefix="eval")
    metrics |= metrics_before | metrics_after
    trainer.save_model(_internal_call=True)  # pushed, if asked, with its record
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    if args.temperature == 1:
        # Loaded anew: the trainer may have spread the first over ranks.
        saved = load_saved_model(str(training_args.output_dir), **trust).to(training_args.device)
        start = load_model(args.model, dtype="float32", **trust).to(training_args.device)
        metrics |= kl_from_start(saved, start, tokenizer, held_out, after.drawn, is_chat=is_chat)
    return trainer, trace, metrics, before, after


def save_beside(args, output_dir: str, tokenizer, task) -> None:
    """Write the tokenizer as it came, and the prompt; merge the adapter, if asked."""
    from hfscale.adapters import merge_saved_adapter
    from hfscale.generation.task_prompt import save_task_prompt

    tokenizer.save_pretrained(output_dir)
    if args.merge:
        merge_saved_adapter(output_dir, trust_remote_code=args.trust_remote_code)
    save_task_prompt(output_dir, **asdict(task))


def check_settings(args: FinetuneRewardArguments) -> None:
    """Raise InputError without TRL, and for settings that belong to another one."""
    if importlib.util.find_spec("trl") is None:
        raise InputError('finetune_reward: TRL is not installed: pip install "hfscale[trl]"')
    if not args.reward:
        raise InputError("reward: missing; name one, such as exact_match")
    if args.reward_weights and len(args.reward_weights) != len(args.reward):
        raise InputError(
            f"reward_weights: {len(args.reward_weights)} numbers for {len(args.reward)} rewards; "
            "give one for each"
        )
    if args.method == "rloo" and (args.loss_type or args.scale_rewards != "group"):
        raise InputError(
            "loss_type, scale_rewards: belong to method grpo; method rloo goes without them"
        )
    if args.add_tokens:
        raise InputError(
            "add_tokens: the model at the start would not know them; add them with finetune_task"
        )
    if args.training.get("label_smoothing_factor"):
        raise InputError("label_smoothing_factor: answers that are drawn have no labels to smooth")
    if "tests" in args.reward and "pass_at_k" not in args.metrics:
        args.metrics = [*args.metrics, "pass_at_k"]  # it makes the programs of the examples


def show_groups(args, training_args, model, tokenizer, prompts, judges) -> None:
    """Print some groups of answers of the model at the start, and how many of them would teach."""
    from hfscale.report.tables import show_table
    from hfscale.rewards.preview import draw_groups

    groups = draw_groups(args, training_args, model, tokenizer, prompts, judges)
    show_table(
        ("prompt", "answers: reward", "mean"),
        [(group.prompt, group.answers, f"{group.mean:.3g}") for group in groups],
        title="Groups of the model at the start",
    )
    teaching = sum(group.teaches for group in groups)
    print(f"{teaching} of {len(groups)} groups teach: their answers are not rewarded alike")
    steps = training_args.max_steps if training_args.max_steps > 0 else "as many as the epochs take"
    print(f"steps: {steps}, of {training_args.generation_batch_size} answers each")


def show_results(args, output_dir, task, held_out, metrics, samples, found) -> None:
    """Print the rewards before and after, signs of hacking, some answers, and what comes next."""
    from hfscale.shown import show_text
    from hfscale.tasks.measures import asking_command, show_answers
    from hfscale.training.steps import show_place

    show_answers(metrics, args.baseline, samples)
    print()
    for sign in found:
        show_text(f"{'FOUND' if sign['found'] else 'not found'}: {sign['sign']}: {sign['said']}")
    show_place(output_dir)
    show_text(f"next: {asking_command(output_dir, task, held_out)}")


if __name__ == "__main__":
    run(main)
