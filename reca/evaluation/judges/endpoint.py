"""An OpenAI-compatible endpoint over plain HTTP: one request, one raw reply, with retries.

The key comes from the environment and goes nowhere but into the request's header: not into the ledger,
logs or errors. Redirects are not followed, as they would carry it elsewhere.
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
_CONFIGURATION = {401, 403, 404}  # nothing that asking again could mend
_LARGEST = 4 << 20  # bytes of a reply's body
_SHOWN = 200
_CONNECT = 10.0  # seconds to connect, at most
_BREAKABLE = 12  # characters; blanks within a shorter text would be found in ordinary replies
_BREAK = r"(?:[\s\u200b-\u200f\u2060\ufeff]|\\[nrt])*+"  # also line ends that are written out
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
    """A failure that asking again may mend; `after` is the pause the server asked for, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class GaveUp(Exception):
    """The endpoint gave no reply to this request within the configured tries."""


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
        self._echo = _echo_of(self._secret) if self._secret else None
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
        if limit.over:  # a body that ends with the connection looks whole
            raise Transient(f"no answer within {seconds:g} s at {self.provider}")
        return self._read(response, content, name)

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = deadline.session()
        return self._local.session

    def _content(self, response: requests.Response) -> bytes:
        """The body, with a limit on its size."""
        found = bytearray()
        for piece in response.iter_content(1 << 16):
            found += piece
            if len(found) > _LARGEST:
                raise Transient(f"a body of more than {_LARGEST} bytes")
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
        """A text of the server without the key, should it echo one, whole or broken by blanks and line ends."""
        return self._echo.sub("[key]", text) if self._echo else text


def _echo_of(key: str) -> re.Pattern[str]:
    """What a key looks like in a text; a short one (a placeholder such as `EMPTY`) as it is, in one piece."""
    if len(key) < _BREAKABLE:
        return re.compile(re.escape(key))
    return re.compile(_BREAK.join(map(re.escape, key)), re.IGNORECASE)


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
    except (ValueError, TypeError, OverflowError):
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
