"""Run the workbook's notebooks: the demo, your own photos, sweeps, the paper's tables.

Nothing that needs TensorFlow is imported before it is used: help and refusals come at
once.
"""

import argparse
import os
import sys
import textwrap
import time
from pathlib import Path

from cwr_utils.runs import source
from cwr_utils.runs.grid import Sweep

# Columns of help, and where the meaning of a parameter begins.
_WIDEST, _INDENT = 88, 40


def main(arguments: list[str] | None = None) -> int:
    """Parse arguments and run.

    Returns:
        0, 1 after an error that was explained in one message, or 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, commands = _parser()
    if arguments and arguments[0] not in (*commands, "-h", "--help"):
        hint = source.suggestion(arguments[0], commands)
        parser.error(f"there is no command {arguments[0]!r}: {hint}")
    chosen = vars(parser.parse_args(arguments))
    try:
        failures = chosen.pop("function")(**chosen)  # None where there can be none
    except (source.RunError, _data_error()) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return int(bool(failures))


def _data_error() -> type[Exception]:
    from cwr_utils.datasets import DatasetError

    return DatasetError


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of the commands."""
    first = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m cwr_utils", description=first)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name, function, text, epilog=""):
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(function=function)
        return command

    show = add("demo", _demo, "run all notebooks on real photographs")
    show.add_argument(
        "--limit", type=_count, default=0, help="photos of a slice; 0 (default) is all"
    )
    keep = add("publish", _publish, "copy runs to where git tracks them")
    keep.add_argument("names", nargs="*", help="in results/runs; the demo if not given")
    run = add("run", _run, "run notebooks with other parameters", _run_help())
    run.add_argument(
        "notebooks",
        nargs="*",
        metavar="NOTEBOOK",
        help="a number (4), a name or a file; all of them if none is given",
    )
    run.add_argument(
        "--output",
        help="folder of the executed copies; beside the results if not given",
    )
    sweep = add("sweep", _sweep, "run a grid of parameters, resumable", _parameters())
    sweep.add_argument("file", help="YAML, see docs/sweeps.md and notebooks/sweeps")
    sweep.add_argument(
        "--root",
        default="",
        help="folder in results/runs for its own folder",
    )
    whole = add("paper", _paper, "every table and figure of the paper")
    whole.add_argument("--dataset", default="", help="a name or a folder; needed")
    whole.add_argument("--network", default="", help="a name; needed")
    root = "where the photos of a name are; data/ if not given"
    whole.add_argument("--data-root", default="", help=root)
    whole.add_argument(
        "--whitening",
        default="",
        help="a name or a folder; if not given what belongs to the data set",
    )
    whole.add_argument("--whitening-root", default="", help=root)
    # Empty is not given: that is how make passes on what it was not told.
    whole.add_argument(
        "--weights",
        default="",
        help="imagenet (if not given), none (random), or a file",
    )
    whole.add_argument(
        "--protocol", default="", help="of protocol.py; authors_code if not given"
    )
    listed = add("networks", _networks, "what networks there are, or check one")
    check = listed.add_subparsers(metavar="check").add_parser(
        "check", help="what a network names photos, and whether that is right"
    )
    check.set_defaults(function=_check)
    check.add_argument("network", help="a name, or a .keras or .h5 file")
    check.add_argument("photos", nargs="*", help="files; two samples if none is given")
    check.add_argument(
        "--weights",
        default="imagenet",
        help="imagenet (if not given), none (random), or a file",
    )
    for command in (sweep, whole):
        command.add_argument(
            "-j",
            "--jobs",
            type=_positive,
            help="cells at a time; what the file says, or one a core, if not given",
        )
    for command in (run, sweep):
        command.add_argument(
            "-p",
            "--parameter",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="any of those below, as often as needed; paths are seen from here",
        )
    return parser, list(commands.choices)


def _run_help() -> str:
    """The notebooks, and their parameters."""
    titles = [f"  {name[:2]}  {source.title(name)}" for name in source.NOTEBOOKS]
    return "\n".join(["notebooks:", *titles, "", _parameters()])


def _parameters() -> str:
    """Every parameter of the notebooks with its default and what it means."""
    lines = ["parameters and their defaults:"]
    meanings = source.meanings()
    for name, value in source.parameters().items():
        if str(value).startswith(".."):
            value = os.path.relpath(source.place(value))
        shown = f"  {name}={'none' if value is None else str(value)}"
        wrapped = textwrap.wrap(meanings[name], _WIDEST - _INDENT)
        beside = [f"{shown:{_INDENT}}", *[" " * _INDENT] * len(wrapped)]
        if len(shown) >= _INDENT:  # no room: the meaning begins below
            lines.append(beside.pop(0))
        lines += map("".join, zip(beside, wrapped, strict=False))
    return "\n".join(lines)


def _demo(limit) -> None:
    from cwr_utils.runs import demo

    demo.demo(limit)


def _publish(names) -> None:
    from cwr_utils.runs import demo

    demo.publish(names)


def _run(notebooks, output, parameter) -> None:
    names = [source.notebook_name(text) for text in notebooks] or source.NOTEBOOKS
    parameters = source.parse(parameter)
    for name in names:
        source.check(name, parameters)
    from cwr_utils.runs import demo

    demo.run(names, parameters, output)


def _sweep(file, root, jobs, parameter) -> list[str]:
    begun, parameters = time.monotonic(), source.parse(parameter)
    Sweep.read(file, parameters)
    from cwr_utils.runs import sweeps

    place = Path(root, Path(file).stem)
    failures = sweeps.run_sweep(file, parameters, jobs=jobs, place=place)
    sweeps.report(place, begun)
    print("\n".join(failures) or "all cells are done")
    return failures


def _paper(jobs, weights, protocol, **given) -> list[str]:
    from cwr_utils.runs import reproduce

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


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
