"""Sentences computed from the numbers: what they show, what they do not show, and where an arm is worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reca.report import trained
from reca.report.figures import NAMES
from reca.report.outcomes import BASE_READING, reading

SUBJECT = {
    "dense": "dense prompts",
    "geneval": "GenEval's six tasks",
    "geneval_strict": "GenEval's six tasks with nothing more in the image",
    "edit": "edits",
}
OTHERS = {"sft": "plain training at equal compute", "base": "base model", "shuffled": "shuffled"}
SEEDS_NEEDED = "With a single seed there is no interval over seeds, so no conclusion is drawn."
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def counted(number: int, noun: str) -> str:
    """`three seeds`, `one seed`, `12 seeds`."""
    word = _NUMBERS[number] if number < len(_NUMBERS) else f"{number:,}"
    return f"{word} {noun if number == 1 else noun + 's'}"


def inside(name: str) -> str:
    """A name of an arm in the middle of a sentence: `plain training`, but `RecA only`."""
    return name if name.startswith("RecA") else name.lower()


def signed(value: float) -> str:
    """A difference with its sign and three decimals, with a typographic minus sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def interval(bounds: Sequence[float]) -> str:
    """The bounds of an interval, each with its sign."""
    return f"{signed(bounds[0])} to {signed(bounds[1])}"


def verdict(gap: Mapping[str, Any]) -> str:
    """Whether RecA is `better`, `worse` or `unclear`, by the interval over seeds; `single` for one seed."""
    if gap["ci95"] is None:
        return "single"
    if not gap["significant"]:
        return "unclear"
    return "better" if gap["mean"] > 0 else "worse"


def headline(models: Sequence[Mapping[str, Any]]) -> str:
    """The main result in one line: RecA compared with plain training on the primary outcomes."""
    lines = []
    for model in models:
        known = model.get("trained", {})
        parts = "; ".join(_short(row, known) for row in model["outcomes"] if row["primary"]) + "."
        lines.append(
            f"{model['name']}: {parts}" if len(models) > 1 else parts[0].upper() + parts[1:]
        )
    return " ".join(lines)


