"""What was written is loaded again before it is committed, and must be what was in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.adapters import adapter_settings, settings_digest
from pipeline.models.loading import load_model
from pipeline.models.lora import read_adapter
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import model_tokenizer
from pipeline.models.tokenizeridentity import template_digest, tokenizer_digest
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

PROBE_TOKENS = 8

ADVICE = (
    "nothing was committed. This release of transformers does not write the architecture as it "
    "reads it: take another release, or another student"
)


def require_same(model: Any, made: ModelSource, source: ModelSource, *, allowed: float) -> None:
    """Make sure that a folder that was written is the model that it was written from.

    Args:
        model: in memory, on the CPU.
        made: the folder.
        source: what the model was loaded from.
        allowed: largest difference of a log-probability in nats.

    Raises:
        ConfigError: it cannot be loaded, its tokenizer is another, or it gives other numbers.
    """
    before, after = model_tokenizer(source), model_tokenizer(made)
    for what, digest in (("tokenizer", tokenizer_digest), ("chat template", template_digest)):
        if digest(before) != digest(after):
            raise ConfigError(
                f"the {what} of {source.words} cannot be stored: copied to another folder it is "
                "another one, so it depends on where it lies. Save it with save_pretrained into "
                "the model's folder"
            )
    expected = _logprobs(model)
    found = _logprobs(load_model(made, dtype=str(model.dtype).split(".")[1], device="cpu"))
    difference = float((found - expected).abs().max())
    if not difference <= allowed:
        raise ConfigError(
            f"{source.words} cannot be stored: what was written gives log-probabilities "
            f"{difference:.3g} nats away, at most {allowed:.3g} is expected; {ADVICE}"
        )


def require_same_adapter(
    folder: Path, settings: Mapping[str, Any], weights: "Mapping[str, Tensor]"
) -> None:
    """Make sure that the folder of an adapter holds what it was written from.

    Raises:
        ConfigError: it does not.
    """
    found = read_adapter(folder)
    same = found.keys() == weights.keys() and all(
        bool((found[name] == tensor.float()).all()) for name, tensor in weights.items()
    )
    if not same or settings_digest(adapter_settings(folder)) != settings_digest(dict(settings)):
        raise ConfigError(f"the adapter in {folder} is not what was written; {ADVICE}")


def _logprobs(model: Any) -> "Tensor":
    """Return float32 log-probabilities of the first ids."""
    import torch

    size = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(min(PROBE_TOKENS, size))[None]
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        found: Tensor = logits.float().log_softmax(-1)
    return found
