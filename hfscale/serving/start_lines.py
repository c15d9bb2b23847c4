"""What a server says at its start: commands that work as they are printed."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfscale.models import is_adapter
from hfscale.serving.served_model import ServedModel

VLLM_LORA_RANK = 16  # that vLLM takes without being told


def curl_command(url: str, served: ServedModel, *, has_key: bool) -> str:
    """A question to the server."""
    if served.can_chat:
        path = "/v1/chat/completions"
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
    else:
        path = "/v1/completions"
        body = {"prompt": "The", "max_tokens": 40}
    words = ["curl", f"{url}{path}", "-H", "Content-Type: application/json"]
    line = shlex.join(words)
    if has_key:  # the shell fills it in
        line += ' -H "Authorization: Bearer $HFSCALE_API_KEY"'
    return f"{line} -d {shlex.quote(json.dumps({'model': served.name, **body}))}"


def vllm_command(models: Sequence[str], host: str, port: int) -> str:
    """How vLLM serves the same folder, under the same name: of several models the first."""
    name = models[0]
    place = ["--host", host, "--port", str(port)]
    if not is_adapter(name):
        return shlex.join(["vllm", "serve", name, *place])
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(name)
    rank = getattr(config, "r", 0) or 0
    lora = ["--enable-lora", "--lora-modules", f"{name}={Path(name).absolute()}"]
    if rank > VLLM_LORA_RANK:
        lora += ["--max-lora-rank", str(rank)]
    return shlex.join(["vllm", "serve", str(config.base_model_name_or_path), *lora, *place])
