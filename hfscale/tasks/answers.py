"""A model's answers to a task's examples and their statistics: generated text, choices by
likelihood, programs.
"""

import sys
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.tokens import after_once, encode_prompts, encode_texts, leading_ids, start_ids
from hfscale.generation.texts import complete_rows
from hfscale.metrics.batches import Journal, run_batches, run_sorted
from hfscale.metrics.code import Outcome, run_program
from hfscale.metrics.perplexity import Window, score_windows
from hfscale.metrics.texts import tied_accuracies
from hfscale.models import check_token_ids, context_limit
from hfscale.process import InputError
from hfscale.tasks.examples import spaced_choice


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
    **sampling,
) -> list[dict]:
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
    room = (context_limit(model) or 2**31) - max_new_tokens
    if room < 1 or max_new_tokens < 1 or batch_size < 1:
        raise InputError(
            f"max_new_tokens {max_new_tokens}, batch_size {batch_size}: both must be above 0, and "
            f"the model's context of {context_limit(model)} must leave room for a prompt"
        )
    is_chat = "messages" in examples.column_names
    prompts = encode_prompts(examples["prompt"][:], tokenizer, add_special_tokens=not is_chat)
    check_token_ids(model, map(max, prompts), f"tokenizer of {len(tokenizer)} tokens")
    leading = [] if is_chat else leading_ids(tokenizer)
    cut = [max(0, len(ids) - room) for ids in prompts]
    rows = [
        [*leading, *ids[len(leading) + n :]] if n else ids
        for ids, n in zip(prompts, cut, strict=True)
    ]
    sharded = any(hasattr(p, "ds_id") or isinstance(p, DTensor) for p in model.parameters())
    settings = {
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "stop_strings": stop_strings,
        "synced_gpus": sharded and PartialState().num_processes > 1,
        **(sampling if do_sample else {}),
    }

    def answer(batch: list[int]) -> list[dict]:
        torch.manual_seed(seed + batch[0])
        found = complete_rows(
            model,
            tokenizer,
            [rows[i] for i in batch],
            place=f"a prompt among the examples {sorted(batch)}",
            **settings,
        )
        return [
            {"prediction": text, "finished": finished, "cut_tokens": cut[i]}
            for i, [(text, finished)] in zip(batch, found, strict=True)
        ]

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
            in_step=sharded,
            journal=journal,
        )
    model.train(was_training)
    return answers


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    *,
    batch_size: int = 8,
    journal: Journal | None = None,
    progress: bool = False,
) -> tuple[dict[str, list], list[dict]]:
    """Multiple choice by the log-likelihood of each of `choices` after `prompt`: what the metric
    `accuracy` takes (see `choice_statistics`), and per example {"logliks", "tied", "cut_tokens"}
    (see `tied_accuracies`).

    As lm-eval does it: prompt and choice are encoded together with a space between them unless one
    has white space there or there is no prompt, spaces at the prompt's end belong to the choice,
    what the tokenizer puts in front of a text stands in front, and what exceeds the context is cut
    from the left.
    """
    whole_texts, contexts = [], []
    for i, (prompt, choices) in enumerate(
        zip(examples["prompt"], examples["choices"], strict=True)
    ):
        if not choices or not all(choice.strip() for choice in choices):
            raise InputError(
                f"accuracy: item {i} has the choices {choices!r}; expected texts that are not empty"
            )
        whole_texts += [prompt + spaced_choice(prompt, choice) for choice in choices]
        contexts += [prompt.rstrip()] * len(choices)
    windows, cut, limit = [], [], context_limit(model) or 2**31
    leading, start = leading_ids(tokenizer), start_ids(tokenizer)
    for whole, context in zip(
        encode_texts(whole_texts, tokenizer), encode_texts(contexts, tokenizer), strict=True
    ):
        before = leading if context and len(whole) > 1 else start
        ids = np.array(after_once(before, whole))
        cut.append(max(0, len(ids) - 1 - limit))
        first = min(len(ids) - len(whole) + len(context), len(ids) - 1) - cut[-1]
        windows.append(Window(ids[cut[-1] :], max(1, first), len(windows)))
    check_token_ids(
        model, (window.ids.max() for window in windows), f"tokenizer of {len(tokenizer)} tokens"
    )

    def per_item(values: Iterable) -> list[list]:
        left = iter(values)
        return [list(islice(left, len(choices))) for choices in examples["choices"]]

    nll = _score_once(model, windows, batch_size, journal=journal, progress=progress)
    logliks = per_item(-value for value in nll)
    num_bytes = [
        [len(choice.lstrip().encode()) for choice in choices] for choices in examples["choices"]
    ]
    tokens = per_item(len(window.ids) - window.first for window in windows)
    tied = [tied_accuracies(*units) for units in zip(logliks, tokens, num_bytes, strict=True)]
    records = [
        {"logliks": values, "tied": names, "cut_tokens": max(n)}
        for values, names, n in zip(logliks, tied, per_item(cut), strict=True)
    ]
    inputs = {
        "logliks": logliks,
        "tokens": tokens,
        "num_bytes": num_bytes,
        "answers": examples["answer"][:],
    }
    return inputs, records


