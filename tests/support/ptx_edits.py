"""Changes to PTX text that plant a defect."""

import re
from collections.abc import Callable


def broken(pattern: str, replacement: str, count: int = 1) -> Callable[[str], str]:
    """Replaces the first ``count`` matches, all of them with 0; fails where there is none."""

    def edit(text: str) -> str:
        edited = re.sub(pattern, replacement, text, count=count)
        assert edited != text, "the edit found nothing to change"
        return edited

    return edit
