"""The chat template with which a tokenizer writes conversations, and what it has to mark."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hfscale.data.tokens import leading_ids
from hfscale.generation.prompts import write_turns
from hfscale.process import InputError
from hfscale.strict_yaml import read_limited

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
    if chat_template == "chatml":
        leading = _write_tokens(leading_ids(tokenizer), tokenizer)
        tokenizer.chat_template = leading + CHATML
    elif chat_template is not None:
        path = Path(chat_template)
        if not path.is_file():
            raise InputError(
                f"chat_template {chat_template}: no such file; give chatml or a Jinja file"
            )
        try:
            tokenizer.chat_template = read_limited(path)
        except (OSError, ValueError) as error:
            raise InputError(f"chat_template {chat_template}: cannot be read: {error}") from None
    if tokenizer.chat_template is None:
        raise InputError(
            "the tokenizer has no chat template, which conversations need; give --chat_template "
            "chatml or a Jinja file (prompts and targets can also go without: give templates for "
            "both)"
        )
    template = tokenizer.chat_template
    if not isinstance(template, str):  # several, by name
        template = template.get("default", "")
    if "{% generation %}" not in template.replace("{%-", "{%"):
        raise InputError(
            "the chat template does not mark the answers with {% generation %} ... {% "
            "endgeneration %}, so their tokens cannot be told; mark them, or give --chat_template "
            "chatml"
        )


def _write_tokens(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Special tokens as a chat template writes them: a conversation gets none but those of its
    template.
    """
    tokens = "".join(tokenizer.convert_ids_to_tokens(ids))
    return f"{{{{- {json.dumps(tokens)} }}}}" if tokens else ""


def add_template_characters(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a new tokenizer the characters that the chat template writes and it does not know: one
    of characters has those of the conversations alone, and role names and marks would all be the
    unknown token.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:  # GPT-2's stands for nothing
        return
    turns = [{"role": role, "content": ""} for role in ("system", "user", "assistant")]
    missing = [
        character
        for character in sorted(set(write_turns(turns, tokenizer)))
        if unknown in tokenizer(character, add_special_tokens=False)["input_ids"]
    ]
    tokenizer.add_tokens(missing)
