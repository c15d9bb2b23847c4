"""What clients ask, in the names of the OpenAI API, checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from hfscale.generation.task_prompt import TaskPrompt
from hfscale.options import convert, did_you_mean, is_utf8
from hfscale.serving.draws import Sampling
from hfscale.shown import one_line
from hfscale.strict_yaml import RefusedError, load_json

DEFAULT_MAX_TOKENS = 128
MOST_CHOICES = 128  # of a request, prompts times n
SHOWN_CHARACTERS = 60  # of a wrong value

# Types and limits; null stands for a name that is not given.
OF_TEXTS = {
    "model": str,
    "max_tokens": Annotated[int, {"min": 1}],
    "temperature": Annotated[float, {"min": 0, "max": 1e6}],
    "top_p": Annotated[float, {"min": 1e-6, "max": 1}],
    "top_k": Annotated[int, {"min": -1, "max": 10_000_000}],  # -1: all, as vLLM has it; 0 too
    "repetition_penalty": Annotated[float, {"min": 1e-3, "max": 1e3}],
    "frequency_penalty": Annotated[float, {"min": -2, "max": 2}],
    "presence_penalty": Annotated[float, {"min": -2, "max": 2}],
    "logit_bias": dict,
    "seed": Annotated[int, {"min": -(2**63), "max": 2**63 - 1}],
    "stop": list[str],
    "n": Annotated[int, {"min": 1, "max": MOST_CHOICES}],
    "stream": bool,
    "stream_options": dict,
}
OF_COMPLETIONS = {
    **OF_TEXTS,
    "prompt": str | list[str] | list[int] | list[list[int]],
    "logprobs": Annotated[int, {"min": 0, "max": 20}],
    "raw_prompt": bool,  # without the template that a model learned its task with
}
OF_CHATS = {
    **OF_TEXTS,
    "messages": list[dict],
    "max_completion_tokens": Annotated[int, {"min": 1}],
    "logprobs": bool,
    "top_logprobs": Annotated[int, {"min": 0, "max": 20}],
}
OF_TOKENS = {
    "model": str,
    "prompt": str,
    "messages": list[dict],
    "raw_prompt": bool,
}
# Nothing that is computed depends on these.
WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
# What these say by default is what is done here; with other values they are refused.
ONLY_DEFAULT: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class RequestError(Exception):
    """A request that is answered with an error of the OpenAI API's form.

    Args:
        message: what is wrong, what is allowed and the next step.
        param: the name in the request that is wrong.
        code: a word for programs, such as `context_length_exceeded`.
        status: of HTTP.
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ):
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status

    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 401:
            kind = "authentication_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True)
class Asked:
    """What a request asks, its names checked, but for the settings that a model's task decides."""

    values: Mapping[str, Any]
    is_chat: bool

    @property
    def model(self) -> str:
        """By its name."""
        return self.values["model"]

    @property
    def num_choices(self) -> int:
        """Texts for each prompt."""
        return self.values.get("n", 1)

    @property
    def is_streamed(self) -> bool:
        """Whether the answer comes piece by piece."""
        return self.values.get("stream", False)

    @property
    def has_usage_streamed(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.values.get("stream_options", {}).get("include_usage"))

    @property
    def top_logprobs(self) -> int | None:
        """How many likeliest tokens are shown with each; None: no probabilities at all."""
        if not self.is_chat:
            return self.values.get("logprobs")
        return self.values.get("top_logprobs", 0) if self.values.get("logprobs") else None

    def max_tokens(self, task: TaskPrompt | None) -> int:
        """The most tokens of a text."""
        learned = task.max_new_tokens if task else DEFAULT_MAX_TOKENS
        of_chat = self.values.get("max_completion_tokens")
        return of_chat or self.values.get("max_tokens", learned)

    def stop_strings(self, task: TaskPrompt | None) -> list[str]:
        """Before which a text ends."""
        return self.values.get("stop", task.stop_strings if task else [])

    def sampling(self, task: TaskPrompt | None, choice: int) -> Sampling:
        """How the text with this number among its prompt's choices is drawn. As with `hfscale
        generate`, a model that learned a task gives its likeliest answer unless something is said
        about draws.
        """
        given = self.values
        says_draws = {"temperature", "top_k", "top_p"} & given.keys() or self.num_choices > 1
        default = Sampling()
        seed = given.get("seed")
        return Sampling(
            temperature=given.get("temperature", 0.0 if task and not says_draws else 1.0),
            top_k=max(0, given.get("top_k", default.top_k)),
            top_p=given.get("top_p", default.top_p),
            repetition_penalty=given.get("repetition_penalty", default.repetition_penalty),
            frequency_penalty=given.get("frequency_penalty", default.frequency_penalty),
            presence_penalty=given.get("presence_penalty", default.presence_penalty),
            logit_bias=given.get("logit_bias", {}),
            seed=None if seed is None else seed + choice,
            top_logprobs=self.top_logprobs,
        )


def read_json(content: bytes) -> dict[str, Any]:
    """The object in a request's body. Raises RequestError: it is none."""
    try:
        value = load_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 ({error.reason}, byte {error.start})") from None
    except RefusedError as error:
        raise RequestError(f"the body: {error}") from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {one_line(str(error))[:200]}") from None
    if not isinstance(value, dict):
        raise RequestError('the body is not a JSON object; write {"model": ..., ...}')
    return value


