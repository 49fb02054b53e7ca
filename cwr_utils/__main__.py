"""Command line: `python -m cwr_utils demo`."""

import argparse
import sys
from pathlib import Path

from cwr_utils.datasets import DatasetError
from cwr_utils.runs import demo, reproduce, source, sweeps


def main(arguments: list[str] | None = None) -> int:
    """Parse arguments and run.

    Returns:
        0, 1 after an error that was explained in one message, or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m cwr_utils", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def add(name, function, text):
        command = commands.add_parser(name, help=text)
        command.set_defaults(function=function)
        return command

    show = add("demo", demo.demo, "run all notebooks on real photographs")
    show.add_argument("--limit", type=int, default=0, help="photos; 0 is all")
    keep = add("publish", demo.publish, "copy runs to where git tracks them")
    keep.add_argument("names", nargs="*", help="in results/runs; the demo if not given")
    run = add("run", _run, "run notebooks with other parameters")
    run.add_argument("notebooks", nargs="*", help="names; all of them if none is given")
    run.add_argument("--output", help="executed copies; below the results if not given")
    sweep = add("sweep", _sweep, "run a grid of parameters, resumable")
    sweep.add_argument("file", help="notebooks/sweeps/<name>.yaml")
    sweep.add_argument("--root", default="", help="folder in results/runs for its own")
    whole = add("paper", _paper, "every table and figure of the paper")
    for name in ("dataset", "network", "data-root", "whitening", "whitening-root"):
        whole.add_argument(f"--{name}", default="")
    # Empty is not given: that is how make passes on what it was not told.
    whole.add_argument("--weights", default="", help="imagenet, none (random), a file")
    whole.add_argument("--protocol", default="", help="authors_code if not given")
    networks = add("networks", _networks, "what networks there are, or check one")
    check = networks.add_subparsers().add_parser("check", help="what it names photos")
    check.set_defaults(function=_check)
    check.add_argument("network", help="a name, or a .keras or .h5 file")
    check.add_argument("photos", nargs="*", help="files; two samples if none is given")
    check.add_argument("--weights", default="imagenet", help="none (random), a file")
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
            f"of {', '.join(source.parameters())}",
        )
    chosen = vars(parser.parse_args(arguments))
    try:
        failures = chosen.pop("function")(**chosen)  # None where there can be none
    except (source.RunError, DatasetError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return int(bool(failures))


def _run(notebooks, output, parameter) -> None:
    names = notebooks or source.NOTEBOOKS
    demo.run(names, source.parse(parameter), output)


def _sweep(file, root, jobs, parameter) -> list[str]:
    place = Path(root, Path(file).stem)
    failures = sweeps.run_sweep(file, source.parse(parameter), jobs=jobs, place=place)
    print("\n".join(failures) or "all cells are done")
    return failures


def _paper(jobs, weights, protocol, **given) -> list[str]:
    chosen = None if weights == "none" else weights or "imagenet"
    plan = reproduce.plan(**given, weights=chosen, protocol=protocol or "authors_code")
    failures = reproduce.run(plan, jobs)
    print("\n".join(failures))
    return failures


def _networks() -> None:
    from cwr_utils import networks

    print(networks.table().drop(columns="url").to_string())
    print("and hub:PRESET of KerasHub, and .keras or .h5 files of whole models")


def _check(network, photos, weights) -> bool:
    from cwr_utils import networks

    weights = None if weights == "none" else weights
    try:
        check = networks.check_top5(networks.load(network, weights), photos)
    except ValueError as error:
        raise source.RunError(str(error)) from error
    print(check)
    return check.right is False


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
