"""A model given on the command line as ``module:function``."""

import importlib
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path

from torch import Tensor, nn

from recpress.artifact.export import export
from recpress.errors import SourceError
from recpress.pipeline import Compressed
from recpress.pipeline import compress as run
from recpress.search.auto import auto

_FORM = "it must return (model, {input name: example tensor}), or the same with a third item, evaluate(model)"


def compress_source(source: str, recipe: str) -> tuple[Compressed, dict[str, Tensor]]:
    """Make the model that ``source`` names, and compress it; the examples serve as calibration.

    Raises:
        SourceError: it cannot be imported, fails, or returns something else.
    """
    model, examples, evaluate = make(source)
    return run(model, recipe, calibration=[tuple(examples.values())], evaluate=evaluate), examples


def auto_source(source: str, options: Mapping[str, object], folder: Path | None) -> None:
    """Run recpress.auto with the arguments that ``source`` returns, ``options`` in their place; export what it finds.

    Raises:
        SourceError: it cannot be imported, fails, or returns something else.
        QualityGateError: no variant keeps the target.
    """
    given = _called(source)
    allowed = {*signature(auto).parameters, "examples"} - {"show"}
    if not isinstance(given, Mapping) or not {"model"} <= {*given} <= allowed:
        what = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise SourceError(f"{source} returns {what}; it must return a mapping of: {', '.join(sorted(allowed))}")
    examples = given.get("examples")
    if folder is not None and not _are_tensors(examples):
        raise SourceError(f"{source} returns no examples to export with; give them as {{input name: example tensor}}")
    replaced = {"examples", *(("share", "at_least") if {"share", "at_least"} & {*options} else ())}
    found = auto(**{name: value for name, value in given.items() if name not in replaced} | dict(options)).accepted()
    if folder is not None:
        export(found, folder, example_inputs=tuple(examples.values()), input_names=tuple(examples))


def make(source: str) -> tuple[nn.Module, dict[str, Tensor], Callable | None]:
    """The model, examples and, or None, evaluate that ``module:function`` returns."""
    made = _called(source)
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise SourceError(f"{source} returns a {type(made).__name__}; {_FORM}")
    model, examples, evaluate = (*made, None) if len(made) == 2 else made
    if not isinstance(model, nn.Module) or not _are_tensors(examples) or not (evaluate is None or callable(evaluate)):
        raise SourceError(f"{source} returns other things than expected; {_FORM}")
    return model, dict(examples), evaluate


def _are_tensors(examples: object) -> bool:
    return isinstance(examples, Mapping) and all(isinstance(t, Tensor) for t in examples.values())


def _called(source: str) -> object:
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
        return function()
    except Exception as error:
        raise SourceError(f"{source} fails: {type(error).__name__}: {error}") from error
