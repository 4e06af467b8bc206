"""The baselines of docs/rewards.md, run as the page has them on tiny models."""

import re
import statistics
import tomllib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from pipeline.shards.rewards import read_rewards
from pipeline.shards.rollouts import read_rollout
from tests.support.repository import REPOSITORY
from tests.support.runs import Cli
from tests.support.tiny import write_run


def snippets() -> list[dict[str, Any]]:
    """Return the tables of the page's section on baselines, as dotted keys."""
    page = (REPOSITORY / "docs" / "rewards.md").read_text(encoding="utf-8")
    section = page.split("## Baselines")[1].split("\n## ")[0]
    tables = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", section, re.DOTALL)]
    return [
        {f"{table}.{key}": value for table, keys in one.items() for key, value in keys.items()}
        for one in tables
    ]


def trained(folder: Path, cli: Cli, changes: dict[str, Any]) -> tuple[Path, list[dict[str, Any]]]:
    """Run a baseline; return its configuration and the figures of its steps."""
    few = {"eval": None, "run.rounds": 1, "rollout.prompts_per_round": 4}
    config = write_run(folder, changes={**few, **changes})
    cli.ok("run", "-c", config)
    (metrics,) = (folder / "store/runs/tiny/metrics").glob("*.parquet")
    return config, pq.read_table(metrics).to_pylist()


def test_rewards_alone_train_on_what_the_page_says(tmp_path: Path, cli: Cli) -> None:
    rewards, _ = snippets()
    assert rewards["reward.grader"] == "last_number"
    # which a random model never satisfies, so that there would be nothing to learn
    (tmp_path / "grader.py").write_text("def grade(a, b, c):\n    return len(a) % 3\n")
    more = {"reward.grader": "grader.py:grade", "train.sequences_per_step": 16}
    config, (step,) = trained(tmp_path, cli, {**rewards, **more, "reward.unfinished": "grade"})
    run = open_run(load_config(config))
    found, rollout = run.rewards(0), run.rollout(0)
    assert found is not None and rollout is not None and (found.rows, found.groups) == (16, 4)
    groups: dict[str, list[tuple[float, int]]] = {}
    for pair in zip(found.units, rollout.units, strict=True):
        graded = read_rewards(run.storage, pair[0].shard).to_pylist()
        sampled = read_rollout(run.storage, pair[1].shard).to_pylist()
        for one, row in zip(graded, sampled, strict=True):
            groups.setdefault(one["prompt_id"], []).append(
                (one["reward"], len(row["response_ids"]))
            )
    total = tokens = 0.0
    for group in groups.values():
        values = [reward for reward, _ in group]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        total += sum((reward - mean) / (spread + 1e-6) * length for reward, length in group)
        tokens += sum(length for _, length in group)
    # on its own samples the ratio is 1, so that the loss is minus the mean advantage of tokens
    assert abs(total) > 1e-3 and step["tokens"] == tokens
    assert step["loss"] == pytest.approx(-total / tokens, rel=1e-4)


def test_supervised_training_learns_what_its_teacher_samples(tmp_path: Path, cli: Cli) -> None:
    _, supervised = snippets()
    config, steps = trained(tmp_path, cli, supervised)
    run = open_run(load_config(config))
    samples, manifest = run.rollout(0, "main"), run.train(0)
    assert samples is not None and manifest is not None and run.rollout(0) is None
    assert manifest.shards == tuple(unit.shard.key for unit in samples.units)
    assert manifest.rows == samples.rows and manifest.rollout_kl is None
    for step in steps:
        assert step["loss"] == pytest.approx(-step["student_token_logprob"], rel=1e-6)
        assert step["loss"] == pytest.approx(step["forward_kl"], rel=1e-5)
    states = cli.ok("status", "-c", config)["rounds"][0]["stages"]
    assert {name: states[name]["state"] for name in ("rollout", "samples", "score", "train")} == {
        "rollout": "off",
        "samples": "done",
        "score": "off",
        "train": "done",
    }
    refused = cli("plan", "-c", config, "--round", "0")
    assert refused.code == 2 and "schedulers have no tasks" in refused.stderr
