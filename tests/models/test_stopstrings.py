"""Stop strings against the whole text decoded after each token, on all kinds of tokenizers."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engines.engine import Sampling
from pipeline.models.stopstrings import StopStrings, check_prompts
from schemas.columns import Ids
from schemas.errors import ConfigError
from tests.support.runs import Cli
from tests.support.stopgolden import KINDS, batch_ends, cases, prompt_of, slow_end, tokenizer_of
from tests.support.tiny import chat_tokenizer, write_run


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60)
def test_a_response_ends_where_its_whole_text_first_has_a_stop_string(
    kind: str, data: st.DataObject
) -> None:
    responses, strings = data.draw(cases(kind, whole=kind == "bytes beside"))
    tokenizer, prompt = tokenizer_of(kind), prompt_of(kind)
    stops = StopStrings(tokenizer, strings)
    expected = [slow_end(tokenizer, prompt.tolist(), ids.tolist(), strings) for ids in responses]
    assert [stops.end(prompt, ids) for ids in responses] == expected
    assert batch_ends(stops, prompt, responses) == expected


# --- by example ---


def ids_of(text: str) -> Ids:
    return np.array(chat_tokenizer()(text)["input_ids"], np.int32)


def test_a_string_that_began_in_the_prompt_does_not_count() -> None:
    stops = StopStrings(chat_tokenizer(), ["is the"])
    assert stops.end(ids_of("what is"), ids_of(" the sum")) is None
    assert stops.end(ids_of("what is the"), ids_of(" sum is the end")) is not None


def test_a_token_may_go_on_after_the_string_that_it_completes() -> None:
    response = ids_of("what is the sum of these")
    assert chat_tokenizer().decode(response[-1:]) == " these", "a weak test"
    assert StopStrings(chat_tokenizer(), ["f the"]).end(ids_of("a"), response) == len(response)


def test_a_special_token_says_its_name() -> None:
    stops = StopStrings(chat_tokenizer(), ["<eos>"])
    assert stops.end(ids_of("a"), np.array([10, 2, 11], np.int32)) == 2


def test_a_character_counts_when_it_is_whole() -> None:
    response = ids_of("né")
    assert len(response) == 3
    assert StopStrings(chat_tokenizer(), ["é"]).end(ids_of("a"), response) == 3
    tokenizer, prompt = tokenizer_of("split bytes"), prompt_of("split bytes")
    response = np.array(tokenizer.convert_tokens_to_ids(["b", "aÃ", "b", "b"]), np.int32)
    stops = StopStrings(tokenizer, ["a"])
    assert stops.end(prompt, response) == 3  # the second token may go on as "aé"
    assert batch_ends(stops, prompt, [response]) == [3]


def test_ids_that_the_tokenizer_does_not_know_say_nothing() -> None:
    stops, unknown = StopStrings(chat_tokenizer(), ["ab"]), 5000
    a, b = ids_of("a")[0], ids_of("b")[0]
    response = np.array([a, unknown, b, unknown], np.int32)
    assert stops.end(ids_of("a"), response) == 3
    assert batch_ends(stops, ids_of("a"), [response]) == [3]


def test_few_tokens_are_looked_at() -> None:
    may_end = StopStrings(chat_tokenizer(), ["\n\nq"]).may_end_V
    letters = [i for i in range(300) if may_end[i] and "q" in chat_tokenizer().decode([i])]
    rest = [i for i in range(300) if may_end[i] and i not in letters]
    assert letters and all("\ufffd" in chat_tokenizer().decode([i]) for i in rest)
    assert not may_end[-1] and len(may_end) == 301


# --- refusals ---


def test_a_prompt_that_ends_inside_a_character_is_refused() -> None:
    whole = ids_of("café")
    check_prompts(chat_tokenizer(), [whole, ids_of("a")])
    with pytest.raises(ConfigError, match="ends inside a character"):
        check_prompts(chat_tokenizer(), [ids_of("a"), whole[:-1]])


def test_a_tokenizer_that_cannot_be_read_token_by_token_is_refused() -> None:
    slow = SimpleNamespace(name_or_path="folder")
    with pytest.raises(ConfigError, match=r"folder is a SimpleNamespace.*stop_token_ids"):
        StopStrings(slow, ["a"])


# --- runs ---


def test_a_run_ends_its_responses_at_strings_and_its_records_say_so(
    tmp_path: Path, cli: Cli
) -> None:
    strings = ["1", "#", "3<eos>"]
    changes = {"rollout.stop_strings": strings, "eval.teachers": False, "run.rounds": 1}
    config = write_run(tmp_path, changes=changes)
    cli.ok("rollout", "-c", config, "--round", "0")
    cli.ok("eval", "-c", config, "--baseline")
    folder = tmp_path / "store/runs/tiny"
    plan = json.loads((folder / "rounds/0000/rollout/plan.json").read_text())
    assert plan["sampling"]["stop_strings"] == strings
    assert json.loads((folder / "run.json").read_text())["identity"]["rollout.stop_strings"]
    for stage in ("rounds/0000/rollout", "baseline/student"):
        units = json.loads((folder / stage / "manifest.json").read_text())["units"]
        tables = [pq.read_table(tmp_path / "store" / unit["shard"]["key"]) for unit in units]
        texts = [text for table in tables for text in table["text"].to_pylist()]
        assert any(text.endswith(("1", "#")) for text in texts)
        assert not any("1" in text[:-1] or "#" in text[:-1] for text in texts)


def test_records_hold_stop_strings_only_where_there_are_some() -> None:
    sampling = Sampling(1.0, top_p=0.9, top_k=3, max_new_tokens=4, stop_token_ids=(1, 2))
    words = {
        **{"temperature": 1.0, "top_p": 0.9, "top_k": 3, "max_new_tokens": 4},
        **{"stop_token_ids": (1, 2), "vocab_size": None, "candidates": 0},
    }
    assert sampling.words() == words
    named = replace(sampling, stop_strings=("a", "b")).words()
    assert named == {**words, "stop_strings": ("a", "b")}
