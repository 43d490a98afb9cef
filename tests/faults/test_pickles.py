"""Foreign pickles that run a command when they are opened: every way, every format, none ever runs (S2)."""

from __future__ import annotations

import builtins
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from reca.models import checkpoint_io


class Calls:
    """Unpickling this calls a function, unless the loader builds tensors only."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


GADGETS = {
    "mkdir": lambda canary: Calls(os.mkdir, canary),
    "makedirs": lambda canary: Calls(os.makedirs, canary),
    "system": lambda canary: Calls(os.system, f"mkdir '{canary}'"),
    "subprocess": lambda canary: Calls(subprocess.check_call, ["mkdir", canary]),
    "exec": lambda canary: Calls(builtins.exec, f"import os; os.mkdir({canary!r})"),
    "eval": lambda canary: Calls(builtins.eval, f"__import__('os').mkdir({canary!r})"),
    "map": lambda canary: Calls(list, map(os.mkdir, [canary])),
    "copy": lambda canary: Calls(shutil.copytree, os.path.dirname(__file__), canary),
    "in a list": lambda canary: [torch.ones(1), [Calls(os.mkdir, canary)]],
    "in a key": lambda canary: {("a", Calls(tuple, map(os.mkdir, [canary]))): torch.ones(1)},
}
FORMATS = {
    "zip": lambda value, path: torch.save(value, path),
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    **{
        f"protocol {number}": lambda value, path, number=number: path.write_bytes(
            pickle.dumps(value, protocol=number)
        )
        for number in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_no_pickle_runs_anything(tmp_path, campaign, gadget):
    canary = tmp_path / "canary"
    made = GADGETS[gadget](str(canary))
    pickle.loads(pickle.dumps(made))
    assert canary.exists(), "this gadget does nothing, so it proves nothing"
    shutil.rmtree(canary)
    for name, save in FORMATS.items():
        for ending in checkpoint_io.PICKLES:
            path = Path(tmp_path / f"model{ending}")
            with campaign.case(f"{name}{ending}"):
                save({"weight": made}, path)
                with pytest.raises(ValueError, match=rf"model{ending}: is not a plain checkpoint"):
                    checkpoint_io.load_checkpoint(path, allow_unpinned=True)
                assert not canary.exists()
            path.unlink()
