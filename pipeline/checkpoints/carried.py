"""Files that a checkpoint takes from the model it comes from, byte for byte.

Owns which files of a folder are carried: tokenizer, templates, generation settings, code, processor
settings. Promises: their bytes are never written anew, so whatever a library would refuse to write,
rename or drop stays as it came; every name is one that a store can hold.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.models.look.settings import CONFIG, GENERATION
from pipeline.models.own.effective import generation_file
from pipeline.models.source import ModelSource, local_folder
from pipeline.models.tokenizer import tokenizer_place
from schemas.errors import ConfigError
from schemas.foreign import shown
from schemas.forms import TEMPLATES

ENDINGS = {
    *(".json", ".jinja", ".txt", ".py"),
    *(".model", ".tiktoken", ".spm", ".bpe", ".codes", ".vocab", ".dict", ".tsv"),
}
"""Of files that a tokenizer or a model's own code reads; weights and papers end otherwise."""

LEFT = re.compile(
    r"config\.json|adapter_config\.json|manifest\.json|trainer_state\.json|opd-probe-.*"
    r"|.*\.index\.json|.*_results\.json|README.*|requirements.*"
)
"""Files with such endings that are written apart, belong to weights, or tell of a training."""

OF_A_MODEL = re.compile(r"generation_config\.json|.*processor_config\.json")
"""Files that are the model's and not its tokenizer's."""

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")

MOST_BYTES = 256 << 20
"""Bytes of a file that is carried; the largest tokenizers have some 40 MB."""


def carry_model_files(source: ModelSource, folder: Path) -> None:
    """Copy what a whole model has besides weights and `config.json` into a folder.

    Args:
        source: the model; of an adapter, its base's files and its own tokenizer are taken.
        folder: where a checkpoint is being made.

    Raises:
        ConfigError: a chat template has a name that no store can hold.
    """
    generation_file(source)  # of a hub id: not before it was asked for is it here
    model, tokenizer = local_folder(source.whole), local_folder(tokenizer_place(source))
    if model is not None:
        apart = tokenizer != model
        _copy((p for p in _carried(model) if not apart or _is_of_a_model(p)), model, folder)
    if tokenizer is not None and tokenizer != model:
        _copy((p for p in _carried(tokenizer) if p.name != GENERATION), tokenizer, folder)


def check_carried(source: ModelSource) -> None:
    """Make sure that what a model has besides weights can be carried.

    Raises:
        ConfigError: a chat template has a name that no store can hold.
    """
    for place in (source.whole, tokenizer_place(source)):
        folder = local_folder(place)
        list(_carried(folder) if folder is not None else ())


def carry_tokenizer(source: ModelSource, folder: Path) -> None:
    """Copy the files of a model's tokenizer into the folder of an adapter.

    With them goes `config.json`, which says of many a tokenizer what it is.

    Raises:
        ConfigError: a chat template has a name that no store can hold.
    """
    found = local_folder(tokenizer_place(source))
    if found is None:
        return
    _copy((path for path in _carried(found) if not OF_A_MODEL.fullmatch(path.name)), found, folder)
    if (found / CONFIG).is_file():
        shutil.copyfile(found / CONFIG, folder / CONFIG)


def _is_of_a_model(path: Path) -> bool:
    return path.suffix == ".py" or OF_A_MODEL.fullmatch(path.name) is not None


def _carried(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that are carried."""
    for path in sorted(folder.iterdir()):
        known = path.suffix in ENDINGS and not LEFT.fullmatch(path.name)
        plain = NAME.fullmatch(path.name) is not None and path.is_file()
        if known and plain and path.stat().st_size <= MOST_BYTES:
            yield path
    for path in sorted((folder / TEMPLATES).glob("*.jinja")):
        if not NAME.fullmatch(path.name):
            raise ConfigError(
                f"{folder / TEMPLATES} has a chat template {shown(path.name)}, which no store of "
                "opd can hold: rename it with letters, digits, '-', '_' and '.'"
            )
        yield path


def _copy(paths: Iterator[Path], start: Path, folder: Path) -> None:
    for path in paths:
        target = folder / path.relative_to(start)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
