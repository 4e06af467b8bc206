"""DeepSpeed's checkpoint files without pickles: tensors as safetensors, all else as JSON.

Promises: what is not a tensor, a plain value or listed here by name is neither written nor read, so
that a file can hold no code; a value that is no number is not written. DeepSpeed writes and reads
through `StateFiles` and nothing else. Must not: import what a file names.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.learner.metrics import TOO_HIGH
from schemas.errors import ConfigError, DataError
from schemas.records.training import MAX_STATE_JSON, StatePart, state_file

FORM = re.compile("state_dict|size of tensor|shape|dtype|must match|checkpoint", re.IGNORECASE)
"""What torch and DeepSpeed say of tensors that do not fit; other errors are not the file's."""

PLAIN = (type(None), bool, int, float, str)
"""Types that stand in JSON as they are."""

UNREAD = ("ds_config", "param_slice_mappings")
"""Names of what DeepSpeed saves for its other tools: it never reads it back itself."""


class StateFiles(CheckpointEngine):  # type: ignore[misc] # DeepSpeed has no types
    """What DeepSpeed calls to save and to load: here in memory, so that no rank fails alone.

    Attributes:
        parts: name of one of DeepSpeed's files, without its ending → what it holds.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        super().__init__()
        self.parts: dict[str, dict[str, Any]] = {}

    def create(self, info: Any) -> None:
        """Begin a checkpoint: nothing is needed."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Take what a file is to hold."""
        self.parts[Path(path).stem] = state_dict

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        """Return what a file holds: a dictionary of its own, for DeepSpeed changes it."""
        return dict(self.parts[Path(path).stem])

    def commit(self, info: Any) -> bool:
        """End a checkpoint: nothing is needed."""
        return True


