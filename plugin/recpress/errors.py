"""The families of errors of the plugin, all under :class:`RecpressError`.

A message says what was given, where, what is allowed, and what to do. The command line prints it as it is
and exits with code 1.
"""

from recpress_kernels.errors import IndexBoundsError, KernelInputError, RecpressError

__all__ = [
    "ArtifactError",
    "CalibrationError",
    "DashboardError",
    "DataError",
    "ExportError",
    "IndexBoundsError",
    "KernelInputError",
    "LoadTestError",
    "MissingDependencyError",
    "NoAnswerError",
    "OutputError",
    "OverloadError",
    "ProbeError",
    "PruningError",
    "QualityGateError",
    "RecipeError",
    "RecpressError",
    "RepositoryError",
    "RequestError",
    "SearchError",
    "ServerError",
    "SourceError",
    "TrainingError",
    "UnsupportedLayerError",
]


class SourceError(RecpressError):
    """A model named as ``module:function`` cannot be made."""


class RecipeError(RecpressError):
    """A recipe has an unknown key or value, or a pattern that matches nothing or collides."""


class UnsupportedLayerError(RecpressError):
    """A layer or a weight that compression was told to treat cannot be treated."""


class CalibrationError(RecpressError):
    """Calibration inputs are empty, of the wrong form, or not finite."""


class PruningError(RecpressError):
    """Pruning is asked for what it cannot do, or is given nothing to judge weights by."""


class TrainingError(RecpressError):
    """Fine-tuning is asked for what it cannot do, is given no batches, or diverges."""


class SearchError(RecpressError):
    """The automatic flow is asked for what it cannot judge or look for."""


class QualityGateError(RecpressError):
    """No compressed model keeps the quality that was asked for."""


class ExportError(RecpressError):
    """A model cannot be exported: its graph, its inputs or their bounds are not as needed."""


class ArtifactError(RecpressError):
    """An artifact on disk is incomplete, changed, forged or made for another version."""


class RepositoryError(RecpressError):
    """A model repository, or a model in it, cannot be written or read as asked."""


class ServerError(RecpressError):
    """NVIDIA Triton Inference Server cannot be found, started, reached or stopped."""


class OverloadError(ServerError):
    """A request is turned away, here or by the server, as it would not be answered in time: UNAVAILABLE, or 503."""


class NoAnswerError(ServerError, TimeoutError):
    """A running server has not answered in the time that the client gave."""


class RequestError(RecpressError):
    """A running server refuses a request: an unknown model, or inputs that it does not take."""


class ProbeError(RecpressError):
    """A running server answers, but not with the scores that the artifact promises."""


class LoadTestError(RecpressError):
    """A load test is asked for what it cannot do, is broken off, or ends otherwise than asked for."""


class OutputError(RecpressError):
    """A file that was asked for cannot be written."""


class DashboardError(RecpressError):
    """A dashboard cannot be drawn: Prometheus does not answer or has no data."""


class DataError(RecpressError):
    """A data set cannot be fetched, or is not the one expected."""


class MissingDependencyError(RecpressError):
    """An optional package, or a program outside Python, is not installed."""