def check_names(body: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a body that are given, by name, each of its type and within its limits.

    Raises RequestError: an unknown name, or a value that is not allowed.
    """
    values = {}
    for name, value in body.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name in ONLY_DEFAULT:
            if value not in ONLY_DEFAULT[name]:
                raise RequestError(f"{name}: is not supported here; leave it out", param=name)
        elif name not in kinds:
            hint = did_you_mean(name, kinds)
            raise RequestError(f"{one_line(name)[:60]}: unknown name{hint}", param=name[:60])
        else:
            values[name] = _converted(name, value, kinds[name])
    if "model" not in values:
        raise RequestError("model: missing; name one of GET /v1/models", param="model")
    return values


def _converted(name: str, value: Any, kind: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        if kind is not str and isinstance(value, str) and name not in ("stop", "prompt"):
            raise ValueError("text where another type is expected")
        if name == "prompt":
            return _prompt(value)
        if is_number and name == "stop":
            raise ValueError("expected text or a list of texts")
        converted = convert(value, kind)
    except (ValueError, RecursionError) as error:
        shown = one_line(repr(value))
        shown = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
        raise RequestError(f"{name}: got {shown}, {error}", param=name) from None
    if name == "stop":
        _check_stop(converted)
    if name == "logit_bias":
        return _bias(converted)
    return _messages(converted) if name == "messages" else converted


def _prompt(value: Any) -> list[str] | list[list[int]]:
    """The prompts, each a text or token ids."""
    many = value if isinstance(value, list) else [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        many = [value]
    is_text = all(isinstance(item, str) for item in many)
    is_ids = all(
        isinstance(item, list) and item and all(type(one) is int and one >= 0 for one in item)
        for item in many
    )
    if not many or not (is_text or is_ids):
        raise ValueError("expected text, token ids, or a list of either")
    if is_text and not all(map(is_utf8, many)):
        raise ValueError("which holds half of a surrogate pair; write it in UTF-8")
    return many


def _check_stop(stop: list[str]) -> None:
    if "" in stop or len(stop) > 16 or any(len(one) > 1000 for one in stop):
        raise RequestError("stop: expected at most 16 texts of 1 to 1000 characters", param="stop")


def _bias(biases: dict[str, Any]) -> dict[int, float]:
    """By token id; whether the model knows the ids is seen later."""
    try:
        read = {int(token): convert(bias, float) for token, bias in biases.items()}
        is_right = all(token >= 0 and -100 <= bias <= 100 for token, bias in read.items())
    except (ValueError, TypeError):
        is_right = False
    if not is_right or len(biases) > 1000:
        raise RequestError(
            "logit_bias: expected {token id: number from -100 to 100}, at most 1000 of them",
            param="logit_bias",
        )
    return read


def _messages(messages: list[dict]) -> list[dict[str, str]]:
    """Each with a role and a text."""
    turns = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        role = message.get("role")
        content = message.get("content")
        if isinstance(content, list):  # parts, each a text
            content = _text_of_parts(content, place)
        if not isinstance(role, str) or not isinstance(content, str):
            raise RequestError(
                f'{place}: expected {{"role": "user", "content": "..."}}, the content a text',
                param="messages",
            )
        if not is_utf8(content) or not is_utf8(role):
            raise RequestError(f"{place}: holds half of a surrogate pair", param="messages")
        turns.append({"role": role, "content": content})
    if not turns:
        raise RequestError("messages: empty; write at least one turn", param="messages")
    return turns


def _text_of_parts(parts: list[Any], place: str) -> str:
    texts = []
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise RequestError(
                f"{place}: has a part that is not text; these models read text alone",
                param="messages",
            )
        texts.append(part["text"])
    return "".join(texts)


def asked_completion(body: Mapping[str, Any]) -> Asked:
    """A request of /v1/completions. Raises RequestError."""
    values = check_names(body, OF_COMPLETIONS)
    if "prompt" not in values:
        raise RequestError("prompt: missing", param="prompt")
    if len(values["prompt"]) * values.get("n", 1) > MOST_CHOICES:
        raise RequestError(
            f"prompt, n: at most {MOST_CHOICES} texts in a request; ask in several", param="n"
        )
    return Asked(values, is_chat=False)


def asked_chat(body: Mapping[str, Any]) -> Asked:
    """A request of /v1/chat/completions. Raises RequestError."""
    values = check_names(body, OF_CHATS)
    if "messages" not in values:
        raise RequestError("messages: missing", param="messages")
    if "top_logprobs" in values and not values.get("logprobs"):
        raise RequestError("top_logprobs: needs logprobs true", param="top_logprobs")
    return Asked(values, is_chat=True)


def asked_tokens(body: Mapping[str, Any]) -> Asked:
    """A request of /tokenize. Raises RequestError."""
    values = check_names(body, OF_TOKENS)
    if ("prompt" in values) == ("messages" in values):
        raise RequestError("prompt, messages: give one of the two", param="prompt")
    return Asked(values, is_chat="messages" in values)
