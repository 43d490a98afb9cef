"""An OpenAI-compatible endpoint: one request, one raw reply, with retries.

The API key comes from the environment and is used only in the request's header; it never appears in the ledger, logs or
errors. Redirects are not followed because they would send the key to another server.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from dataclasses import asdict, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from reca.config.schema import JudgeConfig
from reca.evaluation.judges import deadline
from reca.evaluation.judges.body import NoCompletion, Reply, reply_of
from reca.evaluation.judges.requests import JudgeRequest

_log = logging.getLogger(__name__)
_RETRIED = {408, 409, 425, 429}  # and every 5xx
_CONFIGURATION = {401, 403, 404}  # a retry would not help
_LARGEST = 4 << 20  # bytes of a reply's body
_SHOWN = 200
_CONNECT = 10.0  # seconds to connect
_BREAKABLE = 12  # characters; a shorter key with optional whitespace would match ordinary text
_BREAK = r"(?:[\s\u200b-\u200f\u2060\ufeff]|\\[nrt])*+"  # also escaped line breaks
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_FILTER = (
    "content_filter",
    "content_policy",
    "content management policy",
    "responsibleai",
    "moderation",
    "safety system",
)


class Transient(Exception):
    """A failure that a retry may resolve; `after` is the pause requested by the server, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class GaveUp(Exception):
    """The endpoint gave no reply to a request within the configured number of tries."""


class _Bearer(requests.auth.AuthBase):
    """Sets the authorization header, so that `.netrc` is not used; its representation does not contain the key."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Endpoint:
    """A judge at `POST <base_url>/chat/completions`; safe to use from several threads.

    ValueError for an invalid configuration: no URL, no dated model, or a missing key.
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
        self._echo = _echo_of(self._secret) if self._secret else None
        self._auth = _Bearer(self._secret)
        self._local = threading.local()

    @property
    def provider(self) -> str:
        """Host and port of the endpoint; replies of the same model may differ between providers."""
        return urlsplit(self.config.base_url).netloc.rpartition("@")[2].lower()

    def determinants(self, benchmark: str, version: str) -> dict[str, Any]:
        """Everything besides the request that determines a reply."""
        names = ("model", "temperature", "max_tokens", "seed")
        fields = asdict(self.config)
        return {
            "benchmark": benchmark,
            "version": version,
            "provider": self.provider,
            "path": urlsplit(self.config.base_url).path.rstrip("/"),  # may name a deployment
            **{name: fields[name] for name in names},
        }

    def ask(self, request: JudgeRequest) -> Reply:
        """The reply to a request; GaveUp after the configured tries, ValueError for errors that a retry cannot fix."""
        body = self._body(request)
        reason = "no request was sent"
        for attempt in range(self.config.tries):
            try:
                return self._once(body, request.id)
            except Transient as problem:
                reason = self._clean(str(problem))
                if attempt + 1 < self.config.tries:
                    pause = self._pause(attempt, problem.after)
                    _log.info("%s: %s; retrying in %.1f s", request.id, reason, pause)
                    time.sleep(pause)
        raise GaveUp(f"{request.id}: {reason} ({self.config.tries} tries)")

    def _pause(self, attempt: int, asked: float | None) -> float:
        """Exponential back-off with jitter in seconds: at least the server's request, at most the configured limit."""
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
        seconds = self.config.timeout_seconds
        with deadline.within(seconds) as limit:
            try:
                with self._session().post(
                    url,
                    json=body,
                    auth=self._auth,
                    timeout=(min(_CONNECT, seconds), seconds),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    content = self._content(response)
            except requests.RequestException as error:
                reason = f"no answer within {seconds:g} s" if limit.over else type(error).__name__
                raise Transient(f"{reason} at {self.provider}") from None
        if limit.over:  # a body without a length looks complete when the connection ends
            raise Transient(f"no answer within {seconds:g} s at {self.provider}")
        return self._read(response, content, name)

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = deadline.session()
        return self._local.session

    def _content(self, response: requests.Response) -> bytes:
        """The body; Transient if it exceeds the size limit."""
        found = bytearray()
        for piece in response.iter_content(1 << 16):
            found += piece
            if len(found) > _LARGEST:
                raise Transient(f"the body has more than {_LARGEST} bytes")
        return bytes(found)

    def _read(self, response: requests.Response, content: bytes, name: str) -> Reply:
        status = response.status_code
        if status == 200:
            try:
                reply = reply_of(content)
            except NoCompletion as error:
                raise Transient(str(error)) from None
            return replace(
                reply, text=self._clean(reply.text), model=self._clean(reply.model)[:_SHOWN]
            )
        if status in _RETRIED or status >= 500:
            raise Transient(f"status {status}", _retry_after(response))
        shown = _ESCAPED.sub(lambda m: chr(int(m[1], 16)), content.decode("utf-8", "replace"))
        whole = " ".join(self._clean(shown).split())
        said = whole[:_SHOWN]  # truncate after cleaning, so that no part of a key remains
        if status in (400, 403) and any(word in whole.lower() for word in _FILTER):
            return Reply(said, True, "", {})
        if status in _CONFIGURATION or 300 <= status < 400:
            raise ValueError(
                f"judge at {self.provider}: status {status}: {said or 'no text'}; check judge.base_url, "
                f"judge.model and ${self.config.key_variable or 'no key'}"
            )
        raise ValueError(f"judge at {self.provider} rejects {name}: status {status}: {said}")

    def _clean(self, text: str) -> str:
        """A server's text with the key masked, in case the server echoes it, with or without whitespace inside."""
        return self._echo.sub("[key]", text) if self._echo else text


def _echo_of(key: str) -> re.Pattern[str]:
    """A pattern for a key in a text, with optional whitespace; a short one (such as `EMPTY`) only literally."""
    if len(key) < _BREAKABLE:
        return re.compile(re.escape(key))
    return re.compile(_BREAK.join(map(re.escape, key)), re.IGNORECASE)


def _sendable(key: str, variable: str) -> str:
    """The key; ValueError, without showing it, if a header cannot contain it."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"${variable}: not a valid key (it is empty, or contains whitespace or non-ASCII characters); "
            "export only the key"
        )
    return key


def _retry_after(response: requests.Response) -> float | None:
    """The server's requested pause in seconds, given as a number or a date; None if there is none."""
    text = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def check(config: JudgeConfig) -> None:
    """ValueError for an invalid judge: bad URL, credentials in the URL, undated model, or a cost cap without prices."""
    parts = urlsplit(config.base_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"judge.base_url = {config.base_url!r}: must be an http or https URL")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            "judge.base_url: must not contain credentials; put the key into the variable that key_variable names"
        )
    has_date = any(character.isdigit() for character in config.model)
    if not config.model or not has_date:
        raise ValueError(
            f"judge.model = {config.model!r}: name a dated snapshot or a versioned model; an alias "
            "(gpt-4o) refers to different models over time"
        )
    if config.cost_cap is not None and not (
        config.price_input or config.price_output or config.request_cost_estimate
    ):
        raise ValueError(
            f"judge.cost_cap = {config.cost_cap:g}: has no effect without prices; set price_input and "
            "price_output, or request_cost_estimate"
        )
