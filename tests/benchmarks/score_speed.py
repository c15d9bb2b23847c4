"""What scoring a text costs beside the bare forward passes over the same windows, and beside the
perplexity of the package evaluate.

    python tests/benchmarks/score_speed.py --rounds 12

Both sides read the same windows in the same batches: the bare side only runs the model on token ids
that lie ready; scoring tokenizes, cuts windows, pads, takes the log-softmax and sums. A GPT-2 of 6
layers of width 384 (2 of 128 in the small version) with random weights.
Documents of unequal length that fit into the context are scored as evaluate does it, too: in the
order given, all padded to the longest one. (Its code is on the Hub, so its loop stands here.)
"""

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from measure import Row, compare, measured, take_turns
from running import run_alone
from texts import long_text, pieces_of
from transformers import GPT2LMHeadModel

from hfscale.data.tokenizer import train_bpe
from hfscale.metrics.perplexity import score_documents
from hfscale.new_models import new_model

CONTEXT = 256
BATCH_SIZE = 8
DOCUMENT_CHARACTERS = 4000
SMALL = ("2x128", {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128})
FULL = ("6x384", {"num_hidden_layers": 6, "num_attention_heads": 6, "hidden_size": 384})


def benchmark(folder: Path, is_small: bool, rounds: int | None = None) -> list[Row]:
    """Rows of the table: windows side by side, half overlapping, and short documents."""
    texts = pieces_of(long_text(4 * DOCUMENT_CHARACTERS), DOCUMENT_CHARACTERS)
    tokenizer = train_bpe(Dataset.from_dict({"text": texts}), 8192)
    torch.manual_seed(0)
    shape_name, shape = SMALL if is_small else FULL
    model = new_model(tokenizer, max_position_embeddings=CONTEXT, **shape).eval()
    model.resize_token_embeddings(8192)
    rows = []
    for stride in (CONTEXT, CONTEXT // 2):

        def score(stride=stride):
            return score_documents(model, tokenizer, texts, stride=stride, batch_size=BATCH_SIZE)

        inputs = record_inputs(score)

        @torch.inference_mode()
        def forward(inputs=inputs):
            for arguments in inputs:
                model(**arguments).logits.flatten()[0].item()

        sides = {"score": lambda: measured(score), "forward": lambda: measured(forward)}
        costs = take_turns(sides, rounds or (6 if is_small else 12))
        name = f"score {shape_name}, stride {stride} of {CONTEXT} / forward passes"
        rows.append(compare(name, "score", "forward", costs))
    whole = "".join(texts)
    short_texts = [whole[300 * i :][: 20 + 111 * i % 600] for i in range(48)]
    sides = {
        "score": lambda: measured(
            lambda: score_documents(model, tokenizer, short_texts, batch_size=BATCH_SIZE)
        ),
        "evaluate": lambda: measured(lambda: plain_perplexities(model, tokenizer, short_texts)),
    }
    costs = take_turns(sides, rounds or (6 if is_small else 12))
    name = f"score {shape_name}, documents of unequal length / evaluate's perplexity"
    return [*rows, compare(name, "score", "evaluate", costs)]


@torch.no_grad()
def plain_perplexities(model, tokenizer, texts: list[str]) -> list[float]:
    """The perplexity of each text, as `evaluate.load("perplexity")` computes it."""
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    start = torch.full((len(texts), 1), tokenizer.eos_token_id)
    ids = torch.cat([start, encoded["input_ids"]], dim=1)
    mask = torch.cat([torch.ones_like(start), encoded["attention_mask"]], dim=1)
    perplexities = []
    for first in range(0, len(texts), BATCH_SIZE):
        batch = ids[first : first + BATCH_SIZE]
        batch_mask = mask[first : first + BATCH_SIZE]
        logits = model(batch, attention_mask=batch_mask).logits[:, :-1].contiguous()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch[:, 1:], reduction="none"
        )
        counted = batch_mask[:, 1:]
        means = (losses * counted).sum(1) / counted.sum(1)
        perplexities += means.exp().tolist()
    return perplexities


def record_inputs(call: Callable) -> list[dict]:
    """The arguments of each forward pass that the call makes."""
    seen = []
    forward = GPT2LMHeadModel.forward

    def remember(self, **arguments):
        seen.append(arguments)
        return forward(self, **arguments)

    remember.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    GPT2LMHeadModel.forward = remember
    try:
        call()
    finally:
        GPT2LMHeadModel.forward = forward
    return seen


if __name__ == "__main__":
    run_alone(benchmark, __doc__)
