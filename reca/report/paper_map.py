"""Which run reproduces which cell of the paper's tables: their rows and columns, as data.

A row is given by (experiment or None, model, arm), a column by (benchmark, metric, factor to the paper's unit). Rows of
models by other authors have no run and are never filled.
Models that we train with RecA and the paper does not have rows without reported values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """One arm of one model; `experiment` is set where it is not the published recipe of that model."""

    model: str
    arm: str
    experiment: str | None = None


@dataclass(frozen=True)
class Metric:
    """A number of `scores.json` in the paper's unit."""

    benchmark: str
    name: str = "overall"
    factor: float = 1.0


# Experiments whose runs are the rows of their models. Where several have scored an arm on a benchmark, the first of
# them is shown. No other experiment fills a row: own images or another recipe reproduce nothing of the paper.
PUBLISHED = (
    "paper",
    "paper_showo_256",
    "paper_showo_512",
    "paper_showo_vq",
    "paper_openuni_b",
    "paper_openuni_l",
    "paper_harmon_05b",
    "paper_harmon_15b",
    "paper_bagel",
    "ablation_bagel_vae_256",
    "ablation_bagel_vit_512",
    "ablation_showo_vq_full",
    "ablation_showo_vq_quarter",
    "ablation_showo_vq_blur8",
    "janus_pro",
    "janus_pro_1b",
    "janus_pro_7b",
)
PLUS = "paper_harmon_plus"
# Experiments that use a model's name for other recipes or other base weights than the rows of that model mean.
VARIANTS = frozenset(
    {
        PLUS,
        "paper_harmon_plus_stage1",
        "paper_harmon_plus_released",
        "paper_harmon_sft",
        "paper_harmon_dense",
        "paper_harmon_blip3o",
        "paper_harmon_frozen",
        "paper_harmon_reca_then_sft",
        "paper_harmon_sft_then_reca",
        "paper_openuni_b_stage1",
        "paper_openuni_b_stage2",
        "paper_openuni_l_stage1",
        "paper_openuni_l_stage2",
        "ablation_bagel_vit_224",
    }
)
# Arms of variants that are the published recipe, for comparison: used only where nothing else has run it. In order.
REPEATED = {
    "paper_harmon_sft": ("base", "reca"),
    "paper_harmon_dense": ("base",),
    "paper_harmon_blip3o": ("base",),
    "paper_harmon_frozen": ("base",),
    "ablation_bagel_vit_224": ("base", "reca"),
}
SHARE, PERCENT = 1.0, 100.0


def _geneval(*columns: str, factor: float = PERCENT) -> dict[str, Metric]:
    tasks = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    found = {
        c: Metric("geneval", f"tasks.{t}", factor) for c, t in zip(columns, tasks, strict=True)
    }
    return found


_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_DPG = {"dpg": Metric("dpg")}
_ABLATION = {
    "geneval": Metric("geneval", factor=PERCENT),
    **_DPG,
    "wise": Metric("wise", "overall_unweighted"),
    "imgedit": Metric("imgedit", "overall_types"),
    "gedit": Metric("gedit", "o"),
}
_COMPBENCH = {
    column: Metric("t2i_compbench", f"categories.{category}")
    for column, category in {
        "color": "color",
        "shape": "shape",
        "texture": "texture",
        "spatial": "spatial",
        "non_spatial": "non-spatial",
        "numeracy": "numeracy",
        "3d_spatial": "3d spatial",
    }.items()
} | {
    "complex": Metric("t2i_compbench", "complex_composite"),
    "overall": Metric("t2i_compbench", "overall_ten"),
}
_EDITING = {
    name: Metric("imgedit", f"types.{name}")
    for name in ("background", "style", "adjust", "extract", "remove", "replace", "add", "compose", "action")
} | {
    "overall": Metric("imgedit", "overall_types"),
    "gedit_sc": Metric("gedit", "sc"),
    "gedit_pq": Metric("gedit", "pq"),
    "gedit_o": Metric("gedit", "o"),
}  # fmt: skip

