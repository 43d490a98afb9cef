"""CPU seconds by kind of stage come from the records of finished stages."""

import json
import sys

from perf import laptop_cpu
from reca.core.artifacts import read_json, write_json


def test_stages_are_summed_by_kind(tmp_path, monkeypatch, capsys):
    results, file = tmp_path / "results", tmp_path / "cpu.json"
    runs = {"m/base/seed-0": ("align", 2.0), "m/reca/seed-0": ("align", 3.5), "m/s": ("score", 1.0)}
    for place, (stage, seconds) in {**runs, "report": ("report", 0.5)}.items():
        (results / place).mkdir(parents=True)
        record = {"owns": {"stage": stage, "files": []}, "cpu_seconds": seconds}
        about = {"commit": "0123456789", "machine": {"cores": 2}}
        (results / place / "run.json").write_text(json.dumps(record | about))
    write_json(file, {"what": "kept"})
    monkeypatch.setattr(sys, "argv", ["laptop_cpu", str(results), "--record", str(file)])
    laptop_cpu.main()
    assert list(json.loads(capsys.readouterr().out)["stages"]) == ["align", "score", "report"]
    found = read_json(file)
    assert found["what"] == "kept" and found["by_stage"]["commit"] == "0123456"
    assert found["by_stage"]["stages"]["align"] == {"stages": 2, "cpu_seconds": 5.5}
