"""Where a loss of the user's own is, and what it is once it is loaded and proved.

Promises: nothing of it is run but by `with_function`, and that runs the bytes that were digested.
"""

import sys
import types

from pipeline.objectives.own.objective import Function, OwnObjective, mistake, mistakes
from pipeline.objectives.own.proof import proved
from pipeline.runs.ownfile import OwnFunction
from schemas.config.loss import LossConfig

MODULE = "opd_loss"
"""Name of the module that a loss's file becomes."""


def with_function(loss: LossConfig, own: OwnFunction | None) -> LossConfig:
    """Return the objective with the function of its file, which is run here and proved.

    Args:
        loss: the objective as configured.
        own: the file of its loss; None for one of opd's, which stays as it is.

    Raises:
        ConfigError: it cannot be loaded, or its gradient is not that of its value.
    """
    return loss if own is None else _proved(loss, own)


def _proved(loss: LossConfig, own: OwnFunction) -> OwnObjective:
    return proved(loss, _loaded(loss, own))


def _loaded(loss: LossConfig, own: OwnFunction) -> Function:
    """Return the function of a file; what the file does runs in this process."""
    module = types.ModuleType(MODULE)
    module.__file__ = str(own.path)
    sys.modules[MODULE] = module
    with mistakes(loss, "cannot be loaded:"):
        code = compile(own.source, str(own.path), "exec", dont_inherit=True)
        exec(code, module.__dict__)  # it is the code that the user's own TOML names
    function = getattr(module, own.name, None)
    if not callable(function):
        raise mistake(loss, f"is a {type(function).__name__} in {own.path}, expected a function")
    found: Function = function
    return found
