#!/usr/bin/env bash
# Does what docs/adding_a_model.md says, with the package in examples/my_model: install it, check it, train it on a folder
# of images, score it. At most three minutes on two cores. What it adds to the checkout it removes again.
# PYTHON: an interpreter that has reca and pip; its environment gets my-model for the time being.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
name=ci_my_images
clean() {
  rm -rf "$work" "config/experiment/$name.yaml" work/my_model "results/$name"
  "$PYTHON" -m pip uninstall --quiet --yes my-model 2> /dev/null
}
if [ -e "config/experiment/$name.yaml" ] || [ -e work/my_model ]; then
  echo "config/experiment/$name.yaml or work/my_model exists; remove it first" >&2
  exit 2
fi
trap clean EXIT

# Photographs that come with two packages of the tests.
mkdir "$work/photos"
site=$("$PYTHON" -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("skimage").origin).parents[1])')
cp "$site"/skimage/data/{astronaut,chelsea,coffee,ihc}.png "$site"/skimage/data/rocket.jpg \
  "$site"/sklearn/datasets/images/*.jpg "$work/photos"

# 1. Install. A copy, for setuptools builds in the folder itself.
cp -r examples/my_model "$work/my_model"
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "$work/my_model"

# 2. The contract, as a command and as tests of the package.
"$PYTHON" -m reca check-model my_model
(cd "$work/my_model" && "$PYTHON" -m pytest -q -p no:cacheprovider tests)

# 3. A base model, an experiment on the photographs, training, scores, report.
"$PYTHON" -m my_model work/my_model
"$PYTHON" -m reca new "$name" --model my_model_tiny --images "$work/photos" --benchmark laptop_smoke
"$PYTHON" -m reca check "$name"
"$PYTHON" -m snakemake --cores all --quiet --config experiment="$name"
"$PYTHON" -m reca audit "results/$name"
"$PYTHON" -m reca draw "a red circle" --model "results/$name/my_model_tiny/reca/seed-0" --out "$work/circle.png"
grep -q '"my_model_tiny' "results/$name/report/outcomes.json"
