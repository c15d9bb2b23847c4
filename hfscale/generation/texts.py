"""Text from prompts: transformers' `generate` with its traps closed (padding, context limit, stop
strings, settings that a model's folder brings along).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any, NamedTuple

import torch
from accelerate.utils import tqdm
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from hfscale.arguments import DecodingArguments
from hfscale.data.tokens import decode_continuation, encode_prompts
from hfscale.models import check_token_ids, context_limit
from hfscale.options import check_limits
from hfscale.process import InputError
from hfscale.shown import show_text

# Texts in a batch, where several are drawn from a prompt.
MOST_COPIES_AT_ONCE = 64
# What the first bytes of a character decode to.
BROKEN = "\ufffd"


class Completion(NamedTuple):
    """What a model added to a prompt."""

    text: str  # without special tokens, up to a stop string
    finished: bool  # EOS or a stop string ended it, not the number of tokens


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    num_beams: int = 1,
    num_return_sequences: int = 1,
    repetition_penalty: float = 1.0,
    stop_strings: Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    add_special_tokens: bool = True,
    stream: bool = False,
    skip_prompt: bool = False,
    progress: bool = False,
    on_texts: Callable[[int, list[str]], None] | None = None,
) -> list[list[str]]:
    """`num_return_sequences` completions of each prompt, without special tokens and what follows a
    stop string.

    Names and meanings are those of `transformers.GenerationConfig`, and nothing else decides: see
    `complete_rows`. A prompt becomes tokens as `encode_prompts` says (`add_special_tokens=False`: a
    chat template wrote it). It gets fewer than `max_new_tokens` where the context ends. Greedy and
    beam search do not depend on `batch_size`, the prompts that go on at a time; samples repeat for
    equal `seed` and `batch_size`. `stream` prints the one completion of one prompt while it comes,
    after the prompt unless `skip_prompt`. `on_texts` gets each prompt's number and completions once
    all of them are there. Model, tokenizer and random state are left as found.

    Raises:
        InputError: a value that generation does not allow, or a prompt that leaves no room in the
            context.
        FloatingPointError: the model gives NaN.
    """
    settings: dict[str, Any] = {
        "do_sample": do_sample,
        "num_beams": num_beams,
        "num_return_sequences": num_return_sequences,
        "repetition_penalty": repetition_penalty,
    }
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    check_settings(
        **settings,
        **sampling,
        max_new_tokens=max_new_tokens,
        stop_strings=stop_strings,
        batch_size=batch_size,
    )
    if stream and (len(prompts), num_beams, num_return_sequences) != (1, 1, 1):
        raise InputError("stream: works for one prompt, one sequence and num_beams 1; leave it off")
    rows, rooms = fit_prompts(model, tokenizer, prompts, add_special_tokens=add_special_tokens)
    streamer = TextPrinter(model, tokenizer, rows[0], stop_strings or ()) if stream else None
    if stream and not skip_prompt:
        show_text(prompts[0], end="")
    if do_sample:
        settings |= sampling
    # Beams give several texts together; draws can be made one by one, so that any number fits into
    # memory.
    copies = 1 if num_beams > 1 else num_return_sequences
    settings["num_return_sequences"] = num_return_sequences // copies
    at_once = max(batch_size, min(batch_size * copies, MOST_COPIES_AT_ONCE))
    texts: list[list[str]] = [[] for _ in prompts]
    bar = tqdm(total=len(rows) * copies, desc="generating", disable=not progress or stream)
    with _evaluating(model), _seeded(model, seed), bar:
        for limit, batch in _batches(rooms, copies, max_new_tokens, at_once):
            completions = complete_rows(
                model,
                tokenizer,
                [rows[i] for i in batch],
                max_new_tokens=limit,
                stop_strings=stop_strings,
                streamer=streamer,
                place=f"prompts {sorted(set(batch))}",
                **settings,
            )
            for i, of_prompt in zip(batch, completions, strict=True):
                texts[i] += [completion.text for completion in of_prompt]
                if on_texts and len(texts[i]) == num_return_sequences:
                    on_texts(i, texts[i])
            bar.update(len(batch))
    return texts


def _batches(
    rooms: Sequence[int], copies: int, max_new_tokens: int, at_once: int
) -> Iterator[tuple[int, list[int]]]:
    """(most new tokens, prompts by number) of each batch, shortest prompts first. `generate` takes
    one limit for all that it is given: a prompt with less room must not shorten the others.
    """
    order = sorted(range(len(rooms)), key=lambda i: -rooms[i])
    for limit, group in groupby(order, key=lambda i: min(max_new_tokens, rooms[i])):
        indices = [i for i in group for _ in range(copies)]
        for start in range(0, len(indices), at_once):
            yield limit, indices[start : start + at_once]


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _seeded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def check_settings(**values) -> None:
    """Refuse what `generate` would answer with a traceback or, worse, with other text than asked
    for. The limits are those of `DecodingArguments`.

    Raises InputError.
    """
    limits = {item.name: item.metadata for item in fields(DecodingArguments)}
    for name, value in values.items():
        try:
            check_limits(value, limits.get(name, {}))
        except ValueError as error:
            raise InputError(f"{name}: got {value}, {error}") from None
    beams = values.get("num_beams", 1)
    sequences = values.get("num_return_sequences", 1)
    draws = values.get("do_sample", True) and beams == 1
    if sequences > beams and not draws:
        raise InputError(
            f"num_return_sequences: got {sequences}, without sampling at most num_beams ({beams}); "
            "set do_sample true and num_beams 1, or raise num_beams"
        )
    if "" in (values.get("stop_strings") or ()):
        raise InputError("stop_strings: an empty string would stop at once; leave it out")


def fit_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    add_special_tokens: bool = True,
) -> tuple[list[list[int]], list[int]]:
    """The ids of each prompt (see `encode_prompts`), and the room in tokens that each leaves in the
    context.

    Raises:
        InputError: no room, or a token id outside the model's vocabulary; it gives the prompt's
            index, from 0.
    """
    limit = context_limit(model) or 2**31
    rows = encode_prompts(prompts, tokenizer, add_special_tokens=add_special_tokens)
    for i, ids in enumerate(rows):
        if not ids:
            raise InputError(
                f"prompt {i}: it is empty and the tokenizer has neither BOS nor EOS; write a prompt"
            )
        check_token_ids(model, ids, f"prompt {i}")
        if len(ids) >= limit:
            raise InputError(
                f"prompt {i}: {len(ids)} tokens leave no room in the model's context of {limit}; "
                f"shorten it to at most {limit - 1}"
            )
    return rows, [limit - len(ids) for ids in rows]


def beginning_of(text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first words of a text, at most three, that leave the model at least half of its context;
    else "".
    """
    words = text.split()[:3]
    room = (context_limit(model) or 2**31) // 2
    for size in range(len(words), 0, -1):
        beginning = " ".join(words[:size])
        if len(encode_prompts([beginning], tokenizer)[0]) <= room:
            return beginning
    return ""


