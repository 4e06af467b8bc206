"""What looks wrong: what is found, since when, and in which order it is told."""

from pathlib import Path

from pipeline.report.figures import RunFigures, gather
from pipeline.report.findings import findings
from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run


def gathered(folder: Path, *overrides: str) -> RunFigures:
    return gather(open_run(load_config(folder / "run.toml", overrides)), "x", rows=4)


def test_an_undisturbed_run_has_none(finished_run: Path) -> None:
    assert findings(gathered(finished_run)) == []


def test_changed_settings_and_lost_objects_are_told_the_worst_first(
    run_copy: Path,
) -> None:
    figures = gathered(run_copy, "train.learning_rate=1e-4")
    key = figures.records.rounds[1].train
    assert key is not None
    (run_copy / "store" / key.metrics.key).unlink()
    figures = gathered(run_copy, "train.learning_rate=1e-4")
    found = findings(figures)
    assert [one.severity for one in found] == ["wrong", "note"]
    assert "train.learning_rate" in found[0].figure and "run.name" in found[0].advice
    assert (key.metrics.key in found[1].figure, found[1].since) == (True, 1)


def test_damaged_scores_are_left_out_and_told(run_copy: Path) -> None:
    for path in (run_copy / "store" / "cache").glob("*/data/*.parquet"):
        path.write_bytes(b"damaged")
    figures = gathered(run_copy)
    found = findings(figures)
    assert found and {one.severity for one in found} == {"note"}
    assert figures.sample.trained.rows.is_empty()
    assert figures.places == ()
    assert figures.rounds["reverse_kl"].null_count() == 0  # of the manifests