COLUMNS: dict[str, dict[str, Metric]] = {
    "per_model": {
        **_geneval(*_TASKS),
        "geneval_overall": Metric("geneval", factor=PERCENT),
        **_DPG,
        "wise": Metric("wise", "overall_unweighted"),
    },
    "model_zoo": {"geneval": Metric("geneval", factor=PERCENT), **_DPG},
    "table1": {
        **_geneval("single", "two", "count", "color", "position", "attr", factor=SHARE),
        "overall": Metric("geneval"),
        **_DPG,
    },
    "editing": _EDITING,
    "t2i_compbench": _COMPBENCH,
    "ablation_encoder_resolution_bagel": _ABLATION,
    "ablation_showo_vqgan": _ABLATION,
    "ablation_sft_vs_reca_harmon": _ABLATION,
    "ablation_order_harmon": _ABLATION,
    "two_stage": {"geneval": Metric("geneval"), **_DPG},
    "understanding_partial": {
        "MME": Metric("mme", "perception"),  # reference/benchmarks.md 8
        "POPE": Metric("pope"),
        "GQA": Metric("gqa"),
        "MMMU": Metric("mmmu"),
        "SEED": Metric("seed"),
    },
}

TITLES = {
    "per_model": "Generation, base and RecA",
    "model_zoo": "Released checkpoints",
    "table1": "Comparison with other models (Table 1)",
    "editing": "Image editing: ImgEdit and GEdit-Bench-EN",
    "t2i_compbench": "T2I-CompBench",
    "ablation_encoder_resolution_bagel": "Ablation: what BAGEL is conditioned on (Table 7)",
    "ablation_showo_vqgan": "Ablation: Show-o (VQ), input of the condition (Figure 12)",
    "ablation_sft_vs_reca_harmon": "Ablation: plain training and RecA, Harmon-1.5B",
    "ablation_order_harmon": "Ablation: order of plain training and RecA, Harmon-1.5B",
    "two_stage": "Two stages: plain training on GPT-4o pictures, then RecA",
    "understanding_partial": "Understanding (the part of the table that could be recovered)",
}

_BASES = {
    "Show-o-512 (CLIP)": "showo_clip_512",
    "Show-o-512": "showo_clip_512",
    "OpenUni-3.6B": "openuni_l_512",
    "Harmon-1.5B": "harmon_15b",
    "BAGEL": "bagel_7b",
}
ROWS: dict[tuple[str, str], Run] = {
    ("model_zoo", "BAGEL-RecA (14B)"): Run("bagel_7b", "reca"),
    ("model_zoo", "Harmon-0.5B-RecA"): Run("harmon_05b", "reca"),
    ("model_zoo", "Harmon-1.5B-RecA"): Run("harmon_15b", "reca"),
    ("model_zoo", "Show-o-RecA (CLIP, 256)"): Run("showo_clip_256", "reca"),
    ("model_zoo", "Show-o-512x512-RecA (CLIP)"): Run("showo_clip_512", "reca"),
    ("model_zoo", "Harmon-1.5B-RecA-plus (SFT on GPT-4o data then RecA)"): Run(
        "harmon_15b", "reca", PLUS
    ),
    ("model_zoo", "OpenUni-1-0.6B-RecA (1.6B)"): Run("openuni_b_512", "reca"),
    ("model_zoo", "OpenUni-2-1.6B-RecA (3.6B)"): Run("openuni_l_512", "reca"),
    ("table1", "Show-o*"): Run("showo_vq_512", "base"),
    ("table1", "Harmon*"): Run("harmon_15b", "base"),
    ("table1", "BAGEL*"): Run("bagel_7b", "base"),
    ("table1", "RecA (Harmon-1.5B)"): Run("harmon_15b", "reca"),
    ("table1", "RecA (GPT-4o data)"): Run("harmon_15b", "reca", PLUS),
    ("editing", "BAGEL"): Run("bagel_7b", "base"),
    ("editing", "BAGEL-RecA"): Run("bagel_7b", "reca"),
    ("ablation_encoder_resolution_bagel", "baseline"): Run("bagel_7b", "base"),
    ("ablation_encoder_resolution_bagel", "ViT (understanding encoder) 224"): Run(
        "bagel_7b", "reca"
    ),
    ("ablation_encoder_resolution_bagel", "VAE (generation encoder) 256"): Run(
        "bagel_7b_vae_256", "reca"
    ),
    ("ablation_encoder_resolution_bagel", "ViT 512"): Run("bagel_7b_vit_512", "reca"),
    ("ablation_showo_vqgan", "baseline (no RecA)"): Run("showo_vq_512", "base"),
    ("ablation_showo_vqgan", "512x512 input"): Run("showo_vq_512_full", "reca"),
    ("ablation_showo_vqgan", "256x256 input"): Run("showo_vq_512", "reca"),
    ("ablation_showo_vqgan", "128x128 input"): Run("showo_vq_512_quarter", "reca"),
    ("ablation_showo_vqgan", "blur (8x down/up)"): Run("showo_vq_512_blur8", "reca"),
    ("ablation_sft_vs_reca_harmon", "MidjourneyV6 + SFT"): Run(
        "harmon_15b", "sft", "paper_harmon_sft"
    ),
    ("ablation_sft_vs_reca_harmon", "MidjourneyV6 dense caption + SFT"): Run(
        "harmon_15b", "sft", "paper_harmon_dense"
    ),
    ("ablation_sft_vs_reca_harmon", "MidjourneyV6 + RecA"): Run("harmon_15b", "reca"),
    ("ablation_sft_vs_reca_harmon", "BLIP3o-60k without GenEval-like prompts + SFT"): Run(
        "harmon_15b", "sft", "paper_harmon_blip3o"
    ),
    ("ablation_sft_vs_reca_harmon", "BLIP3o-60k without GenEval-like prompts + RecA"): Run(
        "harmon_15b", "reca", "paper_harmon_blip3o"
    ),
    ("ablation_order_harmon", "BLIP3o-60k: RecA then SFT"): Run(
        "harmon_15b", "sft", "paper_harmon_reca_then_sft"
    ),
    ("ablation_order_harmon", "BLIP3o-60k: SFT then RecA"): Run(
        "harmon_15b", "reca", "paper_harmon_sft_then_reca"
    ),
    ("ablation_order_harmon", "SFT (GPT-4o data) then RecA on MidjourneyV6 (best recipe)"): Run(
        "harmon_15b", "reca", PLUS
    ),
    ("two_stage", "Harmon-1.5B SFT on GPT-4o-Image data (BLIP3o-60k) then RecA"): Run(
        "harmon_15b", "reca", PLUS
    ),
}

