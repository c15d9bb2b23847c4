"""An example of a task in a given number of tokens: what is cut, in which order, and what is never
cut.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

from datasets import Dataset, DatasetDict
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.tokens import encode_continuations, encode_prompts
from hfscale.generation.prompts import CHAT_TEMPLATE
from hfscale.limited import each_limited
from hfscale.process import InputError
from hfscale.tasks.conversations import Message
from hfscale.tasks.examples import Counts
from hfscale.tasks.row_to_example import Example

SHOWN_PLACES = 3  # of targets that are too long, beside the first


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
    that took; `counts` takes those and what became of long targets (see `examples.COUNTED`).

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
    splits = {name: _fit_split(name, split, fitting) for name, split in examples.items()}
    long_targets = [item for split in splits.values() for item in split.long_targets]
    if long_targets and args.long_targets == "stop":
        raise _too_long(long_targets, sum(map(len, examples.values())), max_length)
    fitted = DatasetDict()
    shortened = {}
    for name, split in splits.items():
        if not split.rows:
            raise InputError(
                f"{name}: none of {len(examples[name])} examples is left, for all targets are too "
                f"long for max_length {max_length}; raise it, or take --long_targets truncate"
            )
        counts.setdefault(name, Counter()).update(
            shortened=split.num_shortened,
            truncated=sum(row.get("truncated", False) for row in split.rows),
            used=len(split.rows),
            long_target=len(examples[name]) - len(split.rows),
        )
        fitted[name] = Dataset.from_list(split.rows)
        shortened[name] = {"prompts": split.num_shortened, "tokens": split.lost_tokens}
    return fitted, shortened


@dataclass
class _FittedSplit:
    """What fits of a split's examples, and what that took."""

    rows: list[Example] = field(default_factory=list)
    num_shortened: int = 0  # prompts
    lost_tokens: int = 0  # of all prompts
    # Place and tokens of each target that does not fit.
    long_targets: list[tuple[str, int]] = field(default_factory=list)


def _fit_split(name: str, examples: Dataset, fitting: "Fitting") -> _FittedSplit:
    split = _FittedSplit()
    fit = partial(_fit_example, split_name=name, fitting=fitting)
    if "messages" in examples.column_names:  # a chat template computes what is written
        results = each_limited(fit, enumerate(examples), place=CHAT_TEMPLATE)
    else:
        results = map(fit, enumerate(examples))
    for row, lost, long_target in results:
        if long_target:
            split.long_targets.append(long_target)
        if row is None:
            continue
        split.rows.append(row)
        split.num_shortened += lost > 0
        split.lost_tokens += lost
    return split


def _fit_example(
    numbered: tuple[int, Example], split_name: str, fitting: "Fitting"
) -> tuple[Example | None, int, tuple[str, int] | None]:
    """The row of an example (None: its target does not fit), the tokens that its prompt lost, and
    place and tokens of a target that is too long.
    """
    i, example = numbered
    place = example.get("place", f"{split_name} example {i}")
    result = fitting.fit(example)
    if result is not None:
        row, lost = result
        if fitting.truncates:
            row = row | {"truncated": False}  # all rows have the same columns
        return row, lost, None
    _check_prompt_fits(place, example, fitting)
    long_target = (place, fitting.target_length(example))
    if not fitting.truncates:
        return None, 0, long_target
    row, lost = _truncate(place, example, fitting)
    return row, lost, long_target


def _check_prompt_fits(place: str, example: Example, fitting: "Fitting") -> None:
    """Raise InputError where not the target is too long but the least of the prompt."""
    if fitting.with_target and replace(fitting, with_target=False).fit(example) is not None:
        return
    room = fitting.max_length - fitting.args.max_new_tokens
    raise InputError(
        f"{place}: the {room} tokens that max_new_tokens leaves do not hold the least of its "
        "prompt (what follows the last column, or a chat template with a system's turn); raise "
        "max_length"
    )


def _truncate(place: str, example: Example, fitting: "Fitting") -> tuple[Example, int]:
    result = fitting.truncate(example)
    if result is None:
        raise InputError(
            f"{place}: beside its prompt max_length {fitting.max_length} holds no token of its "
            "target; raise it, or take --long_targets drop"
        )
    return result


def _too_long(
    long_targets: list[tuple[str, int]], num_examples: int, max_length: int
) -> InputError:
    ranked = sorted(long_targets, key=lambda item: _numbers_in(item[0]))
    place, tokens = ranked[0]
    next_places = [name for name, _ in ranked[1:]]
    also = ""
    if next_places:
        shown = ", ".join(next_places[:SHOWN_PLACES])
        dots = ", ..." if len(next_places) > SHOWN_PLACES else ""
        also = f" (also {shown}{dots})"
    return InputError(
        f"{place}: its target has {tokens} tokens, which with EOS and a prompt do not fit into "
        f"{max_length}; so it is with {len(long_targets)} of {num_examples} examples{also}; raise "
        "max_length, or take --long_targets drop or truncate"
    )


def _numbers_in(place: str) -> list[tuple[int, str]]:
    """Sorts places by the numbers in them: line 9 comes before line 10."""
    words = re.split(r"(\d+)", place)
    return [(int(word), "") if word.isdigit() else (0, word) for word in words]


