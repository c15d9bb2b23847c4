"""A model's folder as a server has it: the model, its tokenizer, how it was taught to be asked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.data.tokenizer import load_pretrained_tokenizer
from hfscale.data.tokens import encode_prompts
from hfscale.generation.task_prompt import TaskPrompt, load_task_prompt
from hfscale.models import check_token_ids, context_limit, load_model
from hfscale.process import InputError
from hfscale.serving.batches import SharedBatch, batch_for
from hfscale.serving.engine import Engine, Piece, Text
from hfscale.serving.requests import Asked, RequestError
from hfscale.serving.turns import TurnsWriter
from hfscale.strict_yaml import read_limited
from hfscale.tasks.chat_templates import CHATML

WAYS_TO_TALK = (
    "ask /v1/completions to continue a text, or start the server with --chat_template chatml (or "
    "a Jinja file) to write turns for it all the same"
)


@dataclass
class ServedModel:
    """What is loaded once, and the engine that writes with it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: TaskPrompt | None
    engine: Engine
    turns: TurnsWriter
    created: int  # seconds since 1970
    context: int = field(init=False)

    def __post_init__(self):
        self.context = context_limit(self.model) or 2**31

    @property
    def can_chat(self) -> bool:
        """Whether it writes turns, or its task's template makes a prompt of one."""
        return self.tokenizer.chat_template is not None or self.has_task_template

    @property
    def has_task_template(self) -> bool:
        """Whether a template of its own makes its prompts."""
        return self.task is not None and self.task.prompt is not None

    def prompts(self, asked: Asked) -> list[str] | list[list[int]]:
        """What the model really sees: the texts after its templates, or the ids that were given.

        Raises RequestError: it cannot chat, or a prompt does not fit its template.
        """
        param = "messages" if asked.is_chat else "prompt"
        try:
            if asked.is_chat:
                return [self._of_turns(asked.values["messages"])]
            prompts = asked.values["prompt"]
            prompts = prompts if isinstance(prompts, list) else [prompts]
            if self.task is None or not self.has_task_template or asked.values.get("raw_prompt"):
                return prompts
            return [self.task.fill(one) if isinstance(one, str) else one for one in prompts]
        except InputError as error:
            raise RequestError(str(error), param=param) from None

    def _of_turns(self, messages: Sequence[dict[str, str]]) -> str:
        if self.tokenizer.chat_template is not None:
            return self.turns.write(messages)
        if self.task is not None and self.has_task_template:  # it knows no turns but this one
            return self.task.fill(messages[-1]["content"])
        raise RequestError(
            f"model {self.name}: its tokenizer has no chat template, so it was not taught to talk; "
            f"{WAYS_TO_TALK}",
            param="messages",
            code="no_chat_template",
        )

    def encode(self, prompt: str | list[int], *, is_written: bool) -> list[int]:
        """Its token ids. `is_written`: by a chat template, with all special tokens in it.

        Raises RequestError: it is empty and there is no token to begin with, or an id is unknown.
        """
        if isinstance(prompt, str):
            [ids] = encode_prompts([prompt], self.tokenizer, add_special_tokens=not is_written)
        else:
            ids = prompt
        try:
            if not ids:
                raise InputError("prompt: empty, and the tokenizer has no token to begin with")
            check_token_ids(self.model, ids, "prompt")
        except InputError as error:
            raise RequestError(str(error), param="prompt") from None
        return ids

    def is_written(self, asked: Asked) -> bool:
        """Whether a chat template writes the prompt."""
        return asked.is_chat and self.tokenizer.chat_template is not None

    def texts(self, asked: Asked, take: Callable[[int, Piece], None]) -> list[Text]:
        """The texts that a request asks for, `n` for each prompt; `take` gets the number of a text
        and its pieces.

        Raises RequestError: a prompt leaves no room in the context, or is not one for this model.
        """
        texts: list[Text] = []
        vocab_size = self.model.config.get_text_config().vocab_size
        for prompt in self.prompts(asked):
            ids = self.encode(prompt, is_written=self.is_written(asked))
            room = self.context - len(ids)
            if room < 1:
                raise RequestError(
                    f"the prompt has {len(ids)} tokens, which leaves no room in the model's "
                    f"context of {self.context}; shorten it to at most {self.context - 1}",
                    param="messages" if asked.is_chat else "prompt",
                    code="context_length_exceeded",
                )
            for choice in range(asked.num_choices):
                sampling = asked.sampling(self.task, choice)
                if max(sampling.logit_bias, default=0) >= vocab_size:
                    raise RequestError(
                        f"logit_bias: the model has token ids up to {vocab_size - 1}",
                        param="logit_bias",
                    )
                number = len(texts)
                texts.append(
                    Text(
                        ids,
                        min(asked.max_tokens(self.task), room),
                        asked.stop_strings(self.task),
                        sampling,
                        lambda piece, number=number: take(number, piece),  # type: ignore[misc]
                    )
                )
        return texts

    def describe(self) -> dict[str, Any]:
        """As GET /v1/models lists it; `max_model_len` is vLLM's name for the context."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "hfscale",
            "max_model_len": self.context,
            "can_chat": self.can_chat,
            "has_turns": self.tokenizer.chat_template is not None,
            "task_prompt": self.task.prompt if self.task else None,
        }


def load_served(
    name: str,
    *,
    device: torch.device,
    batch_size: int,
    chat_template: str | None,
    **loading: Any,
) -> ServedModel:
    """A model from a folder or Hub id, ready to write; `loading` goes to `load_model`.

    Raises InputError: as `load_model` and `load_pretrained_tokenizer`.
    """
    task = load_task_prompt(name)
    model = load_model(name, **loading).eval()
    model.to(device)  # type: ignore[arg-type]  # upstream wraps torch's method without its types
    trust = loading.get("trust_remote_code", False)
    tokenizer = load_pretrained_tokenizer(name, trust_remote_code=trust)
    if chat_template is not None and tokenizer.chat_template is None:
        tokenizer.chat_template = chat_template
    engine = Engine(model, tokenizer, batch_for(model), batch_size=batch_size)
    turns = TurnsWriter(tokenizer)
    if tokenizer.chat_template is not None:
        turns.begin()
    return ServedModel(name, model, tokenizer, task, engine, turns, created=int(time.time()))


def shares_steps(served: ServedModel) -> bool:
    """Whether its texts are written in one batch, not one by one."""
    return isinstance(served.engine.batch, SharedBatch)


def read_chat_template(chat_template: str | None) -> str | None:
    """The template that `--chat_template` names: chatml, or a Jinja file.

    Raises InputError: no such file.
    """
    if chat_template is None:
        return None
    if chat_template == "chatml":
        return CHATML
    path = Path(chat_template)
    if not path.is_file():
        raise InputError(
            f"--chat_template {chat_template}: no such file; give chatml or a Jinja file"
        )
    try:
        return read_limited(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--chat_template {chat_template}: cannot be read: {error}") from None
