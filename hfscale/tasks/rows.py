"""Prompt and target -> rows in which only the target, and the EOS after it, carries loss."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.packing import IGNORED, best_fit
from hfscale.data.tokens import encode_continuations, encode_prompts, encode_texts, leading_ids
from hfscale.process import InputError
from hfscale.tasks.examples import Counts
from hfscale.tasks.fitting import Fitting

# ChatML, with the answers marked for the loss and ended by EOS, at which generation stops.
CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}\
{{ message.content + eos_token }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Give the tokenizer `chatml` (see `CHATML`) or the template in a file; None: it keeps its own.
    It is saved with the tokenizer.

    Raises InputError: none given and the tokenizer has none, no such file, or it does not mark the
    answers.
    """
    if (
        chat_template is not None
        and chat_template != "chatml"
        and not Path(chat_template).is_file()
    ):
        raise InputError(
            f"chat_template {chat_template}: no such file; give chatml or a Jinja file"
        )
    if chat_template == "chatml":
        tokenizer.chat_template = _written(leading_ids(tokenizer), tokenizer) + CHATML
    elif chat_template is not None:
        tokenizer.chat_template = Path(chat_template).read_text("utf-8")
    if tokenizer.chat_template is None:
        raise InputError(
            "the tokenizer has no chat template, which conversations need; give --chat_template "
            "chatml or a Jinja file (prompts and targets can also go without: give templates for "
            "both)"
        )
    if "{% generation %}" not in tokenizer.chat_template.replace("{%-", "{%"):
        raise InputError(
            "the chat template does not mark the answers with {% generation %} ... {% "
            "endgeneration %}, so their tokens cannot be told; mark them, or give --chat_template "
            "chatml"
        )


