"""The paper's experiments at scale tiny (docs/rehearsal.md), on a few images in the formats of the real data.

Each is prepared and trained through the verbs that the workflow calls, from the readers to the saved model.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from reca.cli import main
from reca.config.compose import load
from reca.config.schema import DataSource, Experiment, ModelConfig
from reca.models.contract import UnifiedModel
from tests.models import (
    bagel_tiny,
    byte_tokenizer,
    harmon_tiny,
    janus_tiny,
    openuni_tiny,
    showo_tiny,
)

CONFIGURED = Path(__file__).parents[2] / "config/experiment"
EXPERIMENTS = sorted(
    path.stem
    for kind in ("paper_*", "ablation_*", "janus_*")
    for path in CONFIGURED.glob(f"{kind}.yaml")
)
PICTURES = 6
Options = Mapping[str, object] | None
CAPTION = "a red circle left of a blue square"
TINY: dict[str, Any] = {
    "showo": showo_tiny,
    "harmon": harmon_tiny,
    "bagel": bagel_tiny,
    "openuni": openuni_tiny,
    "janus": janus_tiny,
}


@cache
def at_scale(name: str) -> Experiment:
    """A published experiment at scale tiny."""
    return load(name, ["scale=tiny"])


def arms(name: str) -> list[tuple[str, str]]:
    """(model, trained arm) of a published experiment."""
    experiment = at_scale(name)
    return [(model, arm) for model in experiment.models for arm in experiment.arms if arm != "base"]


# ---- tiny models ---------------------------------------------------------------------------------
def tiny_model(config: ModelConfig, folder: Path) -> UnifiedModel:
    """The model of a network at scale tiny with random weights; its tokenizer is written to `folder`."""
    files = byte_tokenizer.tokenizer_files(config.family)
    built: UnifiedModel = TINY[config.family].of_network(folder, config.network, files)
    return built


# ---- tiny data in the formats of the real ones ------------------------------------------------------
def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_parquet(folder: Path, source: DataSource) -> None:
    """Pictures with a text in every column that the options name."""
    texts = {column for name, column in source.options.items() if name != "image"}
    rows = [
        {
            "id": str(number),
            source.options["image"]: {"bytes": encoded(image, "JPEG"), "path": f"{number}.jpg"},
            **dict.fromkeys(texts, CAPTION),
        }
        for number, image in enumerate(showo_tiny.pictures(PICTURES, 32))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")


def write_tar(folder: Path, source: DataSource) -> None:
    """A WebDataset shard of pictures and captions, and one for each pattern of shards to leave out."""
    unread = [pattern.replace("*", "x") for pattern in source.options.get("exclude", [])]
    for name in ("data_000000", *unread):
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for number, image in enumerate(showo_tiny.pictures(PICTURES, 32)):
                members = {"jpg": encoded(image, "JPEG"), "txt": CAPTION.encode()}
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{number:06}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def write_llava(folder: Path, source: DataSource) -> None:
    """Conversations about pictures that lie with the companions."""
    talks = []
    for first, (number, image) in zip(
        cycle(source.companions), enumerate(showo_tiny.pictures(PICTURES, 32)), strict=False
    ):
        (folder / first).mkdir(exist_ok=True)
        (folder / first / f"{number}.jpg").write_bytes(encoded(image, "JPEG"))
        turns = [("human", "<image>\nwhat is on the left ?"), ("gpt", "a red circle"),
                 ("human", "how many ?"), ("gpt", "two")]  # fmt: skip
        said = [{"from": who, "value": text} for who, text in turns]
        talks.append({"id": str(number), "image": f"{first}/{number}.jpg", "conversations": said})
    (folder / "talks.json").write_text(json.dumps(talks))


WRITERS: dict[str, Callable[[Path, DataSource], None]] = {
    "parquet": write_parquet,
    "tar": write_tar,
    "llava": write_llava,
}


# ---- the verbs -------------------------------------------------------------------------------------
class Rehearsal:
    """Runs arms of experiments below one folder; equal data, bases and caches are made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: set[str] = set()

    def is_new(self, name: str, model: str, arm: str) -> bool:
        """Whether no arm asked for before is the same at scale tiny: sizes of one model, seeds, benchmarks differ."""
        experiment = at_scale(name)
        config = experiment.models[model]
        about = {
            "family": config.family,
            "network": config.network,
            "cache_dtype": config.cache_dtype,
            "align": asdict(config.align),
            "arm": arm,
            "data": {role: asdict(source) for role, source in self.sources(experiment, config)},
            "gpus": config.resources.gpus,
        }
        key = json.dumps(about, sort_keys=True)
        new = key not in self.seen
        self.seen.add(key)
        return new

    @staticmethod
    def sources(experiment: Experiment, config: ModelConfig) -> list[tuple[str, DataSource]]:
        """The data of a model by role."""
        roles = config.data or {role: role for role in experiment.data}
        return [(role, experiment.data[entry]) for role, entry in roles.items()]

    def train(
        self, name: str, model: str, arm: str, options: Options = None, **changed: object
    ) -> Path:
        """Train one arm as its recipe says but for `changed` fields; gives the folder that `reca align` wrote.

        `options` of the network that differ, in training alone.
        """
        words, out = self.command(name, model, arm, options, **changed)
        assert main(words) == 0, words
        return out

    def command(
        self, name: str, model: str, arm: str, options: Options = None, **changed: object
    ) -> tuple[list[str], Path]:
        """What the workflow's rule gives to `reca` to train one arm, once its inputs are made; and the folder."""
        experiment = at_scale(name)
        config = experiment.models[model]
        options = dict(options or {})
        if changed.get("precision") == "fp32":  # autocast alone mixes dtypes
            options["frozen_dtype"] = "float32"
        start = self.variant(config, self.base(config), options)
        sources = dict(self.sources(experiment, config))
        tasks = config.align.active()
        uses = {"draw": "reconstruct"} | ({"read": "answer"} if "i2t" in tasks else {})
        words: list[str] = []
        for use, role in uses.items():
            cache = self.cache(config, start, use, role, sources[role])
            words += ["--cache", f"{use}={cache}"]
        for role, source in sources.items():
            words += ["--data", f"{role}={self.data(source)}"]
        named = map(str, [arm, *changed.values(), *options.values()])
        out = self.root / name / model / "-".join(named).replace("/", "")
        section = {
            "family": config.family,
            "align": asdict(config.align) | changed,
            "data": {role: asdict(source) for role, source in sources.items()},
        }
        seed = seed_of(experiment, config)
        return words_of(
            "align",
            section,
            *words,
            model=start,
            arm=arm,
            seed=seed,
            work=out / "work",
            out=out / "out",
        ), out / "out"

    def base(self, config: ModelConfig) -> Path:
        """The base model, from a folder of tiny weights through `reca base`."""
        network = config.network
        out = self._place("base", config.family, network)
        if not out.exists():
            shipped = out.with_name(f"{out.name}-shipped")
            tiny_model(config, out.with_name(f"{out.name}-words")).save(shipped)
            weights = {"kind": "shipped", "path": str(shipped)}
            run("base", {"family": config.family, "network": network, "weights": weights}, out=out)
        return out

    def variant(self, config: ModelConfig, base: Path, options: Mapping[str, object]) -> Path:
        """The base model with other options and weights of the same values."""
        own = config.network["options"]
        options = {
            key: value for key, value in options.items() if key in own or key != "frozen_dtype"
        }
        if all(own.get(key) == value for key, value in options.items()):
            return base
        network = {**config.network, "options": {**own, **options}}
        out = self._place("variant", str(base), network)
        if not out.exists():
            weights = {"kind": "shipped", "path": str(base)}
            run("base", {"family": config.family, "network": network, "weights": weights}, out=out)
        return out

    def cache(
        self, config: ModelConfig, base: Path, use: str, role: str, source: DataSource
    ) -> Path:
        """Features of one role's pictures in the configured precision."""
        section = {
            "family": config.family,
            "data": {role: asdict(source)},
            "cache_dtype": config.cache_dtype,
        }
        out, data = self._place("cache", str(base), use, section), self.data(source)
        if not out.exists():
            companions = [f"--companion={first}={data / first}" for first in source.companions]
            run("cache", section, *companions, model=base, data=data, use=use,
                work=out.with_name(f"{out.name}-work"), out=out)  # fmt: skip
        return out

    def data(self, source: DataSource) -> Path:
        """Tiny data in the format and with the columns of the real one."""
        folder = self._place("data", asdict(source))
        if not folder.exists():
            folder.mkdir(parents=True)
            WRITERS[source.kind](folder, source)
        return folder

    def _place(self, kind: str, *described: object) -> Path:
        from reca.core.artifacts import sha256_json

        return self.root / kind / sha256_json(list(described))[:12]


def seed_of(experiment: Experiment, config: ModelConfig) -> int:
    return (config.seeds or experiment.seeds)[0]


def words_of(verb: str, section: dict[str, Any], *more: str, **options: object) -> list[str]:
    words = [verb, *more, "--section", json.dumps(section)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return words


def run(verb: str, section: dict[str, Any], *more: str, **options: object) -> None:
    words = words_of(verb, section, *more, **options)
    assert main(words) == 0, words