def _short(row: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    subject, gap = SUBJECT[row["name"]], reading(row)["differences"].get("reca - sft")
    if gap is None:
        return f"on {subject}, there is no control to compare with"
    shown = f"RecA is {_ahead(known)}" if _missing(known) else "yes"  # protocol, section 8
    return {
        "better": f"on {subject}, {shown}",
        "worse": f"on {subject}, no, it is worse",
        "unclear": f"on {subject}, {_unclear(known)}",
        "single": f"on {subject}, one seed is not enough to decide",
    }[verdict(gap)]


def _unclear(known: Mapping[str, Any]) -> str:
    """No difference between arms of which one is not trained says nothing."""
    return _missing(known) or "there is no significant difference"


def _missing(known: Mapping[str, Any]) -> str:
    """Which of the compared arms do not count as trained, `RecA is not trained`; empty if both do."""
    names = {"reca": "RecA", "sft": "plain training"}
    missing = [name for arm, name in names.items() if arm in known and not known[arm]["trained"]]
    if not missing:
        return ""
    return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not trained"


def _ahead(known: Mapping[str, Any]) -> str:
    """A lead that does not count, since one of the arms does not: `ahead, but not trained`."""
    missing = _missing(known)
    return "ahead, but not trained" if missing == "RecA is not trained" else f"ahead, but {missing}"


def untrained(known: Mapping[str, Any]) -> list[str]:
    """One sentence for each arm that does not count as trained."""
    return [
        f"{NAMES[arm]} is not trained: {trained.why_not(row)}; its results say nothing about its objective."
        for arm, row in known.items()
        if not row["trained"]
    ]


def findings(model: Mapping[str, Any]) -> list[str]:
    """A few sentences per primary outcome and one on understanding, from the outcomes of one model."""
    rows = {row["name"]: row for row in model["outcomes"]}
    known = model.get("trained", {})
    edits = {"edit": model["edits"]["chance"]["random"]["edit"]} if "edit" in rows else {}
    chance = {**model["chance"], **edits}
    parts = [
        _primary(row, chance.get(row["name"]), known) for row in rows.values() if row["primary"]
    ]
    parts += untrained(known)
    read = rows.get("understanding")
    gap = read["differences"].get("reca - base") if read else None
    return [*parts, *([_reading(read, gap)] if read and gap else [])]


def _primary(
    outcome: Mapping[str, Any], chance: float | None, known: Mapping[str, Any] | None = None
) -> str:
    subject, row = SUBJECT[outcome["name"]], reading(outcome)
    if "reca" not in row:
        return f"On {subject}, RecA was not run."
    others = [(OTHERS[arm], row[arm]["mean"]) for arm in OTHERS if arm in row]
    others += [("chance", chance)] if chance is not None else []
    levels = ", ".join(f"{name} {value:.3f}" for name, value in others)
    parts = [f"On {subject}, RecA reaches {row['reca']['mean']:.3f} ({levels})."]
    for arm, name in (("sft", "plain training"), ("base", "the base model")):
        gap = row["differences"].get(f"reca - {arm}")
        if gap and (
            arm == "sft" or "reca - sft" not in row["differences"] or verdict(gap) == "worse"
        ):
            parts.append(_against(name, gap, known or {}))
    if BASE_READING in outcome:
        parts.append(_at_own(outcome["differences"].get("reca - sft")))
    return " ".join(parts)


def _at_own(gap: Mapping[str, Any] | None) -> str:
    """The second reading in one sentence."""
    start = "All arms were read at the guidance that is best for the base"
    if gap is None or gap["ci95"] is None:
        return f"{start}."
    return (
        f"{start}; with each arm at its own best guidance, the difference from plain training is "
        f"{signed(gap['mean'])} ({interval(gap['ci95'])})."
    )


def _against(name: str, gap: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    start = f"The difference from {name} is {signed(gap['mean'])}."
    if gap["ci95"] is None:
        return f"{start} {SEEDS_NEEDED}{_over_prompts(gap)}"
    seeds = counted(len(gap["per_seed"]), "seed")
    bounds = f"The 95 % interval over {seeds} is {interval(gap['ci95'])}"
    return f"{start} {bounds}{_judged(gap, known)}{_over_prompts(gap)}"


def _judged(gap: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    said = _unclear(known)
    return {
        "better": f" and excludes 0: RecA is {_ahead(known) if _missing(known) else 'better'}.",
        "worse": " and excludes 0: RecA is worse.",
        "unclear": f" and includes 0: {said.removeprefix('there is ')}.",
    }[verdict(gap)]


def _over_prompts(gap: Mapping[str, Any]) -> str:
    if "over_items" not in gap:
        return ""
    return f" Over prompts, with these models fixed, it is {interval(gap['over_items']['ci95'])}."


def _reading(row: Mapping[str, Any], gap: Mapping[str, Any]) -> str:
    start = (
        f"Understanding: {row['base']['mean']:.3f} of the questions answered exactly before RecA, "
    )
    parts = f"{start}{row['reca']['mean']:.3f} after ({signed(gap['mean'])}"
    if gap["ci95"] is None:
        return f"{parts}; one seed, no interval)."
    change = {
        "better": "an improvement",
        "worse": "a decline",
        "unclear": "no significant change",
    }[verdict(gap)]
    return f"{parts}, interval {interval(gap['ci95'])}): {change}."


def compute(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the trained arms had equal compute; `arms[arm]` has steps, samples and tokens."""
    steps = {arm["steps"] for arm in arms.values()}
    samples = {arm["samples"] for arm in arms.values()}
    if len(steps) == len(samples) == 1:
        equal = (
            f"Every arm was trained for {min(steps):,} optimizer steps on {min(samples):,} samples, "
            "with the same batch size, schedule and learning rate"
        )
        return equal + "; the table shows how many tokens had a loss."
    return "The arms differ in steps or samples, so the comparison is not at equal compute."
