"""Part: text generation with a cache that grows, and with one of fixed size."""

from collections.abc import Iterator

import torch
from transformers import set_seed

from hfscale.arguments import shape_of
from hfscale.generation.texts import complete_rows
from hfscale.new_models import new_model
from tests.gpu.bench import Bench, paired, speed, speed_ratio
from tests.gpu.report import Figure

PROMPT_TOKENS = 32
BATCH_SIZES = (1, 8)


def generation(bench: Bench) -> Iterator[Figure]:
    """gpt2_small with random weights, the likeliest token each time. transformers compiles each
    step by itself where the cache is static.
    """
    args, _ = bench.pretrain(bench.sizes.small)
    set_seed(0)
    tokenizer = bench.tokenizer()
    model = new_model(tokenizer, **shape_of(args)).to(bench.device, torch.bfloat16).eval()
    prompts = bench.rows(args.max_position_embeddings)["input_ids"]
    for batch_size in BATCH_SIZES:
        rows = [prompts[i % len(prompts)][:PROMPT_TOKENS] for i in range(batch_size)]
        answers = {}

        def complete(cache: str, rows=rows, answers=answers) -> None:
            answers[cache] = complete_rows(
                model,
                tokenizer,
                rows,
                do_sample=False,
                max_new_tokens=bench.sizes.new_tokens,
                min_new_tokens=bench.sizes.new_tokens,
                cache_implementation=cache,
            )

        sides = {name: (lambda name=name: complete(name)) for name in ("dynamic", "static")}
        seconds = paired(bench, sides, bench.sizes.rounds // 2)
        tokens = batch_size * bench.sizes.new_tokens
        for name, times in seconds.items():
            yield speed(f"{name} cache, batch {batch_size}", tokens, times)
        case = f"static cache, batch {batch_size}"
        yield speed_ratio(case, "speed / dynamic cache", seconds["static"], seconds["dynamic"])
        alike = sum(
            one == other for one, other in zip(answers["dynamic"], answers["static"], strict=True)
        )
        # With random weights many tokens are about equally likely, so rounding can choose.
        yield Figure(case, "texts that are the same in both", f"{alike} of {batch_size}")
