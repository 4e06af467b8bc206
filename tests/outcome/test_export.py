"""`opd export`: the folder is the checkpoint, its card what is stored; nothing is replaced."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.checkpoints.probe import find_probe
from pipeline.outcome.columns import KEPT, MEANINGS
from pipeline.outcome.markdown import Markdown, as_json, escaped, fenced, header, table
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from schemas.scoresignal import SCORE_COLUMNS
from tests.support.caches import rows_of, store_of
from tests.support.reports import HARM
from tests.support.runs import Cli

SHIFTED = HARM + "\n# x\n| a | [l](http://e.org) `b` ``` --- ~~~ $x$ &lt; *a* __b__ \r\n---\nk: v"


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Run:
    return open_run(load_config(finished_run / "run.toml"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the outcome goes that tests look at; the first one makes it."""
    return tmp_path_factory.mktemp("outcome")


@pytest.fixture
def outcome(finished_run: Path, made: Path, cli: Cli) -> Path:
    """Return a folder with the outcome of the finished run, `model` and `dataset`."""
    if not (made / "model").exists():
        places = ("--out", made / "model", "--dataset", made / "dataset")
        found = cli.ok("export", "-c", finished_run / "run.toml", *places)
        assert (found["checkpoint"], found["rows"]) == (2, 32)
    return made


