"""One process of an evaluation that `src.evaluate` or `src.train` has started.

`python -m src.evals.rank REQUEST`, not typed by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from src import environment
from src.evals import running


def main(request: Path) -> None:
    """Join the other processes and do this one's part."""
    with environment.redacting_output():
        running.rank(request)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