def complete_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    *,
    stop_strings: Sequence[str] | None = None,
    streamer: BaseStreamer | None = None,
    place: str = "a prompt",
    synced_gpus: bool = False,
    **settings,
) -> list[list[Completion]]:
    """What follows each of the rows of token ids, `num_return_sequences` times.

    `settings` are those of `transformers.GenerationConfig`, and they alone decide: what the folder
    of the model adds (penalties, bans, forced or suppressed tokens, a shortest length, ...) is left
    out, but for the ids at which a text ends (`end_ids`). `synced_gpus`: the weights are sharded,
    so every rank calls the model equally often.

    Raises FloatingPointError: logits are NaN, so that the likeliest token would be token 0; it
    names the `place`.
    """

    def complete(batch: Sequence[list[int]]) -> list[list[Completion]]:
        return _complete_batch(
            model,
            tokenizer,
            batch,
            stop_strings=stop_strings,
            streamer=streamer,
            place=place,
            synced_gpus=synced_gpus,
            **settings,
        )

    if synced_gpus or not _base(model)._is_stateful:
        return complete(rows)
    # Recurrent models read filler into their state, some in spite of the mask: rows of one length
    # need none.
    with _faults_named(model):
        keeps_rows_apart = _keeps_rows_apart(model, rows[0][0])
    groups: dict[int, list[int]] = {}
    for i, ids in enumerate(rows):
        group = len(ids) if keeps_rows_apart else i
        groups.setdefault(group, []).append(i)
    completions: dict[int, list[Completion]] = {}
    for members in groups.values():
        completions |= zip(members, complete([rows[i] for i in members]), strict=True)
    return [completions[i] for i in range(len(rows))]


@torch.no_grad()
def _keeps_rows_apart(model: PreTrainedModel, token: int) -> bool:
    """Whether a row of one token, as each step reads it, gives beside another one what it gives
    alone: in upstream's RWKV two rows mix their states.
    """
    ids = torch.tensor([[token]], device=model.device)
    another = (ids + 1) % model.config.get_text_config().vocab_size
    alone = model(ids, use_cache=True).logits[0]
    together = model(torch.cat([ids, another]), use_cache=True).logits[0]
    return torch.allclose(together, alone, rtol=1e-3, atol=1e-3)