@dataclass(frozen=True)
class Fitting:
    """How examples are fitted into `max_length` tokens: to be answered, or with their targets to be
    trained on.
    """

    tokenizer: PreTrainedTokenizerBase
    args: TaskArguments
    max_length: int
    with_target: bool

    @property
    def truncates(self) -> bool:
        """Whether targets that are too long lose their end."""
        return self.with_target and self.args.long_targets == "truncate"

    def fit(self, example: Example) -> tuple[Example, int] | None:
        """The example with the longest prompt that fits and the number of tokens that the prompt
        lost; None: not even the least of it fits. A conversation's prompt is written here.
        """
        whole_size = 0
        size = 0
        candidate = example
        for candidate in self._without_oldest_turns(example):
            size = self._prompt_length(candidate)
            whole_size = whole_size or size
            if size <= self._room(candidate):
                return candidate, whole_size - size
        room = self._room(candidate)
        if "messages" in example and not example.get("truncated"):
            # The last question is not cut for the sake of a long answer.
            room = self.max_length - self.args.max_new_tokens
        candidate, size = self._shorten_question(candidate, size, room)
        if size > self._room(candidate):
            return None
        return candidate, whole_size - size

    def truncate(self, example: Example) -> tuple[Example, int] | None:
        """As `fit`, with as much of the target as there is room for beside a prompt that leaves
        some for `max_new_tokens`, and no EOS after that; None: that is nothing.
        """
        whole = example["target"]
        over = self._target_length(whole) - self.args.max_new_tokens
        beginning = self._cut(whole, over, "end") if over > 0 else whole
        result = self.fit(_with_target(example, beginning) | {"truncated": True})
        if result is None:
            return None
        row, lost = result
        target = whole
        while target.strip():
            candidate = _with_target(row, target)
            size = self._prompt_length(row) + self._answer_length(candidate)
            if size <= self.max_length:
                return candidate, lost
            target = self._cut(target, size - self.max_length, "end")
        return None

    def target_length(self, example: Example) -> int:
        """Tokens of the target."""
        return self._target_length(example["target"])

    # ---- lengths, in tokens

    def _room(self, example: Example) -> int:
        """Tokens that the prompt may take."""
        answer = self._answer_length(example) if self.with_target else 0
        return self.max_length - max(self.args.max_new_tokens, answer)

    def _answer_length(self, example: Example) -> int:
        """Tokens of all that comes after the prompt in a row to train on."""
        if "messages" in example:
            encoded = self.tokenizer.apply_chat_template(example["messages"], return_dict=True)
            whole = cast(BatchEncoding, encoded)["input_ids"]
            return len(whole) - self._prompt_length(example)
        num_eos = 0 if example.get("truncated") else 1
        return self._target_length(example["target"]) + num_eos

    def _prompt_length(self, example: Example) -> int:
        """Tokens of the prompt, with those that the tokenizer puts in front unless a chat template
        wrote them.
        """
        is_chat = "messages" in example
        [ids] = encode_prompts([example["prompt"]], self.tokenizer, add_special_tokens=not is_chat)
        return len(ids)

    def _target_length(self, target: str) -> int:
        return len(next(encode_continuations([target], self.tokenizer)))

    # ---- shorter candidates

    def _without_oldest_turns(self, example: Example) -> Iterator[Example]:
        """With all turns, then without the oldest question and answer, down to the last; a system's
        turn stays. A plain example as it is.
        """
        if "messages" not in example:
            yield example
            return
        messages = example["messages"]
        num_system = 1 if messages[0]["role"] == "system" else 0
        while len(messages) >= num_system + 2:
            yield self._with_messages(example, messages)
            messages = messages[:num_system] + messages[num_system + 2 :]

    def _with_messages(self, example: Example, messages: list[Message]) -> Example:
        """The example with these turns, and the prompt before its last answer as the chat template
        writes it.
        """
        prompt = self.tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        return example | {"prompt": prompt, "messages": messages}

    def _shorten_question(self, example: Example, size: int, room: int) -> tuple[Example, int]:
        """The example with less of its question, and the tokens of its prompt: at most `room`, if
        the rest of the prompt allows that.
        """
        question = self._question(example)
        # A text that was cut can take more tokens than were left of it: once is not enough.
        while size > room and question:
            question = self._cut(question, size - room, self.args.truncation_side)
            if question.strip():
                example = self._with_question(example, question)
                size = self._prompt_length(example)
        return example, size

    def _question(self, example: Example) -> str:
        """What of the prompt may be cut."""
        if "messages" in example:
            return example["messages"][-2]["content"]
        return example["prompt"].removesuffix(self._cue(example["prompt"]))

    def _with_question(self, example: Example, question: str) -> Example:
        if "messages" in example:
            *before, last_question, answer = example["messages"]
            messages = [*before, last_question | {"content": question}, answer]
            return self._with_messages(example, messages)
        return example | {"prompt": question + self._cue(example["prompt"])}

    def _cue(self, prompt: str) -> str:
        """What the prompt has after its last column, such as "Answer:", and keeps when its end is
        cut.
        """
        template = self.args.prompt
        if not template or self.args.truncation_side != "right":
            return ""
        cue = template[template.rfind("}") + 1 :]
        return cue if prompt.endswith(cue) else cue.rstrip(" ")  # as it is before choices

    def _cut(self, text: str, num_tokens: int, side: str) -> str:
        """The text without so many tokens at its left or right end, and by at least one
        character shorter.
        """
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        spans = encoded["offset_mapping"]
        num_cut = min(max(1, num_tokens), len(spans))
        if side == "left":
            start = spans[num_cut - 1][1]
            return text[max(1, start) :]
        end = spans[-num_cut][0]
        return text[: min(len(text) - 1, end)]


def _with_target(example: Example, target: str) -> Example:
    if "messages" not in example:
        return example | {"target": target}
    *before, answer = example["messages"]
    return example | {"target": target, "messages": [*before, answer | {"content": target}]}
