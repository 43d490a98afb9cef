"""The typed shape of an experiment: what may stand in `config/`, field by field, with its unit.

Plain keyword-only dataclasses of primitives: a field without a default is required, a `Literal` lists
what is allowed, `Count` and its like (`reca.core.structure`) state a range. pydantic reads these types to check a
configuration and to write the JSON schema for Snakemake. No heavy import here: Snakemake reads this while it parses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from reca.config.recipe import Recipe
from reca.core.structure import Count, NonNegative, Positive, Share, Whole

Arm = Literal["base", "reca", "reca_only", "sft", "shuffled", "random_encoder", "template_only"]
DataKind = Literal["world", "folder", "tar", "parquet", "llava"]
BenchmarkKind = Literal[
    "laptop",
    "laptop_edit",
    "geneval",
    "dpg",
    "wise",
    "t2i_compbench",
    "imgedit",
    "gedit",
    "mme",
    "pope",
    "gqa",
    "mmmu",
    "seed",
    "mmbench",
    "mmvp",
    "mmvet",
    "reconstruction",
]
CachePrecision = Literal["fp32", "fp16", "bf16"]
CacheRows = Literal["all", "visited"]
Scale = Literal["tiny"]
SCALES: tuple[str, ...] = get_args(Scale)
SEED = "{seed}"  # in a path: one folder per seed
Tested = Literal["prompts", "scenes", "questions", "edits"]
SeedSchedule = Literal["per_image", "sample_index", "prompt_reset", "process"]


@dataclass(kw_only=True)
class ToyWorld:
    """The procedural laptop world: how many scenes, and how much their captions say."""

    kind: Literal["images", "text", "edits"] = (
        "images"  # text: conversations without pictures; edits: pairs
    )
    images: Count = 8000  # rows; edits: pairs of a picture and what an instruction makes of it
    seed: int = 0
    single_object_share: Share = 0.0  # share of scenes with one object; the rest have one to four
    caption: dict[str, Share] = field(default_factory=dict)  # what a sparse caption tells, by p
    describes: Share = 1.0  # share of an image's conversations with its dense description
    binding: Share = 0.0  # share of conversations that ask which attributes belong together
    # A sample is one question, description or conversation of these kinds (reca/toyworld/text.py); empty: of all
    asks: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class DataSource:
    """A set of images, with or without captions and conversations."""

    kind: DataKind
    source: str | None = None  # name in config/sources.yaml, downloaded to data/<source>
    path: str | None = None  # a local folder or file instead of a source
    companions: dict[str, str] = field(default_factory=dict)  # llava: image folder -> source
    options: dict[str, Any] = field(default_factory=dict)  # reader options: column names, limits
    world: ToyWorld | None = None  # of kind `world`: what is drawn


@dataclass(kw_only=True)
class Weights:
    """Where the base model's weights come from."""

    kind: Literal["shipped", "source", "pretrain"]
    # shipped: folder of this repo; pretrain: results folder. With {seed}: a base model for each seed
    path: str | None = None
    source: str | None = None  # of kind `source`: name in config/sources.yaml
    file: str | None = None  # of kind `source`: its file, where it holds several
    companions: dict[str, str] = field(default_factory=dict)  # role -> name in sources.yaml

    def per_seed(self) -> bool:
        """Whether every seed has a base model of its own: a seed is then another base, not only other noise."""
        return self.path is not None and SEED in self.path

    def of_seed(self, seed: int) -> Weights:
        """The weights of one seed's base model."""
        return replace(self, path=self.path and self.path.replace(SEED, str(seed)))


@dataclass(kw_only=True)
class Sampler:
    """How pictures are drawn at evaluation."""

    steps: Count = 50
    temperature: Positive = 1.0
    guidance: list[NonNegative] = field(
        default_factory=lambda: [5.0]
    )  # several: swept on dev prompts
    options: dict[str, Any] = field(default_factory=dict)  # the family's own


