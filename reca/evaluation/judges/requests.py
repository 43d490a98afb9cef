"""Requests to a judge: a sequence of texts and images, and the hash of everything that determines the reply."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from reca.core.artifacts import sha256_bytes, sha256_json
from reca.core.images import decode

Encoding = Literal["png", "jpeg", "file"]
JPEG_QUALITY = 75  # PIL's default, used by the official scripts


@dataclass(frozen=True)
class Picture:
    """An image to send. `png` and `jpeg` re-encode it, `file` sends its bytes unchanged.

    `size_of`: an image to whose size it is resized first (bicubic).
    """

    data: bytes
    encoding: Encoding = "png"
    size_of: bytes | None = None

    def sent(self) -> tuple[str, bytes]:
        """Media type and encoded bytes."""
        if self.encoding == "file" and self.size_of is None:
            is_png = self.data.startswith(b"\x89PNG")
            return ("image/png" if is_png else "image/jpeg"), self.data
        picture = decode(self.data, name="image for the judge").convert("RGB")
        if self.size_of is not None:
            size = decode(self.size_of, name="source image").size
            if picture.size != size:
                picture = picture.resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        if self.encoding == "jpeg":
            picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
            return "image/jpeg", buffer.getvalue()
        picture.save(buffer, format="PNG")
        return "image/png", buffer.getvalue()


Part = str | Picture


@dataclass(frozen=True)
class JudgeRequest:
    """One request to the judge. `id` is unique in the benchmark and identifies the item to score."""

    id: str
    parts: tuple[Part, ...]
    system: str | None = None

    def content(self) -> list[dict[str, Any]]:
        """The content for the ledger key, with texts and images replaced by their hashes."""
        described: list[dict[str, Any]] = []
        for part in self.parts:
            if isinstance(part, str):
                described.append({"text": sha256_bytes(part.encode())})
            else:
                kind, data = part.sent()
                described.append({"image": sha256_bytes(data), "type": kind})
        return described

    def messages(self) -> list[dict[str, Any]]:
        """The messages in OpenAI's chat completions format, with images as data URLs."""
        content: list[dict[str, Any]] = []
        for part in self.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                continue
            kind, data = part.sent()
            url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, {"role": "user", "content": content}]

    def key(self, determinants: dict[str, Any], attempt: int = 0) -> str:
        """Hash of everything that determines the reply: judge, its parameters, version, texts, images, attempt."""
        system = None if self.system is None else sha256_bytes(self.system.encode())
        return sha256_json(
            {**determinants, "system": system, "content": self.content(), "attempt": attempt}
        )
