"""A model given on the command line as ``module:function``."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from recpress.errors import SourceError
from recpress.pipeline import Compressed
from recpress.pipeline import compress as run

_FORM = "it must return (model, {input name: example tensor}), or the same with a third item, evaluate(model)"


def compress_source(source: str, recipe: str) -> tuple[Compressed, dict[str, Tensor]]:
    """Make the model that ``source`` names, and compress it; the examples serve as calibration.

    Raises:
        SourceError: it cannot be imported, fails, or returns something else.
    """
    model, examples, evaluate = make(source)
    return run(model, recipe, calibration=[tuple(examples.values())], evaluate=evaluate), examples


def make(source: str) -> tuple[nn.Module, dict[str, Tensor], Callable | None]:
    """Import and call ``module:function``."""
    module_name, separator, function_name = source.partition(":")
    if not separator or not module_name or not function_name:
        raise SourceError(f"{source!r} is no MODULE:FUNCTION; such as my_package.models:build")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise SourceError(f"{module_name!r} cannot be imported ({error}); run in its folder, or install it") from error
    except AttributeError:
        raise SourceError(f"{module_name!r} has no {function_name!r}") from None
    finally:
        sys.path.pop(0)
    try:
        made = function()
    except Exception as error:
        raise SourceError(f"{source} fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise SourceError(f"{source} returns a {type(made).__name__}; {_FORM}")
    model, examples, evaluate = (*made, None) if len(made) == 2 else made
    tensors = isinstance(examples, Mapping) and all(isinstance(t, Tensor) for t in examples.values())
    if not isinstance(model, nn.Module) or not tensors or not (evaluate is None or callable(evaluate)):
        raise SourceError(f"{source} returns other things than expected; {_FORM}")
    return model, dict(examples), evaluate
