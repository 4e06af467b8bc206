"""Hugging Face models on disk or on the hub: where they are, what identifies them, loading them.

Promises: a folder is identified by the content of its weights, a hub id by its immutable revision,
an adapter by its own content and its base; it is loaded merged into that. Torch and transformers
are imported inside functions only.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.adapters import adapter_identity, adapter_settings, is_adapter
from pipeline.store.place import ConfigPlace
from pipeline.store.storage import file_sha256
from schemas.config.models import StudentSection, TeacherSection
from schemas.errors import ConfigError
from schemas.fingerprint import fingerprint

if TYPE_CHECKING:
    pass


WEIGHT_FILES = ("*.safetensors", "*.bin")
"""Patterns of weight files; the first that matches is the model's format."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model is: a folder that exists, or a hub id with its revision."""

    location: str
    revision: str | None
    trust_remote_code: bool
    base: "ModelSource | None" = None
    """The model that the folder's adapter belongs to; None where the folder is a whole model."""

    @property
    def whole(self) -> "ModelSource":
        """Return the model with all weights: an adapter's base, or the model itself."""
        return self.base or self

    @property
    def is_folder(self) -> bool:
        """Return whether the model is a local folder."""
        return self.revision is None


def find_model(
    place: ConfigPlace, section: StudentSection | TeacherSection, key: str
) -> ModelSource:
    """Return where a model of the configuration is.

    Args:
        place: the configuration's, which relative paths start from.
        section: the model's section.
        key: what messages call the section, such as `teachers.main`.

    Raises:
        ConfigError: no such folder, no config.json in it, a hub id without a full revision, or an
            adapter whose base is not there.
    """
    resolved = place.resolve(section.model)
    folder = Path(resolved)
    if (section.base or section.base_revision) and not is_adapter(folder):
        raise ConfigError(
            f"{key}.base and {key}.base_revision belong to an adapter, but {key}.model = "
            f"{section.model!r} is no folder with an adapter_config.json; remove them"
        )
    if section.revision is not None:
        if folder.is_dir():
            raise ConfigError(
                f"{key}.revision belongs to a hub id, but {key}.model = {section.model!r} is the "
                f"folder {folder}; remove the revision"
            )
        _require_commit(f"{key}.revision", section.revision)
        return ModelSource(section.model, section.revision, section.trust_remote_code)
    if "://" in resolved:
        raise ConfigError(
            f"{key}.model = {section.model!r} is {resolved}, and models are not read from a store: "
            "give the full path of a folder, or a hub id with its revision"
        )
    if not folder.is_dir():
        raise ConfigError(
            f"{key}.model = {section.model!r}: there is no folder {folder}. Correct the path, or, "
            f"if it is a hub id, add {key}.revision with the model's commit hash"
        )
    if is_adapter(folder):
        base = _find_base(place, section, key, folder)
        return ModelSource(str(folder), None, section.trust_remote_code, base)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{key}.model = {section.model!r}: {folder} has no config.json, so it is not a Hugging "
            "Face model folder"
        )
    return ModelSource(str(folder), None, section.trust_remote_code)


def model_identity(source: ModelSource) -> dict[str, Any]:
    """Return what identifies a model's outputs: digest of its weights, or hub id and revision.

    Raises:
        ConfigError: the folder has no weights, or its config.json is damaged.
    """
    if source.base is not None:
        adapter = adapter_identity(Path(source.location))
        return {"adapter": adapter, "base": model_identity(source.base)}
    if not source.is_folder:
        return {"hub": source.location, "revision": source.revision}
    folder = Path(source.location)
    weights = next((f for p in WEIGHT_FILES if (f := sorted(folder.glob(p)))), [])
    if not weights:
        raise ConfigError(f"{folder} has no weights (*.safetensors): it is not a whole model")
    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = dict(zip([w.name for w in weights], pool.map(file_sha256, weights), strict=True))
    try:
        settings: dict[str, Any] = dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(source, error) from error
    for volatile in ("_name_or_path", "transformers_version"):
        settings.pop(volatile, None)
    return {"weights": fingerprint(sorted(digests.values())), "config": fingerprint(settings)}


def load_settings(source: ModelSource) -> Any:
    """Return the transformers configuration of a model (its text part where it has several).

    Raises:
        ConfigError: it cannot be read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    source = source.whole
    try:
        settings = AutoConfig.from_pretrained(
            source.location,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise unreadable(source, error) from error
    return settings.get_text_config()


def generation_settings(source: ModelSource) -> Any:
    """Return a model folder's transformers generation settings, empty where it has none."""
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    folder = Path(source.whole.location)
    has_file = (folder / "generation_config.json").is_file()
    return make.from_pretrained(folder) if has_file else make()


def _require_commit(name: str, revision: str) -> None:
    if len(revision) < 40:
        raise ConfigError(
            f"{name} = {revision!r} may move; give the full commit hash of the model's page, 40 "
            "characters"
        )


def _find_base(
    place: ConfigPlace, section: StudentSection | TeacherSection, key: str, folder: Path
) -> ModelSource:
    """Return the base of an adapter: that of the configuration, or the one the adapter names."""
    settings = adapter_settings(folder)
    named, revision = section.base, section.base_revision
    if named is None:
        named = str(settings.get("base_model_name_or_path") or "")
        revision = revision or settings.get("revision")
    places = [Path(place.resolve(named)), folder / named] if named else []
    found = next((one for one in places if one.is_dir()), None)
    if found is None and named and revision is not None:
        _require_commit(f"{key}.base_revision", revision)
        return ModelSource(named, revision, section.trust_remote_code)
    if found is None:
        raise ConfigError(
            f"{key}.model = {section.model!r} is an adapter of {named or 'no base'!r}, and there "
            f"is no folder {' or '.join(map(str, places)) or 'that it names'}. Set {key}.base to "
            f"the base's folder, or to its hub id with its commit hash as {key}.base_revision"
        )
    if is_adapter(found) or not (found / "config.json").is_file():
        raise ConfigError(
            f"{key}.model = {section.model!r} is an adapter of {found}, which is not a whole "
            "Hugging Face model folder: a base has a config.json and is no adapter itself"
        )
    return ModelSource(str(found), None, section.trust_remote_code)


def unreadable(source: ModelSource, error: Exception) -> ConfigError:
    """Return the error that says that a model's files cannot be read, and why."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    where = "folder" if source.is_folder else f"hub id (revision {source.revision})"
    return ConfigError(f"cannot load the model {source.location} ({where}): {first}")
