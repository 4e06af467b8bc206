"""The shipped examples: every file parses, its numbers fit together, every key has its reason."""

import json
import math
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.learner.settings import learning_rate_at
from pipeline.prompts.files import find_prompt_file
from pipeline.prompts.pinning import prepare_prompts, read_prompts
from pipeline.prompts.reading import record_chunks
from pipeline.prompts.records import PromptRecord, parse_record
from pipeline.rewards.graders import Response, open_grader
from pipeline.rewards.location import find_grader
from pipeline.runs.configsource import load_config
from pipeline.runs.plan import cut_units, draw_prompts
from pipeline.runs.run import Run
from pipeline.store.place import PlacedConfig
from pipeline.store.storage import Storage
from schemas.config.models import StudentSection, TeacherSection
from schemas.config.run import RunConfig
from schemas.config.storage import StorageSection
from schemas.records.runs import PromptsManifest
from tests.support.promptfiles import CONFIG
from tests.support.repository import REPOSITORY

FOLDER = REPOSITORY / "examples"
EXAMPLES = sorted(FOLDER.glob("*.toml"))
PROMPT_FILES = sorted((FOLDER / "prompts").glob("*.jsonl"))
ONE_PUT_BYTES = 100 << 20
"""Largest object that is written in one request."""

Fast: Any = PreTrainedTokenizerFast  # its constructor is untyped

each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)


