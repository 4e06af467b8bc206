"""The Python API on a finished run: frames, dataset, stages, functions of one's own, errors."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import pipeline as opd
from pipeline.runs.run import Run
from schemas.errors import ConfigError, DataError, IdentityError
from tests.support.tiny import write_run

GRADER = """
def grade(response, reference, metadata):
    return {} if response else 0.0
"""

LOSS = """
def skewed(log_q, log_p):
    return (log_p.exp() * (log_p - log_q)).sum(-1)
"""

ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[Path, str], Any]]:
    """Return a function that writes and imports a file, and gives a function of it."""
    names = []

    def loaded(path: Path, text: str, name: str) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        names.append(path.stem)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return getattr(module, name)

    yield loaded  # type: ignore[misc] # a fixture that gives a function
    for name in names:
        sys.modules.pop(name, None)


def test_rollouts_join_their_scores_row_by_row(finished_run: Path) -> None:
    run = opd.open(finished_run / "run.toml")
    rows, scores = run.rollouts(0).collect(), run.scores(0).collect()
    both = rows.join(scores, on="sequence_id")
    assert both.height == rows.height == scores.height == 16
    assert both["sequence_digest"].to_list() == both["sequence_digest_right"].to_list()
    tokens = both.explode("rollout_student_logprobs", "token_logprob")
    gap = tokens["rollout_student_logprobs"] - tokens["token_logprob"]
    manifest = Run(run.config, *_stored(run)).score(0, "main")
    assert manifest is not None and manifest.reverse_kl == pytest.approx(gap.mean(), abs=1e-5)


def _stored(run: opd.OpenRun) -> Any:
    return run._run.storage, run._run.place


def test_a_frame_reads_no_more_columns_and_rows_than_asked(finished_run: Path) -> None:
    run = opd.open(finished_run / "run.toml")
    whole = run.rollouts(1).collect()
    some = run.rollouts(1).filter(pl.col("finish_reason") == "stop").select("prompt_id", "text")
    expected = whole.filter(pl.col("finish_reason") == "stop").select("prompt_id", "text")
    assert some.collect().equals(expected)
    assert run.rollouts(1).head(5).collect().equals(whole.head(5))
    scores = run.scores(1).collect()
    assert (
        run.scores(1)
        .select("token_rank")
        .head(6)
        .collect()
        .equals(scores.select("token_rank").head(6))
    )


def test_a_dataset_has_the_stored_rows_in_their_order(finished_run: Path) -> None:
    run = opd.open(finished_run / "run.toml")
    data = run.dataset(0, keep=1)
    both = run.rollouts(0).collect().join(run.scores(0).collect(), on="sequence_id")
    assert len(data) == both.height
    assert len(list(torch.utils.data.DataLoader(data, batch_size=None))) == both.height
    for place in (-1, 3, 15):
        found, row = data[place], both.row(place, named=True)
        tokens = len(row["response_ids"])
        assert found["ids"].tolist() == row["prompt_ids"] + row["response_ids"]
        assert found["mask"].sum() == tokens and not found["mask"][:-tokens].any()
        assert found["topk_ids"].flatten().tolist() == row["topk_ids"]
        for name in ("topk_logprobs", "tail_logprobs", "token_logprob"):
            assert found[name].flatten().tolist() == pytest.approx(row[name])
    with pytest.raises(IndexError):
        data[16]


def test_stages_do_what_their_commands_do(run_copy: Path) -> None:
    run = opd.open(run_copy / "run.toml", overrides={"run.name": "other", "loss.kind": "jsd"})
    assert run.rollout(0).rows == 16
    [scored] = run.score(0)
    assert (scored.teacher_tokens, scored.reused_rows) == (0, 16)
    assert run.train(0).units and run.eval(0).rows == 8
    assert run.train(0).units == 0  # what is done costs nothing
    status = run.status(0)
    assert status.rounds[0].accuracy is not None
    assert {one.units for one in opd.open(run_copy / "run.toml").run()} == {0}


def test_a_function_stands_for_its_name_in_the_toml(run_copy: Path, load: Any) -> None:
    grade = load(run_copy / "my_grader.py", GRADER.format(1.0), "grade")
    loss = load(run_copy / "my_losses.py", LOSS, "skewed")
    given: dict[str, object] = {"eval.reward": grade, "loss.kind": loss, "run.name": "own"}
    run = opd.open(run_copy / "run.toml", overrides=given)
    assert run.config.eval is not None and run.config.eval.reward == "my_grader.py:grade"
    assert run.config.loss.kind == "my_losses.py:skewed"
    run.rollout(0)
    (run_copy / "my_losses.py").write_text(LOSS + "# another file\n")
    with pytest.raises(IdentityError, match="sha256 of its file"):
        opd.open(run_copy / "run.toml", overrides=given).rollout(0)


def test_a_function_that_no_file_beside_the_toml_has_is_refused(run_copy: Path, load: Any) -> None:
    def refused(function: object, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            opd.open(run_copy / "run.toml", overrides={"eval.reward": function})

    grade = load(run_copy / "my_grader.py", GRADER.format(1.0), "grade")
    (run_copy / "my_grader.py").write_text(GRADER.format(0.5))
    refused(grade, "changed after it was imported")
    refused(load(run_copy / "deep" / "far.py", GRADER.format(1.0), "grade"), "but the TOML is in")
    typed: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(GRADER.format(1.0), "<cell 1>", "exec"), typed)
    refused(typed["grade"], "of a notebook")
    refused(max, "none that `def` has made")
    refused(lambda *a: 1.0, "but the TOML is in")
    inner = "def make():\n    def grade(a, b, c):\n        return 1.0\n    return grade\n"
    refused(load(run_copy / "inner.py", inner, "make")(), "inside of another")
    refused(None, "cannot hold")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"loss.kind": "nothing"}, "loss.kind"),
        ({"loss.temperatur": 2}, "unknown key"),
        ({"no section": 1}, "section.key"),
        ({"train.sequences_per_step": "eight"}, "train.sequences_per_step"),
        ({"run.root": "s3://"}, "s3://"),
        ({"run.name": "a\x7fb"}, "run.name"),
        ({"run.name": "a\ud800b"}, "run.name"),
        ({"run.rounds": 10**5000}, "64 bits"),
        ({"score.temperatures": ENDLESS}, "holds itself"),
        ({"loss.kind='jsd' #": "tvd"}, "override's key"),
        (["loss.kind=jsd"], "are a dict"),
    ],
)
def test_a_wrong_override_is_told(finished_run: Path, overrides: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        opd.open(finished_run / "run.toml", overrides=overrides)


def test_every_kind_of_value_arrives_as_it_was_given(finished_run: Path) -> None:
    given: dict[str, object] = {
        "run.root": finished_run / 'wide "ö\\" 😀',
        "prompts.columns": {"reference": "the answer"},
        "loss.importance_cap": np.float64(3),
        "loss.weights": {},
        "run.rounds": np.int64(5),
        "eval.require_stop": True,
        "score.temperatures": [0.5, 1.5],
    }
    config = opd.open(finished_run / "run.toml", overrides=given).config
    assert config.run.root == str(given["run.root"])
    assert config.prompts.columns == {"reference": "the answer"}
    assert config.loss.importance_cap == 3 and config.run.rounds == 5
    assert config.score.temperatures == (0.5, 1.5)


def test_what_is_not_there_yet_is_told(finished_run: Path, tmp_path: Path) -> None:
    run = opd.open(finished_run / "run.toml")
    for look, match in (
        (lambda: run.rollouts(7), "no finished samples"),
        (lambda: run.scores(7), "no finished samples"),
        (lambda: run.scores(0, "nobody"), "no teacher 'nobody'"),
        (lambda: run.dataset(7), "no finished rollout"),
        (lambda: run.rollouts(-1), "no round -1"),
        (lambda: run.train(10**9), "no round"),
        (lambda: run.rollouts("0"), "whole number"),  # type: ignore[arg-type]
        (lambda: opd.open(tmp_path / "none.toml"), "no configuration"),
    ):
        with pytest.raises(ConfigError, match=match):
            look()


def test_a_damaged_shard_is_told_as_it_is_read(run_copy: Path) -> None:
    write_run(run_copy)
    for path in (run_copy / "store" / "rollouts").iterdir():
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    run = opd.open(run_copy / "run.toml")
    for look in (run.rollouts(0).collect, run.scores(0).collect, lambda: run.dataset(0)[0]):
        with pytest.raises(DataError):
            look()


def test_a_name_that_the_api_lacks_is_an_ordinary_mistake() -> None:
    assert {"open", "OpenRun", "OpdError"} <= set(dir(opd))
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        opd.opne  # type: ignore[attr-defined]  # noqa: B018
