"""The command ``recpress``: the verbs of the library, and ``demo`` and ``doctor``."""

from recpress.cli.main import main

__all__ = ["main"]
