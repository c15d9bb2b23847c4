"""Serve models by the OpenAI API: chat and plain completions, streamed, with a page to talk on.

hfscale serve --model runs/pretrain-tiny
hfscale serve --model runs/task-dialogue runs/speeches --port 8080
"""

import os
from dataclasses import dataclass, field
from typing import Literal

from hfscale.arguments import LoadArguments, loading
from hfscale.config import parse_args
from hfscale.process import InputError, run
from hfscale.serving.extra import KEY, api_key, check_installed
from hfscale.shown import show_text


@dataclass
class ServeArguments(LoadArguments):
    model: list[str] = field(
        default_factory=lambda: ["runs/quickstart"],
        metadata={"help": "folders of models or adapters, or Hub ids; clients name them so too"},
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "address to listen on; 0.0.0.0: every machine that reaches this one"},
    )
    port: int = field(
        default=8000, metadata={"help": "0: any that is free", "min": 0, "max": 65535}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "for models that have none: chatml, or a Jinja file"},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "weights"}
    )
    batch_size: int = field(
        default=32,
        metadata={"help": "texts that each model writes at a time", "min": 1, "max": 4096},
    )
    queue_size: int = field(
        default=64,
        metadata={"help": "texts that wait for each model; more get status 429", "min": 0},
    )
    max_tokens: int | None = field(
        default=None,
        metadata={"help": "most that a request may ask for; default: the context", "min": 1},
    )
    max_request_bytes: int = field(
        default=2_000_000, metadata={"help": "larger requests get status 413", "min": 1000}
    )
    num_threads: int | None = field(
        default=None,
        metadata={"help": "that compute for each model; default: all cores but one", "min": 1},
    )
    seconds_to_stop: float = field(
        default=10.0,
        metadata={"help": "that running answers have after SIGTERM", "min": 0, "max": 3600},
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(ServeArguments, argv, recipe=__file__)
    check_installed()
    check(args)
    key = api_key()

    import torch

    from hfscale.models import check_models
    from hfscale.serving.app import Limits, Server
    from hfscale.serving.served_model import load_served, read_chat_template, shares_steps
    from hfscale.serving.server import LOOPBACK_NAMES, bind, is_open, serve, url_of
    from hfscale.serving.start_lines import curl_command, vllm_command

    # Where to listen: known before models are read.
    listener = bind(args.host, args.port)
    url = url_of(listener)

    # Models.
    torch.set_num_threads(args.num_threads or max(1, (os.cpu_count() or 2) - 1))
    chat_template = read_chat_template(args.chat_template)
    check_models(args.model, trust_remote_code=args.trust_remote_code)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    models = {}
    for name in args.model:
        models[name] = load_served(
            name,
            device=device,
            batch_size=args.batch_size,
            chat_template=chat_template,
            dtype=args.dtype,
            **loading(args),
        )
        if not shares_steps(models[name]):
            show_text(f"{name}: a model of this kind writes its texts one by one, more slowly")

    # What to do with it.
    first = models[args.model[0]]
    if is_open(listener) and key is None:
        show_text(f"anyone who reaches {url} can use it; set {KEY} to ask for a key")
    show_text(f"serving {', '.join(models)} on {url}/v1, with a page at {url}/ (Ctrl-C ends)")
    show_text(f"try:  {curl_command(url, first, has_key=key is not None)}")
    show_text(f"vLLM: {vllm_command(args.model, args.host, listener.getsockname()[1])}", flush=True)

    # Answers.
    limits = Limits(args.max_request_bytes, args.max_tokens, args.queue_size)
    hosts = None if is_open(listener) else [*LOOPBACK_NAMES, args.host.lower()]
    server = Server(models, limits, api_key=key, hosts=hosts)
    serve(server, listener, seconds_to_stop=args.seconds_to_stop)


def check(args: ServeArguments) -> None:
    """Raise InputError for what can be known before anything is loaded."""
    args.model = [name.rstrip("/") or name for name in args.model]
    twice = [name for name in args.model if args.model.count(name) > 1]
    if twice or not args.model:
        raise InputError(f"--model {' '.join(args.model)}: name each model once")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--num_processes: a server is one process; leave it out")


if __name__ == "__main__":
    run(main)
