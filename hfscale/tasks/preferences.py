"""Pairs of a better and a worse answer to a prompt, from JSON lines or made here, split into train
and validation.
"""

import itertools
import random
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfscale.data.files import find_files, read_rows
from hfscale.data.splits import split_documents
from hfscale.data.tokens import encode_continuations, encode_prompts
from hfscale.process import InputError
from hfscale.tasks.sample_data import load_sample_data

COLUMNS = ("prompt", "chosen", "rejected")
MADE_PAIRS = 400  # of 450 that there are, and enough for the recipe to show an effect


def load_preferences(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    validation_fraction: float,
    seed: int,
) -> tuple[DatasetDict, int]:
    """`train` and `validation` pairs with the columns prompt, chosen, rejected, text (all three),
    num_tokens and num_bytes of both answers; and how many pairs were left out because prompt and
    answer exceed `max_length` tokens.

    `source` is `embedded:preferences` (see `made_pairs`) or .jsonl files, also as .gz or .zst.

    Raises InputError: nothing there; with file and line, wrong JSON, a column that is missing, not
    text or empty, two equal answers; fewer than two pairs that fit.
    """
    pairs = made_pairs(seed) if source == "embedded:preferences" else _read_pairs(source)
    kept = []
    for pair in pairs:
        ids = pair_ids(pair, tokenizer)
        num_chosen = len(ids["chosen_ids"])
        num_rejected = len(ids["rejected_ids"])
        if len(ids["prompt_ids"]) + max(num_chosen, num_rejected) > max_length:
            continue
        answers = pair["chosen"] + pair["rejected"]
        sizes = {
            "text": pair["prompt"] + answers,
            "num_tokens": num_chosen + num_rejected,
            "num_bytes": len(answers.encode()),
        }
        kept.append(pair | sizes)
    if len(kept) < 2:
        raise InputError(
            f"source {source}: {len(kept)} pairs fit into {max_length} tokens; give more or "
            "shorter ones"
        )
    return _split(source, kept, validation_fraction, seed), len(pairs) - len(kept)


def _read_pairs(source: str) -> list[dict[str, str]]:
    files = find_files(source)
    if not files:
        raise InputError(
            f"source {source}: no such file; give .jsonl files of pairs, or embedded:preferences"
        )
    return [
        _checked(row, f"{path}{place}")
        for path in files
        for place, row in read_rows(path, ".jsonl")
    ]


def _split(
    source: str, pairs: list[dict[str, Any]], validation_fraction: float, seed: int
) -> DatasetDict:
    """Prompts are drawn at random: all pairs of one are on one side."""
    pairs_of_prompt: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        pairs_of_prompt.setdefault(pair["prompt"], []).append(pair)
    if len(pairs_of_prompt) < 2:
        raise InputError(
            f"source {source}: its {len(pairs)} pairs are all about one prompt, so that none can "
            "be held out and be new; give pairs of several prompts"
        )
    prompts = split_documents(
        Dataset.from_dict({"text": list(pairs_of_prompt)}),
        split_by="document",
        seed=seed,
        validation_fraction=validation_fraction,
    )
    splits = DatasetDict()
    for name, split in prompts.items():
        rows = [pair for prompt in split["text"] for pair in pairs_of_prompt[prompt]]
        splits[name] = Dataset.from_list(rows)
    return splits


def pair_ids(pair: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`prompt_ids` as generation gives them to a model, and `chosen_ids` and `rejected_ids` as they
    follow, with EOS: the columns that TRL's trainer reads. Its own tokens would hold what some
    tokenizers put behind a text.
    """
    [prompt] = encode_prompts([pair["prompt"]], tokenizer)
    chosen, rejected = encode_continuations([pair["chosen"], pair["rejected"]], tokenizer)
    eos = tokenizer.eos_token_id
    return {"prompt_ids": prompt, "chosen_ids": [*chosen, eos], "rejected_ids": [*rejected, eos]}


def made_pairs(seed: int) -> list[dict[str, str]]:
    """Sums and differences of small numbers: the right answer in a sentence is better than an
    evasive one. They show that the recipe works, and teach nothing else.
    """
    evasions: list[str] = load_sample_data("finetune_preference", "preferences")["evasions"]
    rng = random.Random(seed)
    summands = list(itertools.product(range(10, 60), range(1, 10)))
    pairs = []
    for a, b in rng.sample(summands, MADE_PAIRS):
        word, result = rng.choice((("plus", a + b), ("minus", a - b)))
        pairs.append(
            {
                "prompt": f"What is {a} {word} {b}?",
                "chosen": f" {a} {word} {b} is {result}.",
                "rejected": rng.choice(evasions),
            }
        )
    return pairs


def _checked(row: dict[str, Any], place: str) -> dict[str, str]:
    for name in COLUMNS:
        if name not in row:
            raise InputError(f"{place}: no column '{name}'; it has {', '.join(row)}")
        if not isinstance(row[name], str) or not row[name].strip():
            problem = "empty" if row[name] in ("", None) else "not text"
            raise InputError(f"{place}: the {name} is {problem}; mend or remove the line")
    if row["chosen"] == row["rejected"]:
        raise InputError(f"{place}: chosen and rejected are equal; mend or remove the line")
    return {name: row[name] for name in COLUMNS}
