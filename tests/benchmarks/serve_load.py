"""What a server bears: clients that stream at the same time for a while, held against batched
`generate` on the same work.

    python -m tests.benchmarks.serve_load --clients 16 --seconds 60

A GPT-2 of 10 million weights is made, served by the real command line, and asked. Every answer is
compared with what `generate` wrote for its prompt: one that is missing, mixed with another or cut
is counted. `generate` runs before and after, with as many threads as the server's engine.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
import psutil

SHAPE = {"n_layer": 6, "n_head": 5, "n_embd": 320, "n_positions": 512}
VOCAB_SIZE = 8192
ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max_tokens", type=int, default=100)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--sample", action="store_true", help="draw, which cannot be compared")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        prompts = [f"The list {i}" + " of" * i for i in range(args.clients)]
        before, cpu_before, texts = generate(folder, prompts, args)
        print(f"generate: {before:.0f} tokens/s", flush=True)
        measured = serve_and_ask(folder, prompts, texts, args)
        after, cpu_after, _ = generate(folder, prompts, args)
        print(f"generate again: {after:.0f} tokens/s")
        measured["of_generate"] = measured["tokens_per_second"] / ((before + after) / 2)
        measured["generate_cpu_seconds_per_1000_tokens"] = (cpu_before + cpu_after) / 2
    print(json.dumps(measured, indent=2))


def save_model(folder: str) -> None:
    import torch

    from hfscale.data.sources import load_documents
    from hfscale.data.tokenizer import train_bpe
    from hfscale.new_models import new_model

    tokenizer = train_bpe(load_documents(["embedded:python-prose"]), VOCAB_SIZE)
    torch.manual_seed(0)
    model = new_model(tokenizer, **SHAPE)
    print(f"{model.num_parameters():,} parameters", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def generate(folder: str, prompts: list[str], args) -> tuple[float, float, list[str]]:
    """Tokens per second and CPU seconds per 1000 tokens, medians of five rounds, and the texts."""
    import torch

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation.texts import generate_texts
    from hfscale.models import load_model

    torch.set_num_threads(args.num_threads)
    model = load_model(folder)
    tokenizer = load_pretrained_tokenizer(folder)
    rates = []
    costs = []
    num_tokens = len(prompts) * args.max_tokens
    for _ in range(5):
        start = time.perf_counter()
        cpu_start = time.process_time()
        completions = generate_texts(
            model,
            tokenizer,
            prompts,
            max_new_tokens=args.max_tokens,
            do_sample=args.sample,
            batch_size=len(prompts),
        )
        rates.append(num_tokens / (time.perf_counter() - start))
        costs.append(1000 * (time.process_time() - cpu_start) / num_tokens)
    return median(rates), median(costs), [text for [text] in completions]


def serve_and_ask(folder: str, prompts: list[str], texts: list[str], args) -> dict:
    command = [sys.executable, str(ROOT / "recipes/serve.py"), "--model", folder, "--port", "0"]
    command += ["--num_threads", str(args.num_threads), "--batch_size", str(args.clients)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        line = server.stdout.readline()
        url = line.split(" on ")[1].split("/v1")[0]
        wait_for(url)
        return asyncio.run(ask_all(url, folder, prompts, texts, args, psutil.Process(server.pid)))
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            httpx.get(f"{url}/health")
            return
        except httpx.TransportError:
            time.sleep(0.1)


async def ask_all(url, folder, prompts, texts, args, process) -> dict:
    limits = httpx.Limits(max_connections=None)
    counts = {"answers": 0, "tokens": 0, "wrong": 0}
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        idle = [await first_token(client, folder, prompts[0]) for _ in range(20)]
        memory = []
        end = time.perf_counter() + args.seconds

        async def talk(i: int) -> None:
            while time.perf_counter() < end:
                text, tokens, reason = await ask(client, folder, prompts[i], args)
                counts["answers"] += 1
                counts["tokens"] += tokens
                is_right = reason in ("length", "stop") and (args.sample or text == texts[i])
                counts["wrong"] += not is_right

        async def watch() -> None:
            while time.perf_counter() < end:
                memory.append(process.memory_info().rss / 2**20)
                await asyncio.sleep(1)

        start = time.perf_counter()
        cpu_start = sum(process.cpu_times()[:2])
        await asyncio.gather(watch(), *(talk(i) for i in range(len(prompts))))
        seconds = time.perf_counter() - start
        cpu_seconds = sum(process.cpu_times()[:2]) - cpu_start
    quarter = max(1, len(memory) // 4)
    return {
        **counts,
        "seconds": round(seconds, 1),
        "tokens_per_second": counts["tokens"] / seconds,
        "cpu_seconds_per_1000_tokens": 1000 * cpu_seconds / counts["tokens"],
        "first_token_idle_seconds_median": median(idle),
        "first_token_idle_seconds_largest": max(idle),
        "memory_mib_first_quarter": max(memory[:quarter]),
        "memory_mib_last_quarter": max(memory[-quarter:]),
    }


async def first_token(client, folder: str, prompt: str) -> float:
    start = time.perf_counter()
    body = {"model": folder, "prompt": prompt, "max_tokens": 1, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line:
                return time.perf_counter() - start
    raise AssertionError("no token came")


async def ask(client, folder: str, prompt: str, args) -> tuple[str, int, str]:
    body = {
        "model": folder,
        "prompt": prompt,
        "max_tokens": args.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not args.sample:
        body["temperature"] = 0
    parts = []
    reason = "cut"
    tokens = 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event["choices"]:
                parts.append(choice["text"])
                reason = choice["finish_reason"] or reason
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return "".join(parts), tokens, reason


if __name__ == "__main__":
    main()
