"""What no module may do (S1): read from the syntax trees of all code that ships."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted([*(ROOT / "reca").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
RULES = sorted((ROOT / "workflow").rglob("*.smk")) + [ROOT / "workflow/Snakefile"]

NAMES = {"eval", "exec", "__import__"}
# attribute -> the module or modules that may call it, if any
CALLS = {
    "torch.load": ("reca/models/checkpoint_io.py",),
    "pickle.load": "", "pickle.loads": "", "pickle.Unpickler": "", "marshal.loads": "",
    "np.load": "", "numpy.load": "", "yaml.unsafe_load": "", "yaml.full_load": "", "os.system": "", "os.popen": "",
    # Content gets its name in one place; the trainer and a stage besides move whole folders of theirs aside.
    "os.replace": ("reca/core/atomic.py", "reca/core/staging.py", "reca/align/checkpoint.py"),
    "os.rename": "", "tempfile.mkstemp": "", "tempfile.NamedTemporaryFile": "",
    "tempfile.mktemp": "", "joblib.load": "", "dill.load": "", "dill.loads": "",
}  # fmt: skip
METHODS = {"extractall", "extract"}  # of archives: nothing is unpacked
KEYWORDS = {("shell", True), ("trust_remote_code", True), ("allow_pickle", True), ("verify", False)}
NETWORK = {"requests.get", "requests.post", "requests.request", "urllib.request.urlopen"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(tree: ast.AST, module: str) -> list[str]:
    """Forbidden calls with their lines."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, method = dotted(call.func), getattr(call.func, "attr", "")
        given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        wrong = (
            name in NAMES
            or (name in CALLS and module not in CALLS[name])
            or method in METHODS
            or (name == "yaml.load" and "SafeLoader" not in ast.dump(call))
            or (name in NETWORK and not any(k.arg == "timeout" for k in call.keywords))
            or any((key, value) in KEYWORDS for key, value in given.items())
        )
        if wrong:
            found.append(f"{module}:{call.lineno} {name or method}")
    return found


def test_no_module_runs_or_unpacks_what_it_reads(campaign):
    for path in MODULES:
        module = path.relative_to(ROOT).as_posix()
        with campaign.case(module):
            assert not faults(ast.parse(path.read_text()), module)


def test_no_rule_of_the_workflow_does(campaign):
    for path in RULES:
        with campaign.case(path.name):
            text = path.read_text()
            assert not [
                word
                for word in ("eval(", "exec(", "shell=True", "pickle", "os.system")
                if word in text
            ]


@pytest.mark.parametrize(
    "line",
    ["eval(text)", "torch.load(path)", "pickle.loads(data)", "archive.extractall(folder)", "os.system(text)",
     "subprocess.run(text, shell=True)", "f(trust_remote_code=True)", "np.load(p, allow_pickle=True)",
     "yaml.load(text, Loader=yaml.Loader)", "requests.get(url)"],
)  # fmt: skip
def test_the_rules_find_what_they_forbid(line):
    assert faults(ast.parse(line), "reca/any.py")
