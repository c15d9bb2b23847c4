"""The `Modelfile` that lies beside a GGUF, for `ollama create`."""

import re
from typing import Any

import jinja2
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.models import context_limit

CONTENT = "{{ .Content }}"  # a message's text in Ollama's templates
ROLES = ("system", "user", "assistant")
# A conversation on which a translated template is tried.
TRIAL = [
    {"role": "system", "content": "one"},
    {"role": "user", "content": "two three"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "five"},
]
OF_OLLAMA = re.compile(r'{{|}}|"""')  # which text in a template cannot have


def ollama_modelfile(
    file_name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Where the weights are, the context, at what a text ends, and how a conversation is written:
    Ollama has a template language of its own, into which the chat template is translated where each
    turn is written by itself.
    """
    lines = [f"FROM ./{file_name}"]
    if limit := context_limit(model):
        lines.append(f"PARAMETER num_ctx {limit}")
    lines.append(f"PARAMETER stop {_quoted(str(tokenizer.eos_token))}")
    template = "{{ .Prompt }}"
    if tokenizer.chat_template:
        translated = ollama_template(tokenizer)
        if translated is None:
            return "\n".join(
                [*lines, "# The chat template in the file says how turns are written."]
            )
        template = translated
    lines.append(f'TEMPLATE """{template}"""')
    return "\n".join(lines) + "\n"


def ollama_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template in Ollama's language; None: turns depend on each other, or some role has
    none.
    """
    try:
        turns = {role: _turn(tokenizer, role) for role in ROLES}
        opening = _write(tokenizer, TRIAL[:2])
        asked = _write(tokenizer, TRIAL[:2], add_generation_prompt=True)
        whole = _write(tokenizer, TRIAL, add_generation_prompt=True)
        first = _write(tokenizer, TRIAL[:1])
    except (jinja2.TemplateError, ValueError):  # it refuses a role, or an order of them
        return None
    if None in turns.values():
        return None
    written = [str(turns[m["role"]]).replace(CONTENT, m["content"]) for m in TRIAL]
    front = first.removesuffix(written[0])
    answer = asked.removeprefix(opening)
    if "".join([front, *written, answer]) != whole or OF_OLLAMA.search(whole):
        return None
    cases = [f'eq .Role "{role}" }}}}{turns[role]}{{{{ ' for role in ROLES]
    body = "{{ if " + "else if ".join(cases) + "end }}"
    return f"{front}{{{{ range .Messages }}}}{body}{{{{ end }}}}{answer}"


def _turn(tokenizer: PreTrainedTokenizerBase, role: str) -> str | None:
    """How a message is written after another one of each role, with `CONTENT` as its text; None: it
    depends on the other.
    """
    message = {"role": role, "content": CONTENT}
    written = set()
    for before in TRIAL[:3]:
        opening = _write(tokenizer, [before])
        whole = _write(tokenizer, [before, message])
        written.add(whole.removeprefix(opening) if whole.startswith(opening) else None)
    return written.pop() if len(written) == 1 else None


def _write(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **settings: Any
) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
