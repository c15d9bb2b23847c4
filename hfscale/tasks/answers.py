"""A model's answers to a task's examples, and their statistics for the task's metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.tokens import encode_prompts, leading_ids
from hfscale.generation.texts import complete_rows
from hfscale.metrics.batches import Journal, run_sorted
from hfscale.models import check_token_ids, context_limit
from hfscale.process import InputError
from hfscale.tasks.choice_scores import score_choices
from hfscale.tasks.programs import run_answers

NO_LIMIT = 2**31  # the context of a model that states none: more tokens than any prompt has


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    *,
    max_new_tokens: int,
    stop_strings: Sequence[str] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    do_sample: bool = False,
    journal: Journal | None = None,
    progress: bool = False,
    **sampling: Any,
) -> list[dict[str, Any]]:
    """{"prediction", "finished", "cut_tokens"} for each `prompt` of the examples, in their order,
    on every rank.

    Prompts become tokens as `encode_prompts` says, those of conversations (`messages`) as their
    chat template wrote them. Prompts of similar length share a batch, padded on the left. One that
    leaves no room for `max_new_tokens` in the model's context loses its first tokens, after what
    the tokenizer puts in front; `cut_tokens` counts them. `finished`: EOS or a stop string ended
    the answer, not `max_new_tokens`. Samples repeat for equal `seed` and `batch_size`, on any
    number of ranks; `sampling` (`temperature`, ...) counts with `do_sample`; no other settings do
    (see `complete_rows`). The model may be sharded over the ranks (ZeRO-3, FSDP2).

    Raises:
        InputError: `max_new_tokens` fills the context, or a token id outside the model's
            vocabulary.
        FloatingPointError: logits are NaN; it names the examples of the batch, counted from 0.
    """
    room = (context_limit(model) or NO_LIMIT) - max_new_tokens
    if room < 1 or max_new_tokens < 1 or batch_size < 1:
        raise InputError(
            f"max_new_tokens {max_new_tokens}, batch_size {batch_size}: both must be above 0, and "
            f"the model's context of {context_limit(model)} must leave room for a prompt"
        )
    is_chat = "messages" in examples.column_names
    prompts = encode_prompts(examples["prompt"][:], tokenizer, add_special_tokens=not is_chat)
    check_token_ids(model, map(max, prompts), f"tokenizer of {len(tokenizer)} tokens")
    leading = [] if is_chat else leading_ids(tokenizer)
    rows = [_cut_left(ids, room, leading) for ids in prompts]
    is_sharded = any(hasattr(p, "ds_id") or isinstance(p, DTensor) for p in model.parameters())
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "stop_strings": stop_strings,
        # Ranks that are done go on in step with the others, to gather the weights together.
        "synced_gpus": is_sharded and PartialState().num_processes > 1,
    }
    if do_sample:
        settings |= sampling

    def answer(batch: list[int]) -> list[dict[str, Any]]:
        torch.manual_seed(seed + batch[0])
        completions = complete_rows(
            model,
            tokenizer,
            [rows[i] for i in batch],
            place=f"a prompt among the examples {sorted(batch)}",
            **settings,
        )
        answers = []
        for i, [(text, finished)] in zip(batch, completions, strict=True):
            cut_tokens = len(prompts[i]) - len(rows[i])
            answers.append({"prediction": text, "finished": finished, "cut_tokens": cut_tokens})
        return answers

    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        answers = run_sorted(
            rows,
            lambda ids: -len(ids),
            batch_size,
            answer,
            desc="generating",
            progress=progress,
            in_step=is_sharded,
            journal=journal,
        )
    model.train(was_training)
    return answers


def _cut_left(ids: list[int], room: int, leading: list[int]) -> list[int]:
    """The last tokens of a prompt, after the `leading` ones, of which it keeps all."""
    num_cut = len(ids) - room
    if num_cut <= 0:
        return ids
    return [*leading, *ids[len(leading) + num_cut :]]


def answer_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    args: TaskArguments,
    *,
    num_samples: int = 1,
    allow_code_execution: bool = False,
    batch_size: int = 8,
    journal: Journal | None = None,
    **decoding: Any,
) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
    """(inputs, records) for all of `args.metrics`: the columns that these take (see
    `metrics.evaluate_metrics`), with an entry per example, and a record per example.

    `decoding` are arguments of `predict`. Each example is asked `num_samples` times; its first
    answer counts for the metrics of text. Raises InputError also as `run_program`.
    """
    inputs: dict[str, list[Any]] = {}
    records: list[dict[str, Any]] = [
        {"prompt": row["prompt"], "references": row["references"]} for row in examples
    ]
    if "accuracy" in args.metrics:
        inputs, scored = score_choices(
            model, tokenizer, examples, batch_size=batch_size, journal=journal, progress=True
        )
        for record, row, scores in zip(records, examples, scored, strict=True):
            record |= {"choices": row["choices"], "answer": row["answer"], **scores}
    if set(args.metrics) == {"accuracy"}:
        return inputs, records

    # Each example as often as it is asked, its answers side by side.
    asked = examples.select(np.repeat(np.arange(len(examples)), num_samples))
    answers = predict(
        model,
        tokenizer,
        asked,
        max_new_tokens=args.max_new_tokens,
        stop_strings=args.stop_strings,
        batch_size=batch_size,
        journal=journal,
        progress=True,
        **decoding,
    )
    first_answers = answers[::num_samples]
    for record, answer in zip(records, first_answers, strict=True):
        record |= answer
    inputs["predictions"] = [answer["prediction"] for answer in first_answers]
    inputs["references"] = examples["references"][:]
    if "pass_at_k" not in args.metrics:
        return inputs, records

    predictions = [answer["prediction"] for answer in answers]
    passed = run_answers(
        asked, predictions, allow_code_execution=allow_code_execution, journal=journal
    )
    for i, record in enumerate(records):
        of_example = slice(i * num_samples, (i + 1) * num_samples)
        record |= {"predictions": predictions[of_example], "passed": passed[of_example]}
    inputs["n"] = [num_samples] * len(records)
    inputs["c"] = [sum(record["passed"]) for record in records]
    return inputs, records
