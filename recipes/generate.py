"""Completions of prompts, from flags, a file or the keyboard, by any causal language model.

    hfscale generate --model runs/quickstart --prompts "The list" "A function" --max_new_tokens 64
    hfscale generate --model runs/quickstart --interactive
    hfscale generate --model runs/quickstart --prompt_file prompts.txt \\
        --output_file completions.jsonl --seed 3

People get texts, programs JSON lines: in the output file, or with --json on standard output.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from hfscale.arguments import DecodingArguments, LoadArguments, loading
from hfscale.config import parse_args
from hfscale.folders import check_writable, write_atomically
from hfscale.generation.task_prompt import TaskPrompt, load_task_prompt
from hfscale.process import InputError, run
from hfscale.shown import show_text
from hfscale.stopping import note_when_stopped


@dataclass
class GenerateArguments(DecodingArguments, LoadArguments):
    model: str = field(
        default="runs/quickstart", metadata={"help": "folder of a saved model, or a Hub id"}
    )
    prompts: list[str] | None = field(
        default=None, metadata={"help": 'texts to continue; "" starts a new text'}
    )
    prompt_file: str | None = field(
        default=None,
        metadata={
            "help": "file of prompts: text (one per line), or jsonl, csv, ... with a column named "
            "prompt, or with the columns of the model's task"
        },
    )
    pictures: list[str] | None = field(
        default=None,
        metadata={"help": "files of pictures to caption, by a model of finetune_picture"},
    )
    interactive: bool = field(
        default=False,
        metadata={"help": "type the beginning of a text, get it continued, again and again"},
    )
    raw_prompts: bool = field(
        default=False,
        metadata={
            "help": "leave out the template and stop strings that a model learned its task with"
        },
    )
    output_file: str | None = field(
        default=None, metadata={"help": "JSONL file, one line per prompt"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an output_file that exists"})
    json: bool = field(
        default=False, metadata={"help": "JSON lines on standard output, one per prompt"}
    )
    stream: bool | None = field(
        default=None, metadata={"help": "print as it comes; default: one text on a terminal"}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "weights"}
    )
    max_new_tokens: int | None = field(  # type: ignore[assignment]  # None: as the task has it
        default=None,
        metadata={
            "help": "most tokens per completion; the context may end it; default: 128, or as the "
            "model's task has it",
            "min": 1,
        },
    )
    do_sample: bool | None = field(  # type: ignore[assignment]  # None: as the task has it
        default=None,
        metadata={
            "help": "draw tokens; false: the likeliest; default: draw, but for a model that "
            "learned a task"
        },
    )


# Of generate_texts, and in every line of JSON.
SETTINGS = tuple(DecodingArguments.__dataclass_fields__)


def main(argv: list[str] | None = None) -> list[str] | None:
    args = parse_args(GenerateArguments, argv, recipe=__file__)
    check_inputs(args)
    check_file(args)

    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object, parse_flag_from_env

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation.prompts import asker, read_prompts
    from hfscale.generation.terminal import show_prompt
    from hfscale.generation.texts import check_settings, end_ids, fit_prompts, generate_texts
    from hfscale.models import load_model

    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available())

    # Captions, of a model that reads pictures.
    if args.pictures is not None:
        return write_captions(args, PartialState(cpu=use_cpu))

    # Settings and prompts: a model that learned a task is asked in its template.
    task = None if args.raw_prompts else load_task_prompt(args.model)
    settings = decoding_settings(args, task)
    check_settings(**settings)
    prompts = [] if args.interactive else read_prompts(args.prompts, args.prompt_file, task)
    stream = streams(args, len(prompts))

    # Model and tokenizer.
    state = PartialState(cpu=use_cpu)
    model = load_model(args.model, dtype=args.dtype, **loading(args))
    model.to(state.device)
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    ask = asker(task, tokenizer)
    is_chat = task is not None and task.prompt is None
    if task and state.is_main_process:
        show_task(args.model, task)

    # Texts that someone types.
    if args.interactive:
        if state.num_processes > 1:
            raise InputError(
                f"--interactive: one process talks with people, not {state.num_processes}"
            )
        talk(model, tokenizer, ask, settings | {"add_special_tokens": not is_chat})
        return None

    # Texts of prompts, shared out over the ranks. Every rank checks all prompts: an error stops
    # every rank alike.
    if is_chat:
        prompts = [ask(prompt) for prompt in prompts]
    fit_prompts(model, tokenizer, prompts, add_special_tokens=not is_chat)
    is_streamed = stream and state.is_main_process
    if is_streamed:
        show_prompt(prompts[0])
    with (
        state.split_between_processes(prompts) as share,
        kept_as_made(args.output_file, share, rank=state.process_index) as keep,
    ):
        completions = generate_texts(
            model,
            tokenizer,
            share,
            **settings | {"seed": args.seed + state.process_index},  # other draws on each rank
            add_special_tokens=not is_chat,
            stream=is_streamed,
            skip_prompt=True,
            progress=True,
            on_texts=keep,
        )
    completions = gather_object(completions)

    # What is shown or written.
    if state.is_main_process:
        shown_settings = settings | {
            "dtype": args.dtype,
            "end_tokens": tokenizer.convert_ids_to_tokens(end_ids(model, tokenizer)),
        }
        records = [
            {
                "prompt": prompt,
                "completions": texts,
                "settings": shown_settings,
                "model": args.model,
            }
            for prompt, texts in zip(prompts, completions, strict=True)
        ]
        hand_out(records, args, is_shown=stream)
    return list(chain.from_iterable(completions))


def check_inputs(args: GenerateArguments) -> None:
    """Raise InputError for flags that contradict each other."""
    inputs = (args.prompts, args.prompt_file, args.pictures, args.interactive or None)
    if sum(given is not None for given in inputs) != 1:
        raise InputError(
            "--prompts, --prompt_file, --pictures: give one of the three, or --interactive"
        )
    json_contradicts = args.json and (args.output_file or args.stream)
    if json_contradicts or (args.interactive and (args.json or args.output_file)):
        raise InputError(
            "--interactive, --json, --output_file: give one of them; --json does not stream"
        )


def write_captions(args: GenerateArguments, state) -> list[str]:
    """The caption of each picture, shown or written as texts of prompts are.

    Raises InputError: settings of draws or of a search, with which captions were not measured.
    """
    from hfscale.pictures.captions import caption_files

    default = DecodingArguments()
    own = ("max_new_tokens", "do_sample", "batch_size")
    others = [name for name in SETTINGS if name not in own]
    changed = [name for name in others if getattr(args, name) != getattr(default, name)]
    if args.do_sample or changed:
        raise InputError(
            f"--pictures: captions are the likeliest ones; leave out "
            f"{', '.join([*changed, *['do_sample'] * bool(args.do_sample)])}"
        )
    captions = caption_files(
        args.model,
        args.pictures or [],
        device=state.device,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        verify_digests=args.verify_digests,
    )
    if state.is_main_process:
        settings = {"do_sample": False, "max_new_tokens": args.max_new_tokens}
        records = [
            {"prompt": file, "completions": [text], "settings": settings, "model": args.model}
            for file, text in zip(args.pictures or [], captions, strict=True)
        ]
        hand_out(records, args, is_shown=False)
    return captions


def check_file(args: GenerateArguments) -> None:
    """Raise InputError for a file that cannot be written, or that is there already."""
    if args.output_file is None:
        return
    output_file = Path(args.output_file)
    if os.path.isdir(output_file):  # Path's own raises for a name that is too long
        raise InputError(f"--output_file {output_file}: is a folder; name a file in it")
    if os.path.lexists(output_file) and not args.overwrite:
        raise InputError(f"--output_file {output_file}: exists; name another or pass --overwrite")
    check_writable(f"--output_file {output_file}", output_file.parent, output_file.name)
    unfinished = unfinished_file(args.output_file)
    if unfinished.exists() and not args.overwrite:
        raise InputError(
            f"--output_file {output_file}: {unfinished} holds the texts of a run that was stopped; "
            "move it away, or pass --overwrite"
        )


def unfinished_file(output_file: str, rank: int = 0) -> Path:
    """Where a rank keeps its texts until all are made."""
    return Path(f"{output_file}.unfinished" + (f"-rank{rank}" if rank else ""))


def show_task(model: str, task: TaskPrompt) -> None:
    """Say on stderr what becomes of a prompt."""
    form = "a turn of its chat template" if task.prompt is None else repr(task.prompt)
    show_text(
        f"{model} learned a task: a prompt becomes {form} (--raw_prompts leaves it)",
        file=sys.stderr,
    )


def decoding_settings(args: GenerateArguments, task: TaskPrompt | None) -> dict[str, Any]:
    """What was given, and for the rest what the model learned its task with, or the defaults. A
    task's answers are the likeliest ones, as they were measured, unless something is said about
    draws.
    """
    settings = {name: getattr(args, name) for name in SETTINGS}
    default = DecodingArguments()
    learned: dict[str, Any] = {
        "max_new_tokens": default.max_new_tokens,
        "do_sample": True,
        "stop_strings": None,
    }
    if task:
        of_draws = ("temperature", "top_k", "top_p", "num_return_sequences")
        asks_for_draws = any(settings[name] != getattr(default, name) for name in of_draws)
        learned = {
            "max_new_tokens": task.max_new_tokens,
            "do_sample": asks_for_draws and args.num_beams == 1,
            "stop_strings": task.stop_strings,
        }
    return settings | {name: value for name, value in learned.items() if settings[name] is None}


def streams(args: GenerateArguments, num_prompts: int) -> bool:
    """Whether text is printed as it comes: one on a terminal, or as asked. Raises InputError: asked
    for several.
    """
    one = (num_prompts, args.num_beams, args.num_return_sequences) == (1, 1, 1)
    if args.stream and not one and not args.interactive:
        raise InputError(
            "--stream: works for one prompt, one sequence and num_beams 1; leave it off"
        )
    if args.stream is None:
        return one and sys.stdout.isatty() and not args.json and not args.output_file
    return args.stream


def talk(model, tokenizer, ask: Callable[[str], str], settings: dict[str, Any]) -> None:
    """Continue what is typed, text by text, until the input ends."""
    from hfscale.generation.terminal import conversation, read_lines, show_completions, show_prompt
    from hfscale.generation.texts import generate_texts

    is_asked = sys.stdin.isatty()
    one = (settings["num_beams"], settings["num_return_sequences"]) == (1, 1)
    if is_asked:
        print("type the beginning of a text and press Enter; /exit or Ctrl-D ends")
    with conversation(is_asked):
        for turn, typed in enumerate(read_lines("> " if is_asked else "")):
            settings["seed"] += turn > 0
            try:
                prompt = ask(typed)
                if one:
                    show_prompt(prompt)
                texts = generate_texts(
                    model, tokenizer, [prompt], stream=one, skip_prompt=True, **settings
                )
                if not one:
                    show_completions(prompt, texts[0])
            except InputError as error:
                show_text(f"error: {error}", file=sys.stderr)


@contextlib.contextmanager
def kept_as_made(
    output_file: str | None, prompts: list[str], *, rank: int
) -> Iterator[Callable[[int, list[str]], None] | None]:
    """What writes each prompt's texts beside the output file as soon as they are made, so that a
    signal or an error loses none. Once all are there, that file goes: `hand_out` writes them.
    """
    if output_file is None:
        yield None
        return
    part = unfinished_file(output_file, rank)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    note_when_stopped(f"the texts so far are in {part}")

    def keep(number: int, texts: list[str]) -> None:
        line = json.dumps({"prompt": prompts[number], "completions": texts}, ensure_ascii=False)
        # Where it cannot be written any more, the rest may still fit on the screen.
        with contextlib.suppress(OSError), part.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    yield keep
    part.unlink(missing_ok=True)
    note_when_stopped("")


def hand_out(records: list[dict[str, Any]], args: GenerateArguments, *, is_shown: bool) -> None:
    """Write the texts as JSON lines to where those were asked for, else show them unless that is
    done.
    """
    from hfscale.generation.terminal import show_completions

    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if args.output_file:
        output_file = Path(args.output_file)
        try:
            output_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output_file, lines)
        except OSError as error:
            print(lines, end="")  # they would be lost
            raise InputError(
                f"--output_file {output_file}: {error.strerror}; the lines are on standard output"
            ) from None
        show_text(f"{len(records)} prompts -> {output_file}")
    elif args.json:
        print(lines, end="")
    elif not is_shown:
        for record in records:
            show_completions(record["prompt"], record["completions"])


if __name__ == "__main__":
    run(main)
