"""Hugging Face models on disk or on the hub: where they are, what identifies them, loading them.

Promises: a folder is identified by the content of its weights, a hub id by its immutable revision,
an adapter by its own content and its base; it is loaded merged into that. A folder is looked at
before. Torch and transformers are imported inside functions only.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.models.adapters import adapter_identity, adapter_settings, is_adapter
from pipeline.models.border import explained
from pipeline.models.look.folder import adapter_folder_faults, in_words, model_faults
from pipeline.models.look.jsonfiles import Unusable, read_object
from pipeline.models.naming import require_folder, require_hub, resolved_place
from pipeline.store.disk.files import file_sha256
from pipeline.store.place import ConfigPlace
from schemas.config.models import StudentSection, TeacherSection
from schemas.errors import ConfigError, DataError, OpdError
from schemas.fingerprint import fingerprint

MOST_SETTINGS = 32

_SETTINGS: dict[bytes, Any] = {}
"""Text of a config.json → what transformers makes of it: a round asks a dozen times."""

STUDENT = "student"
"""Key of the section of the model that learns."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model is: a folder that exists, or a hub id with its revision."""

    location: str
    revision: str | None
    trust_remote_code: bool
    base: "ModelSource | None" = None
    """The model that the folder's adapter belongs to; None where the folder is a whole model."""
    stored: bool = False
    """Whether it is a checkpoint of a root, whose bytes are to blame where they are wrong."""

    @property
    def whole(self) -> "ModelSource":
        """Return the model with all weights: an adapter's base, or the model itself."""
        return self.base or self

    @property
    def is_folder(self) -> bool:
        """Return whether the model is a local folder."""
        return self.revision is None

    @property
    def blame(self) -> type[OpdError]:
        """Return the error where the model cannot be used."""
        return DataError if self.stored else ConfigError

    @property
    def words(self) -> str:
        """Return what messages call it."""
        where = "folder" if self.is_folder else f"hub id (revision {self.revision})"
        return f"the model {self.location} ({where})"


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
    resolved = resolved_place(place, section.model, f"{key}.model")
    folder = Path(resolved)
    if (section.base or section.base_revision) and not is_adapter(folder):
        raise ConfigError(
            f"{key}.base and {key}.base_revision belong to an adapter, but {key}.model = "
            f"{section.model!r} is no folder with an adapter_config.json; remove them"
        )
    if section.revision is not None and folder.is_dir():
        raise ConfigError(
            f"{key}.revision belongs to a hub id, but {key}.model = {section.model!r} is the "
            f"folder {folder}; remove the revision"
        )
    if section.revision is not None:
        require_hub(key, "model", section.model, section.revision)
        source = ModelSource(section.model, section.revision, section.trust_remote_code)
    elif is_adapter(folder):
        base = _find_base(place, section, key, folder)
        source = ModelSource(str(folder), None, section.trust_remote_code, base)
    else:
        require_folder(section.model, resolved, key)
        source = ModelSource(str(folder), None, section.trust_remote_code)
    require_sound(source, f"{key}.model = {section.model!r}", learns=key == STUDENT)
    return source


def require_sound(
    source: ModelSource, label: str, *, weights: bool = True, learns: bool = False
) -> None:
    """Look at a model's files, as far as they are on this machine, before anything loads them.

    Args:
        source: the model.
        label: what messages call it.
        weights: whether the weights lie there, too.
        learns: whether it is the student.

    Raises:
        ConfigError: they cannot be what is expected; the message names every fault.
        DataError: so it is with a checkpoint of a root.
    """
    whole = local_folder(source.whole)
    if source.base is not None:
        folder = Path(source.location)
        faults = adapter_folder_faults(folder, whole, weights=weights, learns=learns)
        if faults:
            raise source.blame(f"{label} cannot be used: {in_words(folder, faults)}")
    if whole is not None:
        weights = weights and source.whole.is_folder  # the hub may still have to send them
        faults = model_faults(whole, weights=weights, learns=learns)
        if faults:
            raise source.blame(f"{label} cannot be used: {in_words(whole, faults)}")


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
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"{folder} has no weights (*.safetensors): it is not a whole model")
    try:
        settings = read_object(folder / "config.json")
        with ThreadPoolExecutor(max_workers=8) as pool:
            found = zip([w.name for w in weights], pool.map(file_sha256, weights), strict=True)
            digests = dict(found)
    except (Unusable, OSError) as error:
        raise source.blame(f"{source.words} cannot be identified: {error}") from error
    for volatile in ("_name_or_path", "transformers_version"):
        settings.pop(volatile, None)
    return {"weights": fingerprint(sorted(digests.values())), "config": fingerprint(settings)}


