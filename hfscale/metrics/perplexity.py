"""Perplexity, bits per byte and per-word perplexity of a causal language model on documents of any
length.

Each document is scored alone, as [prefix, t0, t1, ...] with BOS (else EOS) as prefix, so every
token of its text is predicted exactly once. One longer than the context is read through windows:
`stride` is how many new tokens a window scores, and the rest of it shows the text before them. Only
the metrics at the end divide.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import evaluate
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.behaviour import forward_takes
from hfscale.data.packing import IGNORED
from hfscale.data.tokens import after_once, encode_texts, start_ids
from hfscale.metrics.batches import Journal, run_sorted
from hfscale.metrics.evaluate_metrics import SumMetric, compute_with_intervals
from hfscale.metrics.intervals import interval_notes
from hfscale.models import check_token_ids, context_limit
from hfscale.process import InputError

# Per log-softmax: its float32 copies (8 MB) stay in the cache, three times faster on a CPU.
LOGITS_AT_ONCE = 2**21
# Of a model that states no limit, such as one with a state instead of attention.
UNLIMITED_CONTEXT = 1024
TOO_LARGE = "larger than a float can hold"
NO_PREFIX = (
    "no BOS or EOS in the tokenizer: first tokens are not scored, but their bytes and words would "
    "count"
)


class Window(NamedTuple):
    """Token ids of a document; those from `first` on are scored, each given all that stand before
    it.
    """

    ids: np.ndarray
    first: int
    document: int


@dataclass(frozen=True)
class DocumentScores:
    """What was summed per document, and how."""

    # (documents, 4) float64: nll in nats, scored tokens, UTF-8 bytes, words as lm-eval counts them
    sums: np.ndarray
    max_length: int
    stride: int
    # None: the tokenizer has neither BOS nor EOS, and no first token was scored.
    prefix_token: str | None
    # In all documents; what they stand for was not predicted.
    unknown_tokens: int = 0


def score_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
    journal: Journal | None = None,
) -> DocumentScores:
    """Negative log-likelihood of each text; the same on every rank, for any batch size and number
    of ranks.

    Args:
        max_length: most input tokens at a time; default: the model's own limit, else 1024.
        stride: tokens that each window after the first one scores; default: half the context.
            `stride == max_length` gives the disjoint windows of lm-eval.
        journal: where finished batches are kept (see `run_batches`).

    Raises:
        InputError: a max_length or stride that the model does not allow, a token id outside its
            vocabulary, no token.
        FloatingPointError: a log-likelihood is not finite; the message names the document, counted
            from 0.
    """
    max_length, stride = _check_window(model, max_length, stride, batch_size)
    before = start_ids(tokenizer)
    scored_from = max(1, len(before))
    encoded = encode_texts(texts, tokenizer)
    documents = [np.array(after_once(before, ids), dtype=np.int64) for ids in encoded]
    check_token_ids(
        model, (ids.max() for ids in documents if len(ids)), f"tokenizer of {len(tokenizer)} tokens"
    )
    windows = [
        Window(ids[start:stop], first - start, i)
        for i, ids in enumerate(documents)
        for start, first, stop in rolling_windows(len(ids), max_length, stride, first=scored_from)
    ]
    if not windows:
        raise InputError(f"text: {len(texts)} documents hold no token to score; give longer text")
    nll = score_windows(model, windows, batch_size, journal=journal, progress=progress)
    rows = []
    for ids, text in zip(documents, texts, strict=True):
        scored_tokens = max(0, len(ids) - scored_from)
        words = re.split(r"\s+", text)
        rows.append([0.0, scored_tokens, len(text.encode()), len(words)])
    sums = np.array(rows)
    np.add.at(sums[:, 0], [window.document for window in windows], nll)
    prefix = str(tokenizer.convert_ids_to_tokens(before[0])) if before else None
    return DocumentScores(sums, max_length, stride, prefix, _count_unknown(documents, tokenizer))


def _count_unknown(documents: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many unknown tokens the documents hold."""
    unknown = tokenizer.unk_token_id
    # GPT-2's is its EOS, which stands for itself.
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return 0
    return sum(int((ids == unknown).sum()) for ids in documents)


