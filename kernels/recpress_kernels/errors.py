"""The root of every error that recpress raises on purpose, and the families that the kernels use.

A message says what was given, where, what is allowed, and what to do.
"""


class RecpressError(Exception):
    """Base of all errors that recpress raises on purpose; its text is fit to be shown to a user."""


class KernelInputError(RecpressError, ValueError):
    """An operand of an op has a dtype, shape, device or value that the op does not take."""


class IndexBoundsError(RecpressError, IndexError):
    """An index points outside its table, or offsets do not describe bags of the given indices."""