@dataclass(kw_only=True)
class Resources:
    """What one alignment job asks of the scheduler."""

    gpus: Whole = 0
    nodes: Count = 1
    memory_mb: Count = 4000
    runtime_minutes: Count = 60
    threads: Count = 1


@dataclass(kw_only=True)
class ModelConfig:
    """One model: family, network, weights, recipe of every arm, sampler."""

    family: str  # of reca.models.registry or of an installed package
    network: dict[str, Any] = field(default_factory=dict)  # checked by the family (`reca check`)
    weights: Weights
    align: Recipe = field(default_factory=Recipe)
    data: dict[str, str] = field(default_factory=dict)  # role -> entry of `data`, where it differs
    benchmarks: list[str] = field(default_factory=list)  # of the experiment's; empty: all of them
    sampler: Sampler = field(default_factory=Sampler)
    resources: Resources = field(default_factory=Resources)
    seeds: list[Whole] = field(default_factory=list)  # empty: the experiment's
    arms: list[Arm] = field(default_factory=list)  # of the experiment's; empty: all of them
    cache_dtype: CachePrecision = "fp32"  # of floating-point features in the cache
    cache_rows: CacheRows = "all"  # images in the cache; visited: those that a run reads


@dataclass(kw_only=True)
class JudgeConfig:
    """A judge: an OpenAI-compatible endpoint, or a model on this machine, with the same ledger."""

    kind: Literal["endpoint", "transformers"] = "endpoint"
    model: str  # a dated snapshot or a versioned model, never an alias; transformers: its name in tables
    base_url: str = "https://api.openai.com/v1"
    source: str | None = None  # of kind `transformers`: name in config/sources.yaml
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the key; '' for none
    temperature: float | None = None  # null: not sent, the endpoint's default
    max_tokens: int | None = None
    seed: int | None = None
    concurrency: int = 8
    attempts: int = 3  # requests, where a reply cannot be read
    tries: int = 6  # of one request, where it fails on the way
    timeout_seconds: float = 120.0
    backoff_seconds: float = 1.0
    longest_pause_seconds: float = 60.0
    price_input: float = 0.0  # per million tokens
    price_output: float = 0.0
    request_cost_estimate: float = 0.0  # held back per request until a real cost is known
    # of one ledger, which is one shard of a run; in the currency of the prices
    cost_cap: float | None = None


@dataclass(kw_only=True)
class BenchmarkConfig:
    """One benchmark: its prompts and how many pictures each gets."""

    kind: BenchmarkKind
    source: str | None = None  # name in config/sources.yaml, for its prompts
    companions: dict[str, str] = field(default_factory=dict)  # role -> name in sources.yaml
    prompts: Whole = 0  # laptop: per task; else spread over the tasks; 0 = all the benchmark has
    development_prompts: Whole = 0  # per task, to choose guidance; never reported as a result
    images_per_prompt: Count = 1
    questions: Whole = 0  # about held-out images, asked before and after training
    # MMBench: every question in all rotations of its options (CircularEval)
    rotations: bool = False
    reconstructions: Whole = 0  # held-out images drawn again from their own embeddings
    base_guidance: bool = False  # laptop: test prompts also at the guidance that suits the base
    curve_prompts: Whole = 0  # laptop: test prompts per task that are drawn at every guidance
    seed: Whole = 0  # of a laptop benchmark's prompts; else of the authors' seed schedules
    # laptop: of the test split where not `seed`, which stays that of development (docs/laptop_protocol.md)
    test_seeds: dict[Tested, Whole] = field(default_factory=dict)
    seed_schedule: SeedSchedule = "per_image"  # ours; the others: the authors' scripts
    sampler: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # model -> other sampler fields
    shards: Count = 1  # jobs that draw and examine side by side, one GPU each
    batch_size: Count = 8  # pictures or answers in one pass
    crop_black: bool = False  # pictures without their black border, as BAGEL's scripts save them
    scorer: str | None = None  # which network sees or answers, where there is a choice
    # of a job in which this network, or a judge on this machine, looks at pictures
    memory_mb: Count = 32000
    judge: JudgeConfig | None = None
    # of scoring: named defects of the official script, partial
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Why:
    """Which models the report's three figures on why RecA works compare (docs/laptop_protocol.md, section 9)."""

    steps: list[str] = field(default_factory=list)  # one run, ended after more and more steps
    understanding: list[str] = field(
        default_factory=list
    )  # bases whose reading ended earlier or later
    conditions: str | None = None  # the model with the condition ablations among its arms


