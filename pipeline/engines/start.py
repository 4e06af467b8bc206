"""What an engine starts with: a model, what it is for, and how much it will be asked."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import tokenizer_place
from schemas.config.engines import EngineSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Use = Literal["sample", "score"]

Note = Callable[[str], None]
"""Is told, in words, what takes long and what is done otherwise than usual."""


class Ledger(Protocol):
    """What is remembered, across processes, of engines that were held against transformers."""

    def has(self, seen: Mapping[str, Any]) -> bool:
        """Return whether an engine of which the same is seen was held."""

    def keep(self, seen: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        """Remember that one was held, and how far it was away."""


@dataclass(frozen=True)
class Start:
    """What every engine starts with."""

    source: ModelSource
    section: EngineSection
    """The settings of the stage."""
    _: KW_ONLY
    dtype: str
    """Number format of weights and activations."""
    use: Use
    max_tokens: int | None = None
    """Longest prompt and response together that is asked; None for all that the model holds."""
    reads_text: bool = False
    """Whether responses may end at stop strings; vLLM needs the tokenizer then."""
    probed: bool = False
    """Whether its scores are compared with what the very checkpoint says, by its probe."""
    identity: Mapping[str, Any] | None = None
    """What identifies the model, where that is known already."""
    ledger: Ledger | None = None
    """Where it is remembered that the engine was held; None for this process alone."""
    model: "PreTrainedModel | None" = None
    """The model itself where this process has loaded it; `hf` takes it instead of its files."""

    @property
    def fixed(self) -> tuple[object, ...]:
        """Return what an engine of vLLM cannot change once it runs: all but the weights."""
        section, trust = self.section, self.source.trust_remote_code
        tokens = (section.batch_tokens, section.logit_chunk_mb, self.max_tokens)
        return (section.engine, section.vllm, *tokens, self.dtype, self.use, self.reads_text, trust)

    @property
    def tokenizer(self) -> ModelSource | None:
        """Return where the tokenizer is that the engine needs; None where it reads no text."""
        return tokenizer_place(self.source) if self.reads_text else None
