"""Talk with a model that has a chat template, in the terminal: several turns, answers as they come.

hfscale chat --model runs/task-dialogue
hfscale chat --model runs/task-dialogue --prompts "Hello" "A table, please" --do_sample false
hfscale chat --model runs/task-dialogue --web          (on a page, which takes any model)
"""

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from hfscale.arguments import LoadArguments, SamplingArguments, loading
from hfscale.config import parse_args
from hfscale.process import InputError, run
from hfscale.serving.extra import check_installed
from hfscale.shown import show_text


@dataclass
class ChatArguments(SamplingArguments, LoadArguments):
    model: str = field(
        default="runs/task-dialogue", metadata={"help": "folder of a model or adapter, or a Hub id"}
    )
    system: str | None = field(
        default=None, metadata={"help": "first message, which tells the model who it is"}
    )
    prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "what to say, turn by turn, and then stop; default: ask, or read standard "
            "input by line"
        },
    )
    max_new_tokens: int | None = field(  # type: ignore[assignment]  # None: as the task has it
        default=None,
        metadata={
            "help": "most tokens per answer; default: 128, or as the model learned its task",
            "min": 1,
        },
    )
    temperature: float = field(
        default=0.7,
        metadata={"help": "below 1: likelier tokens more often", "min": 1e-6, "max": 1e6},
    )
    web: bool = field(
        default=False,
        metadata={"help": "on a page in a browser, with the probabilities of tokens"},
    )
    port: int = field(
        default=8000,
        metadata={"help": "of the page; 0: any that is free", "min": 0, "max": 65535},
    )


def main(argv: list[str] | None = None) -> list[str] | None:
    args = parse_args(ChatArguments, argv, recipe=__file__)
    if args.web:
        talk_on_page(args)
        return None

    import torch

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation.task_prompt import load_task_prompt
    from hfscale.generation.terminal import conversation, read_lines
    from hfscale.generation.texts import check_settings
    from hfscale.models import load_model

    # Settings: what is given, then what the model learned its task with, then the defaults.
    settings = {name: getattr(args, name) for name in SamplingArguments.__dataclass_fields__}
    task = load_task_prompt(args.model)
    if task:
        learned = {"max_new_tokens": task.max_new_tokens, "stop_strings": task.stop_strings}
        settings |= {name: value for name, value in learned.items() if settings[name] is None}
    if settings["max_new_tokens"] is None:
        settings["max_new_tokens"] = SamplingArguments.max_new_tokens
    check_settings(**settings)

    # Model and tokenizer.
    model = load_model(args.model, **loading(args))
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model.to(device)  # type: ignore[arg-type]  # upstream wraps torch's method without its types
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    if tokenizer.chat_template is None and task:
        raise InputError(
            f"model {args.model}: learned a task and no turns; ask it one question at a time, with "
            "hfscale generate --interactive, or here on a page with --web"
        )
    if tokenizer.chat_template is None:
        raise InputError(
            f"model {args.model}: its tokenizer has no chat template, so it was not taught to "
            "talk; take one made by finetune_task --config dialogue, or complete texts with "
            "generate"
        )

    # Conversation: turns that are given, typed, or read from a pipe.
    is_typed = args.prompts is None and sys.stdin.isatty()
    if is_typed:
        show_text(
            f"{args.model}: type and press Enter; /reset forgets the conversation, /exit or Ctrl-D "
            "ends it"
        )
    lines = args.prompts
    if lines is None:
        lines = read_lines("you: " if is_typed else "")
    with conversation(is_typed):
        return talk(model, tokenizer, lines, args.system, settings, is_echoed=not is_typed)


def talk_on_page(args: ChatArguments) -> None:
    """Let a browser talk with the model until a signal comes."""
    check_installed()
    if args.prompts is not None:
        raise InputError("--prompts: are not for a page; leave out --web, or write them there")

    from hfscale.serving.web import serve_page

    settings = {
        "temperature": args.temperature if args.do_sample else 0,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "repetition_penalty": args.repetition_penalty,
        "max_tokens": args.max_new_tokens,
        "seed": args.seed or None,
        "stop": args.stop_strings[0] if args.stop_strings else None,
        "system": args.system,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    serve_page(args.model, port=args.port, settings=given, **loading(args))


def talk(
    model, tokenizer, lines: Iterable[str], system: str | None, settings: dict, *, is_echoed: bool
) -> list[str]:
    """Answer each line, with as many of the turns before as the context holds; the answers."""
    from hfscale.generation.prompts import write_turns
    from hfscale.generation.texts import generate_texts
    from hfscale.models import context_limit

    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    answers = []
    # Room that an answer must have.
    context = context_limit(model) or 2**31
    needed = min(settings["max_new_tokens"], context // 4)
    for turn, line in enumerate(lines):
        if line.strip() == "/exit":
            break
        if line.strip() == "/reset":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        while room_after(messages, model, tokenizer) < needed and len(messages) > len(start) + 1:
            # A question and its answer.
            del messages[len(start) : len(start) + 2]
            show_text("(the oldest turn was dropped: the model's context is full)", file=sys.stderr)
        if is_echoed:
            show_text(f"you: {line}")
        show_text("model: ", end="", flush=True)
        [[answer]] = generate_texts(
            model,
            tokenizer,
            [write_turns(messages, tokenizer)],
            add_special_tokens=False,
            stream=True,
            skip_prompt=True,
            **settings | {"seed": settings["seed"] + turn},
        )
        messages.append({"role": "assistant", "content": answer.strip()})
        answers.append(answer.strip())
    return answers


def room_after(messages: list[dict[str, str]], model, tokenizer) -> int:
    """How many tokens the context has left for an answer; 0: not even the turns fit."""
    from hfscale.generation.prompts import write_turns
    from hfscale.generation.texts import fit_prompts

    text = write_turns(messages, tokenizer)
    with contextlib.suppress(InputError):
        _, [room] = fit_prompts(model, tokenizer, [text], add_special_tokens=False)
        return room
    return 0


if __name__ == "__main__":
    run(main)
