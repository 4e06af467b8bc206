"""Nothing that is stored is run: no pickle is read, and the exceptions are listed with reasons."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

MODULES = {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}
"""What reads objects that may bring code of their own."""

CALLS = {"eval", "exec", "import_module", "__import__", "load_checkpoint", "all_gather_object"}
"""Functions and methods that run, import or unpickle what they are given."""

LOADERS = {"torch", "np", "numpy"}
"""Modules whose `load` unpickles."""

ALLOWED = {
    ("pipeline/rewards/worker.py", "exec"): "the user's own grader, in a process of its own",
    ("pipeline/learner/objective/ownloss.py", "exec"): "the user's own loss, which the TOML names",
    ("pipeline/trackers/sending.py", "import_module"): "one of its own modules, by a fixed name",
    ("pipeline/models/own/pieces.py", "import_module"): "a library by a name that stands there",
    ("pipeline/learner/learner.py", "load_checkpoint"): "DeepSpeed reads what statefiles.py made",
    ("pipeline/learner/ranks.py", "all_gather_object"): "between processes of one start",
}
"""Module, call → why it cannot run what somebody stored."""


def risks(source: str) -> Iterator[str]:
    """Yield what in a module might run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            roots = names if isinstance(node, ast.Import) else [node.module or "", *names]
            yield from MODULES.intersection(root.partition(".")[0] for root in roots)
        if isinstance(node, ast.Call):
            yield from _risk_of_call(node)


def _risk_of_call(node: ast.Call) -> Iterator[str]:
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    owner = getattr(getattr(called, "value", None), "id", "")
    if name in CALLS and not (name == "eval" and isinstance(called, ast.Attribute)):
        yield name
    if name in ("load", "loads") and owner in LOADERS | MODULES:
        yield f"{owner}.{name}"
    for keyword in node.keywords:
        value = getattr(keyword.value, "value", None)
        if (keyword.arg, value) in (("weights_only", False), ("allow_pickle", True)):
            yield f"{keyword.arg}={value}"


def test_no_module_reads_pickles_or_runs_what_it_reads() -> None:
    found = {
        (str(path.relative_to(REPOSITORY)), risk)
        for folder in ("pipeline", "cli", "schemas", "airflow_dags")
        for path in (REPOSITORY / folder).rglob("*.py")
        for risk in risks(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("line", "risk"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "weights_only=False"),
        ("np.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("eval(text)", "eval"),
        ("engine.load_checkpoint(folder)", "load_checkpoint"),
    ],
)
def test_what_runs_what_it_reads_is_seen(line: str, risk: str) -> None:
    assert risk in set(risks(line))


def test_a_model_in_evaluation_mode_is_no_risk() -> None:
    assert set(risks("model.eval()")) == set()


def test_deepspeed_is_called_by_the_module_that_gives_it_files_without_pickles() -> None:
    source = Path(REPOSITORY / "pipeline/learner/learner.py").read_text(encoding="utf-8")
    calls = [
        node.body
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.With) and "files_of" in ast.unparse(node.items[0])
    ]
    inside = "".join(ast.unparse(statement) for body in calls for statement in body)
    for name in ("save_checkpoint", "load_checkpoint"):
        assert source.count(f".{name}(") == inside.count(f".{name}(") == 1
