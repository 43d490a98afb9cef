"""A local judge (Qwen2.5-VL for T2I-CompBench) that uses the same ledger as an endpoint."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from reca.config.schema import JudgeConfig
from reca.core.artifacts import read_manifest, sha256_json
from reca.core.finite import named
from reca.core.images import decode
from reca.evaluation.detectors.vqa import ChatModel
from reca.evaluation.judges.body import Reply
from reca.evaluation.judges.requests import JudgeRequest

LONGEST = 512


class LocalJudge:
    """Greedy replies of a chat model, one request at a time; the hash of its files is part of every ledger key.

    ValueError for a temperature other than 0.
    """

    def __init__(self, config: JudgeConfig, folder: Path, device: str = "cpu") -> None:
        if config.temperature:
            raise ValueError(
                "judge.temperature: a local judge decodes greedily; set it to 0 or null"
            )
        self.config = replace(
            config, concurrency=1, attempts=1
        )  # a greedy retry gives the same reply
        self.weights = sha256_json(read_manifest(folder)["outputs"])
        self.chat = ChatModel(folder, device)

    def determinants(self, benchmark: str, version: str) -> dict[str, Any]:
        """Everything besides the request that determines a reply: model, weights and length."""
        names = ("model", "max_tokens")
        fields = asdict(self.config)
        return {
            "benchmark": benchmark,
            "version": version,
            "provider": "transformers",
            "weights": self.weights,
            **{name: fields[name] for name in names},
        }

    def ask(self, request: JudgeRequest) -> Reply:
        """The greedy reply; images are encoded as for an endpoint."""
        parts: list[str | Image.Image] = []
        for part in request.parts:
            if isinstance(part, str):
                parts.append(part)
            else:
                parts.append(decode(part.sent()[1], name=request.id))
        longest = self.config.max_tokens or LONGEST
        with named([request.id]):
            reply = self.chat.reply(parts, longest, request.system)
        return Reply(reply, False, self.config.model, {})