def byte_tokenizer() -> Any:
    """Return a tokenizer with one id per byte and a chat template like Qwen3's."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {t: i for i, t in enumerate([*special, *pre_tokenizers.ByteLevel.alphabet()])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    tokenizer = Fast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
    )
    return tokenizer


def steps_per_round(config: RunConfig) -> int:
    rows = config.rollout.prompts_per_round * config.rollout.samples_per_prompt
    return config.train.epochs * math.ceil(rows / config.train.sequences_per_step)


def longest_sequence(config: RunConfig) -> int:
    return config.prompts.max_tokens + config.rollout.max_new_tokens


def pin(placed: PlacedConfig) -> tuple[Storage, PromptsManifest]:
    storage = Storage(f"memory://{uuid.uuid4().hex}", StorageSection(retry_s=1.0))
    run = Run(placed.config, storage, placed.place)
    return storage, prepare_prompts(run, "train", byte_tokenizer())


def test_there_are_examples() -> None:
    names = {path.name for path in EXAMPLES}
    assert names >= {"cpu.toml", "one-gpu.toml", "chat.toml", "qwen3-32b-to-8b.toml"}
    assert {"text.jsonl", "chat.jsonl"} <= {path.name for path in PROMPT_FILES}


@each
def test_an_example_parses(path: Path) -> None:
    config = load_config(path).config
    assert config.run.name


@each
def test_the_page_of_examples_names_each(path: Path) -> None:
    assert f"]({path.name})" in (FOLDER / "README.md").read_text(encoding="utf-8")


@each
def test_every_key_has_its_reason_beside_it(path: Path) -> None:
    before = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"[A-Za-z_]+ *=", line):
            commented = re.search(r"#.*\w", before) or re.search(r" # .*\w", line)
            assert commented, f"{path.name}:{number} has no comment: {line}"
        before = line if line.startswith("#") else ""


def test_the_check_of_comments_sees_keys_of_every_example() -> None:
    for path in EXAMPLES:
        keys = re.findall(r"^[A-Za-z_]+ *=", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(keys) > 20


@each
@pytest.mark.parametrize("round_index", [0, 1])
def test_a_round_is_planned_with_its_numbers(path: Path, round_index: int) -> None:
    config = load_config(path).config
    section = config.rollout
    drawn, epochs = draw_prompts(
        section.prompts_per_round * config.run.rounds,
        per_round=section.prompts_per_round,
        round_index=round_index,
        seed=config.run.seed,
    )
    units = cut_units(
        drawn,
        epochs,
        samples_per_prompt=section.samples_per_prompt,
        prompts_per_unit=section.prompts_per_unit,
    )
    assert len(units) == math.ceil(section.prompts_per_round / section.prompts_per_unit)
    assert len(units) >= 4
    rows = sum(len(unit.rows) for unit in units)
    assert rows == section.prompts_per_round * section.samples_per_prompt
    assert len(np.unique(drawn)) == section.prompts_per_round
    assert (epochs == 0).all()


@each
def test_rounds_draw_different_prompts(path: Path) -> None:
    config = load_config(path).config
    per_round, rows = config.rollout.prompts_per_round, 2 * config.rollout.prompts_per_round
    drawn = [
        draw_prompts(rows, per_round=per_round, round_index=index, seed=config.run.seed)[0]
        for index in (0, 1)
    ]
    assert np.intersect1d(drawn[0], drawn[1]).size == 0


@each
def test_the_learning_rate_stays_positive_and_finite(path: Path) -> None:
    config = load_config(path).config
    train, steps = config.train, steps_per_round(config) * config.run.rounds
    rates = [learning_rate_at(step, train) for step in range(steps)]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    assert max(rates) == pytest.approx(train.learning_rate)
    assert train.warmup_steps < steps
    assert train.schedule == "constant" or train.decay_steps == steps


@each
def test_steps_divide_a_round_evenly_and_are_few(path: Path) -> None:
    config = load_config(path).config
    rows = config.rollout.prompts_per_round * config.rollout.samples_per_prompt
    assert rows % config.train.sequences_per_step == 0
    assert steps_per_round(config) <= 10


@each
def test_the_longest_sequence_fits_every_batch(path: Path) -> None:
    config = load_config(path).config
    assert longest_sequence(config) <= config.train.micro_batch_tokens
    assert longest_sequence(config) <= config.rollout.batch_tokens
    assert longest_sequence(config) <= config.score.batch_tokens
    assert longest_sequence(config) < 40_960, "the context of Qwen3"


@each
def test_the_largest_score_shard_is_one_request(path: Path) -> None:
    config = load_config(path).config
    section = config.rollout
    rows = section.prompts_per_unit * section.samples_per_prompt
    values = config.score.k * rows * section.max_new_tokens
    assert values < 2**31
    assert 6 * values + 16 * rows * section.max_new_tokens < ONE_PUT_BYTES


@each
def test_a_hub_id_has_a_commit_hash_marked_to_be_replaced(path: Path) -> None:
    config, text = load_config(path).config, path.read_text(encoding="utf-8")
    hashes = 0
    sections: list[StudentSection | TeacherSection] = [config.student, *config.teachers.values()]
    for section in sections:
        is_hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", section.model) is not None
        assert is_hub_id == (section.revision is not None)
        if section.revision is not None:
            assert re.fullmatch(r"[0-9a-f]{40}", section.revision)
            hashes += 1
    assert len(re.findall(r"# REPLACE.*commit hash.*\n(?:#.*\n)*revision = ", text)) == hashes


@each
def test_named_local_prompt_files_are_there(path: Path) -> None:
    config = load_config(path).config
    for name in (config.prompts.train, config.prompts.eval):
        if name is not None and name.startswith("prompts/"):
            assert (FOLDER / name).is_file()


@pytest.mark.parametrize("path", PROMPT_FILES, ids=lambda p: p.name)
def test_every_sample_prompt_is_well_formed(path: Path) -> None:
    file = find_prompt_file(str(path), key="prompts.train", config=CONFIG)
    assert file is not None
    (chunk,) = record_chunks(file)
    records = [parse_record(value, teachers=["main"]) for _, value in chunk]
    assert len(records) >= 6
    assert all(isinstance(record, PromptRecord) for record in records)


@each
def test_sample_prompts_are_tokenised_and_pinned(path: Path) -> None:
    placed = load_config(path)
    config = placed.config
    if not config.prompts.train.startswith("prompts/"):
        pytest.skip("its prompts are elsewhere")
    storage, manifest = pin(placed)
    table = read_prompts(storage, manifest)
    lines = (FOLDER / config.prompts.train).read_text(encoding="utf-8").splitlines()
    assert table.num_rows == len(lines)
    assert manifest.skipped == {}
    chats = [json.loads(line).get("messages") for line in lines]
    for text, chat in zip(table.column("text").to_pylist(), chats, strict=True):
        if chat is not None:
            assert text.startswith("<|im_start|>")
            assert text.endswith("<|im_start|>assistant\n<think></think>")


def test_held_out_prompts_are_not_trained_on() -> None:
    texts = [
        {json.loads(line)["prompt"] for line in (FOLDER / "prompts" / name).open(encoding="utf-8")}
        for name in ("text.jsonl", "held-out.jsonl")
    ]
    assert texts[0].isdisjoint(texts[1])


def test_the_reward_of_ones_own_is_found_and_grades() -> None:
    placed = load_config(FOLDER / "one-gpu.toml")
    config = placed.config
    assert config.eval is not None
    assert config.eval.reward == "rewards.py:final_number"
    responses = [
        (" 85 - 29 = 56.\n\nQuestion: 3?", "56"),
        (r"So \boxed{1,250} it is, not 7", "1250"),
        ("It is 57.", "56"),
        ("I do not know.", "56"),
        ("56", None),
    ]
    grader = find_grader(config.eval, placed.place)
    with open_grader(grader, timeout_s=config.eval.grader_timeout_s) as grade:
        found = grade([Response("", text, reference, None) for text, reference in responses])
    assert found == [1.0, 1.0, 0.0, 0.0, 0.0]


@each
def test_an_eval_can_find_its_reward(path: Path) -> None:
    placed = load_config(path)
    if placed.config.eval is not None:
        assert find_grader(placed.config.eval, placed.place).name == placed.config.eval.reward
