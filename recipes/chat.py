"""Talk with a model that has a chat template, in the terminal: several turns, answers as they come.

    hfscale chat --model runs/task-dialogue
    hfscale chat --model runs/task-dialogue --prompts "Hello" "A table for two, please" --do_sample false
"""

import contextlib
import sys
from dataclasses import dataclass, field
from functools import partial

from hfscale.config import InputError, RemoteCodeArguments, parse_args, run


@dataclass
class ChatArguments(RemoteCodeArguments):
    model: str = field(default="runs/task-dialogue", metadata={"help": "folder of a model or adapter, or a Hub id"})
    system: str | None = field(default=None, metadata={"help": "first message, which tells the model who it is"})
    prompts: list[str] | None = field(default=None, metadata={
        "help": "what to say, turn by turn, and then stop; default: ask, or read standard input line by line"})
    max_new_tokens: int = field(default=128, metadata={"help": "most tokens per answer"})
    do_sample: bool = field(default=True, metadata={"help": "draw tokens; false: always the likeliest"})
    temperature: float = field(default=0.7, metadata={"help": "below 1: likelier tokens more often"})
    top_k: int = field(default=50, metadata={"help": "draw among this many likeliest tokens; 0: all"})
    top_p: float = field(default=1.0, metadata={"help": "draw among the likeliest tokens up to this probability"})
    repetition_penalty: float = field(default=1.0, metadata={"help": "above 1: repeat less"})
    stop_strings: list[str] | None = field(default=None, metadata={"help": "each ends an answer; EOS always does"})
    seed: int = field(default=0, metadata={"help": "of the draws"})


# The rest goes to generate_texts.
NOT_SETTINGS = ("model", "system", "prompts", "seed", "trust_remote_code")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(ChatArguments, argv, recipe=__file__)

    import torch

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation import fit_prompts, generate_texts
    from hfscale.models import context_limit, load_model

    model = load_model(args.model, trust_remote_code=args.trust_remote_code)
    model.to(torch.accelerator.current_accelerator() or "cpu")
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    if tokenizer.chat_template is None:
        raise InputError(f"model {args.model}: its tokenizer has no chat template, so it was not taught to talk; take "
                         "one made by finetune_task --config dialogue, or complete texts with generate")
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    first = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(first)
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    needed = min(args.max_new_tokens, (context_limit(model) or 2**31) // 4)  # room that an answer must have
    asks = args.prompts is None and sys.stdin.isatty()
    if asks:
        print(f"{args.model}: type and press Enter; /reset forgets the conversation, /exit or Ctrl-D ends it")
    for turn, said in enumerate(args.prompts if args.prompts is not None else read_lines("you: " if asks else "")):
        if said.strip() == "/exit":
            break
        if said.strip() == "/reset":
            messages = list(first)
            continue
        messages.append({"role": "user", "content": said})
        prompt, room = render(messages), 0
        while len(messages) > len(first) + 1:
            with contextlib.suppress(InputError):
                room = fit_prompts(model, tokenizer, [prompt])[1][0]
            if room >= needed:
                break
            del messages[len(first) : len(first) + 2]
            print("(the oldest turn was dropped: the model's context is full)", file=sys.stderr)
            prompt, room = render(messages), 0
        if not asks:
            print(f"you: {said}")
        print("model: ", end="", flush=True)
        [[answer]] = generate_texts(model, tokenizer, [prompt], seed=args.seed + turn, stream=True,
                                    skip_prompt=True, **settings)
        messages.append({"role": "assistant", "content": answer.strip()})


def read_lines(question: str):
    """Lines from the terminal or a pipe, until it ends."""
    while True:
        try:
            if (line := input(question)).strip():
                yield line
        except EOFError:
            return


if __name__ == "__main__":
    run(main)
