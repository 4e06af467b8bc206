"""Whole stages on tiny models: identity, concurrency, damage, and what a mistake looks like."""

import json
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store.storage import Storage
from pipeline.store.writer import WRITER_KEY
from tests.conftest import UseS3
from tests.support.runs import Cli, finish, snapshot, start
from tests.support.servers import S3Account, SeaweedServer
from tests.support.tiny import make_model, write_run

ROUND = "runs/tiny/rounds/0000"


def stages(cli: Cli, config: Path, *names: str) -> None:
    """Run stages of round 0 that must succeed."""
    for name in names:
        cli.ok(name, "-c", config, "--round", "0")


def forget(folder: Path, *keys: str) -> None:
    """Delete objects of a folder's store, as if the stages had not run."""
    for key in keys:
        path = folder / "store" / key
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def forget_training(folder: Path) -> None:
    """Delete what training of round 0 and everything after it left."""
    later = ["runs/tiny/rounds/0001", f"{ROUND}/train", f"{ROUND}/eval"]
    forget(folder, *later, "runs/tiny/checkpoints/0001", "runs/tiny/checkpoints/0002")


def score_shards(folder: Path) -> list[Path]:
    """Return the score shards that round 0 uses."""
    manifest = json.loads((folder / "store" / ROUND / "score/main/manifest.json").read_text())
    return [folder / "store" / unit["shard"]["key"] for unit in manifest["units"]]


def test_every_stage_of_a_finished_run_changes_nothing_when_run_again(
    run_copy: Path, cli: Cli
) -> None:
    storage = Storage(str(run_copy / "store"))
    before = snapshot(storage, "")
    for name in ("rollout", "score", "train", "eval"):
        for index in ("0", "1"):
            result = cli.ok(name, "-c", run_copy / "run.toml", "--round", index)
            assert result["units"] == 0
            assert result["manifest"] is not None
    assert cli.ok("run", "-c", run_copy / "run.toml")["units"] == 0
    assert snapshot(storage, "") == before


def test_a_run_that_began_before_there_were_stop_strings_goes_on_and_gets_none(
    run_copy: Path, cli: Cli
) -> None:
    folder, config = run_copy / "store/runs/tiny", run_copy / "run.toml"
    for record in ("run.json", "rounds/0000/rollout/plan.json"):
        assert "stop_strings" not in (folder / record).read_text()
    assert cli.ok("rollout", "-c", config, "--round", "0")["units"] == 0
    changed = cli("rollout", "-c", config, "--round", "0", "--set", "rollout.stop_strings=['1']")
    assert changed.code == 3
    assert "rollout.stop_strings: the run began with None, now ['1']" in changed.stderr


def test_a_run_without_eval_that_is_done_says_so(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, changes={"eval": None, "run.rounds": 1})
    assert cli.ok("run", "-c", config)["units"] > 0
    again = cli.ok("run", "-c", config)
    assert (again["units"], again["tokens"], again["manifest"]) == (0, 0, None)
    assert "nothing is left to do" in cli("run", "-c", config).stdout


def test_status_reports_every_round_with_its_figures(run_copy: Path, cli: Cli) -> None:
    status = cli.ok("status", "-c", run_copy / "run.toml")
    assert status["run"] == "tiny"
    assert [r["round"] for r in status["rounds"]] == [0, 1]
    for row in status["rounds"]:
        assert {s["state"] for s in row["stages"].values()} == {"done"}
        assert row["teacher_tokens"] > 0
        assert row["reused_rows"] == 0
        assert row["reverse_kl"] > 0
        assert 0 <= row["accuracy"] <= 1
    assert status["teacher_accuracy"] is not None
    assert "already" not in cli("status", "-c", run_copy / "run.toml").stdout


def test_rounds_draw_other_samples_and_a_replay_draws_the_same(
    finished_run: Path, tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path)
    stages(cli, config, "rollout")
    mine, theirs = (Storage(str(f / "store")) for f in (tmp_path, finished_run))
    key = f"{ROUND}/rollout/manifest.json"
    assert mine.get(key) == theirs.get(key)
    first = json.loads(theirs.get(key) or b"")
    second = json.loads(theirs.get(key.replace("0000", "0001")) or b"")
    shards = [{u["shard"]["sha256"] for u in m["units"]} for m in (first, second)]
    assert not shards[0] & shards[1]


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


def test_workers_split_a_stage_and_the_last_one_writes_the_manifest(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path)
    first = cli.ok("rollout", "-c", config, "--round", "0", "--worker", "0/2")
    assert (first["units"], first["manifest"]) == (2, None)
    early = cli("score", "-c", config, "--round", "0")
    assert early.code == 2
    assert "no finished rollout" in early.stderr
    second = cli.ok("rollout", "-c", config, "--round", "0", "--worker", "1/2")
    assert second["units"] == 2
    assert second["manifest"] is not None


