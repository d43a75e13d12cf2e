"""List the sweeps, or export one for W&B's agents. `python -m src.train -m` runs one here.

python -m src.sweep list
python -m src.sweep export NAME [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from src import command
from src.multirun import agents, composition
from src.settings.config import RunConfig


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m src.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="names and questions of the files in sweeps/")
    export = verbs.add_parser("export", help="print a W&B sweep's YAML for `wandb sweep`")
    export.add_argument("name", help="of a file in sweeps/, without .yaml")
    export.add_argument("overrides", nargs="*", help="more settings, such as model=smollm2_135m")
    return parser.parse_args(argv)


@command.job
def _sweep(argv: list[str]) -> None:
    parsed = _arguments(argv)
    if parsed.verb == "export":
        print(agents.export(parsed.name, parsed.overrides), end="")
        return
    for name in composition.names():
        print(f"{name}: {composition.question(name)}")


def main() -> None:
    """Entry point."""
    command.run(lambda: _sweep(sys.argv[1:]), RunConfig, takes_overrides=False)


if __name__ == "__main__":
    main()
