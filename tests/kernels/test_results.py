"""The committed measurements say what docs/kernels.md claims, and name their machine."""

from __future__ import annotations

import csv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "kernels"


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="") as file:
        return list(csv.DictReader(file))


def by_implementation(operation: str, case: str) -> dict[str, dict[str, str]]:
    return {
        row["implementation"]: row
        for row in rows("cpu.csv")
        if row["operation"] == operation and row["case"].startswith(case)
    }


def test_cross_entropy_needs_an_eighth_of_the_memory_and_no_more_time() -> None:
    found = by_implementation("linear_cross_entropy", "large vocabulary N=4096 D=1024 V=32768")
    ours, plain = found["reca torch"], found["torch eager"]
    assert float(ours["peak_mib"]) <= float(plain["peak_mib"]) / 8
    assert float(ours["total_ms"]) <= float(plain["total_ms"])


def test_attention_is_no_slower_than_a_dense_mask_from_400_tokens_on() -> None:
    for case in ("Show-o RecA", "BAGEL 256 px"):
        found = by_implementation("block_attention", case)
        assert float(found["reca torch"]["total_ms"]) <= float(
            found["torch SDPA, dense mask"]["total_ms"]
        )


def test_nothing_spills_in_training_and_little_elsewhere() -> None:
    """Training: bf16, sizes that 16 divides."""
    found = [row for row in rows("static.csv") if row["target"] in ("sm_80", "sm_90")]
    training = [r for r in found if "bf16" in r["case"] and "unaligned" not in r["case"]]
    # two losses, two widths of heads, keys of their own and long samples; two types, sizes that 16 divides and others
    assert len({row["case"] for row in training}) == 6 and len({row["case"] for row in found}) == 21
    timed = [r for r in training if r["kernel"] == "key_gradient_kernel" and "128" in r["case"]]
    timed = [row for row in timed if row["target"] == "sm_90"]
    assert {row["spills"] for row in timed} == {"40"}, "docs/kernels.md says so"
    others = [row for row in training if row not in timed]
    assert all(row["spills"] == "0" and row["stack"] == "0" for row in others)
    assert max(int(row["spills"]) for row in found if row not in timed) == 16, "docs say so"
    assert all(row["serialised"] == "0" for row in found)


def test_the_machine_and_the_versions_are_named() -> None:
    assert all("torch 2." in row["machine"] for row in rows("cpu.csv"))


def test_the_document_quotes_the_measurements() -> None:
    said = (FOLDER.parents[1] / "kernels.md").read_text()
    quoted = 0
    for row in rows("cpu.csv"):
        if row["implementation"] in ("reca torch", "torch eager", "torch SDPA, dense mask"):
            line = f"| {row['case']} | {row['implementation']} | {row['total_ms']} | {row['peak_mib']} |"
            assert line in said, f"docs/kernels.md lacks: {line}"
            quoted += 1
    assert quoted >= 12