@dataclass(kw_only=True)
class Expectation:
    """A number that the experiment should reach, in the benchmark's own unit, and its source.

    GenEval, WISE and the laptop's scores are shares (0..1); DPG-Bench counts to 100.
    """

    model: str
    metric: str  # <benchmark>.<score>
    value: float
    tolerance: NonNegative  # half-width around the value
    source: str
    arm: Arm = "reca"


@dataclass(kw_only=True)
class Cost:
    """What a run takes, and on what it was measured or estimated."""

    hardware: str
    hours: NonNegative
    basis: Literal["estimate", "measured", "reported"] = "estimate"


@dataclass(kw_only=True)
class Fit:
    """How a part of a laptop base model is trained on its own (AdamW, warm-up, cosine)."""

    steps: Count
    batch: Count
    lr: float
    warmup: Whole = 50
    floor: float = 0.02
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    weight_decay: float = 1e-4
    clip: float = 1.0
    checkpoint_every: Count = 200


@dataclass(kw_only=True)
class Pretrain:
    """A laptop base model made from nothing, or from another one; the paper's models never need this."""

    seed: int = 0  # of the one base; where `weights.path` has {seed}, base k is made from seed k
    start: str | None = None  # folder of a model to go on from, with its record; null: from nothing
    parts: dict[
        str, Fit
    ]  # frozen parts that are fitted on their own: reca/toyworld/pretrain/<family>.py
    phases: dict[str, Recipe]  # training of what `parts` leaves, in the order of the names
    # By phase, the weight of the term that gives words and pictures the same states;
    # only phases that read pictures have it.
    binding: dict[str, NonNegative] = field(default_factory=dict)
    contrast: NonNegative = 0.0  # in `binding`, the weight of telling objects apart
    # By phase, the entry of `data` whose questions it reads instead of `answer`: what is learned last goes first.
    answers: dict[str, str] = field(default_factory=dict)
    # By phase, the entry of `data` whose described scenes it reads instead of `text`.
    texts: dict[str, str] = field(default_factory=dict)
    # Dtype of the written weights: half of the bytes for models that ship with the repository.
    storage: Literal["float32", "float16"] = "float32"
    # Steps between two lines of the step logs beside the weights, which ship with them.
    log_every: Count = 1


@dataclass(kw_only=True)
class Experiment:
    """The root of a resolved configuration."""

    name: str
    title: str
    question: str
    scale: Scale | None = None  # sizes and counts of config/scales/ in place of the published ones
    seeds: list[Whole] = field(default_factory=lambda: [0])
    arms: list[Arm] = field(default_factory=lambda: ["base", "reca"])
    models: dict[str, ModelConfig]
    # by role: reconstruct, answer, text, edit; or named by a model's `data`
    data: dict[str, DataSource]
    benchmarks: dict[str, BenchmarkConfig]
    allow_unpinned: bool = False  # run with sources whose sha256 is not known yet
    mirror: str | None = None  # folder used in place of downloads
    pretrain: Pretrain | None = None
    why: Why | None = None
    expect: list[Expectation] = field(default_factory=list)
    cost: Cost

    def arms_of(self, model: str) -> list[Arm]:
        """The arms of one model: all of the experiment's unless it names some."""
        return [arm for arm in self.arms if arm in (self.models[model].arms or self.arms)]
