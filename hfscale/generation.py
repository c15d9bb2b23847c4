"""Text from prompts: transformers' text-generation pipeline with its traps closed (padding, context limit, stops)."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer, pipeline

from hfscale.config import InputError


def generate_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *,
                   max_new_tokens: int = 128, do_sample: bool = True, temperature: float = 1.0, top_k: int = 50,
                   top_p: float = 1.0, num_beams: int = 1, num_return_sequences: int = 1,
                   repetition_penalty: float = 1.0, stop_strings: Sequence[str] | None = None, batch_size: int = 8,
                   seed: int = 0, stream: bool = False, progress: bool = False) -> list[list[str]]:
    """Completions of each prompt, without the prompt, special tokens and what follows a stop string.

    The names and meanings are those of `transformers.GenerationConfig`. A prompt gets fewer than `max_new_tokens`
    where the model's context ends. An empty prompt starts from BOS, else EOS. Greedy and beam search do not depend on
    `batch_size`; samples repeat for equal `seed` and `batch_size`. Model, tokenizer and random state are left as
    found.

    Args:
        stop_strings: each ends a completion and is not part of it.
        stream: print the text while it comes; only for one prompt and one sequence without beams.

    Returns:
        `num_return_sequences` strings per prompt, in the prompts' order.

    Raises:
        InputError: a value that generation does not allow, or a prompt that leaves no room in the context.
    """
    settings = {"max_new_tokens": max_new_tokens, "do_sample": do_sample, "num_beams": num_beams,
                "num_return_sequences": num_return_sequences, "repetition_penalty": repetition_penalty}
    check_settings(**settings, temperature=temperature, top_k=top_k, top_p=top_p, batch_size=batch_size)
    if stream and (len(prompts), num_beams, num_return_sequences) != (1, 1, 1):
        raise InputError("stream: works for one prompt, one sequence and num_beams 1; leave it off")
    if do_sample:  # upstream warns about these otherwise
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if stop_strings:
        if "" in stop_strings:
            raise InputError("stop_strings: an empty string would stop at once; leave it out")
        settings["stop_sequence"] = list(stop_strings)
    tokenizer = _padding_tokenizer(tokenizer, model)
    if stream:
        settings["streamer"] = TextStreamer(tokenizer, skip_special_tokens=True)
    prompts, rooms = fit_prompts(model, tokenizer, prompts)
    completions: list[list[str]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device=model.device)
            outputs = _run_groups(pipe, prompts, _group_by_limit(rooms, max_new_tokens), batch_size, settings)
            for i, records in tqdm(outputs, total=len(prompts), desc="generating", disable=not progress or stream):
                completions[i] = [cut_at_stop(record["generated_text"], stop_strings) for record in records]
    finally:
        model.train(was_training)
    return completions


def check_settings(*, do_sample: bool, num_beams: int, num_return_sequences: int, **values: Any) -> None:
    """Refuse what `generate` would answer with a traceback or, worse, with other text than asked for.

    Raises:
        InputError: naming the setting and what is allowed.
    """
    positive = {"num_beams": num_beams, "num_return_sequences": num_return_sequences} | values
    top_k, top_p = positive.pop("top_k", 0), positive.pop("top_p", 1.0)
    for name, value in positive.items():
        if value <= 0:
            raise InputError(f"{name}: got {value}, must be above 0")
    if top_k < 0 or not 0 < top_p <= 1:
        raise InputError(f"top_k, top_p: got {top_k}, {top_p}; allowed are 0 (off) or more, and above 0 up to 1 (off)")
    if num_return_sequences > num_beams and (num_beams > 1 or not do_sample):
        raise InputError(f"num_return_sequences: got {num_return_sequences}, without sampling at most num_beams "
                         f"({num_beams}); set do_sample true and num_beams 1, or raise num_beams")


def cut_at_stop(text: str, stop_strings: Sequence[str] | None) -> str:
    """`text` up to the first stop string. In a batch, upstream goes on after a stop string where no EOS is set."""
    found = [at for at in (text.find(stop) for stop in stop_strings or []) if at >= 0]
    return text[: min(found)] if found else text


def _padding_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """A copy, as the pipeline turns its padding side to the left, that pads with an id the model knows.

    Any known id will do: padded positions are masked.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= model.config.get_text_config().vocab_size:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def fit_prompts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
                prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The prompts, empty ones replaced by the token that starts a text, and the room each leaves in the context.

    Raises:
        InputError: no room, or a token id outside the model's vocabulary; it gives the prompt's index, from 0.
    """
    config = model.config.get_text_config()
    limit, size = getattr(config, "max_position_embeddings", None) or 2**31, config.vocab_size
    start = tokenizer.bos_token or tokenizer.eos_token
    fitted, rooms = [], []
    for i, prompt in enumerate(prompts):
        ids = tokenizer(prompt, verbose=False)["input_ids"]
        if not ids:
            if start is None:
                raise InputError(f"prompt {i}: it is empty and the tokenizer has neither BOS nor EOS; write a prompt")
            prompt, ids = start, tokenizer(start)["input_ids"]
        if max(ids) >= size:
            raise InputError(f"prompt {i}: token id {max(ids)} is outside the model's vocabulary of {size} (the "
                             f"tokenizer has {len(tokenizer)} tokens); use the tokenizer the model was trained with")
        if len(ids) >= limit:
            raise InputError(f"prompt {i}: {len(ids)} tokens leave no room in the model's context of {limit}; "
                             f"shorten it to at most {limit - 1}")
        fitted.append(prompt)
        rooms.append(limit - len(ids))
    return fitted, rooms


def _group_by_limit(rooms: list[int], max_new_tokens: int) -> dict[int, list[int]]:
    """{most new tokens: indices of the prompts, shortest first}: `generate` takes one limit for all that it is given,
    so a prompt that fills most of the context must not shorten the others' completions."""
    groups: dict[int, list[int]] = {}
    for i in sorted(range(len(rooms)), key=lambda i: -rooms[i]):
        groups.setdefault(min(max_new_tokens, rooms[i]), []).append(i)
    return groups


def _run_groups(pipe: Any, prompts: list[str], groups: dict[int, list[int]], batch_size: int,
                settings: dict[str, Any]) -> Iterator[tuple[int, list[dict]]]:
    """(index of the prompt, records) as they come."""
    for limit, indices in groups.items():
        given = settings | {"max_new_tokens": limit}
        outputs = pipe((prompts[i] for i in indices), batch_size=batch_size, return_full_text=False, **given)
        yield from zip(indices, outputs, strict=True)
