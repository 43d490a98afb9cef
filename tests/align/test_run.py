"""From model folder to model folder: one process saves the model that it trained, without another load."""

from __future__ import annotations

import pytest

from reca.align import run as arm
from reca.align.log import LOG
from reca.align.state import freeze, load_trained
from reca.align.trainer import CHECKPOINTS
from tests.align.runs import SEED, recipe
from tests.align.toy import Toy, toy_data


class Saved(Toy):
    """A toy whose folder holds the weights that `save` was called with."""

    def save(self, directory):
        directory.mkdir(exist_ok=True)
        self.written = {name: weight.clone() for name, weight in self.named_parameters()}


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("trains", [[], ["blocks.*"]])
def test_the_trained_model_is_saved_without_loading_the_base_again(
    tmp_path, monkeypatch, ema, trains
):
    loaded: list[Saved] = []

    def load(folder):
        loaded.append(Saved())
        return loaded[-1]

    monkeypatch.setattr(arm, "load_model", load)
    work, out = tmp_path / "work", tmp_path / "out"
    few = recipe(steps=6, ema=ema, trains=trains)
    trained = arm.run(tmp_path, toy_data(), few, seed=SEED, work=work, code="code")
    arm.write(trained, tmp_path, work, out)
    assert len(loaded) == 1 and trained.model is loaded[0]
    assert len((out / LOG).read_text().splitlines()) == 6
    # what a sharded run writes: the base, loaded again, with the last checkpoint's weights
    arm.write(arm.Trained(trained.summary, trains, None), tmp_path, work, out)
    assert len(loaded) == 2
    again = Saved()
    assert load_trained(work / CHECKPOINTS, again, freeze(again, trains)) == trained.summary.steps
    for name, weight in loaded[0].written.items():
        assert weight.equal(loaded[1].written[name]), name
    # an earlier checkpoint is not published beside the log of all steps
    (last,) = (work / CHECKPOINTS).glob("step-0000000006/trainable-*")
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(
        ValueError, match="checkpoint of step 6 is damaged, the newest intact one is of step"
    ):
        arm.write(arm.Trained(trained.summary, trains, None), tmp_path, work, out)
