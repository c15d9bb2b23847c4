"""Pairs of a better and a worse answer to a prompt, or answers that are good or bad, from JSON
lines or made here, split into train and validation.
"""

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfscale.data.files import find_files, read_rows
from hfscale.data.splits import split_documents
from hfscale.data.tokens import encode_continuations, encode_prompts
from hfscale.process import InputError
from hfscale.tasks.sample_data import load_sample_data

PAIR = ("prompt", "chosen", "rejected")
ANSWER = ("prompt", "completion", "label")  # true: a good one
MADE_PAIRS = 400  # of 450 that there are, and enough for the recipe to show an effect


def load_preferences(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    validation_fraction: float,
    seed: int,
    loss_type: str = "sigmoid",
) -> tuple[DatasetDict, int]:
    """`train` and `validation` pairs with the columns prompt, chosen, rejected, text (all three),
    num_tokens and num_bytes of both answers; and how many pairs were left out because prompt and
    answer exceed `max_length` tokens. For the loss kto, files may have rows of one answer in the
    place of pairs, with the columns prompt, completion and label.

    `source` is `embedded:preferences` (see `made_pairs`) or .jsonl files, also as .gz or .zst.

    Raises InputError: nothing there; with file and line, wrong JSON, a column that is missing, not
    text or empty, a label that is not true or false, two equal answers; fewer than two pairs that
    fit; a split whose labels are all equal.
    """
    if source == "embedded:preferences":
        pairs: list[dict[str, Any]] = list(made_pairs(seed))
    else:
        pairs = _read_pairs(source, loss_type)
    kept = []
    for pair in pairs:
        ids = pair_ids(pair, tokenizer)
        lengths = [len(ids[f"{name}_ids"]) for name in _answer_columns(pair)]
        if len(ids["prompt_ids"]) + max(lengths) > max_length:
            continue
        answers = "".join(pair[name] for name in _answer_columns(pair))
        sizes = {
            "text": pair["prompt"] + answers,
            "num_tokens": sum(lengths),
            "num_bytes": len(answers.encode()),
        }
        kept.append(pair | sizes)
    if len(kept) < 2:
        raise InputError(
            f"source {source}: {len(kept)} pairs fit into {max_length} tokens; give more or "
            "shorter ones"
        )
    splits = _split(source, kept, validation_fraction, seed)
    _check_labels(source, splits)
    return splits, len(pairs) - len(kept)


def _answer_columns(row: Iterable[str]) -> list[str]:
    """`chosen` and `rejected` of a pair, else `completion`."""
    return [name for name in ("chosen", "rejected", "completion") if name in row]


def _read_pairs(source: str, loss_type: str) -> list[dict[str, Any]]:
    files = find_files(source)
    if not files:
        raise InputError(
            f"source {source}: no such file; give .jsonl files of pairs, or embedded:preferences"
        )
    rows = [(f"{path}{place}", row) for path in files for place, row in read_rows(path, ".jsonl")]
    # The first row says of which kind all are.
    is_single = bool(rows) and "completion" in rows[0][1]
    if is_single and loss_type != "kto":
        raise InputError(
            f"{rows[0][0]}: an answer alone, with a label; loss_type {loss_type} compares two: "
            "give rows of prompt, chosen and rejected, or take loss_type kto"
        )
    columns = ANSWER if is_single else PAIR
    return [_checked(row, columns, place) for place, row in rows]


def _split(
    source: str, pairs: list[dict[str, Any]], validation_fraction: float, seed: int
) -> DatasetDict:
    """Prompts are drawn at random: all pairs of one are on one side."""
    pairs_of_prompt: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        pairs_of_prompt.setdefault(pair["prompt"], []).append(pair)
    if len(pairs_of_prompt) < 2:
        raise InputError(
            f"source {source}: its {len(pairs)} pairs are all about one prompt, so that none can "
            "be held out and be new; give pairs of several prompts"
        )
    prompts = split_documents(
        Dataset.from_dict({"text": list(pairs_of_prompt)}),
        split_by="document",
        seed=seed,
        validation_fraction=validation_fraction,
    )
    splits = DatasetDict()
    for name, split in prompts.items():
        rows = [pair for prompt in split["text"] for pair in pairs_of_prompt[prompt]]
        splits[name] = Dataset.from_list(rows)
    return splits