def perplexity_metrics(
    scores: DocumentScores, seed: int = 0
) -> tuple[dict[str, Any], dict[str, str]]:
    """Metrics over all documents, each with its 95 % percentile bootstrap interval over documents
    beside it as `_ci95`, and the counts; and notes by metric: why a value is None or what it leaves
    out.
    """
    nll, *counts = scores.sums.T
    columns = dict(zip(("tokens", "bytes", "words"), np.array(counts, dtype=int), strict=True))
    perplexity = evaluate.combine([SumMetric("perplexity", keep_in_memory=True)])
    with np.errstate(all="ignore"):
        metrics = compute_with_intervals(perplexity, {"nll": nll, **columns}, seed)
    notes = interval_notes(metrics)
    for name, value in metrics.items():
        if value is not None and not np.isfinite(value).all():
            notes[name] = TOO_LARGE
        if scores.prefix_token is None and not name.startswith(("loss", "perplexity")):
            notes[name] = NO_PREFIX
    for name, note in notes.items():
        if note in (TOO_LARGE, NO_PREFIX):
            metrics[name] = None
    if scores.unknown_tokens:
        notes["unknown_tokens"] = "which text they stand for is not scored: the values leave it out"
    _, tokens, num_bytes, words = map(int, scores.sums.sum(axis=0))
    metrics |= {
        "documents": len(scores.sums),
        "tokens": tokens,
        "bytes": num_bytes,
        "words": words,
        "unknown_tokens": scores.unknown_tokens,
    }
    return metrics, notes


def rolling_windows(
    num_ids: int, max_length: int, stride: int, first: int = 1
) -> list[tuple[int, int, int]]:
    """(start, first, stop) of each window over a document of `num_ids` ids, its prefix of `first`
    ids included: it holds ids[start:stop] and scores those from `first` on, in the first window as
    many as the context takes, later up to `stride`, after as many others as fit.
    """
    windows = []
    prefix = first
    while first < num_ids:
        # The first window scores all that it holds; one id more than the context, since the last
        # one is only a target.
        stop = max_length + 1 if first == prefix else first + stride
        stop = min(stop, num_ids)
        windows.append((max(0, stop - 1 - max_length), first, stop))
        first = stop
    return windows


def _check_window(
    model: PreTrainedModel, max_length: int | None, stride: int | None, batch_size: int
) -> tuple[int, int]:
    """The max_length and stride to use: 1 <= stride <= max_length <= the model's limit."""
    limit = context_limit(model)
    if max_length is None:
        max_length = limit or UNLIMITED_CONTEXT
    if stride is None:
        stride = max(1, max_length // 2)
    _check_size("max_length", max_length, limit)
    _check_size("stride", stride, max_length)
    _check_size("batch_size", batch_size, None)
    return max_length, stride


def _check_size(name: str, value: int, most: int | None) -> None:
    if value < 1 or (most and value > most):
        expected = f"1 to {most}" if most else "at least 1"
        raise InputError(f"{name}: got {value}, expected {expected}")


def score_windows(
    model: PreTrainedModel,
    windows: Sequence[Window],
    batch_size: int,
    *,
    journal: Journal | None = None,
    progress: bool = False,
) -> list[float]:
    """Summed nll of each window in nats, in the order given, the same on every rank."""
    # Little padding, few unscored logits; longest first, so too large a batch_size shows at once.
    was_training = model.training
    model.eval()
    values = run_sorted(
        windows,
        lambda window: (-len(window.ids), window.first),
        batch_size,
        lambda batch: _batch_nll(model, [windows[i] for i in batch]),
        journal=journal,
        desc="scoring",
        progress=progress,
    )
    model.train(was_training)
    return values


@torch.inference_mode()
def _batch_nll(model: PreTrainedModel, batch: list[Window]) -> list[float]:
    """Summed nll of each window of a batch, in nats. Rows are padded on the right without a mask:
    attention is causal, so what stands after a row's last token cannot reach a scored position.
    """
    documents = [torch.from_numpy(window.ids) for window in batch]
    # Padded with id 0, which every vocabulary has.
    input_ids = pad_sequence([ids[:-1] for ids in documents], batch_first=True)
    labels = pad_sequence([ids[1:] for ids in documents], batch_first=True, padding_value=IGNORED)
    for row, window in zip(labels, batch, strict=True):
        row[: window.first - 1] = IGNORED
    # The positions before the first scored one of any row need no logits.
    kept = input_ids.shape[1] + 1 - min(window.first for window in batch)
    extra = {"logits_to_keep": kept} if forward_takes(model, "logits_to_keep") else {}
    output = model(input_ids=input_ids.to(model.device), use_cache=False, **extra)
    logits = output.logits[:, -kept:].flatten(0, 1)
    targets = labels[:, -kept:].flatten().to(logits.device)
    at_once = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    nll = [
        torch.nn.functional.cross_entropy(rows.float(), ids, reduction="none")  # 0 where ignored
        for rows, ids in zip(logits.split(at_once), targets.split(at_once), strict=True)
    ]
    values = torch.cat(nll).cpu().double().view(len(batch), kept).sum(dim=1).tolist()
    for value, window in zip(values, batch, strict=True):
        if not np.isfinite(value):
            raise FloatingPointError(
                f"document {window.document}: the log-likelihood of {len(window.ids)} of its "
                f"tokens is {value}"
            )
    return values
