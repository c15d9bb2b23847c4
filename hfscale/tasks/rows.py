"""Prompt and target -> rows in which only the target, and the EOS after it, carries loss."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from datasets import Dataset, DatasetDict
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hfscale.data.layouts import IGNORED, best_fit
from hfscale.data.tokens import encode_continuations, encode_prompts, encode_texts
from hfscale.generation.prompts import CHAT_TEMPLATE
from hfscale.limited import each_limited
from hfscale.process import InputError
from hfscale.tasks.row_to_example import Example


class _Encoded(NamedTuple):
    """An example as a row of its own holds it."""

    ids: list[int]
    labels: list[int]  # IGNORED but for targets
    num_bytes: int  # of the target texts


def supervised_rows(
    examples: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int, packing: str
) -> DatasetDict:
    """Rows of `input_ids`, `labels` (-100 but for targets and the EOS after each), `position_ids`,
    `num_tokens` (targets scored) and `num_bytes` (of the target texts).

    `bfd`: several examples share a row of `max_length`, none is cut and none attends to
    another (position ids restart). Unused space holds EOS under label -100. `none`: one example a
    row, of its own length, without position ids. Of a conversation each answer is a target.
    """
    rows = DatasetDict()
    for name, split in examples.items():
        rows[name] = _rows(split, tokenizer, max_length, packing)
    return rows


def _rows(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, packing: str
) -> Dataset:
    encoded = list(_encode(examples, tokenizer))
    sizes = [len(example.ids) for example in encoded]
    longest = max(sizes)
    if longest > max_length:
        i = sizes.index(longest)
        place = examples[i].get("place", f"example {i}")
        raise InputError(
            f"{place}: {longest} tokens with its answers are more than max_length {max_length}; "
            "raise it or leave the example out"
        )
    eos = tokenizer.eos_token_id
    if packing == "none":
        rows = [_row([example], len(example.ids), eos) for example in encoded]
        return Dataset.from_list(rows).remove_columns("position_ids")
    rows = []
    for indices in best_fit(sizes, max_length):
        rows.append(_row([encoded[i] for i in indices], max_length, eos))
    return Dataset.from_list(rows)


def _row(examples: Sequence[_Encoded], length: int, eos: int) -> dict[str, Any]:
    """Examples one after the other; positions restart with each, and run on over what stays
    unused.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    position_ids: list[int] = []
    for example in examples:
        input_ids += example.ids
        labels += example.labels
        position_ids += range(len(example.ids))
    num_unused = length - len(input_ids)
    next_position = len(examples[-1].ids)
    return {
        "input_ids": input_ids + [eos] * num_unused,
        "labels": labels + [IGNORED] * num_unused,
        "position_ids": position_ids + list(range(next_position, next_position + num_unused)),
        "num_tokens": sum(label != IGNORED for label in labels),
        "num_bytes": sum(example.num_bytes for example in examples),
    }


def _encode(examples: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[_Encoded]:
    if "messages" in examples.column_names:
        encode = partial(_encode_chat, tokenizer=tokenizer)
        yield from each_limited(encode, examples, place=CHAT_TEMPLATE)
        return
    prompts = encode_prompts(examples["prompt"][:], tokenizer)
    targets = encode_continuations(examples["target"][:], tokenizer)
    for example, prompt, target in zip(examples, prompts, targets, strict=True):
        # What was cut off does not end here.
        answer = target if example.get("truncated") else [*target, tokenizer.eos_token_id]
        labels = [IGNORED] * len(prompt) + answer
        yield _Encoded(prompt + answer, labels, len(example["target"].encode()))


def _encode_chat(example: Example, tokenizer: PreTrainedTokenizerBase) -> _Encoded:
    messages = example["messages"]
    chat = cast(
        BatchEncoding,
        tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        ),
    )
    labels = [
        token if is_answer else IGNORED
        for token, is_answer in zip(chat["input_ids"], chat["assistant_masks"], strict=True)
    ]
    if example.get("truncated"):
        # Neither EOS nor what else the template lets the model write ends the last answer.
        written = example["prompt"] + messages[-1]["content"]
        end = len(next(encode_texts([written], tokenizer)))
        labels[end:] = [IGNORED] * (len(labels) - end)
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    return _Encoded(chat["input_ids"], labels, sum(len(answer.encode()) for answer in answers))
