"""The last stage of the laptop's base model: put the frozen parts together, then train the language model in phases.

The phases are plain alignment recipes (`reca.align`): language alone, then sparse captions for drawing beside dense
descriptions for reading, which is the state that the paper starts from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca import cache
from reca.align.recipe import Recipe
from reca.align.texts import DRAWN, READ, feature_data, open_role
from reca.align.trainer import align
from reca.models import build_model, load_model
from reca.models.showo.model import ShowoModel
from reca.models.showo.text import load_tokenizer
from reca.models.showo.weights import load_official
from reca.models.unified import Use
from reca.pretrain import reader, tokenizer
from reca.pretrain.fit import seeded
from reca.pretrain.words import build_tokenizer
from reca.prompts import bank
from reca.records import sha256_json

if TYPE_CHECKING:
    from reca.schema import DataSource


def assemble(
    network: Mapping[str, Any],
    *,
    prompts: Sequence[str],
    seed: int,
    parts: Mapping[str, Path],
    out: Path,
) -> None:
    """Write a model folder with trained frozen parts and an untrained language model.

    `parts` are the folders of the stages `tokenizer` and `reader`. ValueError where the closed vocabulary does not fit
    `network.llm_vocab_size`.
    """
    words = build_tokenizer(prompts)
    for key, size in {"llm_vocab_size": len(words), "endoftext": words.eos_token_id}.items():
        if network.get(key) != size:
            raise ValueError(
                f"network.{key} is {network.get(key)}, but the world's words make it {size}; set it so"
            )
    model = seeded(lambda: build_model("showo", network), seed, "language")
    assert isinstance(model, ShowoModel)
    load_official(model.frozen.magvit, parts["tokenizer"] / tokenizer.FILE)
    assert model.frozen.clip is not None
    load_official(model.frozen.clip, parts["reader"] / reader.FILE)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        words.save_pretrained(folder)
        model.set_tokenizer(load_tokenizer(Path(folder), model.config.ids))
    model.save(out)


def pretrain_base(
    network: Mapping[str, Any],
    phases: Mapping[str, Recipe],
    sources: Mapping[str, DataSource],
    *,
    folders: Mapping[str, Path],
    parts: Mapping[str, Path],
    seed: int,
    work: Path,
    out: Path,
    code: str,
) -> dict[str, dict[str, float]]:
    """Run the phases one after another, in the order of their names; writes the base model and its logs to `out`.

    Gives the last losses by phase. Caches and checkpoints stay in `work`, so a killed run goes on inside its phase.
    """
    start = work / "start"
    if not (start / "reca_model.json").is_file():
        assemble(network, prompts=bank("laptop"), seed=seed, parts=parts, out=start)
    model = load_model(start)
    uses: dict[Use, str] = {"draw": DRAWN, "read": READ}
    caches: dict[str, Path] = {use: work / "cache" / use for use in uses}
    for use, role in uses.items():
        cache.build(model, open_role(sources[role], folders[role]), caches[use], use=use, code=code)
    losses = {}
    for name in sorted(phases):
        data = feature_data(phases[name], sources, folders, caches)
        identity = {"model": sha256_json([name, seed, model.encoder_fingerprint("draw")])}
        summary = align(
            model,
            data,
            phases[name],
            seed=seed,
            work_dir=work / name,
            log=out / f"{name}.jsonl",
            identity=identity,
        )
        losses[name] = summary.loss
    model.save(out)
    return losses