def _complete_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    *,
    stop_strings: Sequence[str] | None,
    streamer: BaseStreamer | None,
    place: str,
    synced_gpus: bool,
    **settings,
) -> list[list[Completion]]:
    length = max(map(len, rows))
    ends = end_ids(model, tokenizer)
    input_ids, mask = _padded(rows)
    options: dict[str, Any] = {
        "logits_processor": [RefuseNaN(place)],
        "streamer": streamer,
        "synced_gpus": synced_gpus,
    }
    stopping = [StopText(tokenizer, stop_strings, length)] if stop_strings else []
    config = GenerationConfig(**settings, eos_token_id=ends, pad_token_id=ends[0] if ends else 0)
    # Draws would be other ones in a batch of other size, and beams are rows that belong together.
    is_greedy = not config.do_sample and config.num_beams in (None, 1)
    can_shrink = is_greedy and len(rows) > 1 and not synced_gpus and not _base(model)._is_stateful
    generate = _generate_shrinking if can_shrink else _generate_at_once
    with own_settings_aside(model, tokenizer), _faults_named(model):
        new_ids = generate(
            model,
            input_ids.to(model.device),
            mask.to(model.device),
            config,
            stopping,
            options,
        )
    sequences = len(new_ids) // len(rows)
    completions = []
    for i, ids in enumerate(rows):
        of_row = new_ids[i * sequences : (i + 1) * sequences]
        completions.append(
            [_completion(new, ids[-1], tokenizer, stop_strings, ends) for new in of_row]
        )
    return completions


def _padded(rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, longest row) of int64: the ids, filled up on the left, and 1 where they are a row's
    own, else 0.
    """
    length = max(map(len, rows))
    input_ids = []
    mask = []
    for ids in rows:
        filler = length - len(ids)
        # Of the row's own tokens, so that no penalty for what is there already finds another one.
        input_ids.append([ids[0]] * filler + ids)
        mask.append([0] * filler + [1] * len(ids))
    return torch.tensor(input_ids), torch.tensor(mask)


def _generate_at_once(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    config: GenerationConfig,
    stopping: Sequence[StoppingCriteria],
    options: dict[str, Any],
) -> list[list[int]]:
    """The ids that follow each row, in a batch that stays as large as it is to its end."""
    output = model.generate(  # type: ignore[operator]  # upstream mixes it in
        input_ids,
        attention_mask=mask,
        generation_config=config,
        stopping_criteria=[*stopping],
        **options,
    )
    return output[:, input_ids.shape[1] :].tolist()


def _generate_shrinking(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    config: GenerationConfig,
    stopping: Sequence[StoppingCriteria],
    options: dict[str, Any],
) -> list[list[int]]:
    """As `_generate_at_once`, but rows that are done leave the batch, half of it at a time:
    upstream computes them until the last one is done.
    """
    length = input_ids.shape[1]
    is_done = StoppingCriteriaList(stopping)
    if config.eos_token_id:
        is_done.append(EosTokenCriteria(config.eos_token_id))
    config.return_dict_in_generate = True
    # The columns that the whole batch may reach.
    config.max_length = length + (config.max_new_tokens or 0)
    config.max_new_tokens = None
    new_ids: dict[int, list[int]] = {}
    numbers = torch.arange(len(input_ids), device=input_ids.device)  # of the rows that go on
    cache = None
    while len(numbers):
        half_done = HalfDone(is_done)
        output = model.generate(  # type: ignore[operator]  # upstream mixes it in
            input_ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=config,
            stopping_criteria=[half_done],
            **options,
        )
        sequences = output.sequences
        new_ids |= zip(numbers.tolist(), sequences[:, length:].tolist(), strict=True)
        if sequences.shape[1] >= config.max_length:
            break
        left = half_done.left()
        numbers = numbers[left]
        input_ids = sequences[left]
        mask = torch.nn.functional.pad(mask[left], (0, sequences.shape[1] - mask.shape[1]), value=1)
        cache = _rows_of_cache(output, left)
    return [new_ids[number] for number in sorted(new_ids)]


def _rows_of_cache(output: Any, rows: torch.Tensor) -> DynamicCache | None:
    """The keys and values of these rows; None: other kinds of models compute them anew."""
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, DynamicCache):
        return None
    # The last token is not read yet; adapters that put virtual tokens in front hold more.
    if cache.get_seq_length() != output.sequences.shape[1] - 1:
        return None
    cache.batch_select_indices(rows)
    return cache


def _completion(
    ids: list[int],
    before: int,
    tokenizer: PreTrainedTokenizerBase,
    stop_strings: Sequence[str] | None,
    ends: Sequence[int],
) -> Completion:
    ids_before_end = until_end(ids, ends)
    text = decode_continuation(ids_before_end, tokenizer, before)
    text_before_stop = cut_at_stop(text, stop_strings)
    finished = len(ids_before_end) < len(ids) or text_before_stop != text
    return Completion(text_before_stop, finished)


@contextlib.contextmanager
def own_settings_aside(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[None]:
    """As long as this lasts, of the settings of the model's folder only the ids that end a text
    act: `generate` fills in from there what it is not given, and some settings have no value that
    means off.
    """
    base = _base(model)
    of_folder = base.generation_config
    base.generation_config = GenerationConfig(eos_token_id=end_ids(model, tokenizer) or None)
    try:
        yield
    finally:
        base.generation_config = of_folder


@contextlib.contextmanager
def _faults_named(model: PreTrainedModel) -> Iterator[None]:
    """Raises InputError instead of what a model's own code raises that reads texts but does not go
    on with them.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise InputError(
            f"model: {type(_base(model)).__name__} cannot generate text: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def _base(model: PreTrainedModel) -> PreTrainedModel:
    """The model without the adapter around it."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model else model


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids at which a text ends: the tokenizer's EOS, and what the model's folder names beside
    it, such as the end of a chat's turn.
    """
    of_folder = _base(model).generation_config.eos_token_id
    ids = of_folder if isinstance(of_folder, list) else [of_folder]
    vocab_size = model.config.get_text_config().vocab_size
    ends = {tokenizer.eos_token_id, *ids} - {None}
    return sorted(token for token in ends if token < vocab_size)


def until_end(ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """The ids before the first one of `ends`."""
    for i, token in enumerate(ids):
        if token in ends:
            return ids[:i]
    return ids


def cut_at_stop(text: str, stop_strings: Iterable[str] | None) -> str:
    """`text` up to the first stop string."""
    places = [text.find(stop) for stop in stop_strings or []]
    return text[: min((place for place in places if place >= 0), default=None)]


class RefuseNaN(LogitsProcessor):
    """Raises FloatingPointError for logits that are NaN. (A class: upstream reads its signature at
    each step, which takes ten times longer for a function.)
    """

    def __init__(self, place: str):
        self.place = place

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores as they are."""
        if torch.isnan(scores).any():
            raise FloatingPointError(f"the model gives NaN for {self.place}")
        return scores


class HalfDone(StoppingCriteria):
    """Ends the whole batch once half of its rows are done."""

    def __init__(self, is_done: StoppingCriteriaList):
        self.is_done = is_done
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        """(rows,) of bool: all of them, or those that are done."""
        done = self.is_done(input_ids, scores, **kwargs)
        self.done = done if self.done is None else self.done | done
        return self.done | (2 * self.done.sum() >= len(self.done))

    def left(self) -> torch.Tensor:
        """The numbers of the rows that are not done."""
        assert self.done is not None
        return (~self.done).nonzero().flatten()


class StopText(StoppingCriteria):
    """Ends a row when its text holds a stop string.

    Upstream's criterion looks for tokens that together could make one, and raises an error for a
    string that no tokens can make, which here just never comes.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str], prompt_length: int
    ):
        self.tokenizer = tokenizer
        self.stop_strings = stop_strings
        self.prompt_length = prompt_length
        # A character has up to four bytes, a token at least one.
        self.tokens_read = 4 * max(map(len, stop_strings)) + 8

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        """(rows,) of bool: whether each row's text holds a stop string."""
        new_ids = input_ids[:, self.prompt_length :]
        last_ids = new_ids[:, -self.tokens_read :].tolist()
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in last_ids]
        stops = [any(stop in text for stop in self.stop_strings) for text in texts]
        return torch.tensor(stops, device=input_ids.device)


