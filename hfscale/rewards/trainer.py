"""TRL's trainers that learn from rewards, with settings that suit small models, and what they would
take and then do something else with.
"""

from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from hfscale.process import InputError
from hfscale.rewards.functions import Reward
from hfscale.rewards.groups import GroupTrace, SeededOrder, StopConstant
from hfscale.training.training_args import training_arguments

CLASSES = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}
PROMPTS_PER_STEP = 8  # of a process, where nothing else is asked for


def reward_config(args: Any) -> Any:
    """TRL's configuration of the training: GRPOConfig or RLOOConfig.

    Its own defaults are others: a hundredth of these rates, recomputed activations, dropout, and
    bf16, in which the probabilities of drawn answers differ from those that are trained.

    Args:
        args: FinetuneRewardArguments.

    Raises:
        InputError: groups that would be dealt out to several processes or batches.
    """
    defaults = {
        "output_dir": "runs/finetune-reward",
        "per_device_train_batch_size": PROMPTS_PER_STEP * args.num_generations,
        "learning_rate": 1e-4 if args.lora_r else 1e-5,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0.05,
        "gradient_checkpointing": False,
        "bf16": False,
        "include_num_input_tokens_seen": "no",  # TRL counts them itself
    }
    if "num_train_epochs" not in args.training:
        defaults["max_steps"] = 200
    more: dict[str, Any] = {
        "beta": args.beta,
        "num_generations": args.num_generations,
        "num_generations_eval": 1,
        "num_iterations": args.num_iterations,
        "epsilon": args.epsilon,
        "temperature": args.temperature,
        "max_completion_length": args.max_new_tokens,
        "reward_weights": args.reward_weights,
        "disable_dropout": True,
        "trust_remote_code": args.trust_remote_code,
    }
    if args.method == "grpo":
        more |= {"loss_type": args.loss_type or "grpo", "scale_rewards": args.scale_rewards}
    values = defaults | args.training
    answers = values["per_device_train_batch_size"] * values.get("gradient_accumulation_steps", 1)
    if answers > 0 and answers % args.num_generations:
        raise InputError(
            f"per_device_train_batch_size: {answers} answers per process and step are no whole "
            f"groups of num_generations {args.num_generations}; take a multiple of it"
        )
    config_class, _ = CLASSES[args.method]
    return training_arguments(values, width=256, cls=config_class, **more)


def make_trainer(
    args: Any,
    training_args: Any,
    model: PreTrainedModel,
    rows: DatasetDict,
    rewards: list[Reward],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Any, GroupTrace]:
    """The trainer, and what it keeps of its groups."""
    trace = GroupTrace(args.num_generations, args.reward_weights)
    _, trainer_class = CLASSES[args.method]
    trainer = trainer_class(
        model=model,
        reward_funcs=trace.watched(rewards),
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
    )
    trace.watch(trainer)
    trainer.add_callback(StopConstant())
    trainer.add_callback(SeededOrder())
    return trainer, trace


def check_continuation(checkpoint: str | None, num_iterations: int) -> None:
    """Raise InputError for a checkpoint between two steps on the same answers, which it does not
    hold.
    """
    step = int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0
    if step % num_iterations:
        raise InputError(
            f"--resume auto: {checkpoint} lies between the {num_iterations} steps (num_iterations) "
            "on the same answers, which no checkpoint holds, so a run cannot go on from it as it "
            f"would have gone on; delete it, and let save_steps be a multiple of {num_iterations}"
        )