def _score_once(
    model: PreTrainedModel, windows: Sequence[Window], batch_size: int, **kwargs
) -> list[float]:
    """As `score_windows`, equal ones only once: in another batch the same tokens can have another
    rounding error, and equal choices would not tie.
    """
    numbers: dict[tuple[int, bytes], int] = {}
    unique, which = [], []
    for window in windows:
        key = window.first, window.ids.tobytes()
        if key not in numbers:
            numbers[key] = len(unique)
            unique.append(window)
        which.append(numbers[key])
    nll = score_windows(model, unique, batch_size, **kwargs)
    return [nll[number] for number in which]


def check_programs(examples: Dataset, *, allow_code_execution: bool, most: int = 5) -> None:
    """Say on stderr, before anything is generated, if the programs cannot tell a right answer: the
    model's has no place in them, or none of the first right answers passes. Raises InputError as
    `run_program`.
    """
    if len(examples["program"][0]) == 1:
        print(
            "program: has no {prediction}, so that what the model answers is not run",
            file=sys.stderr,
        )
        return
    answered = list(islice((row for row in examples if row["references"]), most))
    outcomes: list[Outcome] = []
    for row in answered:
        program = row["references"][0].join(row["program"])
        outcomes.append(
            run_program(program, row["program_tests"], allow_code_execution=allow_code_execution)
        )
        if outcomes[-1].passed:
            return
    if outcomes:
        said = outcomes[0].output.strip().splitlines()[-1:] or [
            "no error, but it did not come to its end"
        ]
        place = answered[0].get("place", "example 0")
        print(
            f"program: none of the first {len(outcomes)} right answers passes its test; {place}: "
            f"{said[0][:200]} (--test_program says what is run)",
            file=sys.stderr,
        )


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
    **decoding,
) -> tuple[dict[str, list], list[dict]]:
    """(inputs, records) for all of `args.metrics`: the columns that these take (see
    `metrics.evaluate_metrics`), with an entry per example, and a record per example.

    `decoding` are arguments of `predict`. Each example is asked `num_samples` times; its first
    answer counts for the metrics of text. Raises InputError also as `run_program`.
    """
    inputs: dict[str, list] = {}
    common = {"batch_size": batch_size, "journal": journal, "progress": True}
    records = [{"prompt": row["prompt"], "references": row["references"]} for row in examples]
    if "accuracy" in args.metrics:
        inputs, found = score_choices(model, tokenizer, examples, **common)
        for record, row, scored in zip(records, examples, found, strict=True):
            record |= {"choices": row["choices"], "answer": row["answer"], **scored}
    if set(args.metrics) == {"accuracy"}:
        return inputs, records
    asked = examples.select(np.repeat(np.arange(len(examples)), num_samples))
    answers = predict(
        model,
        tokenizer,
        asked,
        max_new_tokens=args.max_new_tokens,
        stop_strings=args.stop_strings,
        **common,
        **decoding,
    )
    for record, answer in zip(records, answers[::num_samples], strict=True):
        record |= answer
    inputs["predictions"] = [record["prediction"] for record in records]
    inputs["references"] = examples["references"][:]
    if "pass_at_k" in args.metrics:
        predictions = [answer["prediction"] for answer in answers]
        programs = [
            text.join(parts) for text, parts in zip(predictions, asked["program"], strict=True)
        ]
        with_tests = list(zip(programs, asked["program_tests"], strict=True))
        passed = run_batches(
            with_tests,
            lambda texts: run_program(*texts, allow_code_execution=allow_code_execution).passed,
            desc="running programs",
            journal=journal,
            progress=True,
        )
        for i, record in enumerate(records):
            mine = slice(i * num_samples, (i + 1) * num_samples)
            record |= {"predictions": predictions[mine], "passed": passed[mine]}
        inputs["n"] = [num_samples] * len(records)
        inputs["c"] = [sum(record["passed"]) for record in records]
    return inputs, records
