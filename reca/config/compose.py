"""An experiment by name: Hydra composes `config/`, the schema types it, cross-field rules check it.

The only place that reads configuration. Errors are one line: key path, value, what is allowed.
Imports no torch: Snakemake calls `load` while it parses.
"""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from reca.config import scale as scales
from reca.config.schema import Experiment, ModelConfig
from reca.core.documents import check_yaml_files, read_yaml
from reca.core.structure import build, json_schema, suggestion
from reca.models.registry import brought_config

T = TypeVar("T")

SCHEMA_PATH = Path("workflow/schemas/experiment.schema.json")
_BESIDE_PACKAGE = Path(__file__).resolve().parents[2] / "config"


def default_config_dir() -> Path:
    """`config/` of the working directory, else the one of the checkout that holds this package."""
    here = Path("config")
    return here if (here / "config.yaml").is_file() else _BESIDE_PACKAGE


def names(config_dir: str | Path | None = None) -> list[str]:
    """All experiments that `config/experiment/` offers."""
    folder = Path(config_dir or default_config_dir()) / "experiment"
    return sorted(path.stem for path in folder.glob("*.yaml"))


def config_folders(config_dir: str | Path | None = None) -> list[Path]:
    """The folders that hold configuration: `config/`, then those of installed packages that bring a family."""
    return [Path(config_dir or default_config_dir()), *brought_config()]


def model_config(name: str) -> ModelConfig:
    """A file of `config/model/` by its name, with the defaults that it names, typed."""
    plain = compose_plain("laptop", [f"+model@checked={name}"], default_config_dir())
    return build(ModelConfig, plain["checked"], name)


