"""Perplexity, bits per byte and per-word perplexity of a causal language model on documents of any length.

Each document is scored alone, as [prefix, t0, t1, ...] with BOS (else EOS) as prefix, so every token of its text is
predicted exactly once. A document longer than the context is read through windows: `stride` is how many new tokens a
window scores, and all the room that is left in it shows the text before them. Sums are per document; only the
metrics at the end divide.
"""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.config import InputError
from hfscale.evaluation.intervals import bootstrap_sums, percentile_interval

DOCUMENTS_AT_ONCE = 1000  # per call of the tokenizer
LOGITS_AT_ONCE = 2**21  # per log-softmax: its float32 copies (8 MB) stay in the cache; three times faster on a CPU
NO_PREFIX = "no BOS or EOS in the tokenizer: first tokens are not scored, but their bytes and words would count"


class Window(NamedTuple):
    """The model reads ids[start : stop - 1] of a document and is scored on ids[first:stop]."""

    document: int
    start: int
    first: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - 1 - self.start


@dataclass(frozen=True)
class DocumentScores:
    """What was summed per document (arrays of shape (documents,)) and how."""

    nll: np.ndarray  # nats, float64
    num_tokens: np.ndarray  # scored tokens
    num_bytes: np.ndarray  # of the text in UTF-8
    num_words: np.ndarray  # len(re.split(r"\s+", text)), as lm-eval counts them
    context: int
    stride: int
    prefix_token: str | None  # None: the tokenizer has neither BOS nor EOS, and no first token was scored
    unknown_tokens: int = 0  # in all documents; what they stand for was not predicted


def score_documents(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *,
                    context: int | None = None, stride: int | None = None, batch_size: int = 8,
                    progress: bool = False) -> DocumentScores:
    """Negative log-likelihood of each text, by rolling windows; the same on every rank, for any batch size and any
    number of ranks.

    Args:
        texts: one string per document.
        context: most input tokens at a time; default: the model's own limit.
        stride: tokens that each window after the first one scores; default: half the context. `stride == context`
            gives the disjoint windows of lm-eval's rolling log-likelihood.
        batch_size: windows per forward pass; a matter of speed and memory only.

    Raises:
        InputError: a context or stride that the model does not allow, a token id outside its vocabulary, no token.
        FloatingPointError: a log-likelihood is not finite; the message names the document, counted from 0.
    """
    context, stride = check_windows(model, context, stride)
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, must be at least 1")
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    documents = _encode(model, tokenizer, texts, prefix)
    windows = [Window(i, *w) for i, ids in enumerate(documents) for w in rolling_windows(len(ids), context, stride)]
    if not windows:
        raise InputError(f"text: {len(texts)} documents hold no token to score; give longer text")
    # Like beside like: little padding, few unscored logits; longest first, so too large a batch_size shows at once.
    windows.sort(key=lambda window: (-window.length, window.first - window.start))
    nll = np.zeros(len(texts))
    for window, value in zip(windows, _score_windows(model, documents, windows, batch_size, progress), strict=True):
        nll[window.document] += value
    return DocumentScores(
        nll=nll, num_tokens=np.array([max(0, len(ids) - 1) for ids in documents]),
        num_bytes=np.array([len(text.encode("utf-8")) for text in texts]),
        num_words=np.array([len(re.split(r"\s+", text)) for text in texts]), context=context, stride=stride,
        prefix_token=None if prefix is None else tokenizer.convert_ids_to_tokens(prefix),
        unknown_tokens=_count_unknown(documents, tokenizer))


def perplexity_metrics(scores: DocumentScores, seed: int = 0, resamples: int = 1000) -> tuple[dict, dict[str, str]]:
    """Metrics over all documents, each with its 95 % percentile bootstrap interval over documents beside it as
    `_ci95`, and the counts; and notes by metric: why a value is None or what it leaves out.

    perplexity = exp(sum nll / sum tokens), bits_per_byte = sum nll / ln 2 / sum bytes,
    word_perplexity = exp(sum nll / sum words).
    """
    columns = np.stack([scores.nll, scores.num_tokens, scores.num_bytes, scores.num_words], axis=1)
    total = columns.sum(axis=0)
    metrics: dict[str, Any] = {}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values, resampled = _ratios(total), _ratios(bootstrap_sums(columns, resamples, seed).T)
        for name, value in values.items():
            interval = percentile_interval(resampled[name])
            metrics[name] = float(value) if np.isfinite(value) else None
            metrics[f"{name}_ci95"] = interval if np.isfinite(interval).all() else None
    notes = {key: "larger than a float can hold" for key, value in metrics.items() if value is None}
    if len(columns) == 1:
        notes |= dict.fromkeys([f"{name}_ci95" for name in values], "one document: nothing to resample")
    if scores.prefix_token is None:
        notes |= dict.fromkeys([key for key in metrics if not key.startswith("perplexity")], NO_PREFIX)
    metrics |= dict.fromkeys(notes)
    if scores.unknown_tokens:
        notes["unknown_tokens"] = "which text they stand for is not scored: the values leave it out"
    counts = dict(zip(("tokens", "bytes", "words"), total[1:].astype(int).tolist(), strict=True))
    return metrics | {"documents": len(columns)} | counts | {"unknown_tokens": scores.unknown_tokens}, notes


