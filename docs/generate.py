"""Write the reference pages from the code, or check that they are fresh (`--check`)."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster import config_docs
from docs import api_reference, metrics_reference

ROOT = Path(__file__).resolve().parent.parent


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    return {
        ROOT / "docs" / "configuration.md": config_docs.render(),
        ROOT / "docs" / "api.md": api_reference.render(ROOT / "proto"),
        ROOT / "docs" / "metrics.md": metrics_reference.render(),
    }


def main(argv: list[str]) -> int:
    """Write the pages; with `--check` only name those that differ."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`")
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
