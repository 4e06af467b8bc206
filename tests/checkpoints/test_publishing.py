"""Checkpoints are published once: of several attempts one stands and is whole."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoints.claim import INDEX
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from tests.conftest import ProxyFactory, UseS3
from tests.support.checkpoints import ORIGIN, STATE, Overtaken, assert_whole, exported, publish
from tests.support.faults import OTHER_DIGIT
from tests.support.servers import S3Account


def test_a_published_checkpoint_opens_as_it_was_exported(run: Run, first: Path) -> None:
    assert run.checkpoint(1) is None
    manifest = publish(run, first)
    assert run.checkpoint(1) == manifest
    assert (manifest.index, manifest.origin, manifest.state) == (1, ORIGIN, STATE)
    assert set(manifest.files) == {p.name for p in first.iterdir()}
    assert_whole(run, manifest, first)


def test_the_version_is_that_of_the_weights(
    config_path: Path, tmp_path: Path, first: Path, second: Path
) -> None:
    versions = []
    for name, folder in (("a", first), ("b", exported(tmp_path)), ("c", second)):
        root = f"run.root={json.dumps(str(tmp_path / 'store' / name))}"
        versions.append(publish(open_run(load_config(config_path, [root])), folder).policy_version)
    assert versions[0] == versions[1] != versions[2]


def test_the_first_of_two_attempts_stands_and_is_whole(run: Run, first: Path, second: Path) -> None:
    stands = publish(run, first)
    assert publish(run, second) == stands == run.checkpoint(1)
    assert_whole(run, stands, first)
    assert publish(run, first) == stands


def test_a_later_attempt_by_other_software_leaves_the_first_whole(
    run: Run, tmp_path: Path, first: Path, second: Path
) -> None:
    other = Path(shutil.copytree(second, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"transformers_version": "9"}))
    stands = publish(run, first)
    run.storage.delete(f"{run.checkpoint_folder(1)}/manifest.json")
    assert publish(run, other) == stands
    assert_whole(run, stands, first)


def test_an_attempt_that_died_before_its_manifest_is_finished_by_the_next(
    run: Run, first: Path, second: Path
) -> None:
    stands = publish(run, first)
    run.storage.delete(f"{run.checkpoint_folder(1)}/manifest.json")
    assert publish(run, second) == stands
    assert_whole(run, stands, first)


def test_of_two_attempts_at_once_one_stands_and_is_whole(
    run: Run, first: Path, second: Path
) -> None:
    slow = replace(run, storage=Overtaken(lambda: publish(run, first), run))
    stands = publish(slow, second)
    assert stands == run.checkpoint(1)
    assert_whole(run, stands, first)


def test_files_of_a_dead_attempt_do_not_enter_the_next(run: Run, first: Path, second: Path) -> None:
    publish(run, first)
    for name in ("manifest.json", INDEX):
        run.storage.delete(f"{run.checkpoint_folder(1)}/{name}")
    stands = publish(run, second)
    assert set(stands.files) == {p.name for p in second.iterdir()}
    assert_whole(run, stands, second)


def test_a_file_that_decides_and_comes_changed_is_read_again(
    config_path: Path,
    first: Path,
    second: Path,
    moto_server: S3Account,
    use_s3: UseS3,
    fault_proxy: ProxyFactory,
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    root = json.dumps(use_s3(moto_server.at(proxy.endpoint)))
    run = open_run(load_config(config_path, [f"run.root={root}"]))
    stands = publish(run, first)
    run.storage.delete(f"{run.checkpoint_folder(1)}/manifest.json")
    proxy.force(OTHER_DIGIT, method="GET")
    assert publish(run, second) == stands
    assert proxy.counts[OTHER_DIGIT] == 1