# Models that we train with RecA and the paper does not: name in the tables -> name in experiments.
OWN_MODELS = {"Janus-Pro-1B": "janus_pro_1b", "Janus-Pro-7B": "janus_pro_7b"}
OWN_BENCHMARKS = frozenset({"geneval", "dpg", "mme", "pope", "gqa", "mmmu", "seed"})
_OWN_TABLES = ("per_model", "understanding_partial")


def run_of(table: str, row: str, arm: str | None) -> Run | None:
    """The run that reproduces a row; None for models of other papers and for variants without an experiment."""
    if arm is not None:
        return Run(_BASES[row], arm) if row in _BASES else None
    return ROWS.get((table, row))


def own_rows(table: str) -> list[tuple[str, str, Run, list[str]]]:
    """(row, arm, run, columns) of our own models in a table; the columns are those that their experiments score."""
    if table not in _OWN_TABLES:
        return []
    scored = [name for name, m in COLUMNS[table].items() if m.benchmark in OWN_BENCHMARKS]
    return [
        (row, arm, Run(model, arm), scored)
        for row, model in OWN_MODELS.items()
        for arm in ("base", "reca")
    ]


def reported_rows(name: str, table: dict[str, Any]) -> list[tuple[str, str | None, dict[str, Any]]]:
    """(row, arm or None, values by column) for all rows of a transcribed table, in any of its formats."""
    if name == "understanding_partial":
        values = table["Harmon-1.5B MME"]
        return [("Harmon-1.5B", arm, {"MME": values[arm]}) for arm in ("base", "reca")]
    if "columns" not in table:
        return [(r, None, v) for r, v in table.items() if isinstance(v, dict)]
    rows = table.get("rows", {k: v for k, v in table.items() if k not in ("columns", "hub_ids")})
    found: list[tuple[str, str | None, dict[str, Any]]] = []
    for row, values in rows.items():
        if row.startswith("_") or row == "note":
            continue
        by_arm = values if isinstance(values, dict) else {None: values}
        for arm, cells in by_arm.items():
            found.append((row, arm, dict(zip(table["columns"], cells, strict=True))))
    return found
