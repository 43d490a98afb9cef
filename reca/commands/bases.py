"""`make bases`: train every shipped base model of the toy world from nothing, and compare it with what is shipped.

python -m reca.commands.bases --device auto

An experiment `laptop_pretrain*` makes the base model of its model, or with {seed} in `weights.path` one per seed. They
are shipped in `weights/<model>` or `weights/<model>/<seed>`. An interrupted run resumes. The hashes are those of the
shipped files on the same processor and versions; a GPU, or another processor, rounds differently.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from reca.config.compose import load, names
from reca.config.schema import Experiment
from reca.core.artifacts import MANIFEST, read_manifest
from reca.core.devices import device_of

SHIPPED, PREFIX = Path("weights"), "laptop_pretrain"


def pretraining() -> list[str]:
    """The experiments that make a shipped base model; one that goes on from another base comes last."""
    found = {name: load(name).pretrain for name in names() if name.startswith(PREFIX)}
    known = {name: pretrain for name, pretrain in found.items() if pretrain is not None}
    return sorted(known, key=lambda name: (known[name].start is not None, name))


def bases_of(experiment: Experiment) -> Iterator[tuple[Path, Path]]:
    """Folder of each base model that an experiment makes, and the folder in which it is shipped."""
    for name, model in experiment.models.items():
        several = model.weights.per_seed()
        for seed in (model.seeds or experiment.seeds) if several else [None]:
            path = model.weights.path if seed is None else model.weights.of_seed(seed).path
            assert path is not None
            yield Path(path), SHIPPED / name / ("" if seed is None else str(seed))


def differences(made: Path, shipped: Path) -> list[str]:
    """Names of the files whose content is not that of the shipped base model; ValueError if one of both is missing."""
    for folder in (made, shipped):
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"{folder}: no base model here; run: make bases, or git restore weights"
            )
    one, other = (read_manifest(folder)["outputs"] for folder in (made, shipped))
    hashes = [{name: entry["sha256"] for name, entry in files.items()} for files in (one, other)]
    return sorted(n for n in {*one, *other} if hashes[0].get(n) != hashes[1].get(n))


def train(experiments: Sequence[str], device: str, cores: str) -> None:
    """Run the experiments one after the other on a device; ValueError if a run fails or the device is not here."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device_of(device).type == "cpu" else {}
    for name in experiments:
        words = ["-m", "snakemake", "--cores", cores, "--config", f"experiment={name}"]
        done = subprocess.run([sys.executable, *words], env={**os.environ, **hidden}, check=False)
        if done.returncode:
            raise ValueError(f"experiment {name} did not finish; the same command resumes it")


def compare(experiments: Sequence[str]) -> bool:
    """Print for every base model whether it is the shipped one; False if one is not."""
    equal = True
    for name in experiments:
        for made, shipped in bases_of(load(name)):
            others = differences(made, shipped)
            equal &= not others
            said = (
                f"not {shipped}: {', '.join(others)}" if others else f"the same hashes as {shipped}"
            )
            print(f"{made}: {said}")
    return equal


def main() -> int:
    """Train, then compare; exit status 1 if a base model is not the shipped one, 2 if one could not be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", help="of those with `pretrain:` (default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--cores", default="all", help="cores that the workflow may use")
    arguments = parser.parse_args()
    chosen = arguments.experiments or pretraining()
    try:
        train(chosen, arguments.device, arguments.cores)
        return 0 if compare(chosen) else 1
    except ValueError as error:
        print(f"make bases: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
