"""What texts from prompts of unequal length cost beside transformers' pipeline.

    python tests/benchmarks/generate_speed.py --rounds 12

All sides give the likeliest tokens, up to a number, after the same prompts: `generate_texts` as
`hfscale generate` calls it, `pipeline("text-generation")` with the same batch size, and with one
prompt at a time. A GPT-2 of 4 layers of width 256, the quickstart's (2 of 128 in the small
version), with random weights.
"""

from functools import partial
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from measure import Row, compare, measured, take_turns
from running import run_alone
from texts import long_text
from transformers import TextGenerationPipeline

from hfscale.arguments import DecodingArguments
from hfscale.data.tokenizer import train_bpe
from hfscale.generation.texts import generate_texts
from hfscale.new_models import new_model

CONTEXT = 256
BATCH_SIZE = DecodingArguments().batch_size
SHORTEST_CHARACTERS = 10
LONGEST_CHARACTERS = 400
SMALL = ("2x128", {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}, 16)
FULL = ("4x256", {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 256}, 64)


def benchmark(folder: Path, is_small: bool, rounds: int | None = None) -> list[Row]:
    """Two rows: beside a pipeline with batches, and without."""
    transformers.logging.set_verbosity_error()
    text = long_text(100_000)
    tokenizer = train_bpe(Dataset.from_dict({"text": [text]}), 4096)
    tokenizer.padding_side = "left"
    torch.manual_seed(0)
    shape_name, shape, max_new_tokens = SMALL if is_small else FULL
    model = new_model(tokenizer, max_position_embeddings=CONTEXT, **shape).eval()
    prompts = unequal_prompts(text, 2 * BATCH_SIZE)
    settings = {"do_sample": False, "max_new_tokens": max_new_tokens}
    pipeline = TextGenerationPipeline(model=model, tokenizer=tokenizer)
    calls = {
        "generate": partial(generate_texts, model, tokenizer, prompts, **settings),
        "pipeline": partial(pipeline, prompts, batch_size=BATCH_SIZE, **settings),
        "one by one": partial(pipeline, prompts, batch_size=1, **settings),
    }
    sides = {name: partial(measured, call) for name, call in calls.items()}
    costs = take_turns(sides, rounds or (6 if is_small else 12))
    name = f"generate {shape_name}, {len(prompts)} prompts / pipeline"
    return [
        compare(f"{name} in batches", "generate", "pipeline", costs, f"batches of {BATCH_SIZE}"),
        compare(f"{name} one by one", "generate", "one by one", costs),
    ]


def unequal_prompts(text: str, number: int) -> list[str]:
    """Pieces of the text, from the shortest to the longest, in an order that is not theirs."""
    prompts = []
    for i in range(number):
        share = (7 * i % number) / number
        size = SHORTEST_CHARACTERS + int(share * (LONGEST_CHARACTERS - SHORTEST_CHARACTERS))
        start = i * LONGEST_CHARACTERS
        prompts.append(text[start : start + size])
    return prompts


if __name__ == "__main__":
    run_alone(benchmark, __doc__)
