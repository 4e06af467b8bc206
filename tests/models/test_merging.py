"""A merged adapter gives the numbers of PEFT unmerged, whatever it changes, or it is refused."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.checkpoints.folder import export_folder
from pipeline.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from pipeline.models.loading import load_model
from pipeline.models.lora import attach_adapter, new_adapter, write_adapter
from pipeline.models.source import ModelSource, find_model
from pipeline.quickstart.addition import make_tokenizer
from pipeline.store.place import ConfigPlace
from schemas.config.models import TeacherSection
from schemas.config.train import LoraSection
from schemas.errors import ConfigError
from tests.support.modelfolders import source_of
from tests.support.tiny import make_adapter, make_model

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{words}:UserWarning")  # of PEFT, about what is held here
    for words in ("Model has `tie", "Model with `tie", "Setting `save_emb", "You have requested")
]

IDS = torch.tensor([[3, 9, 4, 14, 7, 1]])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {t: make_model(folder / f"tied-{t}", layers=1, tied=t) for t in (True, False)}


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=IDS).logits.float(), -1)


def unmerged(base: Path, folder: Path) -> torch.Tensor:
    whole: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logprobs(peft.PeftModel.from_pretrained(whole, str(folder)).eval())


def adapter_source(folder: Path, base: Path) -> ModelSource:
    return ModelSource(str(folder), None, False, source_of(base))


ENDS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "dora": {"target_modules": ["lm_head"], "use_dora": True},
    "tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "rows": {"trainable_token_indices": [3, 7]},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", ENDS.values(), ids=ENDS)
def test_an_adapter_of_the_head_or_embedding_changes_that_end_alone(
    bases: dict[bool, Path], tmp_path: Path, settings: dict[str, Any], tied: bool
) -> None:
    folder = make_adapter(tmp_path / "adapter", bases[tied], **settings)
    expected = unmerged(bases[tied], folder)
    merged: Any = load_model(adapter_source(folder, bases[tied]), dtype="float32", device="cpu")
    torch.testing.assert_close(logprobs(merged), expected, atol=2e-4, rtol=1e-5)
    (tmp_path / "out").mkdir()
    base = source_of(bases[tied])
    export_folder(merged, merged.state_dict(), source=base, folder=tmp_path / "out")
    written = load_model(source_of(tmp_path / "out"), dtype="float32", device="cpu")
    torch.testing.assert_close(logprobs(written), expected, atol=2e-4, rtol=1e-5)
    shared = merged.lm_head.weight is merged.model.embed_tokens.weight
    settings_say = json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert settings_say == shared


def test_a_tie_that_an_adapter_leaves_alone_stays(bases: dict[bool, Path], tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", bases[True])
    merged: Any = load_model(adapter_source(folder, bases[True]), dtype="float32", device="cpu")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings


KINDS: dict[str, Any] = {
    "ia3": (peft.IA3Config, {"feedforward_modules": [], "init_ia3_weights": False}),
    "loha": (peft.LoHaConfig, {"init_weights": False}),
    "lokr": (peft.LoKrConfig, {"init_weights": False}),
    "oft": (peft.OFTConfig, {"oft_block_size": 4, "init_weights": False}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapters_are_merged_too(
    bases: dict[bool, Path], tmp_path: Path, kind: str
) -> None:
    make, settings = KINDS[kind]
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(bases[True], dtype=torch.float32)
    config = make(target_modules=["k_proj", "lm_head"], task_type="CAUSAL_LM", **settings)
    peft.get_peft_model(base, config).save_pretrained(tmp_path)
    merged = load_model(adapter_source(tmp_path, bases[True]), dtype="float32", device="cpu")
    expected = unmerged(bases[True], tmp_path)
    torch.testing.assert_close(logprobs(merged), expected, atol=1e-4, rtol=1e-5)


def test_tensors_of_an_adapter_that_are_not_read_are_named(
    bases: dict[bool, Path], tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "adapter", bases[True])
    path = folder / ADAPTER_CONFIG
    narrower = json.loads(path.read_text()) | {"target_modules": ["q_proj", "o_proj"]}
    path.write_text(json.dumps(narrower))
    with pytest.raises(ConfigError, match=r"2 of its tensors have no place.*down_proj"):
        load_model(adapter_source(folder, bases[True]), dtype="float32", device="cpu")


def test_what_peft_merges_into_something_else_is_refused(
    bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "adapter", bases[True])
    monkeypatch.setattr(peft.tuners.lora.Linear, "get_delta_weight", lambda *_: 0.0)
    with pytest.raises(ConfigError, match="nats away from those of PEFT unmerged"):
        load_model(adapter_source(folder, bases[True]), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'.*cannot be merged"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type is 'PREFIX_TUNING'"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
    ],
)
def test_a_kind_that_cannot_be_merged_is_refused_before_anything_is_loaded(
    bases: dict[bool, Path], tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    path = make_adapter(tmp_path / "adapter", bases[True]) / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    place = ConfigPlace(str(tmp_path))
    with pytest.raises(ConfigError, match=reason):
        find_model(place, TeacherSection(model=str(path.parent)), "teachers.main")


def test_an_adapter_of_two_models_at_once_is_refused(
    bases: dict[bool, Path], tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "adapter", bases[True])
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    more = {n.replace("layers.0", "layers.1"): t.clone() for n, t in tensors.items()}
    save_file(tensors | more, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"have no place in the model, such as .*layers\.1"):
        load_model(adapter_source(folder, bases[True]), dtype="float32", device="cpu")


# --- linear layers by another name ---


def gpt2(folder: Path) -> Any:
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    make: Any = transformers.GPT2LMHeadModel
    make(config).float().save_pretrained(folder)
    return load_model(source_of(folder), dtype="float32", device="cpu")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_an_adapter_beside_the_layers_of_gpt2_is_made_attached_and_merged(tmp_path: Path) -> None:
    lora = LoraSection(rank=2, alpha=4, target_modules="all-linear")
    settings, weights = new_adapter(gpt2(tmp_path / "base"), lora, seed=1, base={})
    assert settings["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    moved = {name: torch.randn_like(tensor) for name, tensor in weights.items()}
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", settings, moved)
    source = adapter_source(tmp_path / "adapter", tmp_path / "base")
    attached: Any = load_model(source.whole, dtype="float32", device="cpu")
    attach_adapter(attached, tmp_path / "adapter", dropout=0.0)
    merged = load_model(source, dtype="float32", device="cpu")
    torch.testing.assert_close(logprobs(merged), logprobs(attached.eval()), atol=1e-4, rtol=1e-5)


def test_what_peft_cannot_put_beside_a_layer_is_told(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
    }
    config = transformers.Mamba2Config(hidden_size=32, vocab_size=32, num_hidden_layers=1, **sizes)
    make: Any = transformers.Mamba2ForCausalLM
    lora = LoraSection(rank=2, alpha=4, target_modules="all-linear")
    with pytest.raises(ConfigError, match=r"train\.lora cannot put an adapter.*target_modules"):
        new_adapter(make(config), lora, seed=1, base={})
