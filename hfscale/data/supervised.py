"""Prompt and target -> rows in which only the target, and the EOS after it, carries loss."""

from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfscale.config import InputError, TaskArguments
from hfscale.data.packing import IGNORED, best_fit, collate_rows, encode_texts

# ChatML, with the answers marked for the loss and ended by EOS, at which generation stops.
CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Give the tokenizer `chatml` (see `CHATML`) or the template in a file; None: it keeps its own. It is saved with
    the tokenizer.

    Raises InputError: none given and the tokenizer has none, no such file, or it does not mark the answers.
    """
    if chat_template is not None and chat_template != "chatml" and not Path(chat_template).is_file():
        raise InputError(f"chat_template {chat_template}: no such file; give chatml or a Jinja file")
    if chat_template is not None:
        tokenizer.chat_template = CHATML if chat_template == "chatml" else Path(chat_template).read_text("utf-8")
    if tokenizer.chat_template is None:
        raise InputError("the tokenizer has no chat template, which conversations need; give --chat_template chatml "
                         "or a Jinja file")
    if "{% generation %}" not in tokenizer.chat_template.replace("{%-", "{%"):
        raise InputError("the chat template does not mark the answers with {% generation %} ... {% endgeneration %}, "
                         "so their tokens cannot be told; mark them, or give --chat_template chatml")


def fit_examples(examples: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: TaskArguments,
                 max_length: int) -> tuple[DatasetDict, dict[str, dict[str, int]]]:
    """Examples whose prompt leaves room for `max_new_tokens`, and for target and EOS, in `max_length` tokens.

    What is too long is cut by `args.shorten`: tokens at the prompt's start, or at its end but for what the template
    has after its last column; of a conversation the oldest turns (after a system's). The target is never cut. The
    prompt of a conversation is written here, in the chat template.

    Returns the examples, and for each split how many `prompts` were shortened and how many `tokens` that took.

    Raises InputError: a target that does not fit, or that more than the whole prompt would have to go.
    """
    if not 1 <= args.max_new_tokens < max_length:
        raise InputError(f"max_new_tokens: got {args.max_new_tokens}; expected at least 1 and, to leave room for a "
                         f"prompt, less than max_length {max_length}")
    fitted, counts = DatasetDict(), {}
    for name, part in examples.items():
        targets, rows, cut = encode_texts(part["target"][:], tokenizer), [], []
        for i, (example, target) in enumerate(zip(part, targets, strict=True)):
            room = max_length - max(args.max_new_tokens, len(target) + 1)
            if room < 1:
                raise InputError(f"{name} example {i}: its target has {len(target)} tokens, which with EOS and a "
                                 f"prompt do not fit into {max_length}; it is never cut: raise max_length or leave "
                                 "the example out")
            shorter = _chats(example, tokenizer) if "messages" in example else _prompts(example, tokenizer, room, args)
            sizes = []
            for row in shorter:
                sizes.append(_length(row["prompt"], tokenizer))
                if sizes[-1] <= room:
                    break
            else:
                raise InputError(f"{name} example {i}: the {room} tokens beside its answer do not hold the least of "
                                 "its prompt (what follows the last column, or the last turn); raise max_length")
            rows.append(row)
            cut.append(sizes[0] - sizes[-1])
        fitted[name] = Dataset.from_list(rows)
        counts[name] = {"prompts": sum(tokens > 0 for tokens in cut), "tokens": sum(cut)}
    return fitted, counts


def _prompts(example: dict, tokenizer: PreTrainedTokenizerBase, room: int, args: TaskArguments) -> Iterator[dict]:
    """The example, then with ever shorter prompts: a text that was cut can take more tokens than were left of it."""
    yield example
    cue = args.prompt[args.prompt.rfind("}") + 1:] if args.prompt and args.shorten == "end" else ""
    if not example["prompt"].endswith(cue):
        cue = cue.rstrip(" ")  # before a choice
    body = example["prompt"].removesuffix(cue)
    while body:
        spans = tokenizer(body, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        drop = min(_length(body + cue, tokenizer) - room, len(spans))
        body = (body[max(1, spans[drop - 1][1]):] if args.shorten == "start" else
                body[:min(len(body) - 1, spans[-drop][0])])
        if body:
            yield example | {"prompt": body + cue}


def _chats(example: dict, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict]:
    """The example with its prompt written, then without its oldest turns, down to the last question."""
    messages, first = example["messages"], example["messages"][0]["role"] == "system"
    while len(messages) >= 2 + first:
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        yield example | {"prompt": prompt, "messages": messages}
        messages = messages[:first] + messages[first + 2:]


def _length(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(next(encode_texts([text], tokenizer)))


def supervised_rows(examples: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int,
                    packing: str) -> DatasetDict:
    """Rows of `input_ids`, `labels` (-100 but for targets and the EOS after each), `position_ids`, `num_tokens`
    (targets scored) and `num_bytes` (of the target texts).

    `best_fit`: several examples share a row of `max_length`, none is cut and none attends to another (position ids
    restart). Unused space holds EOS under label -100. `pad`: one example a row, of its own length, for
    `collate_padded`. Of a conversation each answer is a target.
    """
    return DatasetDict({name: _rows(part, tokenizer, max_length, packing) for name, part in examples.items()})


def _rows(examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, packing: str) -> Dataset:
    encoded = list(_encode(examples, tokenizer))
    sizes = [len(ids) for ids, _, _ in encoded]
    if (longest := max(sizes)) > max_length:
        raise InputError(f"example {sizes.index(longest)}: {longest} tokens with its answers are more than max_length "
                         f"{max_length}; raise it or leave the example out")
    if packing == "pad":
        return Dataset.from_list([_row([example], len(example[0]), tokenizer.eos_token_id) for example in encoded])
    return Dataset.from_list([_row([encoded[i] for i in held], max_length, tokenizer.eos_token_id)
                              for held in best_fit(sizes, max_length)])


def _row(encoded: list[tuple[list[int], list[int], int]], length: int, eos: int) -> dict:
    """Examples one after the other; positions restart with each, and run on over what stays unused."""
    ids = [token for ids, _, _ in encoded for token in ids]
    labels = [label for _, labels, _ in encoded for label in labels]
    unused = length - len(ids)
    *before, last = (len(ids) for ids, _, _ in encoded)
    positions = [at for size in (*before, last + unused) for at in range(size)]
    return {"input_ids": ids + [eos] * unused, "labels": labels + [IGNORED] * unused, "position_ids": positions,
            "num_tokens": sum(label != IGNORED for label in labels), "num_bytes": sum(size for *_, size in encoded)}


def collate_padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of rows of different length, rows x longest: filled on the right, which no earlier token attends to, so
    that, as for packed rows, there is no attention mask. No label is hidden."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(row: dict) -> dict:
        n = longest - len(row["input_ids"])
        return {"input_ids": row["input_ids"] + row["input_ids"][-1:] * n, "labels": row["labels"] + [IGNORED] * n,
                "position_ids": list(range(longest))}

    return collate_rows([filled(row) for row in rows])


def _encode(examples: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], list[int], int]]:
    """Ids, labels and bytes of the answers, for each example."""
    if "messages" in examples.column_names:
        for messages in examples["messages"]:
            chat = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            labels = [i if answer else IGNORED
                      for i, answer in zip(chat["input_ids"], chat["assistant_masks"], strict=True)]
            yield chat["input_ids"], labels, sum(len(turn["content"].encode()) for turn in messages
                                                 if turn["role"] == "assistant")
        return
    prompts, targets = (encode_texts(examples[name][:], tokenizer) for name in ("prompt", "target"))
    for prompt, target, text in zip(prompts, targets, examples["target"], strict=True):
        ids = [*target, tokenizer.eos_token_id]
        yield prompt + ids, [IGNORED] * len(prompt) + ids, len(text.encode())
