"""An OpenAI-compatible endpoint over plain HTTP: one request, one raw reply, with retries.

The key comes from the environment and goes nowhere but into the request's header: not into the ledger,
logs or errors. Redirects are not followed, as they would carry it elsewhere.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from reca.benchmarks.judges.requests import JudgeRequest
from reca.schema import JudgeConfig

_log = logging.getLogger(__name__)
_RETRIED = {408, 409, 425, 429}  # and every 5xx
_CONFIGURATION = {401, 403, 404}  # nothing that asking again could mend
_LARGEST = 4 << 20  # bytes of a reply's body
_SHOWN = 200
_FILTER = (
    "content_filter",
    "content_policy",
    "content management policy",
    "responsibleai",
    "moderation",
    "safety system",
)


class Transient(Exception):
    """A failure that asking again may mend; `after` is the pause the server asked for, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class GaveUp(Exception):
    """The endpoint gave no reply to this request within the configured tries."""


@dataclass(frozen=True)
class Reply:
    """A raw reply, or a refusal with what was said."""

    text: str
    refused: bool
    model: str
    usage: dict[str, int]


class _Bearer(requests.auth.AuthBase):
    """Sets the header itself, so that no `.netrc` takes its place; never shows the key."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Endpoint:
    """A judge behind `POST <base_url>/chat/completions`. Safe to use from several threads.

    ValueError for a configuration that cannot work: no URL, no dated model, no key where one is demanded.
    """

    def __init__(self, config: JudgeConfig) -> None:
        check(config)
        self.config = config
        key = os.environ.get(config.key_variable) if config.key_variable else None
        if config.key_variable and not key:
            raise ValueError(
                f"judge.key_variable: ${config.key_variable} is not set; export the key of "
                f"{self.provider}, or set key_variable to '' for an endpoint without one"
            )
        self._secret = _sendable(key.strip(), config.key_variable) if key else None
        self._auth = _Bearer(self._secret)
        self._local = threading.local()

    @property
    def provider(self) -> str:
        """Host and port of the endpoint: the same model differs between providers."""
        return urlsplit(self.config.base_url).netloc.rpartition("@")[2].lower()

    def determinants(self, benchmark: str, version: str) -> dict[str, Any]:
        """All that determines a reply besides the request itself."""
        names = ("model", "temperature", "max_tokens", "seed")
        fields = asdict(self.config)
        return {
            "benchmark": benchmark,
            "version": version,
            "provider": self.provider,
            "path": urlsplit(self.config.base_url).path.rstrip("/"),  # some name a deployment in it
            **{name: fields[name] for name in names},
        }

    def ask(self, request: JudgeRequest) -> Reply:
        """The reply to a request; GaveUp after the configured tries, ValueError where asking again is no use."""
        body = self._body(request)
        reason = "never asked"
        for attempt in range(self.config.tries):
            try:
                return self._once(body, request.id)
            except Transient as problem:
                reason = self._clean(str(problem))
                if attempt + 1 < self.config.tries:
                    pause = self._pause(attempt, problem.after)
                    _log.info("%s: %s; again in %.1f s", request.id, reason, pause)
                    time.sleep(pause)
        raise GaveUp(f"{request.id}: {reason} ({self.config.tries} tries)")

    def _pause(self, attempt: int, asked: float | None) -> float:
        """Exponential back-off with jitter, at least what the server asked for, at most the configured limit."""
        backoff = self.config.backoff_seconds * 2**attempt * (1 + random.random())
        return min(max(backoff, asked or 0.0), self.config.longest_pause_seconds)

    def _body(self, request: JudgeRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.config.model, "messages": request.messages()}
        for name in ("temperature", "max_tokens", "seed"):
            value = getattr(self.config, name)
            if value is not None:
                body[name] = value
        return body

    def _once(self, body: dict[str, Any], name: str) -> Reply:
        url = self.config.base_url.rstrip("/") + "/chat/completions"
        try:
            with self._session().post(
                url,
                json=body,
                auth=self._auth,
                timeout=(10, self.config.timeout_seconds),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = self._content(response)
        except requests.RequestException as error:
            raise Transient(f"{type(error).__name__} at {self.provider}") from None
        return self._read(response, content, name)

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session

    def _content(self, response: requests.Response) -> bytes:
        """The body, with a limit on its size and on the time that it takes."""
        deadline = time.monotonic() + self.config.timeout_seconds
        found = bytearray()
        for piece in response.iter_content(1 << 16):
            found += piece
            if len(found) > _LARGEST:
                raise Transient(f"a body of more than {_LARGEST} bytes")
            if time.monotonic() > deadline:
                raise Transient("the body took too long")
        return bytes(found)

    def _read(self, response: requests.Response, content: bytes, name: str) -> Reply:
        status = response.status_code
        if status == 200:
            reply = reply_of(content)
            return replace(reply, text=self._clean(reply.text), model=self._clean(reply.model))
        if status in _RETRIED or status >= 500:
            raise Transient(f"status {status}", _retry_after(response))
        whole = self._clean(" ".join(content.decode("utf-8", "replace").split()))
        said = whole[:_SHOWN]  # cut after cleaning: no part of a key stays at the cut
        if status in (400, 403) and any(word in whole.lower() for word in _FILTER):
            return Reply(said, True, "", {})
        if status in _CONFIGURATION or 300 <= status < 400:
            raise ValueError(
                f"judge at {self.provider}: status {status}: {said or 'no text'}; check judge.base_url, "
                f"judge.model and ${self.config.key_variable or 'no key'}"
            )
        raise ValueError(f"judge at {self.provider} refuses {name}: status {status}: {said}")

    def _clean(self, text: str) -> str:
        """A text of the server without the key, should it echo one."""
        return text.replace(self._secret, "[key]") if self._secret else text


def reply_of(content: bytes) -> Reply:
    """The reply in a body of chat completions; Transient where the body is not of that form.

    An empty text is a reply that was paid for (a model that spends its length on thinking): it has no score,
    but its cost counts.
    """
    import json

    try:
        found = json.loads(content)
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        usage = {k: v for k, v in (found.get("usage") or {}).items() if type(v) is int}
        model = str(found.get("model", ""))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Transient(f"a body that is no chat completion ({type(error).__name__})") from None
    if refusal or choice.get("finish_reason") == "content_filter":
        return Reply(str(refusal or text or "content filter"), True, model, usage)
    if isinstance(text, list):  # some endpoints answer in parts
        parts = [part.get("text", "") for part in text if isinstance(part, dict)]
        text = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(text, str | None):
        raise Transient("a text that is none")
    return Reply(text or "", False, model, usage)


def _sendable(key: str, variable: str) -> str:
    """The key; ValueError, without showing it, for one that no header can carry."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"${variable}: holds something that is no key (empty, blanks, line ends or letters beyond "
            "ASCII); export the key alone"
        )
    return key


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait: a number or a date."""
    text = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def check(config: JudgeConfig) -> None:
    """ValueError for a judge that cannot be named in a table or capped: URL, credentials in it, model, prices."""
    parts = urlsplit(config.base_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"judge.base_url = {config.base_url!r}: must be an http or https URL")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            "judge.base_url: must hold no credentials; name a variable in key_variable"
        )
    has_date = any(character.isdigit() for character in config.model)
    if not config.model or not has_date:
        raise ValueError(
            f"judge.model = {config.model!r}: name a dated snapshot or a versioned model, as an alias "
            "(gpt-4o) means another judge every few months"
        )
    if config.cost_cap is not None and not (
        config.price_input or config.price_output or config.request_cost_estimate
    ):
        raise ValueError(
            f"judge.cost_cap = {config.cost_cap:g}: caps nothing without prices; set price_input and "
            "price_output, or request_cost_estimate"
        )
