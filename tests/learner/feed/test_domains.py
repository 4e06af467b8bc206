"""Domains of a round: their weights against plain Python, and a run that balances them."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learner.feed.domains import LEAST, MOST, balanced, domain_names
from tests.support.runs import Cli
from tests.support.tiny import write_run

ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.1, 9.0, 1e4]), st.integers(0, 5)),
    min_size=1,
    max_size=20,
)


@given(ROWS)
def test_a_domain_weighs_by_the_inverse_of_how_far_student_and_teacher_differ_in_it(
    rows: list[tuple[str, float, int]],
) -> None:
    rows = [(name, square if tokens else 0.0, tokens) for name, square, tokens in rows]
    names, squares, tokens = zip(*rows, strict=True)

    def scale(of: list[tuple[str, float, int]]) -> float:
        return math.sqrt(sum(r[1] for r in of) / max(1, sum(r[2] for r in of)))

    found = balanced(names, np.array(squares), np.array(tokens, np.float64))
    assert found.names == tuple(sorted(set(names)))
    for name, weight in zip(found.names, found.weight_D.tolist(), strict=True):
        mine = [row for row in rows if row[0] == name]
        trained = sum(row[2] for row in mine) > 0
        if scale(mine) > 0:
            expected = min(max(scale(rows) / scale(mine), LEAST), MOST)
        else:
            expected = MOST if trained and scale(rows) > 0 else 1.0
        assert weight == pytest.approx(expected)
        assert found.factor_R[[row[0] == name for row in rows]] == pytest.approx(expected)


def test_a_column_names_the_domain_whatever_kind_of_value_it_is() -> None:
    texts = ['{"d": "math"}', None, '{"d": 3, "e": 1}', '{"e": "x"}', '{"d": null}', '{"d": [1]}']
    chunks = pa.chunked_array([texts[:2], texts[2:]], type=pa.string())
    assert domain_names(chunks, "d") == ["math", "", "3", "", "", "[1]"]


def test_a_run_balances_its_domains_and_tells_their_weights(tmp_path: Path, cli: Cli) -> None:
    changes: dict[str, object] = {"eval": None, "run.rounds": 1, "loss.weights.domain": "field"}
    config = write_run(tmp_path, changes=changes)
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    named = [{**line, "field": "abc"[n % 3]} for n, line in enumerate(lines)]
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in named))
    for stage in ("rollout", "score"):
        cli.ok(stage, "-c", config, "--round", "0")
    outcome = cli("train", "-c", config, "--round", "0")
    assert outcome.code == 0, outcome.stderr
    told = next(line for line in outcome.stderr.splitlines() if "weights of domains" in line)
    assert all(f"'{name}' " in told for name in "abc")
    (metrics,) = (tmp_path / "store" / "runs" / "tiny" / "metrics").glob("*.parquet")
    shares = pq.read_table(metrics).column("distilled").to_pylist()
    assert all(LEAST <= share <= MOST for share in shares) and set(shares) != {1.0}

    other = write_run(tmp_path, changes={**changes, "loss.weights.domain": "fields"})
    for stage in ("rollout", "score"):
        cli.ok(stage, "-c", other, "--round", "0", "--set", "run.name=other")
    wrong = cli("train", "-c", other, "--round", "0", "--set", "run.name=other")
    assert wrong.code == 2 and "no prompt of the round has such a column" in wrong.stderr