def test_training_needs_no_teacher_folder(run_copy: Path, cli: Cli) -> None:
    before = Storage(str(run_copy / "store")).get(f"{ROUND}/train/manifest.json")
    forget_training(run_copy)
    shutil.rmtree(run_copy / "main")
    stages(cli, run_copy / "run.toml", "train")
    assert Storage(str(run_copy / "store")).get(f"{ROUND}/train/manifest.json") == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "swap"])
def test_a_damaged_score_shard_stops_training_with_exit_4_and_its_name(
    damage: str, run_copy: Path, cli: Cli
) -> None:
    forget_training(run_copy)
    shard, other = score_shards(run_copy)[:2]
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[:-100])
    elif damage == "delete":
        shard.unlink()
    else:
        shard.write_bytes(other.read_bytes())
    outcome = cli("train", "-c", run_copy / "run.toml", "--round", "0", "--json")
    assert outcome.code == 4, outcome.stderr
    assert shard.name in outcome.stderr
    assert outcome.result["exit_code"] == 4
    assert not (run_copy / "store/runs/tiny/checkpoints/0001").exists()


def test_scores_of_another_teacher_stop_training_with_exit_3(run_copy: Path, cli: Cli) -> None:
    config = write_run(run_copy, changes={"run.name": "other", "teachers.main.model": "impostor"})
    make_model(run_copy / "impostor", teacher=True, seed=99)
    shutil.copytree(run_copy / "store/runs/tiny", run_copy / "store/runs/other")
    for name in ("run.json", "teachers", "rounds", "checkpoints/0001", "checkpoints/0002"):
        forget(run_copy, f"runs/other/{name}")
    stages(cli, config, "rollout", "score")
    forget_training(run_copy)
    theirs = run_copy / "store/runs/other/rounds/0000/score/main/manifest.json"
    mine = run_copy / "store" / ROUND / "score/main/manifest.json"
    foreign = json.loads(theirs.read_text())
    foreign["rollout_fingerprint"] = json.loads(mine.read_text())["rollout_fingerprint"]
    mine.write_text(json.dumps(foreign))
    outcome = cli("train", "-c", write_run(run_copy), "--round", "0")
    assert outcome.code == 3, outcome.stderr
    assert "another teacher" in outcome.stderr


def test_a_teacher_that_changed_under_a_run_is_refused_before_any_work(
    run_copy: Path, cli: Cli
) -> None:
    forget(run_copy, "runs/tiny/rounds/0001/score", "runs/tiny/rounds/0001/train")
    shutil.rmtree(run_copy / "main")
    make_model(run_copy / "main", teacher=True, seed=99)
    outcome = cli("score", "-c", run_copy / "run.toml", "--round", "1")
    assert outcome.code == 3
    assert "teachers.main" in outcome.stderr


def test_a_changed_setting_is_refused_with_its_name_and_both_values(
    run_copy: Path, cli: Cli
) -> None:
    outcome = cli("rollout", "-c", run_copy / "run.toml", "--round", "0", "--set", "score.k=2")
    assert outcome.code == 3
    assert "score.k: the run began with 4, now 2" in outcome.stderr
    tuned = cli("rollout", "-c", run_copy / "run.toml", "--round", "0", "--set", "score.device=cpu")
    assert tuned.code == 0


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
    swapped.write_text(json.dumps(record | {"shard": quiet["units"][2]["shard"]}))
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
        path.write_text(json.dumps(record | {"fingerprint": "0" * 32}))
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


def test_a_store_that_ignores_preconditions_takes_one_score_worker_and_refuses_a_second(
    careless_server: S3Account, use_s3: UseS3, tmp_path: Path, cli: Cli
) -> None:
    root = use_s3(careless_server)
    config = write_run(tmp_path, root=root, changes={"eval": None})
    cli.ok("rollout", "-c", config, "--round", "0")
    command = ("score", "-c", config, "--round", "0", "--json", "--worker")
    first, storage = start(*command, "0/2"), Storage(root)
    while not storage.exists(WRITER_KEY):
        assert first.poll() is None, finish(first).stderr
        time.sleep(0.02)
    refused = cli(*command, "1/2")
    assert refused.code == 5, refused.stderr
    assert "ignores create-only writes" in refused.stderr
    assert storage.url(WRITER_KEY) in refused.stderr
    outcome = finish(first)
    assert outcome.code == 0, outcome.stderr
    assert (outcome.result["units"], outcome.result["manifest"]) == (2, None)
    alone = cli.ok(*command[:-2], "--worker", "1/2")
    assert alone["units"] == 2
    assert alone["manifest"] is not None
    assert not storage.exists(WRITER_KEY)


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