def _check_labels(source: str, splits: DatasetDict) -> None:
    """Refuse a split of answers that are all good or all bad, from which nothing can be told."""
    for name, split in splits.items():
        if "label" in split.column_names and len(set(split["label"])) == 1:
            label = str(split["label"][0]).lower()
            raise InputError(
                f"source {source}: the label of all {len(split)} {name} rows is {label}; kto needs "
                "both true and false: give more rows, or another validation_fraction or seed"
            )


def pair_ids(pair: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`prompt_ids` as generation gives them to a model, and `chosen_ids` and `rejected_ids`, or
    `completion_ids`, as they follow, with EOS: the columns that TRL's collators read. Its trainers'
    own tokens would hold what some tokenizers put behind a text.
    """
    columns = _answer_columns(pair)
    [prompt] = encode_prompts([pair["prompt"]], tokenizer)
    answers = encode_continuations([pair[name] for name in columns], tokenizer)
    ids = {"prompt_ids": prompt}
    for name, answer in zip(columns, answers, strict=True):
        ids[f"{name}_ids"] = [*answer, tokenizer.eos_token_id]
    return ids


def kto_rows(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A row for each answer: `prompt_ids`, `completion_ids` and `label`, as TRL's KTO names them,
    and in `KL_completion_ids` an answer to another prompt: that of a row far away, so that which
    one it is depends on the rows alone, not on how they are dealt to batches and processes.

    Raises InputError: all rows are about one prompt.
    """
    answers: list[dict[str, Any]] = []
    for pair in pairs:
        for name in _answer_columns(pair):
            one = {"prompt": pair["prompt"], "completion": pair[name]}
            label = pair.get("label", name == "chosen")
            answers.append({**one, "label": label, **pair_ids(one, tokenizer)})
    for i, answer in enumerate(answers):
        others = (answers[(i + k + len(answers) // 2) % len(answers)] for k in range(len(answers)))
        other = next((row for row in others if row["prompt"] != answer["prompt"]), None)
        if other is None:
            raise InputError(
                f"source: all {len(answers)} answers of a split are to one prompt, and kto needs "
                "answers to others; give more prompts, or another validation_fraction or seed"
            )
        answer["KL_completion_ids"] = other["completion_ids"]
    return Dataset.from_list(answers)


def made_pairs(seed: int) -> list[dict[str, str]]:
    """Sums and differences of small numbers: the right answer in a sentence is better than an
    evasive one. They show that the recipe works, and teach nothing else.
    """
    evasions: list[str] = load_sample_data("finetune_preference", "preferences")["evasions"]
    rng = random.Random(seed)
    summands = list(itertools.product(range(10, 60), range(1, 10)))
    pairs = []
    for a, b in rng.sample(summands, MADE_PAIRS):
        word, result = rng.choice((("plus", a + b), ("minus", a - b)))
        pairs.append(
            {
                "prompt": f"What is {a} {word} {b}?",
                "chosen": f" {a} {word} {b} is {result}.",
                "rejected": rng.choice(evasions),
            }
        )
    return pairs


def _checked(row: dict[str, Any], columns: Sequence[str], place: str) -> dict[str, Any]:
    for name in columns:
        if name not in row:
            raise InputError(f"{place}: no column '{name}'; it has {', '.join(row)}")
        if name == "label":
            _check_label(row[name], place)
        elif not isinstance(row[name], str) or not row[name].strip():
            problem = "empty" if row[name] in ("", None) else "not text"
            raise InputError(f"{place}: the {name} is {problem}; mend or remove the line")
    if columns == PAIR and row["chosen"] == row["rejected"]:
        raise InputError(f"{place}: chosen and rejected are equal; mend or remove the line")
    return {name: row[name] for name in columns}


def _check_label(label: Any, place: str) -> None:
    if not isinstance(label, bool):
        raise InputError(
            f"{place}: the label is {json.dumps(label)[:40]}, expected true or false, without "
            "quotes; mend or remove the line"
        )