def write_parts(parts: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write what a process saves of a state, two files for each of DeepSpeed's.

    Raises:
        ConfigError: a weight is no number, or this DeepSpeed saves what is not known here.
    """
    for name, tree in parts.items():
        tensors = _Tensors()
        words = StatePart(tree=_encoded(tree, (), tensors))
        save_file(tensors.named, folder / state_file(name, "safetensors"))
        (folder / state_file(name, "json")).write_bytes(words.to_bytes())


def read_parts(folder: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Return what a process needs of the files of a state.

    Raises:
        DataError: a file is not what `write_parts` makes.
    """
    parts = {}
    for path in sorted(folder.glob("*.json")):
        owner = path.stem.removeprefix("bf16_").removeprefix("zero_pp_rank_").partition("_")[0]
        if owner in ("mp", str(rank)):
            parts[path.stem] = _read_part(path)
    return parts


def _read_part(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > MAX_STATE_JSON:
        raise DataError(f"{path.name} of a learner's state has {size} bytes: it is not one of ours")
    words = StatePart.from_bytes(path.read_bytes(), where=f"{path.name} of a learner's state")
    try:
        with safe_open(path.with_suffix(".safetensors"), framework="pt", device="cpu") as file:
            loaded: dict[str, Tensor] = {}

            def tensor(name: str) -> Tensor:
                if name not in loaded:
                    loaded[name] = file.get_tensor(name).clone()  # the file is deleted
                return loaded[name]

            tree = _decoded(words.tree, tensor)
    except (SafetensorError, FileNotFoundError, ValueError, TypeError) as error:
        raise DataError(
            f"{path.name} of a learner's state and the tensors beside it are not what opd writes: "
            f"{str(error).splitlines()[0]}. The objects are damaged, or another program wrote them"
        ) from error
    if not isinstance(tree, dict):
        raise DataError(f"{path.name} of a learner's state holds no names: it is damaged")
    return tree


class _Tensors:
    """Tensors that were met, by the names that they get; what is met twice is kept once."""

    def __init__(self) -> None:
        self.named: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def name(self, tensor: Tensor, path: tuple[str, ...]) -> str:
        """Return the name of a tensor that stands at a path of the tree."""
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in self._names:
            return self._names[place]
        _refuse_what_is_no_number(tensor.detach(), path)
        name = f"{len(self.named):05d}/{'/'.join(path)}"
        self.named[name], self._names[place] = tensor.detach().cpu().contiguous(), name
        return name


def _refuse_what_is_no_number(tensor: Tensor, path: tuple[str, ...]) -> None:
    if not tensor.numel() or not tensor.is_floating_point():
        return
    ends = torch.stack(torch.aminmax(tensor))  # both are NaN where any element is
    if not bool(ends.isfinite().all()):
        raise ConfigError(f"training made NaN or infinities of {'/'.join(path)}: {TOO_HIGH}")


def _encoded(node: Any, path: tuple[str, ...], tensors: _Tensors) -> Any:
    """Return a tree as JSON values; each tensor becomes its name."""
    if type(node) in PLAIN and not (isinstance(node, float) and not math.isfinite(node)):
        return node
    if isinstance(node, Tensor):
        return {"tensor": tensors.name(node, path)}
    if isinstance(node, dict) and all(type(key) in (str, int) for key in node):
        kept = [(key, value) for key, value in node.items() if key not in UNREAD]
        return {"dict": [[key, _encoded(n, (*path, str(key)), tensors)] for key, n in kept]}
    if isinstance(node, (list, tuple)):
        items = [_encoded(n, (*path, str(i)), tensors) for i, n in enumerate(node)]
        return items if isinstance(node, list) else {"tuple": items}
    if type(node) is ZeroStageEnum:
        return {"zero_stage": int(node)}
    if type(node) is LossScaler:
        return {"loss_scaler": float(node.cur_scale)}
    raise ConfigError(
        f"the learner's state cannot be saved: DeepSpeed keeps a "
        f"{type(node).__qualname__} at {'/'.join(path)}, which opd does not know. Install the "
        "DeepSpeed that `pip install opd[train]` asks for"
    )


def _decoded(node: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Return the tree that was encoded.

    Raises:
        ValueError: it is none.
    """
    if isinstance(node, list):
        return [_decoded(item, tensor) for item in node]
    if type(node) in PLAIN:
        return _finite(node)
    ((kind, value),) = node.items()  # a ValueError where there are several
    if kind == "dict":
        return {_key(key): _decoded(item, tensor) for key, item in value}
    if kind == "tuple":
        return tuple(_decoded(item, tensor) for item in value)
    known: dict[str, Callable[[Any], Any]] = {
        "tensor": tensor,
        "zero_stage": ZeroStageEnum,
        "loss_scaler": lambda scale: LossScaler(_finite(float(scale))),
    }
    if kind not in known:
        raise ValueError(f"{kind!r:.40} is no kind of value")
    return known[kind](value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is none")
    return value


def _key(key: Any) -> str | int:
    if type(key) is str or type(key) is int:
        return key
    raise ValueError(f"{key!r:.40} is no key")


@contextmanager
def files_of(engine: Any, parts: dict[str, dict[str, Any]] | None = None) -> Iterator[StateFiles]:
    """Have an engine save to memory, or load from there, for the length of a block."""
    before, files = engine.checkpoint_engine, StateFiles()
    files.parts = parts or {}
    engine.checkpoint_engine = files
    try:
        yield files
    finally:
        engine.checkpoint_engine = before


@contextmanager
def optimizer_kept(engine: Any) -> Iterator[None]:
    """Have an optimizer load sums, and no settings, within a block; tell what does not fit.

    Raises:
        DataError: what was loaded is not the state of such a learner.
    """
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    settings = [{**group} for group in optimizer.param_groups]
    try:
        yield
        for group, before in zip(optimizer.param_groups, settings, strict=True):
            group.update({name: value for name, value in before.items() if name != "params"})
        for parameter, kept in optimizer.state.items():
            _check_sums(parameter, kept)
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise _misfit(error) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not FORM.search(str(error)):
            raise
        raise _misfit(error) from error


def _check_sums(parameter: Tensor, kept: dict[str, Any]) -> None:
    """Make sure that an optimizer can go on with what it keeps of a parameter."""
    shapes = {name: tuple(value.shape) for name, value in kept.items()}
    whole = tuple(parameter.shape)
    if shapes and shapes != {"step": (), "exp_avg": whole, "exp_avg_sq": whole}:
        raise ValueError(f"the optimizer keeps {shapes} of a parameter of shape {whole}")


def _misfit(error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"the learner's state does not fit this learner: {reason:.200}")
