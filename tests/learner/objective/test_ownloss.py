"""A loss of the user's own, from its file to a trained student."""

import re
from pathlib import Path

import pytest

from pipeline.learner.objective.ownloss import with_function
from pipeline.runs.ownfile import own_loss
from pipeline.store.place import ConfigPlace
from schemas.config.loss import LossConfig
from schemas.errors import ConfigError
from tests.support.repository import REPOSITORY
from tests.support.rounds import ROUND, stages
from tests.support.runs import Cli
from tests.support.tiny import write_run

KIND = "losses.py:hellinger"


def example() -> str:
    """Return the example of docs/objectives.md."""
    text = (REPOSITORY / "docs" / "objectives.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n(# losses.py\n.*?)```", text, re.DOTALL)
    return str(found)


def test_the_example_of_the_docs_trains_a_student_and_a_changed_file_is_another_run(
    tmp_path: Path, cli: Cli
) -> None:
    changes = {"eval": None, "run.rounds": 1, "loss.kind": KIND}
    config = write_run(tmp_path, changes=changes)
    code = tmp_path / "losses.py"
    missing = cli("rollout", "-c", config, "--round", "0")
    assert missing.code == 2 and "there is no" in missing.stderr
    code.write_text(example().replace("= root_q *", "= 3 * root_q *"))
    wrong = cli("rollout", "-c", config, "--round", "0")
    assert wrong.code == 2 and "derivative that is not that of its loss" in wrong.stderr
    assert not list((tmp_path / "store").rglob("*.json"))
    code.write_text(example())
    stages(cli, config, "rollout", "score")
    code.write_text(example() + "\n")
    changed = cli("train", "-c", config, "--round", "0")
    assert changed.code == 3 and "loss.kind (sha256 of its file)" in changed.stderr
    code.write_text(example())
    stages(cli, config, "train")
    manifest = (tmp_path / "store" / ROUND / "train/manifest.json").read_text()
    assert '"loss":' in manifest


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def hellinger(log_q): ...\n", r"called as hellinger\(log_q, log_p\)"),
        ("raise SystemExit\ndef hellinger(log_q, log_p): ...\n", "cannot be loaded: SystemExit"),
        (
            "import nothing_such\ndef hellinger(q, p): ...\n",
            "cannot be loaded: ModuleNotFoundError",
        ),
        ("hellinger = 3\n", "is a int in .*losses.py, expected a function"),
        ("def other(log_q, log_p): ...\n", "has no function 'hellinger'; it has other"),
    ],
)
def test_a_file_without_such_a_loss_is_refused(source: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text(source)
    loss = LossConfig(kind=KIND)
    with pytest.raises(ConfigError, match=words):
        with_function(loss, own_loss(loss, ConfigPlace(str(tmp_path))))


def test_no_store_gives_code() -> None:
    with pytest.raises(ConfigError, match="code is not taken from a store. Run from a folder"):
        own_loss(LossConfig(kind=KIND), ConfigPlace("s3://bucket/runs"))