def load(
    experiment: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> Experiment:
    """Compose, type and check one experiment.

    `overrides` are Hydra's (`seeds=[0,1]`, `models.showo_tiny.align.steps=10`,
    `benchmark@benchmarks.laptop=laptop_smoke`). `scale=tiny`, or `paper_bagel-tiny` as the name, replaces sizes and
    counts first, so that other overrides have the last word. ValueError on anything that does not fit.
    """
    experiment, scale = scales.split(experiment)
    given = [f"scale={scale}", *overrides] if scale else list(overrides)
    folder = Path(config_dir or default_config_dir())
    known = names(folder)
    if experiment not in known:
        known += [name for other in config_folders(folder)[1:] for name in names(other)]
    if experiment not in known:
        raise ValueError(f"experiment {experiment!r} is not known; {suggestion(experiment, known)}")
    try:
        plain = compose_plain(experiment, given, folder)
        if plain.get("name") != experiment and not any(o.startswith("name=") for o in given):
            raise ValueError(
                f"name = {plain.get('name')!r}, but the file is {folder / 'experiment' / experiment}.yaml; "
                "results lie below the file's name, so both must be equal"
            )
        found = typed(plain, folder)
        if found.scale is None:
            return found
        smaller = scales.overrides(found, folder)
        return typed(compose_plain(experiment, [*smaller, *given], folder), folder)
    except ValueError as error:
        raise ValueError(f"experiment {experiment!r}: {error}") from error


def typed(plain: Mapping[str, Any], config_dir: str | Path) -> Experiment:
    """A composed experiment as typed sections, every rule between them checked."""
    from reca.config.validate import check

    experiment = build(Experiment, plain)
    check(experiment, Path(config_dir))
    return experiment


def compose_plain(experiment: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """What Hydra makes of the files and overrides: plain data, interpolations resolved, not typed."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        try:
            return _composed(experiment, overrides, folder, [])
        except MissingConfigException:  # a package that brings a family may have the file
            if not (others := brought_config()):
                raise
            return _composed(experiment, overrides, folder, others)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(_refused(error)) from error
    except RecursionError as error:  # the files are within limits
        longest = max(overrides, key=len, default="")
        raise ValueError(f"override {longest[:80]!r}: nested too deeply") from error


def _composed(
    experiment: str, overrides: Sequence[str], folder: Path, others: Sequence[Path]
) -> dict[str, Any]:
    """Compose from `folder` and, for what is not there, from `others`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    groups = (
        path
        for place in (folder, *others)
        for path in place.glob("*/*.yaml")
        if path.parent.name != "experiment"
    )
    lineage = _lineage(experiment, [folder, *others])
    check_yaml_files([folder / "config.yaml", *lineage, *groups])
    choices = [f"experiment={experiment}", *(_override(text, folder) for text in overrides)]
    if others:
        places = ",".join(f"'file://{other.resolve()}'" for other in others)
        choices.append(f"hydra.searchpath=[{places}]")
    GlobalHydra.instance().clear()  # Snakemake may evaluate this more than once
    try:
        with (
            _without_marks(folder) as readable,
            initialize_config_dir(config_dir=str(readable.resolve()), version_base="1.3"),
            _no_resolvers(),
        ):
            composed = compose("config", overrides=choices)
            if missing := OmegaConf.missing_keys(composed):
                raise ValueError(f"{min(missing)} is missing: give it a value in place of ???")
            plain = OmegaConf.to_container(composed, resolve=True)
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _lineage(experiment: str, folders: Sequence[Path]) -> Iterator[Path]:
    """An experiment's file and those of the experiments that its defaults lists name; each is within limits.

    No other experiment's: a faulty one must not stop the rest.
    """
    todo: list[str] = [experiment]
    found: set[Path] = set()
    while todo:
        name = f"{todo.pop()}.yaml"
        places = (folder / "experiment" / name for folder in folders)
        path = next((place for place in places if place.is_file()), None)
        if path is None or path in found:
            continue
        found.add(path)
        plain = read_yaml(path)
        named = plain.get("defaults") if isinstance(plain, dict) else None
        for entry in named if isinstance(named, list) else ():
            values = entry.values() if isinstance(entry, dict) else [entry]
            todo += [
                Path(value).name.removesuffix(".yaml") for value in values if isinstance(value, str)
            ]
        yield path


@contextmanager
def _no_resolvers() -> Iterator[None]:
    """Let `${key}` work, but no `${name:...}`: an environment variable must not reach outputs, records or a report.

    OmegaConf lists its resolvers, its own and those of other packages, in this one place.
    """
    from omegaconf.basecontainer import BaseContainer

    kept = dict(BaseContainer._resolvers)
    BaseContainer._resolvers.clear()
    try:
        yield
    finally:
        BaseContainer._resolvers.update(kept)


@contextmanager
def _without_marks(folder: Path) -> Iterator[Path]:
    """The folder, or a copy of it where a file begins with a byte order mark, which Hydra would take for text."""
    marked = [path for path in folder.rglob("*.yaml") if _starts_with_mark(path)]
    if not marked:
        yield folder
        return
    with TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder, Path(temporary) / folder.name)
        for path in marked:
            text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
            (copy / path.relative_to(folder)).write_bytes(text)
        yield copy


def _starts_with_mark(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(3) == codecs.BOM_UTF8


def _refused(error: Exception) -> str:
    """One line for what Hydra or OmegaConf refused."""
    from omegaconf.errors import UnsupportedInterpolationType

    text = " ".join(str(error).split())
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UnsupportedInterpolationType):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return text
    # Hydra resolves names of a defaults list under a key that no file has.
    key = "defaults" if cause.full_key in (None, "", "_dummy_") else cause.full_key
    name = str(cause).split()[3]
    return (
        f"{key}: ${{{name}:...}} is not resolved, only ${{key}} of another value; write the value itself "
        "(an environment variable would end in outputs, records and the report)"
    )


def _override(text: str, folder: Path) -> str:
    """Let a value override name any field of the schema, not only those that a YAML file mentions.

    Hydra alone refuses `a.b=1` unless `a.b` is written down; with `++` it sets it, and the schema then
    judges the key. Choices of a group (`model@models.x=y`) stay as they are.
    """
    key, separator, _ = text.partition("=")
    if not separator and not text.startswith("~"):
        raise ValueError(f"override {text!r} has no '='; write key=value, for example seeds=[0]")
    if ":" in key:
        raise ValueError(
            f"override {text!r}: names of a key are joined by dots, not by colons; write {key.replace(':', '.')}=..."
        )
    is_group = "@" in key or (folder / key).is_dir()
    return text if is_group or key.startswith(("+", "~")) else f"++{text}"


def resolved(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain data, every default filled in."""
    return asdict(experiment)


def resolved_text(experiment: Experiment) -> str:
    """The resolved experiment as YAML."""
    import yaml

    return yaml.safe_dump(resolved(experiment), sort_keys=False, allow_unicode=True, width=100)


def section(cls: type[T], mapping: Mapping[str, Any], path: str = "") -> T:
    """One section (JSON from a rule) as its dataclass; ValueError on an unknown key or wrong type, below `path`."""
    return build(cls, mapping, path)


def write_resolved(experiment: Experiment, path: str | Path) -> bool:
    """Write the resolved experiment as YAML, only where its text changed; True if it was written.

    An untouched file keeps its time stamp, so neither Snakemake nor DVC sees a change. ValueError where the file
    is not a resolved experiment, such as an experiment's own source.
    """
    from reca.core.atomic import write_atomic
    from reca.core.ownership import check_file

    text, path = resolved_text(experiment), Path(path)
    check_file("--out", path, is_resolved)
    if path.is_file() and path.read_text() == text:
        return False
    write_atomic(path, text)
    return True


def is_resolved(path: Path) -> bool:
    """Whether a file holds a whole experiment, as `write_resolved` writes it; a source has fewer keys or `defaults`."""
    import yaml

    try:
        plain = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    always = {"name", "title", "models", "data", "benchmarks", "arms", "seeds", "cost"}
    return isinstance(plain, dict) and always <= plain.keys() and "defaults" not in plain


def schema_text() -> str:
    """The JSON schema of an experiment, as it lies in `workflow/schemas/`."""
    return json.dumps(json_schema(Experiment), indent=1) + "\n"
