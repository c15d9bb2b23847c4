"""An example of a task in a given number of tokens: what is cut, in which order, and what is never
cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from hfscale.arguments import TaskArguments
from hfscale.data.tokens import encode_continuations, encode_prompts

Example: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Fitting:
    """How examples are fitted into `max_length` tokens: to be answered, or with their targets to be
    trained on.
    """

    tokenizer: PreTrainedTokenizerBase
    args: TaskArguments
    max_length: int
    with_target: bool

    def fit(self, example: Example) -> tuple[Example, int] | None:
        """The example with the longest prompt that fits and the number of tokens that the prompt
        lost; None: not even the least of it fits. A conversation's prompt is written here.
        """
        turns = self._without_oldest_turns(example) if "messages" in example else iter([example])
        whole_size = size = room = 0
        for candidate in turns:
            size, room = self._prompt_length(candidate), self._room(candidate)
            whole_size = whole_size or size
            if size <= room:
                return candidate, whole_size - size
        if "messages" in example and not example.get("truncated"):
            # The last question is not cut for the sake of a long answer.
            room = self.max_length - self.args.max_new_tokens
        question = self._question(candidate)
        while size > room and question:  # a text that was cut can take more tokens than were left
            question = self._cut(question, size - room, self.args.truncation_side)
            if question.strip():
                candidate = self._with_question(candidate, question)
                size = self._prompt_length(candidate)
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
        found = self.fit(_with_target(example, beginning) | {"truncated": True})
        if found is None:
            return None
        row, lost = found
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

    def _room(self, example: Example) -> int:
        """Tokens that the prompt may take."""
        answer = self._answer_length(example) if self.with_target else 0
        return self.max_length - max(self.args.max_new_tokens, answer)

    def _answer_length(self, example: Example) -> int:
        """Tokens of all that comes after the prompt in a row to train on."""
        if "messages" in example:
            whole = self.tokenizer.apply_chat_template(example["messages"], return_dict=True)
            return len(whole["input_ids"]) - self._prompt_length(example)
        return self._target_length(example["target"]) + (not example.get("truncated"))  # EOS

    def _prompt_length(self, example: Example) -> int:
        """Tokens of the prompt, with those that the tokenizer puts in front unless a chat template
        wrote them.
        """
        is_chat = "messages" in example
        [ids] = encode_prompts([example["prompt"]], self.tokenizer, add_special_tokens=not is_chat)
        return len(ids)

    def _target_length(self, target: str) -> int:
        return len(next(encode_continuations([target], self.tokenizer)))

    def _without_oldest_turns(self, example: Example) -> Iterator[Example]:
        """With all turns, then without the oldest question and answer, down to the last; a system's
        turn stays.
        """
        messages = example["messages"]
        first = messages[0]["role"] == "system"
        while len(messages) >= 2 + first:
            yield self._written(example, messages)
            messages = messages[:first] + messages[first + 2 :]

    def _written(self, example: Example, messages: list[dict[str, str]]) -> Example:
        """The example with these turns, and the prompt before its last answer as the chat template
        writes it.
        """
        prompt = self.tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        return example | {"prompt": prompt, "messages": messages}

    def _question(self, example: Example) -> str:
        """What of the prompt may be cut."""
        if "messages" in example:
            return example["messages"][-2]["content"]
        return example["prompt"].removesuffix(self._cue(example["prompt"]))

    def _with_question(self, example: Example, question: str) -> Example:
        if "messages" in example:
            *before, asked, answer = example["messages"]
            return self._written(example, [*before, asked | {"content": question}, answer])
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
        drop = min(max(1, num_tokens), len(spans))
        if side == "left":
            return text[max(1, spans[drop - 1][1]) :]
        return text[: min(len(text) - 1, spans[-drop][0])]


def _with_target(example: Example, target: str) -> Example:
    if "messages" not in example:
        return example | {"target": target}
    *before, answer = example["messages"]
    return example | {"target": target, "messages": [*before, answer | {"content": target}]}
