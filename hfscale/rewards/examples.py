"""Examples of a task as prompts to answer, with all that rewards are told, and tokenizers that make
of a prompt the tokens that the model was taught with.
"""

import copy
import sys

from datasets import Dataset, DatasetDict
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.tokens import encode_prompts, nothing_behind
from hfscale.generation.task_prompt import TaskPrompt, load_task_prompt
from hfscale.process import InputError, is_main_rank
from hfscale.rewards.functions import NOT_FOR_REWARDS
from hfscale.shown import show_text


def check_held_apart(examples: DatasetDict) -> None:
    """Raise InputError where a prompt that is held out is one to learn from, too."""
    held_out = examples["validation"]["prompt"][:]
    shared = set(held_out) & set(examples["train"]["prompt"])
    if shared:
        first = next(prompt for prompt in held_out if prompt in shared)
        raise InputError(
            f"task_validation_source: {sum(prompt in shared for prompt in held_out)} of "
            f"{len(held_out)} held-out prompts are also trained on, the first is "
            f"{' '.join(first.split())[:60]!r}; take them out of one of both"
        )


def prompt_rows(examples: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """The examples with `text`, `num_bytes` and `num_tokens` of their prompts, for the record; rows
    that a trainer draws prompts from.
    """

    def count(batch: dict[str, list]) -> dict[str, list]:
        ids = encode_prompts(batch["prompt"], tokenizer)
        return {
            "text": batch["prompt"],
            "num_bytes": [len(prompt.encode()) for prompt in batch["prompt"]],
            "num_tokens": [len(row) for row in ids],
        }

    rows = DatasetDict()
    for name, split in examples.items():
        dropped = [column for column in NOT_FOR_REWARDS if column in split.column_names]
        rows[name] = split.remove_columns(dropped).map(
            count, batched=True, keep_in_memory=True, desc=f"Prompts: {name}"
        )
    return rows


def prompt_tokenizer(
    tokenizer: PreTrainedTokenizerBase, prompts: Dataset, *, is_chat: bool
) -> PreTrainedTokenizerBase:
    """A tokenizer whose plain call makes of a prompt what generation gives to the model: nothing
    behind it and, where a chat template wrote it, nothing in front.

    Raises InputError: one that does not let itself be told so.
    """
    bare = nothing_behind(tokenizer)
    if is_chat and tokenizer.is_fast and tokenizer.num_special_tokens_to_add():
        bare = copy.deepcopy(tokenizer)
        bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    some = prompts["prompt"][:3]
    expected = encode_prompts(some, tokenizer, add_special_tokens=not is_chat)
    if bare(some)["input_ids"] != expected:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path}: puts tokens around a prompt that a trainer which "
            "generates cannot leave out; take a model with a fast tokenizer"
        )
    return bare


def check_taught(args: TaskArguments, model: str, task: TaskPrompt) -> None:
    """Say on stderr where a model was not taught to answer the task's prompts: rewards choose among
    answers that it gives at times, and teach no form. Raises InputError: strings that end answers.
    """
    if args.stop_strings:
        raise InputError(
            "stop_strings: an answer ends with EOS here, as finetune_task teaches it; leave them "
            "out"
        )
    taught = load_task_prompt(model)
    if taught is not None and taught.prompt == task.prompt or not is_main_rank():
        return
    what = "no task" if taught is None else f"the prompt {taught.prompt!r}, not {task.prompt!r}"
    show_text(
        f"model {model}: was taught {what}; rewards choose among its answers and teach no form: "
        "start from a model of finetune_task",
        file=sys.stderr,
    )
