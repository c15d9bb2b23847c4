"""A model as one HTML file that writes text in a browser: the files of its folder, and a forward
pass in JavaScript (`page/`), in one page that needs no network.
"""

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.data.tokenizer import load_pretrained_tokenizer
from hfscale.data.tokens import encode_prompts, leading_ids, start_ids
from hfscale.export.gguf_shapes import SHAPES, check_fields
from hfscale.export.runners import TorchRunner
from hfscale.folders import write_atomically
from hfscale.generation.prompts import asker
from hfscale.generation.task_prompt import TaskPrompt, load_task_prompt
from hfscale.generation.texts import end_ids
from hfscale.models import load_model
from hfscale.process import InputError

PAGE = "model.html"
PARTS = Path(__file__).with_name("page")
SCRIPTS = ("gpt2.js", "tokenizer.js", "page.js")
WEIGHTS = "model.safetensors"
MOST_BYTES = 30_000_000  # of the page; a browser takes more, a mailbox does not
BYTES = {"f32": 4, "f16": 2}  # of a weight
# On which a browser shows that it does what Python does.
PROOF_TEXTS = ("The ", "\n\n  1234 naïve café, 日本語 😀", "def it's(x):\n\treturn x")
PROOF_TOKENS = 32
TYPED = "\ue000"  # stands for what a user types; no text that people use has it


def check_as_page(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, outtype: str) -> None:
    """Raise InputError for what the page's JavaScript does not compute, or what is too large."""
    kind = model.config.model_type
    if kind != "gpt2":
        raise InputError(
            f"to html: models of the kind {kind} are not written, only gpt2; --to onnx takes others"
        )
    check_fields(model.config, SHAPES[kind].only, "to html", "the page")
    num_bytes = model.num_parameters() * BYTES[outtype] * 4 // 3
    if num_bytes > MOST_BYTES:
        smaller = "; --outtype f16 halves it" if outtype == "f32" else ""
        raise InputError(
            f"to html: {model.num_parameters():,} parameters are a page of "
            f"{num_bytes / 1e6:.0f} MB, allowed are {MOST_BYTES / 1e6:.0f}{smaller}; --to onnx "
            "takes any size"
        )
    _check_tokenizer(tokenizer, model.config.vocab_size)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    if not tokenizer.is_fast:
        raise _cannot(f"{type(tokenizer).__name__} has no tokenizer.json")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = state["added_tokens"]
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _cannot(f"its token {token['content']!r} takes the spaces or words around it")
    if state["normalizer"]:
        raise _cannot(f"it changes text first ({state['normalizer']['type']})")
    if not (_is_bytes(state) or _is_characters(state)):
        raise _cannot(f"it is {state['model']['type']} with another split into words")
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise InputError(
            f"to html: the tokenizer's id {largest} is outside the model's vocabulary of "
            f"{vocab_size}; give the tokenizer that the model was trained with"
        )


def _is_bytes(state: dict[str, Any]) -> bool:
    """Byte-level BPE with GPT-2's split."""
    split = state["pre_tokenizer"] or {}
    model = state["model"]
    marks = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout")
    is_plain = not any(model.get(name) for name in (*marks, "ignore_merges"))
    is_split = split.get("type") == "ByteLevel" and split["use_regex"]
    return model["type"] == "BPE" and is_plain and is_split and not split["add_prefix_space"]


def _is_characters(state: dict[str, Any]) -> bool:
    """As `train_char` makes it."""
    split = state["pre_tokenizer"] or {}
    is_split = split.get("type") == "Split" and split["pattern"] == {"Regex": r"[\s\S]"}
    return state["model"]["type"] == "WordLevel" and is_split


def write_page(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Write `PAGE` into the folder.

    Args:
        folder: a `task.json` in it says how prompts are asked.
        model: in the type in which its weights are to lie in the page.
        name: of the model, which the page shows.
    """
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        weights = Path(place, WEIGHTS).read_bytes()
        others = (path for path in Path(place).iterdir() if path.name != WEIGHTS)
        files = {path.name: path.read_text("utf-8") for path in sorted(others) if path.is_file()}
    task = load_task_prompt(str(folder))
    if task is None and tokenizer.chat_template:
        task = TaskPrompt(prompt=None, columns=[], stop_strings=[], max_new_tokens=0)
    facts = {
        "name": name,
        "card": _card(model),
        "leading_ids": leading_ids(tokenizer),
        "start_ids": start_ids(tokenizer),
        "eos_ids": end_ids(model, tokenizer),
        "is_chat": task is not None and task.prompt is None,  # then the text has all its specials
        "asked": _asked(task, tokenizer),
        "proof": list(_proof(model, tokenizer)),
        "files": files,
    }
    script = "\n".join((PARTS / part).read_text("utf-8") for part in SCRIPTS)
    style = (PARTS / "page.css").read_text("utf-8")
    values = {
        "script_hash": _digest(script),
        "style_hash": _digest(style),
        "style": style,
        "script": script,
        "facts": json.dumps(facts).replace("<", "\\u003c"),  # no text in it can end the element
        "weights": base64.b64encode(weights).decode("ascii"),
    }
    page = (PARTS / "page.html").read_text("utf-8")
    text = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], page)
    write_atomically(folder / PAGE, text)


def read_page(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32 and tokenizer of the files that lie in the page."""
    page = (folder / PAGE).read_text("utf-8")
    facts = json.loads(_element(page, "facts-json"))
    with tempfile.TemporaryDirectory() as place:
        for name, text in facts["files"].items():
            Path(place, name).write_text(text, "utf-8")
        Path(place, WEIGHTS).write_bytes(base64.b64decode(_element(page, "weights")))
        model = load_model(place, dtype=torch.float32)
        return model, load_pretrained_tokenizer(place)


def _element(page: str, name: str) -> str:
    _, _, behind = page.partition(f'id="{name}">')
    return behind.partition("</script>")[0]


def _digest(text: str) -> str:
    """By which a page's policy knows its own script and style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _card(model: PreTrainedModel) -> list[tuple[str, str]]:
    config = model.config
    return [
        ("parameters", f"{model.num_parameters():,}"),
        ("layers, heads, width", f"{config.n_layer}, {config.n_head}, {config.n_embd}"),
        ("context", f"{config.n_positions:,} tokens"),
        ("vocabulary", f"{config.vocab_size:,} tokens"),
        ("weights", str(model.dtype).removeprefix("torch.")),
    ]


def _asked(task: TaskPrompt | None, tokenizer: PreTrainedTokenizerBase) -> list[str] | None:
    """What stands before and after the text that a user types, as the model was taught to be asked;
    None: nothing, or it wants more than one text.
    """
    if task is None:
        return None
    try:
        whole = asker(task, tokenizer)(TYPED)
    except InputError:
        return None
    before, typed, after = whole.partition(TYPED)
    return [before, after] if typed and TYPED not in after else None


def _proof(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
    """Texts, their ids, and the likeliest ids behind them."""
    runner = TorchRunner(model.float())
    for text in PROOF_TEXTS:
        [ids] = encode_prompts([text], tokenizer)
        count = min(PROOF_TOKENS, model.config.n_positions - len(ids))
        if count > 0:
            next_ids = runner.continue_greedily(torch.tensor([ids]), count)[0]
            yield {"text": text, "ids": ids, "next_ids": next_ids.tolist()}


def _cannot(reason: str) -> InputError:
    return InputError(
        f"to html: the tokenizer is none that the page can run: {reason}; it runs byte-level BPE, "
        "as --tokenizer train:8192 makes it, and char; --to onnx takes any"
    )
