"""What a checkpoint takes from its source as it is: bytes, names, templates, code, settings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.checkpoints.carried import carry_model_files, carry_tokenizer
from pipeline.checkpoints.faithful import require_same
from pipeline.checkpoints.folder import export_folder
from pipeline.checkpoints.opening import opened, opened_model
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import load_tokenizer, stored_tokenizer
from pipeline.runs.run import Run
from schemas.errors import ConfigError
from tests.support import tiny
from tests.support.checkpoints import logits, model_of, publish

TEMPLATES = "additional_chat_templates"
CARRIED = {
    "generation_config.json": '{"do_sample": false, "temperature": 0.9, "own_key": [1], '
    '"compile_config": {"backend": "inductor"}, "eos_token_id": 2}',
    "chat_template.jinja": "{{ messages }} as a file",
    f"{TEMPLATES}/tool_use.jinja": "TOOLS {{ messages }}",
    "preprocessor_config.json": '{"image_processor_type": "Unknown"}',
    "tokenization_own.py": "OWN = 1\n",
    "vocab.txt": "a\nb\n",
    "own-vocabulary.tiktoken": "YQ== 0\n",
    "LICENSE.txt": "as it came",
}
LEFT = {
    "README.md": "words",
    "training_args.bin": "a pickle",
    "pytorch_model.bin": "a pickle",
    "trainer_state.json": "{}",
    "manifest.json": "{}",
    ".hidden.json": "{}",
    "a copy of (1).json": "{}",
    "pytorch_model.bin.index.json": "{}",
    "opd-probe-0.json": "{}",
}


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), None, False)


def changed(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    words = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in words.items() if value is not None}))


def export(made: Path, folder: Path) -> Path:
    model: Any = model_of(made)
    folder.mkdir()
    export_folder(model, model.state_dict(), source=source_of(made), folder=folder)
    require_same(model, source_of(folder), source_of(made), allowed=0.0)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a model with all that a folder may hold besides."""
    folder = tiny.make_model(tmp_path / "model")
    for name, text in (CARRIED | LEFT).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_all_but_the_weights_is_carried_byte_for_byte(made: Path, tmp_path: Path, run: Run) -> None:
    first = export(made, tmp_path / "first")
    names = {*CARRIED, "tokenizer.json", "tokenizer_config.json"}
    for name in names:
        assert (first / name).read_bytes() == (made / name).read_bytes(), name
    assert not any((first / name).exists() for name in LEFT)
    manifest = publish(run, first)
    assert names < manifest.files.keys()
    with opened_model(run, manifest) as source:
        again = export(Path(source.location), tmp_path / "again")
    files = {p.relative_to(first) for p in first.rglob("*")}
    assert files == {p.relative_to(again) for p in again.rglob("*")}
    for path in files:
        assert (again / path).is_dir() or (again / path).read_bytes() == (first / path).read_bytes()


def test_a_file_that_was_put_among_the_templates_is_not_read(
    made: Path, tmp_path: Path, run: Run
) -> None:
    manifest = publish(run, export(made, tmp_path / "first"))
    if run.storage.local_root is None:
        return
    place = run.storage.local_root / run.checkpoint_folder(manifest.index) / TEMPLATES
    (place / "planted.jinja").write_text("planted")
    with opened(run, manifest) as folder:
        assert [p.name for p in (folder / TEMPLATES).iterdir()] == ["tool_use.jinja"]
    manifest_key = f"{run.checkpoint_folder(manifest.index)}/{TEMPLATES}/tool_use.jinja"
    assert manifest.files[f"{TEMPLATES}/tool_use.jinja"].key == manifest_key


def test_a_template_whose_name_no_store_holds_is_refused(made: Path, tmp_path: Path) -> None:
    (made / TEMPLATES / "tool use.jinja").write_text("x")
    with pytest.raises(ConfigError, match="rename it"):
        carry_model_files(source_of(made), tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dtype": "float32", "own": 1}, {}),
        ({"dtype": None, "torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}),
        ({"dtype": None}, {"dtype": "float32"}),
        ({"architectures": None}, {"architectures": ["Qwen3ForCausalLM"]}),
        ({"architectures": ["Qwen3Model"]}, {"architectures": ["Qwen3ForCausalLM"]}),
        ({"temperature": 0.3, "top_k": 7, "transformers_version": "4.1.0"}, {}),
        ({"attention_dropout": 0.25, "_name_or_path": "a/place"}, {}),
    ],
    ids=str,
)
def test_of_the_settings_only_what_must_differ_is_changed(
    tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    made = tiny.make_model(tmp_path / "model")
    changed(made / "config.json", **given)
    before = json.loads((made / "config.json").read_text())
    written = export(made, tmp_path / "first") / "config.json"
    assert json.loads(written.read_text()) == before | expected
    if not expected:
        assert written.read_bytes() == (made / "config.json").read_bytes()


def test_an_adapter_s_folder_has_the_tokenizer_and_what_says_its_kind(
    made: Path, tmp_path: Path
) -> None:
    changed(made / "tokenizer_config.json", tokenizer_class=None)
    carry_tokenizer(source_of(made), tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
    load_tokenizer(str(tmp_path), revision=None, trust_remote_code=False)


CODE = """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def test_a_tokenizer_with_code_of_its_own_is_read_where_that_is_trusted(
    tmp_path: Path, run: Run
) -> None:
    made = tiny.make_model(tmp_path / "model")
    (made / "tokenization_own.py").write_text(CODE)
    own = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    changed(made / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    (tmp_path / "first").mkdir()
    carry_model_files(source_of(made), tmp_path / "first")
    trusted = ModelSource(str(tmp_path / "first"), None, True)
    assert type(stored_tokenizer(trusted)).__name__ == "OwnTokenizer"
    with pytest.raises(ConfigError, match="trust_remote_code"):
        stored_tokenizer(source_of(tmp_path / "first"))


@torch.no_grad()
def _with_other_head(model: Any) -> None:
    head: Tensor = model.get_input_embeddings().weight
    head[0, 0] += 0.5


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder, model: _with_other_head(model), "nats away"),
        (lambda folder, _: (folder / "chat_template.jinja").write_text("x"), "chat template"),
        (lambda folder, _: (folder / "config.json").write_text("{}"), "cannot"),
    ],
    ids=["weights", "template", "settings"],
)
def test_what_was_written_wrongly_is_not_committed(
    tmp_path: Path, damage: Callable[[Path, Any], None], words: str
) -> None:
    made = tiny.make_model(tmp_path / "model")
    folder, model = export(made, tmp_path / "first"), model_of(made)
    damage(folder, model)
    with pytest.raises(ConfigError, match=words):
        require_same(model, source_of(folder), source_of(made), allowed=1e-3)


def test_tensors_of_a_mixture_of_experts_keep_the_names_of_their_files(tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file, save_file

    made = tiny.make_model(tmp_path / "text")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    kind: Any = transformers.MixtralForCausalLM
    config = kind.config_class(vocab_size=model_of(made).config.vocab_size, **sizes, **heads)
    kind(config).save_pretrained(tmp_path / "moe")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "moe" / name).write_bytes((made / name).read_bytes())
    (path,) = (tmp_path / "moe").glob("*.safetensors")
    given = load_file(path)
    assert "model.layers.0.block_sparse_moe.experts.1.w1.weight" in given
    save_file(given, path, metadata={"format": "pt"})
    (written,) = export(tmp_path / "moe", tmp_path / "first").glob("*.safetensors")
    found = load_file(written)
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    assert torch.equal(logits(model_of(tmp_path / "first")), logits(model_of(tmp_path / "moe")))
