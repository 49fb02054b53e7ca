"""Command line: `python -m cwr_utils demo`."""

import argparse
import sys
from pathlib import Path

from cwr_utils import reproduce, runs, sweeps
from cwr_utils.datasets import DatasetError


def main(arguments: list[str] | None = None) -> int:
    """Parse arguments and run.

    Returns:
        0, 1 after an error that was explained in one message, or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m cwr_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="run all notebooks on real photographs")
    demo.add_argument("--limit", type=int, default=0, help="photos; 0 is all")
    commands.add_parser("publish", help="the demo, executed notebooks kept in results/")
    run = commands.add_parser("run", help="run notebooks with other parameters")
    run.add_argument("notebooks", nargs="*", help="names; all of them if none is given")
    run.add_argument("--output", help="executed copies; below the results if not given")
    sweep = commands.add_parser("sweep", help="run a grid of parameters, resumable")
    sweep.add_argument("file", help="notebooks/sweeps/<name>.yaml")
    sweep.add_argument(
        "--root", default="", help="folder in results/ and figures/ for the sweep's own"
    )
    whole = commands.add_parser("paper", help="every table and figure of the paper")
    for name in ("dataset", "network", "data-root", "whitening", "whitening-root"):
        whole.add_argument(f"--{name}", default="")
    # Empty is not given: that is how make passes on what it was not told.
    whole.add_argument("--weights", default="", help="imagenet, none (random), a file")
    whole.add_argument("--protocol", default="", help="authors_code if not given")
    for command in (sweep, whole):
        command.add_argument("-j", "--jobs", type=_positive, help="cells at a time")
    for command in (run, sweep):
        command.add_argument(
            "-p",
            "--parameter",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="folders start from notebooks/ unless they are absolute; NAME is one "
            f"of {', '.join(runs.PARAMETERS)}",
        )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "demo":
            runs.demo(limit=chosen.limit)
        elif chosen.command == "publish":
            runs.publish()
        elif chosen.command == "sweep":
            parameters = runs.parse_parameters(chosen.parameter)
            place = Path(chosen.root, Path(chosen.file).stem)
            failures = sweeps.run_sweep(
                chosen.file,
                parameters,
                jobs=chosen.jobs,
                results=runs.ROOT / "results" / place,
                figures=runs.ROOT / "figures" / place,
            )
            print("\n".join(failures) or "all cells are done")
            return int(bool(failures))
        elif chosen.command == "paper":
            weights = chosen.weights or "imagenet"
            planned = reproduce.plan(
                chosen.dataset,
                chosen.network,
                chosen.data_root,
                chosen.whitening,
                chosen.whitening_root,
                None if weights == "none" else weights,
                chosen.protocol or "authors_code",
            )
            failures = reproduce.run(planned, chosen.jobs)
            print("\n".join(failures))
            return int(bool(failures))
        else:
            runs.run(
                chosen.notebooks or runs.NOTEBOOKS,
                runs.parse_parameters(chosen.parameter),
                chosen.output,
            )
    except (runs.RunError, DatasetError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
