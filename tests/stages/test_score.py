"""Scoring: each unit once, nothing that is known paid for again, damage made good."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store.storage import Storage
from tests.conftest import UseS3
from tests.support.forged import forged
from tests.support.rounds import ROUND, forget, score_shards, stages
from tests.support.runs import Cli, finish, snapshot, start
from tests.support.servers import S3Account
from tests.support.tiny import make_model, write_run


def test_two_score_processes_at_once_land_each_unit_once_and_both_exit_0(
    tmp_path: Path, finished_run: Path, cli: Cli
) -> None:
    config = write_run(tmp_path, changes={"train.save_steps": 1})
    stages(cli, config, "rollout")
    both = [start("score", "-c", config, "--round", "0", "--json") for _ in range(2)]
    outcomes = [finish(process) for process in both]
    assert [o.code for o in outcomes] == [0, 0], [o.stderr for o in outcomes]
    mine, quiet = (
        snapshot(Storage(str(f / "store")), f"{ROUND}/score") for f in (tmp_path, finished_run)
    )
    assert mine == quiet
    assert len(list((tmp_path / "store/cache").glob("*/data/*.parquet"))) == 4


def test_a_teacher_that_changed_under_a_run_is_refused_before_any_work(
    run_copy: Path, cli: Cli
) -> None:
    forget(run_copy, "runs/tiny/rounds/0001/score", "runs/tiny/rounds/0001/train")
    shutil.rmtree(run_copy / "main")
    make_model(run_copy / "main", teacher=True, seed=99)
    outcome = cli("score", "-c", run_copy / "run.toml", "--round", "1")
    assert outcome.code == 3
    assert "teachers.main" in outcome.stderr


def test_a_second_run_with_another_loss_costs_no_teacher_token_in_its_first_round(
    run_copy: Path, cli: Cli
) -> None:
    config = write_run(run_copy, changes={"run.name": "sweep", "loss.kind": "reverse_kl"})
    shutil.rmtree(run_copy / "store/probe", ignore_errors=True)
    shards = len(list((run_copy / "store/cache").glob("*/data/*")))
    stages(cli, config, "rollout")
    result = cli.ok("score", "-c", config, "--round", "0")
    assert (result["teacher_tokens"], result["reused_rows"], result["units"]) == (0, 16, 4)
    assert len(list((run_copy / "store/cache").glob("*/data/*"))) == shards
    assert cli.ok("status", "-c", config)["rounds"][0]["reused_rows"] == 16
    stages(cli, config, "train")


def test_sequences_in_other_units_cost_no_teacher_token_either(run_copy: Path, cli: Cli) -> None:
    changes = {"run.name": "cut", "rollout.prompts_per_unit": 3}
    config = write_run(run_copy, changes=changes)
    stages(cli, config, "rollout")
    result = cli.ok("score", "-c", config, "--round", "0")
    assert (result["teacher_tokens"], result["reused_rows"], result["units"]) == (0, 16, 6)
    assert result["engine_start_s"] == 0.0
    stages(cli, config, "train")


def test_a_damaged_shard_in_the_cache_costs_only_its_reuse(run_copy: Path, cli: Cli) -> None:
    store = run_copy / "store"
    scores = json.loads((store / ROUND / "score/main/manifest.json").read_text())
    shard = store / scores["units"][1]["shard"]["key"]
    shard.write_bytes(shard.read_bytes()[:-7])
    changes = {"run.name": "cut", "rollout.prompts_per_unit": 3}
    config = write_run(run_copy, changes=changes)
    stages(cli, config, "rollout")
    outcome = cli("score", "-c", config, "--round", "0", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["reused_rows"] == 12
    assert outcome.result["teacher_tokens"] > 0
    assert f"{shard.name} is corrupt" in outcome.stderr
    stages(cli, config, "train")


def test_only_invalid_scores_what_is_damaged_and_nothing_else(run_copy: Path, cli: Cli) -> None:
    config, store = run_copy / "run.toml", run_copy / "store"
    quiet = json.loads((store / ROUND / "score/main/manifest.json").read_text())
    flipped, deleted = (store / quiet["units"][i]["shard"]["key"] for i in (1, 3))
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    deleted.unlink()
    swapped = store / ROUND / "score/main/commits" / f"{quiet['units'][0]['unit']}.json"
    record = json.loads(swapped.read_text())
    swapped.write_bytes(forged(record | {"shard": quiet["units"][2]["shard"]}))
    result = cli.ok("score", "-c", config, "--round", "0", "--only-invalid")
    assert result["units"] == 3
    assert result["teacher_tokens"] > 0
    assert json.loads((store / ROUND / "score/main/manifest.json").read_text()) == quiet
    assert cli.ok("score", "-c", config, "--round", "0", "--only-invalid")["units"] == 0


def test_only_invalid_scores_anew_what_another_scorer_made(run_copy: Path, cli: Cli) -> None:
    key = run_copy / "store" / ROUND / "score/main"
    manifest = json.loads((key / "manifest.json").read_text())
    for path in (key / "commits").iterdir():  # as if an older engine had made them
        record = json.loads(path.read_text())
        path.write_bytes(forged(record | {"fingerprint": "0" * 32}))
    config = run_copy / "run.toml"
    assert cli.ok("score", "-c", config, "--round", "0", "--only-invalid")["units"] == 4
    assert json.loads((key / "manifest.json").read_text()) == manifest


def test_scores_that_were_paid_for_before_a_crash_count_as_this_rounds(
    run_copy: Path, cli: Cli
) -> None:
    key = f"{ROUND}/score/main/manifest.json"
    before = Storage(str(run_copy / "store")).get(key)
    forget(run_copy, f"{ROUND}/score")
    result = cli.ok("score", "-c", run_copy / "run.toml", "--round", "0")
    assert (result["units"], result["reused_rows"]) == (4, 0)
    assert Storage(str(run_copy / "store")).get(key) == before


def test_a_store_that_ignores_preconditions_is_refused_unless_one_process_writes(
    careless_server: S3Account, use_s3: UseS3, tmp_path: Path, cli: Cli
) -> None:
    root = use_s3(careless_server)
    config = write_run(tmp_path, root=root, changes={"eval": None})
    refused = cli("rollout", "-c", config, "--round", "0")
    assert refused.code == 6, refused.stderr
    assert "ignores create-only writes" in refused.stderr
    assert "storage.single_writer = true" in refused.stderr
    assert Storage(root).folders("") == set()
    alone = ("-c", config, "--set", "storage.single_writer=true")
    for stage in ("rollout", "score", "train"):
        assert cli.ok(stage, *alone, "--round", "0")["manifest"] is not None
    assert cli.ok("status", *alone)["rounds"][0]["stages"]["train"]["state"] == "done"
    assert cli("score", "-c", config, "--round", "0").code == 0, "nothing is left to write"
    assert cli("rollout", "-c", config, "--round", "1").code == 6


def test_several_teachers_score_their_own_prompts(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, teachers=("left", "right"), changes={"eval": None})
    stages(cli, config, "rollout")
    assert cli("train", "-c", config, "--round", "0").code == 2
    left = cli.ok("score", "-c", config, "--round", "0", "--teacher", "left")
    assert "right" in cli("train", "-c", config, "--round", "0").stderr
    both = cli.ok("score", "-c", config, "--round", "0")
    assert left["rows"] + both["parts"][1]["rows"] == 16
    stages(cli, config, "train")
    typo = cli("score", "-c", config, "--round", "1", "--teacher", "lift")
    assert typo.code == 2
    assert "left" in typo.stderr


def test_a_missing_teacher_folder_is_named_before_any_work(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path)
    stages(cli, config, "rollout")
    shutil.rmtree(tmp_path / "main")
    outcome = cli("score", "-c", config, "--round", "0")
    assert outcome.code == 2
    assert str(tmp_path / "main") in outcome.stderr


def test_tokenizers_that_differ_are_refused_with_exit_3(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path)
    stages(cli, config, "rollout")
    shutil.rmtree(tmp_path / "main")
    make_model(tmp_path / "main", teacher=True, tokenizer="chat")
    outcome = cli("score", "-c", config, "--round", "0")
    assert outcome.code == 3
    assert not (tmp_path / "store/cache").exists()


def test_a_round_trains_on_packed_scores_with_every_signal(tmp_path: Path, cli: Cli) -> None:
    changes = {
        "score.codec": "packed-v1",
        "score.top_p": 0.9,
        "score.tail_buckets": 4,
        "score.draws": 3,
        "score.sample": 3,
        "rollout.candidates": 2,
        "rollout.sample": 3,
    }
    config = write_run(tmp_path, changes=changes)
    stages(cli, config, "rollout", "score", "train")
    shards = [pq.read_schema(path) for path in score_shards(tmp_path)]
    assert shards
    for schema in shards:
        kept = {"topk_count", "candidate_logprobs", "draw_counts", "sample_steps", "sample_count"}
        assert kept <= set(schema.names)
        assert schema.field("topk_ids").type == pa.large_binary()


@pytest.mark.parametrize("codec", ["typed-v1", "packed-v1"])
def test_the_reverse_kl_is_the_same_from_the_teacher_and_from_the_cache(
    tmp_path: Path, cli: Cli, codec: str
) -> None:
    config = write_run(tmp_path, changes={"eval": None, "score.codec": codec})
    stages(cli, config, "rollout")
    manifest = tmp_path / "store" / ROUND / "score/main/manifest.json"
    found = []
    for _ in range(2):
        result = cli.ok("score", "-c", config, "--round", "0")
        found.append((result["reverse_kl"], manifest.read_bytes()))
        forget(tmp_path, f"{ROUND}/score")
    assert result["noise"] is None  # the teacher was not asked the second time
    assert found[0] == found[1]
