"""`opd cache merge`: the scores of another root are reused."""

from pathlib import Path

from tests.support.runs import Cli
from tests.support.tiny import write_run


def test_a_root_takes_over_the_scores_of_another(run_copy: Path, tmp_path: Path, cli: Cli) -> None:
    other, config = f"{tmp_path}/other", run_copy / "run.toml"
    merged = cli.ok("cache", "merge", "--root", other, "--from-root", f"{run_copy}/store")
    (done,) = merged["scorers"]
    assert (done["units"], done["rows"]) == (8, 32)
    again = cli.ok("cache", "merge", "--root", other, "--from-root", f"{run_copy}/store")
    assert again["scorers"][0]["units"] == 0
    assert cli("cache", "verify", "--root", other).code == 0
    moved = write_run(run_copy, root=other, changes={"rollout.prompts_per_unit": 3, "eval": None})
    assert moved == config
    cli.ok("rollout", "-c", moved, "--round", "0")
    result = cli.ok("score", "-c", moved, "--round", "0")
    assert (result["teacher_tokens"], result["reused_rows"]) == (0, 16)