def load_settings(source: ModelSource) -> Any:
    """Return the transformers configuration of a model (its text part where it has several).

    Raises:
        ConfigError: it cannot be read.
    """
    settings = whole_settings(source).get_text_config()
    if type(getattr(settings, "vocab_size", None)) is not int:
        raise source.blame(
            f"cannot load {source.words}: its config.json gives the text model no vocab_size; "
            "text_config belongs to models of several parts alone"
        )
    return settings


def whole_settings(source: ModelSource) -> Any:
    """Return the transformers configuration of a model, with all its parts.

    Raises:
        ConfigError: it cannot be read.
    """
    from transformers import AutoConfig

    source = source.whole
    written = _written_settings(source)
    found = None if written is None else _SETTINGS.get(written)
    if found is None:
        with explained(f"cannot load {source.words}", blame=source.blame, advice=advice_of(source)):
            found = AutoConfig.from_pretrained(
                source.location,
                revision=source.revision,
                trust_remote_code=source.trust_remote_code,
            )
        if written is not None and len(_SETTINGS) < MOST_SETTINGS:
            _SETTINGS[written] = found
    copied = deepcopy(found)
    copied.name_or_path = source.location
    return copied


def _written_settings(source: ModelSource) -> bytes | None:
    """Return the text that all settings of a folder come from; None where other files add some."""
    if not source.is_folder or source.trust_remote_code:
        return None
    try:
        text = (Path(source.location) / "config.json").read_bytes()
    except OSError:
        return None  # transformers' own words are what is told
    return None if b'"configuration_files"' in text else text


def advice_of(source: ModelSource) -> str:
    """Return what to do where a model cannot be loaded."""
    if source.is_folder:
        return "Copy the model's files again, or correct them"
    return (
        "Where the hub was not reached and nothing is in the local cache: correct the id, connect "
        "(HF_HUB_OFFLINE unset, HF_TOKEN for private models), or download the model and give its "
        "folder"
    )


def local_folder(source: ModelSource) -> Path | None:
    """Return the folder with a model's files; None for a hub id that was never downloaded."""
    if source.is_folder:
        return Path(source.location)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.location, "config.json", revision=source.revision)
    return Path(found).parent if isinstance(found, str) else None


def _find_base(
    place: ConfigPlace, section: StudentSection | TeacherSection, key: str, folder: Path
) -> ModelSource:
    """Return the base of an adapter: that of the configuration, or the one the adapter names."""
    settings = adapter_settings(folder)
    named, revision = section.base, section.base_revision
    if named is None:
        named = str(settings.get("base_model_name_or_path") or "")
        revision = revision or settings.get("revision")
    places = [Path(resolved_place(place, named, f"{key}.base")), folder / named] if named else []
    found = next((one for one in places if one.is_dir()), None)
    if found is None and named and revision is not None:
        require_hub(key, "base", named, revision)
        return ModelSource(named, revision, section.trust_remote_code)
    if found is None:
        raise ConfigError(
            f"{key}.model = {section.model!r} is an adapter of {named or 'no base'!r}, and there "
            f"is no folder {' or '.join(map(str, places)) or 'that it names'}. Set {key}.base to "
            f"the base's folder, or to its hub id with its commit hash as {key}.base_revision"
        )
    if is_adapter(found) or not os.path.lexists(found / "config.json"):
        raise ConfigError(
            f"{key}.model = {section.model!r} is an adapter of {found}, which is not a whole "
            "Hugging Face model folder: a base has a config.json and is no adapter itself"
        )
    return ModelSource(str(found), None, section.trust_remote_code)
