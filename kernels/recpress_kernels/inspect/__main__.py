"""``python -m recpress_kernels.inspect``: the census of machine code, as a table or as JSON."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict

from recpress_kernels.inspect import TARGETS, Row, all_cases, census

_COLUMNS = ("kernel", "target", "config", "registers", "spills", "shared_bytes", "mma", "instructions_per_mma")


def _table(rows: Iterable[Row]) -> str:
    lines = [(*_COLUMNS, "load_widths")]
    for row in rows:
        widths = " ".join(f"{width}:{count}" for width, count in row.load_widths.items())
        lines.append((*(str(getattr(row, name)) for name in _COLUMNS), widths))
    wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recpress_kernels.inspect", description=__doc__)
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this target (repeatable)")
    parser.add_argument("--kernel", action="append", metavar="NAME", help="only kernels of this name (repeatable)")
    options = parser.parse_args(arguments)
    cases = [case for case in all_cases() if not options.kernel or case.kernel in options.kernel]
    rows = list(census(cases, options.target or tuple(TARGETS)))
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else _table(rows))


if __name__ == "__main__":
    main()
