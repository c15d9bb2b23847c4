"""Text from prompts: transformers' text-generation pipeline with its traps closed (padding, context limit, stops)."""

import copy
from collections.abc import Sequence
from itertools import groupby

import torch
from accelerate.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer, pipeline

from hfscale.config import InputError
from hfscale.models import check_token_ids, context_limit


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
    settings = {"num_beams": num_beams, "num_return_sequences": num_return_sequences, "batch_size": batch_size,
                "repetition_penalty": repetition_penalty}
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    _check_settings(do_sample, stop_strings, **settings, **sampling, max_new_tokens=max_new_tokens)
    if stream and (len(prompts), num_beams, num_return_sequences) != (1, 1, 1):
        raise InputError("stream: works for one prompt, one sequence and num_beams 1; leave it off")
    tokenizer = copy.deepcopy(tokenizer)  # the pipeline turns its padding side
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= model.config.get_text_config().vocab_size:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)  # any known id: it is masked
    settings |= {"do_sample": do_sample, "stop_sequence": list(stop_strings) if stop_strings else None,
                 "streamer": TextStreamer(tokenizer, skip_prompt, skip_special_tokens=True) if stream else None}
    settings |= sampling if do_sample else {}  # upstream warns about these otherwise
    prompts, rooms = fit_prompts(model, tokenizer, prompts)
    order = sorted(range(len(prompts)), key=lambda i: -rooms[i])  # shortest first
    completions: list[list[str]] = [[] for _ in prompts]
    bar = tqdm(total=len(prompts), desc="generating", disable=not progress or stream)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), bar:
        torch.manual_seed(seed)
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device=model.device)
        # `generate` takes one limit for all that it is given: a prompt with less room must not shorten the others.
        for limit, group in groupby(order, key=lambda i: min(max_new_tokens, rooms[i])):
            indices = list(group)
            outputs = pipe((prompts[i] for i in indices), max_new_tokens=limit, return_full_text=False, **settings)
            for i, records in zip(indices, outputs, strict=True):
                completions[i] = [cut_at_stop(record["generated_text"], stop_strings) for record in records]
                bar.update()
    model.train(was_training)
    return completions


def _check_settings(do_sample: bool, stop_strings: Sequence[str] | None, *, num_beams: int, num_return_sequences: int,
                    top_k: int, top_p: float, **positive: float) -> None:
    """Refuse what `generate` would answer with a traceback or, worse, with other text than asked for."""
    for name, value in {**positive, "num_beams": num_beams, "num_return_sequences": num_return_sequences}.items():
        if value <= 0:
            raise InputError(f"{name}: got {value}, must be above 0")
    if top_k < 0 or not 0 < top_p <= 1:
        raise InputError(f"top_k, top_p: got {top_k}, {top_p}; allowed are 0 (off) or more, and above 0 up to 1 (off)")
    if num_return_sequences > num_beams and (num_beams > 1 or not do_sample):
        raise InputError(f"num_return_sequences: got {num_return_sequences}, without sampling at most num_beams "
                         f"({num_beams}); set do_sample true and num_beams 1, or raise num_beams")
    if "" in (stop_strings or []):
        raise InputError("stop_strings: an empty string would stop at once; leave it out")


def cut_at_stop(text: str, stop_strings: Sequence[str] | None) -> str:
    """`text` up to the first stop string. In a batch, upstream goes on after a stop string where no EOS is set."""
    return text[: min((at for stop in stop_strings or [] if (at := text.find(stop)) >= 0), default=None)]


def fit_prompts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
                prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The prompts, empty ones replaced by the token that starts a text, and the room in tokens that each leaves.

    Raises:
        InputError: no room, or a token id outside the model's vocabulary; it gives the prompt's index, from 0.
    """
    limit, start = context_limit(model) or 2**31, tokenizer.bos_token or tokenizer.eos_token
    fitted, rooms = [], []
    for i, prompt in enumerate(prompts):
        ids = tokenizer(prompt, verbose=False)["input_ids"]
        if not ids and start is None:
            raise InputError(f"prompt {i}: it is empty and the tokenizer has neither BOS nor EOS; write a prompt")
        if not ids:
            prompt, ids = start, tokenizer(start)["input_ids"]
        check_token_ids(model, ids, f"prompt {i}")
        if len(ids) >= limit:
            raise InputError(f"prompt {i}: {len(ids)} tokens leave no room in the model's context of {limit}; "
                             f"shorten it to at most {limit - 1}")
        fitted.append(prompt)
        rooms.append(limit - len(ids))
    return fitted, rooms
