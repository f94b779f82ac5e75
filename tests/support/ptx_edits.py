"""Changes to PTX text that plant a defect."""

import re
from collections.abc import Callable


def broken(pattern: str, replacement: str) -> Callable[[str], str]:
    """Replaces the first match; fails where there is none."""

    def edit(text: str) -> str:
        edited = re.sub(pattern, replacement, text, count=1)
        assert edited != text, "the edit found nothing to change"
        return edited

    return edit
