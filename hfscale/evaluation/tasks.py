"""A model's answers to a task's examples and their statistics: generated text, choices by likelihood, programs."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.config import InputError, TaskArguments
from hfscale.data.packing import encode_texts
from hfscale.data.tasks import FIELD, spaced_choice
from hfscale.evaluation.batches import Journal, run_batches
from hfscale.evaluation.code import run_program
from hfscale.evaluation.intervals import estimate
from hfscale.evaluation.metrics import (
    TEXT_METRICS,
    choice_statistics,
    item_statistics,
    metric_values,
    pass_at_k_statistics,
)
from hfscale.evaluation.perplexity import Window, score_windows
from hfscale.generation import cut_at_stop
from hfscale.models import check_token_ids, context_limit


def predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Dataset, *, max_new_tokens: int,
            stop_strings: Sequence[str] | None = None, batch_size: int = 8, seed: int = 0, do_sample: bool = False,
            temperature: float = 1.0, top_k: int = 50, top_p: float = 1.0, journal: Journal | None = None,
            progress: bool = False) -> list[dict]:
    """{"prediction", "finished", "cut_tokens"} for each `prompt` of the examples, in their order, on every rank.

    Prompts of similar length share a batch, padded on the left. One that leaves no room for `max_new_tokens` in the
    model's context loses its first tokens; `cut_tokens` counts them. `finished`: EOS or a stop string ended the
    answer, not `max_new_tokens`. Samples repeat for equal `seed` and `batch_size`, on any number of ranks. The model
    may be sharded over the ranks (ZeRO-3, FSDP2). `journal`: see `run_batches`.

    Raises:
        InputError: `max_new_tokens` fills the context, or a token id outside the model's vocabulary.
        FloatingPointError: logits are NaN; it names the examples of the batch, counted from 0.
    """
    room = (context_limit(model) or 2**31) - max_new_tokens
    if room < 1 or max_new_tokens < 1 or batch_size < 1:
        raise InputError(f"max_new_tokens {max_new_tokens}, batch_size {batch_size}: both must be above 0, and the "
                         f"model's context of {context_limit(model)} must leave room for a prompt")
    start = [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
    prompts = [ids or start for ids in encode_texts(examples["prompt"][:], tokenizer)]
    check_token_ids(model, map(max, prompts), f"tokenizer of {len(tokenizer)} tokens")
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p} if do_sample else {}
    sharded = any(hasattr(p, "ds_id") or isinstance(p, DTensor) for p in model.parameters())
    settings = {"max_new_tokens": max_new_tokens, "do_sample": do_sample, "num_beams": 1, **sampling,
                "synced_gpus": sharded and PartialState().num_processes > 1,
                "stop_strings": list(stop_strings) if stop_strings else None}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    was_training = model.training
    model.eval()
    work = partial(_generate, model, tokenizer, prompts, room, seed, settings)
    found = run_batches(batches, work, desc="generating", progress=progress, in_step=sharded, journal=journal)
    model.train(was_training)
    answers = dict(zip(order, (answer for batch in found for answer in batch), strict=True))
    return [answers[i] for i in range(len(prompts))]


def _generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], room: int,
              seed: int, settings: dict, batch: list[int]) -> list[dict]:
    rows = [prompts[i][-room:] for i in batch]
    length, eos = max(map(len, rows)), tokenizer.eos_token_id
    input_ids = torch.tensor([[eos] * (length - len(ids)) + ids for ids in rows], device=model.device)
    mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in rows], device=model.device)

    def refuse_nan(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if torch.isnan(scores).any():  # the likeliest token would be token 0
            raise FloatingPointError(f"the model gives NaN for a prompt among the examples {sorted(batch)}")
        return scores

    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed + batch[0])
        output = model.generate(input_ids, attention_mask=mask, eos_token_id=eos, pad_token_id=eos, **settings,
                                logits_processor=[refuse_nan], tokenizer=tokenizer)[:, length:]
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    kept = [cut_at_stop(text, settings["stop_strings"]) for text in texts]
    return [{"prediction": answer, "finished": answer != text or eos in ids, "cut_tokens": len(prompts[i]) - len(row)}
            for i, row, ids, text, answer in zip(batch, rows, output.tolist(), texts, kept, strict=True)]


def score_predictions(predictions: Sequence[str], examples: Dataset, metrics: Sequence[str], *, seed: int = 0,
                      options: dict[str, dict] | None = None) -> dict:
    """Text metrics of predictions against the examples' `references`, each with its 95 % interval as `_ci95`.
    `options`: by metric, those of `item_statistics`; raises InputError as that does."""
    found = {}
    for metric in metrics:
        own = (options or {}).get(metric, {})
        columns = item_statistics(metric, predictions, examples["references"][:], **own)
        found |= estimate(columns, partial(metric_values, metric, **own), seed=seed)
    return found


def score_choices(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Dataset, *,
                  batch_size: int = 8, journal: Journal | None = None, progress: bool = False
                  ) -> tuple[np.ndarray, list[dict]]:
    """Multiple choice by the log-likelihood of each of `choices` after `prompt`: statistics for `accuracy` (see
    `choice_statistics`), and per example {"logliks", "cut_tokens"}.

    As lm-eval does it: prompt and choice are encoded together with a space between them unless one has white space
    there or there is no prompt, spaces at the prompt's end belong to the choice, and what exceeds the context is cut
    from the left.
    """
    pairs, start = [], [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
    for i, (prompt, choices) in enumerate(zip(examples["prompt"], examples["choices"], strict=True)):
        if not choices or not all(choice.strip() for choice in choices):
            raise InputError(f"accuracy: item {i} has the choices {choices!r}; expected texts that are not empty")
        for choice in choices:
            pairs.append((prompt + spaced_choice(prompt, choice), prompt.rstrip()))
    documents, windows, limit = [], [], context_limit(model) or 2**31
    for whole, context in zip(*(encode_texts(texts, tokenizer) for texts in zip(*pairs, strict=True)), strict=True):
        ids = np.array(whole if context and len(whole) > 1 else start + whole)
        begin = max(0, len(ids) - 1 - limit)
        windows.append(Window(len(documents), begin, max(begin + 1, min(len(context), len(ids) - 1)), len(ids)))
        documents.append(ids)
    check_token_ids(model, (ids.max() for ids in documents), f"tokenizer of {len(tokenizer)} tokens")
    nll = score_windows(model, documents, windows, batch_size, journal=journal, progress=progress)
    tokens = [window.stop - window.first for window in windows]
    ends = [0, *accumulate(map(len, examples["choices"]))]
    per_item = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    logliks = [[-value for value in nll[part]] for part in per_item]
    num_bytes = [[len(choice.lstrip().encode()) for choice in choices] for choices in examples["choices"]]
    columns = choice_statistics(logliks, [tokens[part] for part in per_item], num_bytes, examples["answer"][:])
    cut = [max(window.start for window in windows[part]) for part in per_item]
    return columns, [{"logliks": values, "cut_tokens": n} for values, n in zip(logliks, cut, strict=True)]


def score_programs(programs: Sequence[str], num_samples: int, ks: Sequence[int], *, allow_code_execution: bool,
                   journal: Journal | None = None, progress: bool = False) -> tuple[np.ndarray, list[bool]]:
    """Runs the programs, `num_samples` for each item, one item's after the other's: statistics for `pass_at_k`, and
    which passed. Raises InputError as `run_program`."""
    def passes(program: str) -> bool:
        return run_program(program, allow_code_execution=allow_code_execution).passed

    passed = run_batches(programs, passes, desc="running programs", journal=journal, progress=progress)
    correct = np.reshape(passed, (-1, num_samples)).sum(axis=1)
    return pass_at_k_statistics([num_samples] * len(correct), correct.tolist(), ks), passed


def answer_task(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Dataset, args: TaskArguments, *,
                num_samples: int = 1, pass_at: Sequence[int] = (1,), allow_code_execution: bool = False,
                batch_size: int = 8, journal: Journal | None = None, **decoding) -> tuple[dict, list[dict]]:
    """({metric: statistics of the items}, a record per example) for all of `args.metrics`.

    `decoding` are arguments of `predict`. Each example is asked `num_samples` times; its first answer counts for the
    metrics of text.
    """
    columns, common = {}, {"batch_size": batch_size, "journal": journal, "progress": True}
    records = [{"prompt": row["prompt"], "references": row["references"]} for row in examples]
    if "accuracy" in args.metrics:
        columns["accuracy"], found = score_choices(model, tokenizer, examples, **common)
        records = [record | {"choices": row["choices"], "answer": row["answer"]} | choice
                   for record, row, choice in zip(records, examples, found, strict=True)]
    if set(args.metrics) == {"accuracy"}:
        return columns, records
    asked = examples.select(np.repeat(np.arange(len(examples)), num_samples))
    answers = predict(model, tokenizer, asked, max_new_tokens=args.max_new_tokens, stop_strings=args.stop_strings,
                      **common, **decoding)
    records = [record | answer for record, answer in zip(records, answers[::num_samples], strict=True)]
    predictions = [answer["prediction"] for answer in answers]
    for metric in (metric for metric in args.metrics if metric in TEXT_METRICS):
        columns[metric] = item_statistics(metric, predictions[::num_samples], examples["references"][:],
                                          **args.metric_options.get(metric, {}))
    if "pass_at_k" in args.metrics:
        programs = [FIELD.sub(lambda name, row=row, text=text: ({**row, "prediction": text})[name[1]], args.program)
                    for row, text in zip(asked, predictions, strict=True)]
        columns["pass_at_k"], passed = score_programs(programs, num_samples, pass_at, journal=journal, progress=True,
                                                      allow_code_execution=allow_code_execution)
        parts = [slice(at, at + num_samples) for at in range(0, len(asked), num_samples)]
        records = [record | {"predictions": predictions[part], "passed": passed[part]}
                   for record, part in zip(records, parts, strict=True)]
    return columns, records
