"""Find the model to check by name: a model folder, a model configuration, or a family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from reca.config.compose import config_folders, model_config
from reca.conformance.subject import Subject, last_place
from reca.models.contract import UnifiedModel
from reca.models.import_base import DESCRIPTION, check_network
from reca.models.registry import build_model, implementation, is_runnable, load_model


def subject_of(named: str, texts: Sequence[str] = ()) -> Subject:
    """The subject of `reca check-model NAMED`; `texts` are prompts in the model's vocabulary.

    ValueError if there is no such model.
    """
    turns = [(text, text) for text in texts]
    model, source = model_of(named)
    return Subject(model, texts=texts, turns=turns, source=source)


def model_of(named: str) -> tuple[UnifiedModel, str]:
    """The model in a folder written by `save`, of a file in `config/model/`, or the tiny model of a family.

    The tiny model of a family is the one returned by `tiny()` of its module, else `config/model/<family>_tiny.yaml`.
    Also returns what the model was made from, in words.
    """
    path = Path(named)
    if (path / DESCRIPTION).is_file() or (path.is_dir() and not is_runnable(named)):
        return load_model(path), f"model folder {path}"
    for candidate in (path, path.with_name(f"{path.name}.yaml")):
        if candidate.is_file():
            return _configured(candidate)
    if path.name != named:
        raise ValueError(
            f"{named}: no such model folder or model configuration; give a folder with reca_model.json, a file such as "
            "config/model/showo_tiny.yaml, or the name of a family"
        )
    if (configured := _file_of(named)) is not None:
        return _configured(configured)
    module = implementation(named)
    if hasattr(module, "tiny"):
        return _tiny(module), f"tiny() of {module.__name__}"
    missing = f"define tiny() next to build(network) in {module.__name__}"
    if (configured := _file_of(f"{named}_tiny")) is None:
        raise ValueError(
            f"family {named!r} has no tiny model: {missing}, or add config/model/{named}_tiny.yaml"
        )
    try:
        return _configured(configured)
    except ValueError as error:
        raise ValueError(f"{error}; or {missing}") from error


def _tiny(module: ModuleType) -> UnifiedModel:
    """The model of `tiny()`; whatever that raises is one line with its place, which is code of the package."""
    try:
        found = module.tiny()
    except Exception as fault:
        said = " ".join(f"{type(fault).__name__}: {fault}".split())
        raise ValueError(
            f"tiny() of {module.__name__} raised {said}; look at {last_place(fault)}"
        ) from fault
    if not isinstance(found, UnifiedModel):
        raise ValueError(
            f"tiny() of {module.__name__} gives {type(found).__name__}; it must be a UnifiedModel"
        )
    return found


def _file_of(name: str) -> Path | None:
    """The configuration of this name in Hydra's search path, including packages that add families."""
    places = (folder / "model" / f"{name}.yaml" for folder in config_folders())
    return next((place for place in places if place.is_file()), None)


def _configured(path: Path) -> tuple[UnifiedModel, str]:
    """The model of a configuration, with its weights if they are in a folder on this machine."""
    known = _file_of(path.stem)
    if known is None or path.resolve() != known.resolve():
        raise ValueError(
            f"{path}: not in Hydra's search path; put model configurations into config/model/ of the working "
            "directory, or of a package that adds a family"
        )
    described = model_config(path.stem)
    folder = described.weights.of_seed(0).path
    if folder is None or not Path(folder).is_dir():
        raise ValueError(
            f"{path}: weights.path = {folder!r} is not a folder; check-model needs the weights and the tokenizer of "
            "a model folder: give the folder, or a tiny configuration"
        )
    model = build_model(described.family, described.network)
    if (Path(folder) / DESCRIPTION).is_file():
        check_network(Path(folder), described.network, model)
    model.load(Path(folder))
    return model, f"configuration {path}, weights of {folder}"