def test_the_folder_loads_in_transformers_and_gives_the_checkpoints_log_probabilities(
    outcome: Path, run: Run
) -> None:
    manifest = run.checkpoint(2)
    assert manifest is not None
    probe = find_probe(Path(run.storage.root) / run.checkpoint_folder(2), manifest)
    assert probe is not None
    folder = outcome / "model"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = zip(probe.prompts, probe.responses, probe.logprobs, strict=True)
    for prompt, response, expected in rows:
        ids = torch.tensor(np.concatenate([prompt, response]))[None].long()
        with torch.inference_mode():
            found = model(input_ids=ids).logits[0].log_softmax(-1)
        mine = found[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]
        np.testing.assert_allclose(mine.numpy(), expected, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size


def test_the_code_of_the_card_writes_a_response(
    outcome: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = outcome / "model"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    exec(code.replace("What is 12 times 12?", "1+2="), {})
    assert "1+2=" in capsys.readouterr().out


def test_the_folder_is_plain(outcome: Path) -> None:
    folder = outcome / "model"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.startswith(("opd", "manifest", "model-"))]
    assert "model.safetensors.index.json" not in names
    assert [path.name for path in outcome.iterdir() if path.name.startswith((".", "opd."))] == []
    assert folder.stat().st_mode & 0o055  # not that of a private temporary folder


def test_the_models_card_says_what_the_manifests_say(outcome: Path, finished_run: Path) -> None:
    card = ModelCard.load(outcome / "model" / "README.md")
    text, store = card.content, finished_run / "store/runs/tiny"
    assert card.data.to_dict()["library_name"] == "transformers"
    assert "base_model" not in card.data.to_dict()  # the student is a folder
    for who, file in {
        "this checkpoint": "rounds/0001/eval",
        "the student as it came": "baseline/student",
        "teacher main": "baseline/teacher/main",
    }.items():
        graded = json.loads((store / file / "manifest.json").read_text())
        assert f"| {who} | {interval(graded)} | {graded['rows']} |" in text
    scored = [
        json.loads((store / f"rounds/000{n}/score/main/manifest.json").read_text()) for n in (0, 1)
    ]
    assert f"in its last round: {scored[1]['reverse_kl']:.4f} nats" in text
    assert "on its own samples: not stored." in text
    paid = sum(one["teacher_tokens"] for one in scored)
    assert f"The teacher read {paid:,} tokens" in text
    record = json.loads((store / "run.json").read_text())
    assert record["fingerprint"] in text and scored[0]["scorer"] in text
    assert "opd export -c run.toml --checkpoint 2 --out FOLDER" in text
    settings = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert settings is not None and json.loads(settings[1]) == record["identity"]


def interval(graded: dict[str, Any]) -> str:
    """Return cells of an accuracy with Wilson's interval, as textbooks have it."""
    p, n, z = graded["accuracy"], graded["rows"], 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{p:.1%} | {max(middle - half, 0):.1%} | {min(middle + half, 1):.1%}"


def test_the_dataset_is_read_by_pyarrow_and_polars_and_has_every_row(
    outcome: Path, finished_run: Path
) -> None:
    folder = outcome / "dataset"
    frame = pl.read_parquet(folder / "data" / "main" / "*.parquet")
    assert pq.read_table(folder / "data" / "main").num_rows == len(frame) == 32
    scored = {row["sequence_digest"]: row for row in rows_of(store_of(finished_run))}
    for row in frame.to_dicts():
        expected = scored[row["sequence_digest"]]
        assert len(row["response_ids"]) == len(row["token_logprob"])
        for name in ("token_logprob", "topk_ids", "topk_logprobs", "tail_logprobs"):
            assert row[name] == pytest.approx(expected[name])
    card = DatasetCard.load(folder / "README.md")
    (config,) = card.data.to_dict()["configs"]
    assert list(folder.glob(config["data_files"][0]["path"]))
    named = {escaped(name) for name in frame.columns}
    assert named <= set(re.findall(r"^\| (\S+) \|", card.content, re.MULTILINE))


def test_every_column_that_a_dataset_may_have_is_explained() -> None:
    assert set(MEANINGS) == {*KEPT, *(column.name for column in SCORE_COLUMNS)}


def test_the_best_checkpoint_is_the_one_of_the_highest_accuracy(
    run_copy: Path, tmp_path: Path, cli: Cli
) -> None:
    store, command = run_copy / "store/runs/tiny", ("export", "-c", run_copy / "run.toml")
    files = {0: "baseline/student", 1: "rounds/0000/eval", 2: "rounds/0001/eval"}
    graded = {
        n: json.loads((store / file / "manifest.json").read_text())["accuracy"]
        for n, file in files.items()
    }
    best = min(graded, key=lambda n: (-graded[n], n))
    found = cli.ok(*command, "--checkpoint", "best", "--out", tmp_path / "best")
    assert found["checkpoint"] == best
    shutil.rmtree(store / f"checkpoints/000{best}")
    left = min(graded.keys() - {best}, key=lambda n: (-graded[n], n))
    found = cli.ok(*command, "--checkpoint", "best", "--out", tmp_path / "next")
    assert found["checkpoint"] == left


def test_nothing_is_replaced_and_damage_leaves_nothing(
    run_copy: Path, tmp_path: Path, cli: Cli
) -> None:
    there, command = tmp_path / "there", ("export", "-c", run_copy / "run.toml")
    there.mkdir()
    (there / "mine").write_text("mine")
    places = ("--out", tmp_path / "new", "--dataset", there)
    assert cli(*command, *places).code == 2
    damaged = run_copy / "store/runs/tiny/checkpoints/0002/config.json"
    damaged.write_text(damaged.read_text() + " ")
    assert cli(*command, "--out", tmp_path / "a", "--dataset", tmp_path / "b").code == 4
    assert {path.name for path in tmp_path.iterdir()} == {"there", "copy"}
    assert [path.name for path in there.iterdir()] == ["mine"]


# --- text stays text ---


@pytest.mark.parametrize("text", [SHIFTED, "`" * 5, "a|b", "<b>x</b>", "&amp;", "www.e.org"])
def test_text_of_others_is_text_wherever_it_stands_in_a_card(text: str) -> None:
    page = "\n\n".join(
        [f"# {escaped(text)}", f"It is {escaped(text)}.", table(["a", text], [[text, "x"]])]
    )
    tokens = MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(page)
    inner = [child.type for token in tokens for child in token.children or ()]
    assert set(inner) <= {"text", "text_special"}
    assert [t.type for t in tokens].count("heading_open") == 1
    assert [t.type for t in tokens].count("td_open") == 2
    assert not set(page) & set("\x1b\u202e\x00\ud800\r")
    assert escaped(Markdown("*ours*")) == "*ours*"


def test_blocks_and_the_header_hold_any_text() -> None:
    (block,) = MarkdownIt().parse(fenced(SHIFTED, "sh"))
    assert block.type == "fence" and "```" in block.content
    (block,) = MarkdownIt().parse(as_json({SHIFTED: SHIFTED}))
    (name, value) = next(iter(json.loads(block.content).items()))
    assert name == value and "[l](http://e.org)" in name
    card: Any = ModelCard(header({"name": SHIFTED, "list": [SHIFTED]}) + "\n\nx")
    found = card.data.to_dict()
    assert found.keys() == {"name", "list"} and found["list"] == [found["name"]]
    assert "secret" not in escaped("s3://user:secret@host/x?token=secret")
