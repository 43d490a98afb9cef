"""GenEval's verdict on an image, and the summary: pure functions of detections (reference/benchmarks.md 2).

A detection is `{"class", "box" [x1, y1, x2, y2], "score", "color"}`; metadata is a line of `evaluation_metadata.jsonl`:
`{"tag", "include": [{"class", "count", "color"?, "position"? [relation, clause]}], "exclude": [{"class", "count"}]}`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Box = Sequence[float]
Detection = Mapping[str, Any]

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_PER_CLASS = 16
POSITION_MARGIN = 0.1  # reference/benchmarks.md 2, constant k
DIRECTION = 0.5


def iou(a: Box, b: Box) -> float:
    """Intersection over union with GenEval's +1 pixel convention."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def relations(a: Box, b: Box) -> set[str]:
    """The position of box `a` relative to `b`: a subset of left of, right of, above, below; at most two apply."""
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [(a[i + 2] - a[i]) + (b[i + 2] - b[i]) for i in (0, 1)]
    reduced = [
        max(abs(o) - POSITION_MARGIN * size, 0) * (1 if o > 0 else -1 if o < 0 else 0)
        for o, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(r) < 1e-3 for r in reduced):
        return set()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    dx, dy = (r / length for r in reduced)
    names = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, value in names.items() if value > DIRECTION}


def keep(
    detections: Iterable[Detection], threshold: float, max_overlap: float = 1.0
) -> dict[str, list[Detection]]:
    """Detections above the threshold by class, best first, at most 16 per class, after greedy overlap suppression."""
    by_class: dict[str, list[Detection]] = defaultdict(list)
    for detection in sorted(detections, key=lambda d: -d["score"]):
        if detection["score"] > threshold and len(by_class[detection["class"]]) < MAX_PER_CLASS:
            by_class[detection["class"]].append(detection)
    kept: dict[str, list[Detection]] = {}
    for name, found in by_class.items():
        survivors: list[Detection] = []
        for detection in found:
            if all(iou(detection["box"], other["box"]) < max_overlap for other in survivors):
                survivors.append(detection)
        if survivors:
            kept[name] = survivors
    return kept


def judge(
    metadata: Mapping[str, Any], detections: Iterable[Detection], max_overlap: float = 1.0
) -> tuple[bool, str, dict[str, list[Detection]]]:
    """Whether an image satisfies its prompt, why not (one line per failed clause), and the kept detections."""
    threshold = COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD
    kept = keep(detections, threshold, max_overlap)
    groups: list[list[Detection] | None] = []
    reasons: list[str] = []
    for clause in metadata.get("include", ()):
        group, reason = _include(clause, kept, groups)
        groups.append(group)
        reasons.extend(reason)
    for clause in metadata.get("exclude", ()):
        found = len(kept.get(clause["class"], ()))
        if found >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {found}")
    return not reasons, "\n".join(reasons), kept


def _include(
    clause: Mapping[str, Any],
    kept: Mapping[str, list[Detection]],
    groups: Sequence[list[Detection] | None],
) -> tuple[list[Detection] | None, list[str]]:
    """The detections that satisfy one include clause, or None with the reasons."""
    name, count = clause["class"], clause["count"]
    found = list(kept.get(name, ()))[:count]
    if len(found) < count:
        return None, [f"expected {name}>={count}, found {len(found)}"]
    if "color" in clause:
        colours = [detection["color"] for detection in found]
        right = colours.count(clause["color"])
        if right < count:
            others = ", ".join(
                f"{colours.count(c)} {c}" for c in dict.fromkeys(colours) if c != clause["color"]
            )
            return None, [
                f"expected {clause['color']} {name}>={count}, found {right} {clause['color']}; and {others}"
            ]
    if "position" in clause:
        reason = _position(name, found, clause["position"], groups)
        if reason:
            return None, [reason]
    return found, []


def _position(
    name: str,
    found: Sequence[Detection],
    wanted: Sequence[Any],
    groups: Sequence[list[Detection] | None],
) -> str | None:
    relation, index = wanted
    target = groups[index]
    if target is None:
        return f"no target for {name} to be {relation}"
    for detection in found:
        for other in target:
            held = relations(detection["box"], other["box"])
            if relation not in held:
                return (
                    f"expected {name} {relation} target, found {' and '.join(sorted(held))} target"
                )
    return None


def summarise(rows: Iterable[tuple[str, str, bool]]) -> dict[str, Any]:
    """Accuracies from rows (tag, prompt key, correct): by tag, over images, over prompts (any image correct), and
    `overall`, the unweighted mean over tags.
    """
    by_tag: dict[str, list[bool]] = defaultdict(list)
    by_prompt: dict[str, bool] = defaultdict(bool)
    for tag, prompt, correct in rows:
        by_tag[tag].append(correct)
        by_prompt[prompt] |= correct
    tasks = {tag: sum(values) / len(values) for tag, values in by_tag.items()}
    every = [value for values in by_tag.values() for value in values]
    return {
        "tasks": tasks,
        "overall": sum(tasks.values()) / len(tasks) if tasks else None,
        "images": sum(every) / len(every) if every else None,
        "prompts": sum(by_prompt.values()) / len(by_prompt) if by_prompt else None,
    }
