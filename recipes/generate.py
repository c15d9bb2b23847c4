"""Completions of prompts, from flags or a file, by any causal language model: to the terminal or to a JSONL file.

    hfscale generate --model runs/quickstart --prompts "The list" "A function" --max_new_tokens 64
    hfscale generate --model runs/quickstart --prompt_file prompts.txt --output_file completions.jsonl --seed 3
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hfscale.config import InputError, RemoteCodeArguments, parse_args, run, write_text


@dataclass
class GenerateArguments(RemoteCodeArguments):
    model: str = field(default="runs/quickstart", metadata={"help": "folder of a saved model, or a Hub id"})
    prompts: list[str] | None = field(default=None, metadata={"help": "texts to continue; \"\" starts a new text"})
    prompt_file: str | None = field(default=None, metadata={
        "help": "file of prompts: text (one per line), or jsonl, csv, ... with a column named prompt"})
    output_file: str | None = field(default=None, metadata={"help": "JSONL file, one line per prompt"})
    overwrite: bool = field(default=False, metadata={"help": "replace an output_file that exists"})
    stream: bool | None = field(default=None, metadata={"help": "print as it comes; default: one text on a terminal"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "weights"})
    max_new_tokens: int = field(default=128, metadata={"help": "most tokens per completion; the context may end it"})
    do_sample: bool = field(default=True, metadata={"help": "draw tokens; false: the likeliest (greedy or beams)"})
    temperature: float = field(default=1.0, metadata={"help": "below 1: likelier tokens more often"})
    top_k: int = field(default=50, metadata={"help": "draw among this many likeliest tokens; 0: all"})
    top_p: float = field(default=1.0, metadata={"help": "draw among the likeliest tokens up to this probability"})
    num_beams: int = field(default=1, metadata={"help": "beam search with this many beams; 1: none"})
    num_return_sequences: int = field(default=1, metadata={"help": "completions per prompt"})
    repetition_penalty: float = field(default=1.0, metadata={"help": "above 1: repeat less"})
    stop_strings: list[str] | None = field(default=None, metadata={"help": "each ends a completion and is cut off"})
    batch_size: int = field(default=8, metadata={"help": "prompts at a time"})
    seed: int = field(default=0, metadata={"help": "of the draws"})


# All others go to generate_texts, and into every output line.
NOT_SETTINGS = ("model", "prompts", "prompt_file", "output_file", "overwrite", "stream", "dtype",
                "trust_remote_code")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(GenerateArguments, argv, recipe=__file__)
    if (args.prompts is None) == (args.prompt_file is None):
        raise InputError("--prompts, --prompt_file: give one of the two")
    output_file = args.output_file and Path(args.output_file)
    if output_file and output_file.is_dir():
        raise InputError(f"--output_file {output_file}: is a folder; name a file in it")
    if output_file and output_file.exists() and not args.overwrite:
        raise InputError(f"--output_file {output_file}: exists; name another or pass --overwrite")

    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object, parse_flag_from_env

    from hfscale.data.corpus import load_documents
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation import fit_prompts, generate_texts
    from hfscale.models import load_model

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available()))
    prompts = args.prompts
    if prompts is None:
        prompts = load_documents(args.prompt_file, text_column="prompt", sample_by="line")["text"][:]
    model = load_model(args.model, dtype=args.dtype, trust_remote_code=args.trust_remote_code).to(state.device)
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    fit_prompts(model, tokenizer, prompts)  # every rank checks all of them: an error stops every rank alike

    settings = {name: value for name, value in asdict(args).items() if name not in NOT_SETTINGS}
    one = (len(prompts), args.num_beams, args.num_return_sequences) == (1, 1, 1)
    stream = one and sys.stdout.isatty() if args.stream is None else args.stream
    with state.split_between_processes(prompts) as share:  # ranks must not draw the same random numbers
        own = settings | {"seed": args.seed + state.process_index}
        completions = gather_object(generate_texts(model, tokenizer, share, progress=True,
                                                   stream=stream and state.is_main_process, **own))
    lines = [json.dumps({"prompt": prompt, "completions": texts, "settings": settings | {"dtype": args.dtype},
                         "model": args.model}, ensure_ascii=False)
             for prompt, texts in zip(prompts, completions, strict=True)]
    if state.is_main_process and output_file:
        output_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(output_file, "\n".join(lines) + "\n")
        print(f"{len(lines)} prompts -> {output_file}")
    elif state.is_main_process and not stream:
        print("\n".join(lines))


if __name__ == "__main__":
    run(main)
