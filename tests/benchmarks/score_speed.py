"""What scoring a text costs beside the bare forward passes over the same windows.

    python tests/benchmarks/score_speed.py --rounds 5

Both sides read the same windows in the same batches: the bare side only runs the model on token ids
that lie ready, with its loss or without; scoring tokenizes, cuts windows, pads, takes the
log-softmax and sums. They take turns, round after round; printed are the medians of the rounds'
ratios with their range, by the clock and by processor time, which other work on the machine
disturbs less. A GPT-2 of 6 layers of width 384 by default.
"""

import argparse
import gzip
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel

from hfscale.data.tokenizer import train_bpe
from hfscale.metrics import perplexity
from hfscale.metrics.perplexity import score_documents
from hfscale.models import new_model

DATA = Path(os.environ.get("HFSCALE_DATA", ""))  # the folder of the public data sets
BOOKS = DATA / "books_large_a" / "books_large_a.jsonl.gz"
LIMIT = 1.15


def read_documents(path: Path, num_characters: int, count: int) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        text = json.loads(next(lines))["text"]
    return [text[i * num_characters : (i + 1) * num_characters] for i in range(count)]


def record_inputs(call: Callable) -> list[dict]:
    """The arguments of each forward pass that the call makes."""
    seen, forward = [], GPT2LMHeadModel.forward

    def remember(self, **arguments):
        seen.append(arguments)
        return forward(self, **arguments)

    remember.__signature__ = perplexity.inspect.signature(forward)
    GPT2LMHeadModel.forward = remember
    try:
        call()
    finally:
        GPT2LMHeadModel.forward = forward
    return seen


def timed(call: Callable) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (
        ("rounds", 5),
        ("documents", 12),
        ("characters", 4000),
        ("batch_size", 8),
        ("n_layer", 6),
        ("n_embd", 384),
        ("n_positions", 256),
        ("vocab_size", 8192),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    texts = read_documents(BOOKS, options.characters, options.documents)
    tokenizer = train_bpe(Dataset.from_dict({"text": texts}), min(options.vocab_size, 8192))
    torch.manual_seed(0)
    model = new_model(
        tokenizer,
        n_layer=options.n_layer,
        n_head=6,
        n_embd=options.n_embd,
        n_positions=options.n_positions,
    ).eval()
    model.resize_token_embeddings(options.vocab_size)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for stride in (options.n_positions, options.n_positions // 2):

        def score(stride=stride):
            return score_documents(
                model, tokenizer, texts, stride=stride, batch_size=options.batch_size
            )

        inputs, tokens = record_inputs(score), int(score().sums[:, 1].sum())
        print(
            f"stride {stride} of {options.n_positions}: {tokens:,} tokens in {len(inputs)} batches"
        )

        @torch.inference_mode()
        def forward(inputs=inputs):
            for arguments in inputs:
                model(**arguments).logits.flatten()[0].item()

        rounds = [(timed(score), timed(forward)) for _ in range(options.rounds)]
        for i, clock in enumerate(("clock", "processor time")):
            ratios = sorted(ours[i] / bare[i] for ours, bare in rounds)
            median = statistics.median(ratios)
            print(
                f"  score / forward by {clock}: {median:.3f} (from {ratios[0]:.3f} to "
                f"{ratios[-1]:.3f} in {len(ratios)} rounds; "
                f"{'within' if median <= LIMIT else 'ABOVE'} the limit {LIMIT})"
            )


if __name__ == "__main__":
    main()