@pytest.mark.s3
def test_stages_run_on_s3_and_leave_the_manifests_of_a_local_run(
    tmp_path: Path, finished_run: Path, s3_server: SeaweedServer, use_s3: UseS3, cli: Cli
) -> None:
    root = use_s3(s3_server.account)
    config = write_run(tmp_path, root=root, changes={"train.save_steps": 1})
    stages(cli, config, "rollout", "score", "train", "eval")
    mine = snapshot(Storage(root), ROUND)
    quiet = snapshot(Storage(str(finished_run / "store")), ROUND)
    assert mine == quiet


ON_GPU_7 = ("--set", "rollout.engine=hf", "--set", "rollout.device=cuda:7")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rollout", "--round", "0", "--set", "train.lerning_rate=1"], 2, "learning_rate"),
        (["rollout", "--round", "0", "--set", "student.model=nowhere"], 2, "nowhere"),
        (["score", "--round", "0"], 2, "opd rollout --round 0"),
        (["train", "--round", "0"], 2, "opd rollout --round 0"),
        (["rollout", "--round", "3"], 2, "opd train --round 2"),
        (["rollout", "--round", "0", "--worker", "2/2"], 2, "I/N"),
        (["eval"], 2, "--baseline"),
        (["rollout", "--round", "0", "--set", "run.root=ftp://x"], 2, "ftp"),
        (["rollout", "--round", "0", *ON_GPU_7], 2, "GPU"),
        (["rollout", "--round", "0", "--set", "rollout.engine=vlm"], 2, "'vllm'"),
        (["rollout", "--round", "0", "--set", "rollout.max_new_tokens=500"], 2, "holds 128"),
    ],
)
def test_a_mistake_gets_one_clear_message_and_its_exit_code(
    arguments: list[str], code: int, words: str, tmp_path: Path, cli: Cli
) -> None:
    outcome = cli(arguments[0], "-c", write_run(tmp_path), *arguments[1:])
    assert outcome.code == code, outcome.stderr
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_missing_teacher_folder_is_named_before_any_work(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path)
    stages(cli, config, "rollout")
    shutil.rmtree(tmp_path / "main")
    outcome = cli("score", "-c", config, "--round", "0")
    assert outcome.code == 2
    assert str(tmp_path / "main") in outcome.stderr


def test_tokenizers_that_differ_are_refused_with_exit_3(tmp_path: Path, cli: Cli) -> None:
    make_model(tmp_path / "main", teacher=True, tokenizer="chat")
    config = write_run(tmp_path)
    stages(cli, config, "rollout")
    outcome = cli("score", "-c", config, "--round", "0")
    assert outcome.code == 3
    assert not (tmp_path / "store/cache").exists()


def test_an_unreachable_endpoint_is_named_with_exit_6(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    config = write_run(tmp_path, root="s3://bucket/x")
    outcome = cli("rollout", "-c", config, "--round", "0", "--set", "storage.retry_s=1")
    assert outcome.code == 6
    assert "http://127.0.0.1:9" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.s3
def test_wrong_credentials_and_a_read_only_key_are_told_with_exit_6(
    tmp_path: Path,
    cli: Cli,
    s3_server: SeaweedServer,
    use_s3: UseS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write_run(tmp_path, root=use_s3(s3_server.account))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    wrong = cli("rollout", "-c", config, "--round", "0")
    assert wrong.code == 6
    assert "wrong" not in wrong.stderr.replace("wrong credentials", "")
    for key, value in s3_server.environ(readonly=True).items():
        monkeypatch.setenv(key, value)
    readonly = cli("rollout", "-c", config, "--round", "0")
    assert readonly.code == 6
    for outcome in (wrong, readonly):
        assert "Traceback" not in outcome.stderr


def test_validate_names_a_missing_prompt_file_and_accepts_a_whole_configuration(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path)
    good = cli("config", "validate", "-c", config)
    assert good.code == 0
    assert good.result["valid"] is True
    typo = cli("config", "validate", "-c", config, "--set", "prompts.train=promts.jsonl")
    assert typo.code == 2
    assert "did you mean" in typo.stderr


def test_a_round_trains_on_packed_scores_with_every_signal(tmp_path: Path, cli: Cli) -> None:
    changes = {
        "score.codec": "packed-v1",
        "score.top_p": 0.9,
        "score.tail_buckets": 4,
        "score.draws": 3,
        "rollout.candidates": 2,
    }
    config = write_run(tmp_path, changes=changes)
    stages(cli, config, "rollout", "score", "train")
    shards = [pq.read_schema(path) for path in score_shards(tmp_path)]
    assert shards
    for schema in shards:
        assert {"topk_count", "candidate_logprobs", "draw_counts"} <= set(schema.names)
        assert schema.field("topk_ids").type == pa.large_binary()
