"""``python -m recpress.cli``: the same as the command ``recpress``."""

from recpress.cli import main

main()
