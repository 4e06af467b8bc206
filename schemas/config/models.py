"""`[student]` and `[teachers.NAME]`: the models of a run."""

from typing import Literal

from schemas.config.section import Dtype, ModelPlace, Name, Section, Text, later


class StudentSection(Section):
    """`[student]`: the model that learns."""

    model: ModelPlace
    """Folder of a Hugging Face model or of a PEFT adapter, or a hub id of a model."""
    revision: Text | None = None
    """Commit hash of a hub id: required for a hub id, refused for a folder."""
    base: ModelPlace | None = later(None)
    """Folder or hub id of the model that an adapter belongs to; default: the one that its
    adapter_config.json names."""
    base_revision: Text | None = later(None)
    """Commit hash of a `base` that is a hub id."""
    dtype: Dtype = "float32"
    """Number format of the student while it samples."""
    sft_teacher: Text | None = None
    """Teacher whose outputs the student was fine-tuned on (SFT) before; any other is refused."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only for models that you trust."""


class TeacherSection(Section):
    """`[teachers.NAME]`: a model that scores."""

    model: ModelPlace
    """Folder of a Hugging Face model or of a PEFT adapter, or a hub id of a model."""
    revision: Text | None = None
    """Commit hash of a hub id: required for a hub id, refused for a folder."""
    base: ModelPlace | None = later(None)
    """Folder or hub id of the model that an adapter belongs to; default: the one that its
    adapter_config.json names."""
    base_revision: Text | None = later(None)
    """Commit hash of a `base` that is a hub id."""
    scores: Name | None = None
    """Name or key of a scorer of this root whose stored scores are used, such as one that
    `opd cache reprocess` made. The teacher is then not loaded for scoring."""
    dtype: Dtype = "float32"
    """Number format of the teacher while it scores; part of the identity of its scores."""
    tokenizer_check: Literal["content", "vocabulary"] = "content"
    """`content`: everything must equal the student's tokenizer. `vocabulary`: ids must mean the
    same text, special-token roles (end of sequence, padding) may differ."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only for models that you trust."""
