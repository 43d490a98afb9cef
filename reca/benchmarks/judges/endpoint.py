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
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from reca.benchmarks.judges.requests import JudgeRequest
from reca.schema import JudgeConfig

_log = logging.getLogger(__name__)
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_CONFIGURATION = {401, 403, 404}  # nothing that asking again could mend
_LARGEST = 4 << 20  # bytes of a reply's body
_SHOWN = 200
_FILTER = ("content_filter", "content_policy", "responsibleai", "moderation", "safety")


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
        self._auth = _Bearer(key)
        self._secret = key
        self._local = threading.local()

    @property
    def provider(self) -> str:
        """Host and port of the endpoint: the same model differs between providers."""
        return urlsplit(self.config.base_url).netloc.rpartition("@")[2]

    def determinants(self, benchmark: str, version: str) -> dict[str, Any]:
        """All that determines a reply besides the request itself."""
        names = ("model", "temperature", "max_tokens", "seed")
        fields = asdict(self.config)
        return {
            "benchmark": benchmark,
            "version": version,
            "provider": self.provider,
            **{name: fields[name] for name in names},
        }

    def ask(self, request: JudgeRequest) -> Reply:
        """The reply to a request; GaveUp after the configured tries, ValueError where asking again is no use."""
        body = self._body(request)
        reason = "never asked"
        for attempt in range(self.config.tries):
            try:
                return self._once(body)
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

    def _once(self, body: dict[str, Any]) -> Reply:
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
        return self._read(response, content)

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

    def _read(self, response: requests.Response, content: bytes) -> Reply:
        status = response.status_code
        if status == 200:
            return reply_of(content)
        said = self._clean(" ".join(content.decode("utf-8", "replace").split())[:_SHOWN])
        if status in _RETRIED:
            raise Transient(f"status {status}", _retry_after(response))
        if status == 400 and any(word in said.lower() for word in _FILTER):
            return Reply(said, True, "", {})
        if status in _CONFIGURATION or 300 <= status < 400:
            raise ValueError(
                f"judge at {self.provider}: status {status}: {said or 'no text'}; check judge.base_url, "
                f"judge.model and ${self.config.key_variable or 'no key'}"
            )
        raise ValueError(f"judge at {self.provider} refuses the request: status {status}: {said}")

    def _clean(self, text: str) -> str:
        """A text of the server without the key, should it echo one."""
        return text.replace(self._secret, "[key]") if self._secret else text


def reply_of(content: bytes) -> Reply:
    """The reply in a body of chat completions; Transient where the body is not of that form or empty."""
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
    if not isinstance(text, str) or not text.strip():
        raise Transient("an empty reply")
    return Reply(text, False, model, usage)


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
    """ValueError for a judge that could not be named in a table: no http(s) URL, credentials in it, no dated model."""
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