def add_template_characters(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a new tokenizer the characters that the chat template writes and it does not know: one
    of characters has those of the conversations alone, and role names and marks would all be the
    unknown token.
    """
    turns = [{"role": role, "content": ""} for role in ("system", "user", "assistant")]
    frame = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:  # GPT-2's stands for nothing
        return
    missing = [
        character
        for character in sorted(set(frame))
        if unknown in tokenizer(character, add_special_tokens=False)["input_ids"]
    ]
    tokenizer.add_tokens(missing)


def _written(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Special tokens as a chat template writes them: a conversation gets none but those of its
    template.
    """
    tokens = "".join(tokenizer.convert_ids_to_tokens(ids))
    return f"{{{{- {json.dumps(tokens)} }}}}" if tokens else ""


def fit_examples(
    examples: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    args: TaskArguments,
    max_length: int,
    *,
    for_training: bool = True,
    counts: Counts | None = None,
) -> tuple[DatasetDict, dict[str, dict[str, int]]]:
    """Examples whose prompt leaves room for `max_new_tokens`, and, to train on them, for target and
    EOS, in `max_length` tokens; of a conversation for all that the chat template writes.

    What is too long is cut by `args.truncation_side`: tokens at the prompt's start, or at its end
    but for what the template has after its last column; of a conversation first the oldest turns
    (after a system's), then the last question. The prompt of a conversation is written here, in the
    chat template. What becomes of targets that do not fit beside the least of their prompt says
    `args.long_targets`.

    Returns the examples, and for each split how many `prompts` were shortened and how many `tokens`
    that took; `counts` takes those and what became of long targets (see `tasks.COUNTED`).

    Raises InputError: with the place, a target that does not fit, or a prompt of which not the
    least does.
    """
    if not 1 <= args.max_new_tokens < max_length:
        raise InputError(
            f"max_new_tokens: got {args.max_new_tokens}; expected at least 1 and, to leave room "
            f"for a prompt, less than max_length {max_length}"
        )
    counts = {} if counts is None else counts
    fitting = Fitting(tokenizer, args, max_length, for_training)
    fitted, cut, long_targets = DatasetDict(), {}, []
    for name, part in examples.items():
        count = counts.setdefault(name, Counter())
        found = [
            _fit(example.get("place", f"{name} example {i}"), example, fitting, long_targets)
            for i, example in enumerate(part)
        ]
        rows = [row for row, _ in filter(None, found)]
        lost = [tokens for _, tokens in filter(None, found)]
        cut[name] = {"prompts": sum(tokens > 0 for tokens in lost), "tokens": sum(lost)}
        truncated = sum(row.get("truncated", False) for row in rows)
        count.update(
            shortened=cut[name]["prompts"],
            truncated=truncated,
            used=len(rows),
            long_target=len(found) - len(rows),
        )
        fitted[name] = Dataset.from_list(rows)
    if long_targets and args.long_targets == "stop":
        raise _too_long(long_targets, sum(map(len, examples.values())), max_length)
    for name, part in fitted.items():
        if not len(part):
            raise InputError(
                f"{name}: none of {len(examples[name])} examples is left, for all targets are too "
                f"long for max_length {max_length}; raise it, or take --long_targets truncate"
            )
    return fitted, cut


def _fit(
    place: str, example: dict, fitting: Fitting, long_targets: list[tuple[str, int]]
) -> tuple[dict, int] | None:
    """The fitted example and the tokens that its prompt lost. One whose target is too long is added
    to the list, and truncated or left out (None).
    """
    truncates = fitting.with_target and fitting.args.long_targets == "truncate"
    found = fitting.fit(example)
    if found:
        row, lost = found
        return (
            row | {"truncated": False} if truncates else row
        ), lost  # all rows have the same columns
    if not fitting.with_target or replace(fitting, with_target=False).fit(example) is None:
        room = fitting.max_length - fitting.args.max_new_tokens
        raise InputError(
            f"{place}: the {room} tokens that max_new_tokens leaves do not hold the least of its "
            "prompt (what follows the last column, or a chat template with a system's turn); raise "
            "max_length"
        )
    long_targets.append((place, fitting.target_length(example)))
    if not truncates:
        return None
    shorter = fitting.truncate(example)
    if shorter is None:
        raise InputError(
            f"{place}: beside its prompt max_length {fitting.max_length} holds no token of its "
            "target; raise it, or take --long_targets drop"
        )
    return shorter


def _too_long(
    long_targets: list[tuple[str, int]], num_examples: int, max_length: int
) -> InputError:
    (place, tokens), *others = sorted(long_targets, key=lambda found: _as_numbered(found[0]))
    shown = ", ".join(name for name, _ in others[:3]) + (", ..." if len(others) > 3 else "")
    return InputError(
        f"{place}: its target has {tokens} tokens, which with EOS and a prompt do not fit into "
        f"{max_length}; so it is with {len(long_targets)} of {num_examples} "
        f"examples{f' (also {shown})' if others else ''}; raise max_length, or take --long_targets "
        "drop or truncate"
    )


def _as_numbered(place: str) -> list[tuple[int, str]]:
    """Sorts places by the numbers in them: line 9 comes before line 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", place)]


def supervised_rows(
    examples: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int, packing: str
) -> DatasetDict:
    """Rows of `input_ids`, `labels` (-100 but for targets and the EOS after each), `position_ids`,
    `num_tokens` (targets scored) and `num_bytes` (of the target texts).

    `bfd`: several examples share a row of `max_length`, none is cut and none attends to
    another (position ids restart). Unused space holds EOS under label -100. `none`: one example a
    row, of its own length, without position ids. Of a conversation each answer is a target.
    """
    return DatasetDict(
        {name: _rows(part, tokenizer, max_length, packing) for name, part in examples.items()}
    )


def _rows(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, packing: str
) -> Dataset:
    encoded = list(_encode(examples, tokenizer))
    sizes = [len(ids) for ids, _, _ in encoded]
    if (longest := max(sizes)) > max_length:
        i = sizes.index(longest)
        place = examples[i].get("place", f"example {i}")
        raise InputError(
            f"{place}: {longest} tokens with its answers are more than max_length {max_length}; "
            "raise it or leave the example out"
        )
    if packing == "none":
        return Dataset.from_list(
            [_row([example], len(example[0]), tokenizer.eos_token_id) for example in encoded]
        ).remove_columns("position_ids")
    return Dataset.from_list(
        [
            _row([encoded[i] for i in held], max_length, tokenizer.eos_token_id)
            for held in best_fit(sizes, max_length)
        ]
    )


def _row(encoded: list[tuple[list[int], list[int], int]], length: int, eos: int) -> dict:
    """Examples one after the other; positions restart with each, and run on over what stays
    unused.
    """
    ids = [token for ids, _, _ in encoded for token in ids]
    labels = [label for _, labels, _ in encoded for label in labels]
    unused = length - len(ids)
    *before, last = (len(ids) for ids, _, _ in encoded)
    positions = [at for size in (*before, last + unused) for at in range(size)]
    return {
        "input_ids": ids + [eos] * unused,
        "labels": labels + [IGNORED] * unused,
        "position_ids": positions,
        "num_tokens": sum(label != IGNORED for label in labels),
        "num_bytes": sum(size for *_, size in encoded),
    }


def _encode(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[int], int]]:
    """Ids, labels and bytes of the answers, for each example."""
    if "messages" in examples.column_names:
        for example in examples:
            yield _encode_chat(example, tokenizer)
        return
    truncated = (
        examples["truncated"][:]
        if "truncated" in examples.column_names
        else [False] * len(examples)
    )
    prompts = encode_prompts(examples["prompt"][:], tokenizer)
    targets = encode_continuations(examples["target"][:], tokenizer)
    for prompt, target, text, is_cut in zip(
        prompts, targets, examples["target"], truncated, strict=True
    ):
        ids = target if is_cut else [*target, tokenizer.eos_token_id]
        yield prompt + ids, [IGNORED] * len(prompt) + ids, len(text.encode())


def _encode_chat(
    example: dict, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int], int]:
    messages = example["messages"]
    chat = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    labels = [
        i if answer else IGNORED
        for i, answer in zip(chat["input_ids"], chat["assistant_masks"], strict=True)
    ]
    if example.get(
        "truncated"
    ):  # neither EOS nor what else the template lets the model write ends it
        end = len(next(encode_texts([example["prompt"] + messages[-1]["content"]], tokenizer)))
        labels[end:] = [IGNORED] * (len(labels) - end)
    return (
        chat["input_ids"],
        labels,
        sum(len(turn["content"].encode()) for turn in messages if turn["role"] == "assistant"),
    )
