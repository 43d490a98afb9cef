"""What a judge of the tests says: a rule of the request alone, in the form that each benchmark reads.

The benchmark is recognised by the form of its request, so that other prompts of the same benchmark are answered, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Request = Mapping[str, Any]  # the body of a chat completion


def reply(asked: Request) -> str:
    """Scores between the lowest and the highest of the scale, by a hash of texts and images."""
    texts, images = contents(asked)
    whole = "\n".join([*texts, *images]).encode()
    numbers = hashlib.sha256(whole).digest()
    if any(message["role"] == "system" for message in asked["messages"]):
        return _wise(numbers)
    if not images:
        return _mmvet(texts[-1])
    if images[0].startswith("data:image/jpeg"):
        return _gedit(numbers)
    return _imgedit(numbers) if len(images) == 2 else _t2i_compbench(numbers)


def contents(asked: Request) -> tuple[list[str], list[str]]:
    """All texts and all images, as data URLs, in order; ValueError unless the request has the form of the API."""
    texts, images = [], []
    for message in asked["messages"]:
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image_url" and part["image_url"]["url"].startswith("data:image/"):
                images.append(part["image_url"]["url"])
            else:
                raise ValueError(f"a part of type {part['type']} is neither a text nor an image")
    if not texts:
        raise ValueError("no text is asked")
    return texts, images


def _wise(numbers: bytes) -> str:
    names = ("Consistency", "Realism", "Aesthetic Quality")
    return "\n".join(
        f"**{name}**: {number % 3}" for name, number in zip(names, numbers, strict=False)
    )


def _imgedit(numbers: bytes) -> str:
    first, second, third = (1 + number % 5 for number in numbers[:3])
    return (
        f"Brief reasoning: By the rule.\nPrompt Compliance: {first}\n"
        f"Visual Naturalness: {min(first, second)}\nPhysical & Detail Integrity: {min(first, third)}"
    )


def _gedit(numbers: bytes) -> str:
    scores = [number % 11 for number in numbers[:2]]
    return "```json\n" + json.dumps({"score": scores, "reasoning": "by the rule"}) + "\n```"


def _t2i_compbench(numbers: bytes) -> str:
    return json.dumps({"score": numbers[0] % 101, "explanation": "by the rule"})


def _mmvet(text: str) -> str:
    """1.0 for a prediction that holds one of the alternatives of the truth, else 0.0."""
    _, truth, prediction, *_ = text.splitlines()[-1].split(" | ")
    given = prediction.removesuffix(" |").lower()
    return f"{float(any(one.strip().lower() in given for one in truth.split('<OR>'))):.1f}"
