"""GenEval's detector: Mask2Former of transformers with the official preprocessing and post-processing.

Scores are labelled `geneval(hf-detector)` with the Hub's weights, and `geneval(mmdet-weights)` with the official
weights, converted by `reca.evaluation.detectors.mmdet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reca.core.artifacts import read_manifest
from reca.evaluation.detectors import colours
from reca.evaluation.detectors.checkpoint import companion, demand_labels, network, tokenizer
from reca.evaluation.detectors.coco import ALIASES
from reca.evaluation.detectors.instances import Instance, Size, instances
from reca.evaluation.tasks.geneval_rules import THRESHOLD

# Tensors that may be missing or unexpected in a complete checkpoint: the class weights of the loss, which inference
# does not use; the backbone's final norm, which is not applied to the feature maps (each has its own norm); and the
# relative position index, which older checkpoints stored and transformers computes from the window size.
HARMLESS = (
    r"criterion\.empty_weight",
    r"model\.pixel_level_module\.encoder\.(?:swin\.)?layernorm\.(?:weight|bias)",
    r"model\.pixel_level_module\.encoder\..*\.relative_position_index",
)
CLIP_HARMLESS = (
    r"(?:text|vision)_model\.embeddings\.position_ids",
)  # 0, 1, 2, ..., stored by older versions
SHORTEST, LONGEST, MULTIPLE = 800, 1333, 32  # mmdet's test transform, reference/benchmarks.md 2
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB


def resized(size: Size) -> Size:
    """(rows, columns) after scaling into 800 x 1333 with the aspect ratio kept, rounded like mmcv."""
    scale = min(LONGEST / max(size), SHORTEST / min(size))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def padded(size: Size) -> Size:
    """(rows, columns) padded at the bottom and right to a multiple of 32."""
    rows, columns = (-(-side // MULTIPLE) * MULTIPLE for side in size)
    return rows, columns


def pixels(image: Image.Image) -> tuple[torch.Tensor, Size, Size]:
    """The network's input [1, 3, H, W], and the sizes before and after padding.

    Uses PIL's bilinear resize, which antialiases, unlike OpenCV's (docs/differences.md).
    """
    small = resized((image.height, image.width))
    whole = padded(small)
    shown = image.convert("RGB").resize((small[1], small[0]), Image.Resampling.BILINEAR)
    normal = (np.asarray(shown, np.float32) - np.array(MEAN, np.float32)) / np.array(
        STD, np.float32
    )
    tensor = torch.zeros(1, 3, *whole)
    tensor[0, :, : small[0], : small[1]] = torch.from_numpy(normal).permute(2, 0, 1)
    return tensor, small, whole


class Mask2Former:
    """Detects instances of the 80 COCO classes in an image."""

    def __init__(self, model: Any, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()

    @classmethod
    def open(
        cls, folder: Path, names: Sequence[str], device: str = "cpu", official: bool = False
    ) -> Mask2Former:
        """Load a Hub checkpoint, or with `official` the `.pth` file in a folder written by `reca fetch`.

        ValueError unless the classes are `names`, in order, and every tensor is present (see `checkpoint`).
        """
        if official:
            from reca.evaluation.detectors.mmdet import load

            return cls(load(*pinned_file(folder, "*.pth"), names), device)
        from transformers import Mask2FormerForUniversalSegmentation

        model = network(Mask2FormerForUniversalSegmentation, folder, HARMLESS)
        demand_labels(folder / "config.json", model.config.id2label, names, ALIASES)
        return cls(model, device)

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> list[Instance]:
        """All candidates, best first."""
        tensor, small, whole = pixels(image)
        found = self.model(pixel_values=tensor.to(self.device))
        original = (image.height, image.width)
        return instances(
            found.class_queries_logits[0].float().cpu(),
            found.masks_queries_logits[0].float().cpu(),
            whole,
            small,
            original,
        )


def pinned_file(folder: Path, pattern: str) -> tuple[Path, str]:
    """The file of a fetched source that matches a pattern, and its sha256 from the fetch record.

    ValueError unless exactly one file matches.
    """
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"{folder}: contains {len(found)} files {pattern} instead of one; fetch it again"
        )
    name = found[0].relative_to(folder).as_posix()
    return found[0], read_manifest(folder)["outputs"][name]["sha256"]


class ClipColours:
    """Classifies the colour of instances with CLIP, by thirty texts per class."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        self.device = torch.device(device)
        self.model = network(CLIPModel, folder, CLIP_HARMLESS).to(self.device)
        self.tokenizer = tokenizer(CLIPTokenizer, folder, self.model.config.text_config.vocab_size)
        self.processor = companion(CLIPImageProcessor, folder)
        self._vectors: dict[str, np.ndarray] = {}

    def __call__(self, image: Image.Image, found: Sequence[Instance], name: str) -> list[str]:
        """One colour per instance; all instances are of class `name`."""
        if not found:
            return []
        array = np.asarray(image.convert("RGB"))
        crops = [colours.crop(array, instance.box, instance.mask.numpy()) for instance in found]
        return colours.choose(self._pictures(crops), self._class(name))

    @torch.no_grad()
    def _pictures(self, crops: Sequence[Image.Image]) -> np.ndarray:
        shown = self.processor(images=list(crops), return_tensors="pt")["pixel_values"]
        return _array(self.model.get_image_features(pixel_values=shown.to(self.device)))

    @torch.no_grad()
    def _class(self, name: str) -> np.ndarray:
        if name not in self._vectors:
            texts = colours.texts(name)
            tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            rows = _array(self.model.get_text_features(**tokens.to(self.device)))
            shape = (len(colours.COLOURS), len(colours.TEMPLATES), rows.shape[-1])
            self._vectors[name] = colours.class_vectors(rows.reshape(shape))
        return self._vectors[name]


def _array(found: Any) -> np.ndarray:
    """Projected features as an array; transformers 5 returns them as `pooler_output` of an output object."""
    tensor = getattr(found, "pooler_output", found)
    return tensor.float().cpu().numpy()


class GenevalEye:
    """Detections of an image in GenEval's format: classes by GenEval's names, with colours if the prompt needs them."""

    def __init__(self, detector: Any, classifier: Any, names: Sequence[str]) -> None:
        self.detector, self.classifier, self.names = detector, classifier, names

    def __call__(self, image: Image.Image, metadata: dict[str, Any]) -> list[dict[str, Any]]:
        """All instances above the lower threshold; a colour is added for classes whose colour the prompt specifies."""
        found = [i for i in self.detector(image) if i.score > THRESHOLD and i.mask.any()]
        asked = {clause["class"] for clause in metadata.get("include", ()) if "color" in clause}
        given: dict[int, str] = {}
        for name in sorted(asked):
            own = [i for i, one in enumerate(found) if self.names[one.label] == name]
            seen = self.classifier(image, [found[i] for i in own], name)
            given |= dict(zip(own, seen, strict=True))
        return [
            {
                "class": self.names[one.label],
                "box": list(one.box),
                "score": one.score,
                "color": given.get(i),
            }
            for i, one in enumerate(found)
        ]