def _ratios(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of sums over documents; rows of `sums` are nll, tokens, bytes and words."""
    nll, tokens, num_bytes, words = sums
    return {"perplexity": np.exp(nll / tokens), "bits_per_byte": nll / math.log(2) / num_bytes,
            "word_perplexity": np.exp(nll / words)}


def rolling_windows(num_ids: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, first, stop) of each window over a document of `num_ids` ids, prefix included (see `Window`).

    The first window scores up to `context` ids, each later one up to `stride`, and reads as many of the ids before
    its last as fit into `context`.
    """
    windows, first = [], 1
    while first < num_ids:
        stop = min(first + (context if first == 1 else stride), num_ids)
        windows.append((max(0, stop - 1 - context), first, stop))
        first = stop
    return windows


def check_windows(model: PreTrainedModel, context: int | None, stride: int | None) -> tuple[int, int]:
    """The context and stride to use.

    Raises:
        InputError: they are not 1 <= stride <= context <= the model's limit.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = limit if context is None else context
    if context is None:
        raise InputError("context: the model states no limit of its own; set context")
    if not 1 <= context <= (limit or context):
        raise InputError(f"context: got {context}, the model reads 1 to {limit} tokens; lower context")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise InputError(f"stride: got {stride}, allowed are 1 to the context of {context}; lower stride")
    return context, stride


def _encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str],
            prefix: int | None) -> list[torch.Tensor]:
    """Ids of each document with the prefix before them; no EOS at the end: it is not part of the text."""
    before = [] if prefix is None else [prefix]
    documents = []
    for start in range(0, len(texts), DOCUMENTS_AT_ONCE):
        encoded = tokenizer(list(texts[start : start + DOCUMENTS_AT_ONCE]), add_special_tokens=False, verbose=False)
        documents += [torch.tensor(before + ids, dtype=torch.long) for ids in encoded["input_ids"]]
    largest = max((int(ids.max()) for ids in documents if len(ids)), default=0)
    size = model.config.get_text_config().vocab_size
    if largest >= size:
        raise InputError(f"tokenizer: token id {largest} (it has {len(tokenizer)} tokens) is outside the model's "
                         f"vocabulary of {size}; use the tokenizer that the model was trained with")
    return documents


def _count_unknown(documents: list[torch.Tensor], tokenizer: PreTrainedTokenizerBase) -> int:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):  # as in GPT-2: a name only
        return 0
    return sum(int((ids == unknown).sum()) for ids in documents)


def _score_windows(model: PreTrainedModel, documents: list[torch.Tensor], windows: list[Window], batch_size: int,
                   progress: bool) -> list[float]:
    """Summed nll of each window, in order, on all ranks. Every n-th batch is a rank's: equal work, and the batches do
    not depend on the number of ranks, so neither do the sums."""
    state = PartialState()
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    mine = range(state.process_index, len(batches), state.num_processes)
    was_training = model.training
    model.eval()
    try:
        shown = tqdm(mine, desc="scoring", unit="batch", disable=not progress)
        found = [(i, _batch_nll(model, documents, batches[i])) for i in shown]
    finally:
        model.train(was_training)
    by_batch = dict(gather_object(found))
    return [value for i in range(len(batches)) for value in by_batch[i]]


@torch.inference_mode()
def _batch_nll(model: PreTrainedModel, documents: list[torch.Tensor], batch: list[Window]) -> list[float]:
    """Summed nll of each window of a batch, in nats.

    Rows are padded on the right and no mask is given: attention is causal, so what stands after a row's last token
    cannot reach a scored position; positions count from 0 in every row.
    """
    length = max(window.length for window in batch)
    input_ids = torch.zeros(len(batch), length, dtype=torch.long)  # id 0 as padding: every vocabulary has it
    for row, window in zip(input_ids, batch, strict=True):
        row[: window.length] = documents[window.document][window.start : window.stop - 1]
    skipped = min(window.first - 1 - window.start for window in batch)  # leading positions that no row scores
    kept = length - skipped
    takes_kept = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits = model(input_ids=input_ids.to(model.device), use_cache=False,
                   **({"logits_to_keep": kept} if takes_kept else {})).logits[:, -kept:]
    nll, at_once = [], max(1, LOGITS_AT_ONCE // logits.shape[-1])
    for row, window in zip(logits, batch, strict=True):
        offset = window.first - 1 - window.start - skipped
        targets = documents[window.document][window.first : window.stop].to(row.device)
        pieces = zip(row[offset : offset + len(targets)].split(at_once), targets.split(at_once), strict=True)
        nll += [torch.nn.functional.cross_entropy(piece.float(), ids, reduction="none") for piece, ids in pieces]
    per_window = torch.cat(nll).cpu().double().split([window.stop - window.first for window in batch])
    values = [part.sum().item() for part in per_window]
    for value, window in zip(values, batch, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(f"document {window.document}: log-likelihood {value} among its tokens "
                                     f"{window.first} to {window.stop - 1}; the model's logits are not finite")
    return values
