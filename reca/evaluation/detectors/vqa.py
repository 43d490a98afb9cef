"""Answers to DPG-Bench's questions by VQA models of transformers.

The official mPLUG runs in a separate environment (`reca.evaluation.observers.exchange`); its scores are labelled
`dpg(file:mplug)`. Scores by a model of transformers are labelled with that model, as they are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from reca.core.finite import demand
from reca.evaluation.detectors.checkpoint import companion, network, tokenizer

BLIP_HARMLESS = (r".*\.embeddings\.position_ids",)  # 0, 1, 2, ..., stored by older versions
YES_OR_NO = " Answer yes or no."
LONGEST = 10  # new tokens of an answer


class Vqa(Protocol):
    """Answers questions about one image."""

    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Greedy answers, one per question."""


class BlipVqa:
    """`BlipForQuestionAnswering`, the model most similar to the official mPLUG."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import BertTokenizer, BlipForQuestionAnswering, BlipImageProcessor

        self.device = torch.device(device)
        self.model = network(BlipForQuestionAnswering, folder, BLIP_HARMLESS).to(self.device)
        self.tokenizer = tokenizer(BertTokenizer, folder, self.model.config.text_config.vocab_size)
        self.processor = companion(BlipImageProcessor, folder)

    @torch.no_grad()
    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Greedy answers, one question at a time, because padding would change them."""
        pixels = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        found = []
        for question in questions:
            tokens = self.tokenizer(question, return_tensors="pt").to(self.device)
            answer = self.model.generate(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=pixels.to(self.device),
                max_new_tokens=LONGEST,
                num_beams=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            said = _finite(answer)[0]
            found.append(self.tokenizer.decode(said, skip_special_tokens=True).strip())
        return found


def _finite(made: Any) -> torch.Tensor:
    """The generated token ids [1, T]; NonFinite if the logits of a step were not finite."""
    if made.logits:
        demand(torch.stack([step.amax() for step in made.logits]).isfinite().all()[None], "logits")
    return made.sequences


class ChatModel:
    """Qwen2.5-VL with greedy decoding and the chat template of its tokenizer.

    Its processor class is not used because it requires torchvision, for videos only.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import (
            AutoTokenizer,
            Qwen2_5_VLForConditionalGeneration,
            Qwen2VLImageProcessor,
        )

        self.device = torch.device(device)
        loaded = network(Qwen2_5_VLForConditionalGeneration, folder, dtype="auto")
        self.model = loaded.to(self.device)
        self.tokenizer = tokenizer(AutoTokenizer, folder, self.model.config.text_config.vocab_size)
        self.images = companion(Qwen2VLImageProcessor, folder)

    @torch.no_grad()
    def reply(
        self, parts: Sequence[str | Image.Image], longest: int, system: str | None = None
    ) -> str:
        """The greedy reply to a sequence of texts and images, of at most `longest` tokens."""
        inputs = self._inputs(parts, system)
        made = self.model.generate(
            **inputs,
            max_new_tokens=longest,
            num_beams=1,
            do_sample=False,
            repetition_penalty=1.0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = _finite(made)[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))

    def _inputs(
        self, parts: Sequence[str | Image.Image], system: str | None
    ) -> dict[str, torch.Tensor]:
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in parts
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        text = str(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        )
        pictures = [part.convert("RGB") for part in parts if not isinstance(part, str)]
        if not pictures:
            return dict(self.tokenizer(text, return_tensors="pt").to(self.device))
        shown = self.images(images=pictures, return_tensors="pt")
        tokens = self.tokenizer(self._widened(text, shown["image_grid_thw"]), return_tensors="pt")
        image = self.model.config.image_token_id
        kinds = (tokens["input_ids"] == image).long()  # 1 at image tokens
        found = {**tokens, **shown, "mm_token_type_ids": kinds}
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def _widened(self, text: str, grids: torch.Tensor) -> str:
        """Repeat each image token for all merged patches; `grids` [images, 3] has frames, rows and columns."""
        token = str(self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id))
        pieces = text.split(token)
        if len(pieces) != len(grids) + 1:
            raise ValueError(
                f"the chat template inserted {len(pieces) - 1} of {len(grids)} images; "
                "use a Qwen2.5-VL checkpoint"
            )
        counts = [int(grid.prod()) // self.images.merge_size**2 for grid in grids]
        return pieces[0] + "".join(
            token * count + piece for count, piece in zip(counts, pieces[1:], strict=True)
        )

    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Yes or no per question: the first word of the reply in lower case, without punctuation."""
        return [
            first_word(self.reply([image.convert("RGB"), question + YES_OR_NO], LONGEST))
            for question in questions
        ]


def first_word(reply: str) -> str:
    """The first word in lower case, without punctuation; empty for an empty reply."""
    words = reply.split()
    return words[0].lower().strip(".,!:;\"'*") if words else ""
