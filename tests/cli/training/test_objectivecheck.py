"""`opd train --objective-check`: what it tells of a finished run, and that it changes nothing."""

import math
import shutil
from pathlib import Path

from tests.support.rounds import stages
from tests.support.runs import Cli
from tests.support.tiny import write_run

BROKEN = """
def looks_around(log_q, log_p):
    each = (log_q.exp() * (log_q - log_p)).sum(-1)
    return each * each.sum() if len(each) > 8 else each
"""


def stored(folder: Path) -> dict[str, bytes]:
    files = [path for path in (folder / "store").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_finished_run_is_checked_without_its_teacher_and_stays_as_it_is(
    run_copy: Path, cli: Cli
) -> None:
    shutil.rmtree(run_copy / "main")
    before = stored(run_copy)
    found = cli("train", "-c", run_copy / "run.toml", "--objective-check", "--json")
    assert found.code == 0, found.stderr
    result = found.result
    assert result["round"] == 1 and result["rows"] == 16
    mine, *others = result["forms"]
    assert mine["form"] == "forward_kl: top-k and bucket" and mine["configured"]
    assert mine["reference"] is None and mine["bias"] is None
    names = [one["form"] for one in others]
    assert "reverse_kl: top-k and the sampled token" in names
    for one in result["forms"]:
        assert one["fused_error"] < 1e-4 and one["variance"] > 0
        if one["cosine"] is not None:
            noise = 1 + one["noise_positions"] / result["step_tokens"]
            assert abs(one["cosine"]) <= 1 / math.sqrt(noise) + 1e-9
    shown = cli("train", "-c", run_copy / "run.toml", "--objective-check", "--round", "0")
    assert shown.code == 0, shown.stderr
    assert "Best choice: " in shown.stdout and "round 0: " in shown.stdout
    assert stored(run_copy) == before


def test_a_gradient_that_is_not_that_of_the_plain_loss_ends_the_check(
    run_copy: Path, cli: Cli
) -> None:
    (run_copy / "losses.py").write_text(BROKEN)
    changes = {"run.name": "own", "loss.kind": "losses.py:looks_around"}
    config = write_run(run_copy, changes=changes, file="own.toml")
    stages(cli, config, "rollout", "score")
    found = cli("train", "-c", config, "--objective-check")
    assert found.code == 4, found.stderr
    assert "differs from that of the plain loss" in found.stderr
    assert "Do not train here" in found.stderr


def test_with_the_teacher_each_form_is_measured_against_all_ids(run_copy: Path, cli: Cli) -> None:
    """Of 17 ids: a top-k of all of them is right, and one of two without a sample is not."""
    loss = {"loss.kind": "reverse_kl", "rollout.sample": 8}
    check = ("--objective-check", "--with-teacher")
    for name, k in (("all", 17), ("two", 2)):
        changes = {**loss, "run.name": name, "score.k": k, "eval": None}
        config = write_run(run_copy, changes=changes, file=f"{name}.toml")
        stages(cli, config, "rollout", "score")
    before = stored(run_copy)
    found = {}
    for name in ("all", "two"):
        told = cli.ok("train", "-c", run_copy / f"{name}.toml", *check)
        found[name] = {one["form"]: one["cosine_of_all_ids"] for one in told["forms"]}
        assert "with the gradient over all ids is" in told["advice"]
    for form, cosine in found["all"].items():
        if not form.startswith("policy_gradient: the sampled"):  # as noisy as with any k
            assert cosine > 0.9999, form
    two = found["two"]
    own, bucket = two["reverse_kl: top-k and the student's sample"], "reverse_kl: top-k and bucket"
    assert 0.9999 > own > two[bucket] > 0.3
    shown = cli("train", "-c", run_copy / "two.toml", *check)
    assert "of all ids" in shown.stdout
    assert stored(run_copy) == before
    shutil.rmtree(run_copy / "main")
    for options, words in (
        (check, "teachers.main.model"),
        (("--round", "0", "--with-teacher"), "--with-teacher is for --objective-check"),
    ):
        refused = cli("train", "-c", run_copy / "two.toml", *options)
        assert refused.code == 2 and words in refused.stderr, refused.stderr