class TextPrinter(BaseStreamer):
    """Prints a completion while it comes, exactly what is returned in the end: nothing of a stop
    string, and no character before its last byte.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int],
        stop_strings: Sequence[str],
    ):
        self.tokenizer = tokenizer
        self.before = prompt[-1]
        self.stop_strings = stop_strings
        self.ends = end_ids(model, tokenizer)
        self.has_prompt = False
        self.ids: list[int] = []  # of the completion so far
        self.printed = 0  # characters

    def put(self, value: torch.Tensor) -> None:
        """Take the next token. Upstream gives the prompt first."""
        if not self.has_prompt:
            self.has_prompt = True
            return
        self.ids += value.flatten().tolist()
        self._print(is_whole=False)

    def end(self) -> None:
        """Print what was held back."""
        self._print(is_whole=True)
        show_text(flush=True)

    def _print(self, is_whole: bool) -> None:
        whole = decode_continuation(until_end(self.ids, self.ends), self.tokenizer, self.before)
        text = cut_at_stop(whole, self.stop_strings)
        if text == whole and not is_whole:
            text = text[: len(text) - self._unsure(text)]
        show_text(text[self.printed :], end="", flush=True)
        self.printed = max(self.printed, len(text))

    def _unsure(self, text: str) -> int:
        """How many characters at the end may still become another one, or part of a stop string."""
        unsure = len(text) - len(text.rstrip(BROKEN))
        for stop in self.stop_strings:
            for size in range(1, len(stop)):
                if text.endswith(stop[:size]):
                    unsure = max(unsure, size)
        return unsure
