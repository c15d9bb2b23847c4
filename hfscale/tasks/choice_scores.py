"""Multiple choice by likelihood: each choice is scored as it follows the prompt."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.data.tokens import after_once, encode_texts, leading_ids, start_ids
from hfscale.metrics.batches import Journal
from hfscale.metrics.perplexity import Window, score_windows
from hfscale.metrics.texts import tied_accuracies
from hfscale.models import check_token_ids, context_limit
from hfscale.process import InputError
from hfscale.tasks.choices import spaced_choice


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    *,
    batch_size: int = 8,
    journal: Journal | None = None,
    progress: bool = False,
) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
    """Multiple choice by the log-likelihood of each of `choices` after `prompt`: what the metric
    `accuracy` takes (see `choice_statistics`), and per example {"logliks" (nats), "tied",
    "cut_tokens"} (see `tied_accuracies`).

    As lm-eval does it: prompt and choice are encoded together with a space between them unless one
    has white space there or there is no prompt, spaces at the prompt's end belong to the choice,
    what the tokenizer puts in front of a text stands in front, and what exceeds the context is cut
    from the left.

    Raises InputError: an empty choice, or a token id outside the model's vocabulary.
    """
    _check_choices(examples)
    windows, cut_tokens = _choice_windows(tokenizer, examples, context_limit(model))
    largest_ids = (window.ids.max() for window in windows)
    check_token_ids(model, largest_ids, f"tokenizer of {len(tokenizer)} tokens")
    nll = _score_once(model, windows, batch_size, journal=journal, progress=progress)

    sizes = [len(choices) for choices in examples["choices"]]
    logliks = _per_example((-value for value in nll), sizes)
    num_tokens = _per_example((len(window.ids) - window.first for window in windows), sizes)
    num_bytes = [
        [len(choice.lstrip().encode()) for choice in choices] for choices in examples["choices"]
    ]
    records = []
    for i, cut in enumerate(_per_example(cut_tokens, sizes)):
        tied = tied_accuracies(logliks[i], num_tokens[i], num_bytes[i])
        records.append({"logliks": logliks[i], "tied": tied, "cut_tokens": max(cut)})
    inputs = {
        "logliks": logliks,
        "tokens": num_tokens,
        "num_bytes": num_bytes,
        "answers": examples["answer"][:],
    }
    return inputs, records


def _check_choices(examples: Dataset) -> None:
    for i, choices in enumerate(examples["choices"]):
        if not choices or not all(choice.strip() for choice in choices):
            raise InputError(
                f"accuracy: item {i} has the choices {choices!r}; expected texts that are not empty"
            )


def _choice_windows(
    tokenizer: PreTrainedTokenizerBase, examples: Dataset, max_length: int | None
) -> tuple[list[Window], list[int]]:
    """A window for each choice of each example, which scores the choice's tokens, and how many
    tokens it lost on its left.
    """
    prompts = []
    whole_texts = []
    for prompt, choices in zip(examples["prompt"], examples["choices"], strict=True):
        for choice in choices:
            prompts.append(prompt.rstrip())
            whole_texts.append(prompt + spaced_choice(prompt, choice))
    encoded = zip(
        encode_texts(whole_texts, tokenizer), encode_texts(prompts, tokenizer), strict=True
    )
    leading = leading_ids(tokenizer)
    start = start_ids(tokenizer)
    windows = []
    cut_tokens = []
    for number, (whole, prompt_ids) in enumerate(encoded):
        has_context = prompt_ids and len(whole) > 1
        ids = np.array(after_once(leading if has_context else start, whole))
        # The last token is predicted, not read: one more than the context fits.
        cut = max(0, len(ids) - 1 - max_length) if max_length else 0
        num_before = len(ids) - len(whole) + len(prompt_ids)
        first = min(num_before, len(ids) - 1) - cut
        windows.append(Window(ids[cut:], max(1, first), number))
        cut_tokens.append(cut)
    return windows, cut_tokens


def _per_example(values: Iterable[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """One value per choice, as a list for each example."""
    remaining = iter(values)
    return [list(islice(remaining, size)) for size in sizes]


def _score_once(
    model: PreTrainedModel,
    windows: Sequence[Window],
    batch_size: int,
    *,
    journal: Journal | None,
    progress: bool,
) -> list[float]:
    """As `score_windows`, equal ones only once: in another batch the same tokens can have another
    rounding error, and equal choices would not tie.
    """
    numbers: dict[tuple[int, bytes], int] = {}
    unique: list[Window] = []
    number_of_window = []
    for window in windows:
        key = (window.first, window.ids.tobytes())
        if key not in numbers:
            numbers[key] = len(unique)
            unique.append(window)
        number_of_window.append(numbers[key])
    nll = score_windows(model, unique, batch_size, journal=journal, progress=progress)
    return [nll[number] for number in number_of_window]
