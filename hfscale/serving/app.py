"""The server as an ASGI application: who may ask, what is checked, where the answers go."""

import asyncio
import functools
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hfscale.serving.answers import LAST_EVENT, Answer, event
from hfscale.serving.engine import Piece, Text
from hfscale.serving.page import page_response
from hfscale.serving.requests import (
    Asked,
    RequestError,
    asked_chat,
    asked_completion,
    asked_tokens,
    read_json,
)
from hfscale.serving.served_model import ServedModel

OPEN_PATHS = ("/", "/health")  # without the key
SECONDS_FOR_BODY = 30.0
RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take."""

    max_request_bytes: int
    max_tokens: int | None  # of a text; None: the model's context
    queue_size: int  # texts that wait for each model


class Server:
    """The models and what is asked of them.

    Args:
        models: by their names.
        limits: of requests.
        api_key: that clients have to show; None: nobody is asked.
        hosts: names by which the server may be called; None: any. Against pages that bring a
            browser to ask a server on its own machine under another name.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        limits: Limits,
        *,
        api_key: str | None = None,
        hosts: Sequence[str] | None = None,
    ):
        self.models = models
        self.limits = limits
        self.api_key = api_key
        self.hosts = hosts
        self.is_stopping = False

    def app(self) -> Starlette:
        """The ASGI application."""
        post = functools.partial(Route, methods=["POST"])
        routes = [
            Route("/", self._guarded(page_response)),
            Route("/health", self._guarded(self._health)),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{name:path}", self._guarded(self._model)),
            post("/v1/completions", self._guarded(self._completions)),
            post("/v1/chat/completions", self._guarded(self._chat)),
            post("/tokenize", self._guarded(self._tokenize)),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    def _guarded(
        self, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """What checks who asks, and answers each error in the API's form."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_host(request)
                self._check_key(request)
                return await handle(request)
            except RequestError as error:
                return error_response(error)
            except ClientDisconnect:  # nobody reads the answer
                return Response(status_code=499)

        return guarded

    def _check_host(self, request: Request) -> None:
        host = request.headers.get("host", "").rpartition("@")[2]
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if self.hosts is not None and name.lower() not in self.hosts:
            raise RequestError(
                f"this server is not called {name[:60]!r}; call it {self.hosts[0]}", status=403
            )

    def _check_key(self, request: Request) -> None:
        if self.api_key is None or request.url.path in OPEN_PATHS:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        # The time that it takes tells nothing about the right key.
        is_right = hmac.compare_digest(key.strip().encode("latin-1"), self.api_key.encode())
        if kind.lower() != "bearer" or not is_right:
            raise RequestError(
                "wrong or missing API key; send the server's HFSCALE_API_KEY as "
                "Authorization: Bearer KEY",
                code="invalid_api_key",
                status=401,
            )

    # ---- what can be asked without a model's work

    async def _health(self, request: Request) -> Response:
        engines = [served.engine for served in self.models.values()]
        is_well = all(engine.is_alive for engine in engines) and not self.is_stopping
        state = {
            "status": "ok" if is_well else "stopping" if self.is_stopping else "unhealthy",
            "running": sum(engine.num_going for engine in engines),
            "waiting": sum(engine.num_waiting for engine in engines),
        }
        return JSONResponse(state, status_code=200 if is_well else 503)

    async def _models(self, request: Request) -> Response:
        data = [served.describe() for served in self.models.values()]
        return JSONResponse({"object": "list", "data": data})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._named(request.path_params["name"]).describe())

    async def _tokenize(self, request: Request) -> Response:
        asked = asked_tokens(await self._body(request))
        served = self._named(asked.model)
        return JSONResponse(await run_in_threadpool(_tokens, served, asked))

    # ---- texts

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, asked_completion(await self._body(request)))

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, asked_chat(await self._body(request)))

    async def _answer(self, request: Request, asked: Asked) -> Response:
        served = self._named(asked.model)
        self._check_tokens(asked, served)
        queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

        def take(number: int, piece: Piece) -> None:
            queue.put_nowait((number, piece))

        # Templates and long texts take their time, which others' answers do not wait for.
        texts = await run_in_threadpool(served.texts, asked, take)
        self._check_room(served, texts)
        answer = Answer(
            served.name,
            served.tokenizer,
            is_chat=asked.is_chat,
            has_chances=asked.top_logprobs is not None,
        )
        prompt_tokens = sum(len(text.ids) for text in texts[:: asked.num_choices])
        served.engine.ask(texts)
        if asked.is_streamed:
            events = _events(answer, texts, queue, prompt_tokens, asked.has_usage_streamed)
            return TextResponse(events, texts)
        pieces = await _whole(request, texts, queue)
        return JSONResponse(answer.whole(pieces, prompt_tokens))

    def _named(self, name: str) -> ServedModel:
        if name not in self.models:
            raise RequestError(
                f"model {name[:200]!r}: not served here; there are {', '.join(self.models)}",
                param="model",
                code="model_not_found",
                status=404,
            )
        return self.models[name]

    def _check_tokens(self, asked: Asked, served: ServedModel) -> None:
        most = self.limits.max_tokens
        wanted = asked.max_tokens(served.task)
        if most is not None and wanted > most:
            raise RequestError(
                f"max_tokens: {wanted} asked for, this server writes at most {most}",
                param="max_tokens",
            )

    def _check_room(self, served: ServedModel, texts: Sequence[Text]) -> None:
        engine = served.engine
        if self.is_stopping or not engine.is_alive:
            raise RequestError("the server is stopping", status=503)
        in_all = engine.num_going + engine.num_waiting + len(texts)
        if in_all > engine.batch_size + self.limits.queue_size:
            raise RequestError(
                f"{engine.num_going} texts are being written and {engine.num_waiting} wait, so "
                f"there is no room for {len(texts)} more; try again later",
                code="queue_full",
                status=429,
            )

    async def _body(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request.

        Raises RequestError: it is none, too large, or does not come.
        """
        if "json" not in request.headers.get("content-type", "").lower():
            # What a page of another site may send without asking is no JSON.
            raise RequestError("send Content-Type: application/json", status=415)
        content = bytearray()
        try:
            async with asyncio.timeout(SECONDS_FOR_BODY):
                async for part in request.stream():
                    content += part
                    self._check_size(len(content))
        except TimeoutError:
            raise RequestError(
                f"the body did not come within {SECONDS_FOR_BODY:g} s", status=408
            ) from None
        return await run_in_threadpool(read_json, bytes(content))

    def _check_size(self, size: int) -> None:
        most = self.limits.max_request_bytes
        if size > most:
            raise RequestError(f"the request is larger than {most} bytes", status=413)


class TextResponse(StreamingResponse):
    """A stream of texts, which are written no longer than someone reads them."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], texts: Sequence[Text]):
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; Starlette ends this when the client is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            _cancel(self.texts)


async def _events(
    answer: Answer,
    texts: Sequence[Text],
    queue: asyncio.Queue[tuple[int, Piece]],
    prompt_tokens: int,
    has_usage: bool,
) -> AsyncIterator[str]:
    """The events of a stream."""
    for chunk in answer.first_chunks(len(texts)):
        yield chunk
    completion_tokens = 0
    left = len(texts)
    while left:
        number, piece = await queue.get()
        if piece.error:
            yield event(_failure(piece).body())
            return
        text = answer.chunk(number, piece)
        if text:
            yield text
        if piece.finish_reason:
            left -= 1
            completion_tokens += piece.num_tokens
    if has_usage:
        yield answer.usage_chunk(prompt_tokens, completion_tokens)
    yield LAST_EVENT


async def _whole(
    request: Request, texts: Sequence[Text], queue: asyncio.Queue[tuple[int, Piece]]
) -> list[list[Piece]]:
    """All pieces of each text, once all are there.

    Raises:
        RequestError: a text failed.
        ClientDisconnect: nobody waits for them any more.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    gathered = asyncio.ensure_future(_gather(len(texts), queue))
    try:
        await asyncio.wait((gone, gathered), return_when=asyncio.FIRST_COMPLETED)
        if not gathered.done():
            raise ClientDisconnect
        return gathered.result()
    finally:
        gone.cancel()
        gathered.cancel()
        _cancel(texts)


async def _gather(num_texts: int, queue: asyncio.Queue[tuple[int, Piece]]) -> list[list[Piece]]:
    pieces: list[list[Piece]] = [[] for _ in range(num_texts)]
    left = num_texts
    while left:
        number, piece = await queue.get()
        if piece.error:
            raise _failure(piece)
        pieces[number].append(piece)
        left -= piece.finish_reason is not None
    return pieces


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _cancel(texts: Sequence[Text]) -> None:
    for text in texts:
        text.is_cancelled = True


def _failure(piece: Piece) -> RequestError:
    return RequestError(f"the text could not be written: {piece.error}", status=503)


def _tokens(served: ServedModel, asked: Asked) -> dict[str, Any]:
    """How the model sees a prompt: the text after its templates, its tokens and what they stand
    for.
    """
    [prompt] = served.prompts(asked)
    ids = served.encode(prompt, is_written=served.is_written(asked))
    names = [served.tokenizer.decode([token]) for token in ids]
    return {
        "count": len(ids),
        "max_model_len": served.context,
        "tokens": ids,
        "token_strs": names,
        "prompt": prompt,
    }


def error_response(error: RequestError) -> Response:
    """An error of the OpenAI API's form."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = json.dumps(error.body(), ensure_ascii=True)  # a message may quote half a character
    return Response(body, error.status, headers, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    shown = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return error_response(
        RequestError(f"{shown}; see docs/serving.md for what there is", status=error.status_code)
    )
