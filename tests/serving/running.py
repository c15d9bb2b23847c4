"""A server in a thread of the test's process, with tiny models of the kinds that recipes write."""

import asyncio
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hfscale.data.tokenizer import train_bpe
from hfscale.generation.task_prompt import save_task_prompt
from hfscale.serving.app import Limits, Server
from hfscale.serving.served_model import load_served
from hfscale.serving.server import LOOPBACK_NAMES, bind, serving, url_of
from hfscale.tasks.chat_templates import set_chat_template
from tests.tiny_models import GPT2, tiny_model

LIMITS = Limits(max_request_bytes=2_000_000, max_tokens=None, queue_size=64)
CONTEXT = 128


def save_model(folder: Path, *, chat: bool = False, seed: int = 0) -> str:
    """A GPT-2 with a byte-level tokenizer, which can write anything."""
    documents = Dataset.from_dict({"text": ["user assistant system answer word number"] * 9})
    tokenizer = train_bpe(documents, 290, ["<|im_start|>", "<|im_end|>"] if chat else [])
    if chat:
        set_chat_template(tokenizer, "chatml")
    tokenizer.save_pretrained(folder)
    shape = {**GPT2, "n_positions": CONTEXT}
    tiny_model("gpt2", shape, len(tokenizer), seed).save_pretrained(folder)
    return str(folder)


def save_models(folder: Path) -> dict[str, str]:
    """Names and folders of: a plain model, an adapter on it, one that talks, one with a task."""
    places = {name: folder / name for name in ("plain", "adapter", "chat", "task")}
    save_model(places["plain"])
    save_model(places["chat"], chat=True, seed=1)
    save_model(places["task"], seed=2)
    save_task_prompt(
        places["task"], prompt="Say: {en}\n", columns=["en"], stop_strings=["\n"], max_new_tokens=7
    )
    base = AutoModelForCausalLM.from_pretrained(places["plain"])
    torch.manual_seed(3)
    config = LoraConfig(
        r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    get_peft_model(base, config).save_pretrained(places["adapter"])
    for path in places["plain"].glob("tokenizer*"):
        (places["adapter"] / path.name).write_bytes(path.read_bytes())
    return {name: str(place) for name, place in places.items()}


@contextmanager
def running(names, *, limits=LIMITS, api_key=None, batch_size=16, chat_template=None):
    """The `Server` and its address, as long as this lasts."""
    device = torch.device("cpu")
    options = {"device": device, "batch_size": batch_size, "chat_template": chat_template}
    models = {name: load_served(name, **options) for name in names}
    server = Server(models, limits, api_key=api_key, hosts=LOOPBACK_NAMES)
    listener = bind("127.0.0.1", 0)
    url = url_of(listener)
    started = []

    def serve():
        asyncio.run(serving(server, listener, seconds_to_stop=2, on_start=started.append))

    thread = threading.Thread(target=serve)
    thread.start()
    until(lambda: started and started[0].started)
    try:
        yield server, url
    finally:
        started[0].should_exit = True
        thread.join()


def until(holds, seconds: float = 30.0) -> None:
    """Wait for what another thread does; fail if it does not."""
    event = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if holds():
            return
        event.wait(0.005)
    raise AssertionError("it did not happen")


class Gate:
    """Lets the steps of an engine's batch through one by one."""

    def __init__(self, engine):
        self.batch = engine.batch
        self.passes = threading.Semaphore(0)
        self.steps = 0
        self.is_open = False
        engine.batch = self

    def join(self, rows):
        return self.batch.join(rows)

    def step(self, tokens):
        if not self.is_open:
            self.passes.acquire()
        self.steps += 1
        return self.batch.step(tokens)

    def keep(self, places):
        self.batch.keep(places)

    def open(self):
        self.is_open = True
        self.passes.release()


def post(url: str, path: str, content, **headers) -> httpx.Response:
    """A request as it stands: bytes, or a value as JSON."""
    headers = {"Content-Type": "application/json", **headers}
    body = {"content": content} if isinstance(content, bytes) else {"json": content}
    return httpx.post(url + path, headers=headers, timeout=60, **body)
