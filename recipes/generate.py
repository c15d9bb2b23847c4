"""Completions of prompts, from flags, a file or the keyboard, by any causal language model.

    hfscale generate --model runs/quickstart --prompts "The list" "A function" --max_new_tokens 64
    hfscale generate --model runs/quickstart --interactive hfscale generate --model runs/quickstart
    --prompt_file prompts.txt --output_file completions.jsonl --seed 3

People get texts, programs JSON lines: in the output file, or with --json on standard output.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfscale.arguments import DecodingArguments, RemoteCodeArguments
from hfscale.config import parse_args
from hfscale.folders import check_writable, write_atomically
from hfscale.process import InputError, run
from hfscale.tasks.prompt import TaskPrompt, load_task_prompt


@dataclass
class GenerateArguments(DecodingArguments, RemoteCodeArguments):
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
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "most tokens per completion; the context may end it; default: 128, or as the "
            "model's task has it",
            "min": 1,
        },
    )
    do_sample: bool | None = field(
        default=None,
        metadata={
            "help": "draw tokens; false: the likeliest; default: draw, but for a model that "
            "learned a task"
        },
    )


SETTINGS = tuple(
    DecodingArguments.__dataclass_fields__
)  # of generate_texts, and in every line of JSON


def main(argv: list[str] | None = None) -> None:
    args = parse_args(GenerateArguments, argv, recipe=__file__)
    check_outputs(args)

    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object, parse_flag_from_env

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation.prompts import asker, read_prompts
    from hfscale.generation.terminal import show_prompt
    from hfscale.generation.texts import check_settings, end_ids, fit_prompts, generate_texts
    from hfscale.models import load_model

    task = None if args.raw_prompts else load_task_prompt(args.model)
    settings = decoding_settings(args, task)
    check_settings(**settings)
    prompts = [] if args.interactive else read_prompts(args.prompts, args.prompt_file, task)
    stream = streams(args, len(prompts))
    state = PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available())
    )
    model = load_model(args.model, dtype=args.dtype, trust_remote_code=args.trust_remote_code).to(
        state.device
    )
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    ask, is_chat = asker(task, tokenizer), task is not None and task.prompt is None
    if task and state.is_main_process:
        form = "a turn of its chat template" if is_chat else repr(task.prompt)
        print(
            f"{args.model} learned a task: a prompt becomes {form} (--raw_prompts leaves it)",
            file=sys.stderr,
        )
    if args.interactive:
        if state.num_processes > 1:
            raise InputError(
                f"--interactive: one process talks with people, not {state.num_processes}"
            )
        return talk(model, tokenizer, ask, settings | {"add_special_tokens": not is_chat})

    prompts = [ask(prompt) for prompt in prompts] if is_chat else prompts
    # Every rank checks all of them: an error stops every rank alike.
    fit_prompts(model, tokenizer, prompts, add_special_tokens=not is_chat)
    shown = settings | {
        "dtype": args.dtype,
        "end_tokens": tokenizer.convert_ids_to_tokens(end_ids(model, tokenizer)),
    }
    settings |= {
        "add_special_tokens": not is_chat,
        "stream": stream and state.is_main_process,
        "progress": True,
    }
    if settings["stream"]:
        show_prompt(prompts[0])
    with state.split_between_processes(
        prompts
    ) as share:  # ranks must not draw the same random numbers
        settings["seed"] += state.process_index
        completions = gather_object(
            generate_texts(model, tokenizer, share, skip_prompt=True, **settings)
        )
    if state.is_main_process:
        records = [
            {"prompt": prompt, "completions": texts, "settings": shown, "model": args.model}
            for prompt, texts in zip(prompts, completions, strict=True)
        ]
        hand_out(records, args, is_shown=stream)


def check_outputs(args: GenerateArguments) -> None:
    """Raise InputError for places that cannot be written to, and for flags that contradict each
    other.
    """
    if [args.prompts, args.prompt_file, args.interactive or None].count(None) != 2:
        raise InputError("--prompts, --prompt_file: give one of the two, or --interactive")
    if (
        args.json
        and (args.output_file or args.stream)
        or args.interactive
        and (args.json or args.output_file)
    ):
        raise InputError(
            "--interactive, --json, --output_file: give one of them; --json does not stream"
        )
    if args.output_file is None:
        return
    output_file = Path(args.output_file)
    if os.path.isdir(output_file):  # Path's own raises for a name that is too long
        raise InputError(f"--output_file {output_file}: is a folder; name a file in it")
    if os.path.lexists(output_file) and not args.overwrite:
        raise InputError(f"--output_file {output_file}: exists; name another or pass --overwrite")
    check_writable(f"--output_file {output_file}", output_file.parent, output_file.name)


def decoding_settings(args: GenerateArguments, task: TaskPrompt | None) -> dict[str, Any]:
    """What was given, and for the rest what the model learned its task with, or the defaults. A
    task's answers are the likeliest ones, as they were measured, unless something is said about
    draws.
    """
    given = {name: getattr(args, name) for name in SETTINGS}
    draws = ("temperature", "top_k", "top_p", "num_return_sequences")
    default = DecodingArguments()
    says_how = args.num_beams == 1 and any(given[name] != getattr(default, name) for name in draws)
    usual = {"max_new_tokens": default.max_new_tokens, "do_sample": True, "stop_strings": None}
    if task:
        usual = {
            "max_new_tokens": task.max_new_tokens,
            "do_sample": says_how,
            "stop_strings": task.stop_strings,
        }
    return given | {name: value for name, value in usual.items() if given[name] is None}


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
                print(f"error: {error}", file=sys.stderr)


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
        print(f"{len(records)} prompts -> {output_file}")
    elif args.json:
        print(lines, end="")
    elif not is_shown:
        for record in records:
            show_completions(record["prompt"], record["completions"])


if __name__ == "__main__":
    run(main)
