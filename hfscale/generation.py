"""Text from prompts, in batches: `generate` with its traps closed (padding, context limit, stops, random state)."""

from collections.abc import Sequence
from itertools import groupby

import torch
from accelerate.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from hfscale.config import InputError
from hfscale.models import check_token_ids, context_limit

SAMPLING = ("temperature", "top_k", "top_p")  # upstream warns where they are given but nothing is drawn


def generate_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *,
                   max_new_tokens: int = 128, do_sample: bool = True, temperature: float = 1.0, top_k: int = 50,
                   top_p: float = 1.0, num_beams: int = 1, num_return_sequences: int = 1,
                   repetition_penalty: float = 1.0, stop_strings: Sequence[str] | None = None, batch_size: int = 8,
                   seed: int = 0, stream: bool = False, skip_prompt: bool = False, progress: bool = False
                   ) -> list[list[str]]:
    """`num_return_sequences` completions of each prompt, without it, special tokens and what follows a stop string.

    Names and meanings are those of `transformers.GenerationConfig`. A prompt gets fewer than `max_new_tokens` where
    the context ends; an empty one starts from BOS, else EOS. Greedy and beam search do not depend on `batch_size`;
    samples repeat for equal `seed` and `batch_size`. `stream` prints one completion of one prompt while it comes, and
    before it the prompt, unless `skip_prompt`. Model, tokenizer and random state are left as found.

    Raises:
        InputError: a value that generation does not allow, or a prompt that leaves no room in the context.
    """
    settings = {"num_beams": num_beams, "num_return_sequences": num_return_sequences, "temperature": temperature,
                "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty, "do_sample": do_sample}
    _check_settings(**settings, max_new_tokens=max_new_tokens, batch_size=batch_size)
    if "" in (stop_strings or []):
        raise InputError("stop_strings: an empty string would stop at once; leave it out")
    if stream and (len(prompts), num_beams, num_return_sequences) != (1, 1, 1):
        raise InputError("stream: works for one prompt, one sequence and num_beams 1; leave it off")
    if stream:
        settings["streamer"] = TextStreamer(tokenizer, skip_prompt, skip_special_tokens=True)
    rows, limit = fit_prompts(model, tokenizer, prompts), context_limit(model) or 2**31
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    completions: dict[int, list[str]] = {}
    with tqdm(total=len(rows), desc="generating", disable=not progress or stream) as bar:
        # `generate` takes one limit for all that it is given: a prompt with less room must not shorten the others.
        for new_tokens, group in groupby(order, key=lambda i: min(max_new_tokens, limit - len(rows[i]))):
            indices = list(group)
            for batch in (indices[at : at + batch_size] for at in range(0, len(indices), batch_size)):
                found = iter(complete(model, tokenizer, [rows[i] for i in batch], max_new_tokens=new_tokens,
                                      stop_strings=stop_strings, seed=seed + batch[0], **settings))
                completions |= {i: [next(found)[0] for _ in range(num_return_sequences)] for i in batch}
                bar.update(len(batch))
    return [completions[i] for i in range(len(rows))]


def _check_settings(*, top_k: int, top_p: float, num_return_sequences: int, num_beams: int, do_sample: bool,
                    **positive: float) -> None:
    """Refuse what `generate` would answer with a traceback or, worse, with other text than asked for."""
    for name, value in {"num_return_sequences": num_return_sequences, "num_beams": num_beams, **positive}.items():
        if value <= 0:
            raise InputError(f"{name}: got {value}, must be above 0")
    if top_k < 0 or not 0 < top_p <= 1:
        raise InputError(f"top_k, top_p: got {top_k}, {top_p}; allowed are 0 (off) or more, and above 0 up to 1 (off)")
    if num_return_sequences > num_beams and (num_beams > 1 or not do_sample):
        raise InputError(f"num_return_sequences: got {num_return_sequences}, without sampling at most num_beams "
                         f"({num_beams}); set do_sample true and num_beams 1, or raise num_beams")


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], *, seed: int,
             do_sample: bool, stop_strings: Sequence[str] | None = None, **settings) -> list[tuple[str, bool]]:
    """What follows each of the rows of token ids, up to a stop string, and whether EOS or a stop string ended it.

    The rows are one batch, padded on the left; `settings` go to `model.generate`. With `num_return_sequences` those
    of a row stand together. Model and random state are left as found.
    """
    length, eos = max(map(len, rows)), tokenizer.eos_token_id
    pad = eos or 0  # any id: it is masked
    input_ids = torch.tensor([[pad] * (length - len(ids)) + ids for ids in rows], device=model.device)
    mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in rows], device=model.device)
    if not do_sample:
        settings = {name: value for name, value in settings.items() if name not in SAMPLING}
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(input_ids, attention_mask=mask, pad_token_id=pad, do_sample=do_sample,
                                stop_strings=list(stop_strings) if stop_strings else None, tokenizer=tokenizer,
                                **settings)[:, length:]
    model.train(was_training)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    kept = [cut_at_stop(text, stop_strings) for text in texts]
    return [(answer, answer != text or eos in ids)
            for text, answer, ids in zip(texts, kept, output.tolist(), strict=True)]


def cut_at_stop(text: str, stop_strings: Sequence[str] | None) -> str:
    """`text` up to the first stop string. In a batch, upstream goes on after a stop string where no EOS is set."""
    return text[: min((at for stop in stop_strings or [] if (at := text.find(stop)) >= 0), default=None)]


def prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that starts a text: BOS, else EOS; none if the tokenizer has neither."""
    return [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]


def fit_prompts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompts, at least one each.

    Raises:
        InputError: a prompt leaves no room in the context or has a token id outside the model's vocabulary; it gives
            the prompt's index, from 0.
    """
    limit = context_limit(model) or 2**31
    rows = [tokenizer(prompt, verbose=False)["input_ids"] or prefix_ids(tokenizer) for prompt in prompts]
    for i, ids in enumerate(rows):
        if not ids:
            raise InputError(f"prompt {i}: it is empty and the tokenizer has neither BOS nor EOS; write a prompt")
        check_token_ids(model, ids, f"prompt {i}")
        if len(ids) >= limit:
            raise InputError(f"prompt {i}: {len(ids)} tokens leave no room in the model's context of {limit}; "
                             f"shorten it to at most {limit - 1}")
    return rows
