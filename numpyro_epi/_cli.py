"""The program ``numpyro-epi``: list what is registered, check a problem, fit it, plot the result.

Nothing heavy is imported at the top: asking for help must not wait for JAX. So problems and results, whose classes
would import it, are annotated as ``Any``.
"""

import argparse
import ast
import importlib.util
import itertools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from ._registry import Provider
from ._stop import StoppedBeforeFirstStep

DONE, NOT_SATISFIED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
"""Exit codes; the last is the shell's for a program stopped by control-C."""

CUT_BY = {"SIGINT": INTERRUPTED, "SIGTERM": 143}
"""Exit codes of a fit that a signal cut short, as a shell gives them: 128 and the signal's number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 satisfied, 1 finished but not satisfied, 2 user error, 130 interrupted, 143 terminated.

    Raises:
        SystemExit: By argparse, with code 2 for arguments it cannot read and 0 for ``--help``.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except SystemExit as stop:
        print(
            f"numpyro-epi: Expected the problem's code to return; it called sys.exit({stop.code!r}). Take that out of it.",
            file=sys.stderr,
        )
        return USER_ERROR
    except KeyboardInterrupt as stop:
        print("numpyro-epi: interrupted", file=sys.stderr)
        return CUT_BY[getattr(stop, "signal_name", "SIGINT")]
    # Every command runs the user's code, or a plugin's: whatever that raises is reported on one line.
    except Exception as error:
        if arguments.traceback:
            raise
        print(f"numpyro-epi: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message; --traceback shows where it comes from"
    # Our own messages are sentences, "Expected X; got Y"; a foreign one may be no more than the name of a key.
    return text if text.startswith("Expected") else f"{type(error).__name__}: {text}"


# The arguments of each command.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="numpyro-epi", description="Emergent property inference for NumPyro models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, add_arguments in (
        (_list, None),
        (_check, _add_check_arguments),
        (_fit, _add_fit_arguments),
        (_resume, _add_resume_arguments),
        (_plot, _add_plot_arguments),
        (_movie, _add_movie_arguments),
        (_report, _add_report_arguments),
    ):
        summary = (command.__doc__ or "").partition("\n")[0]
        sub = commands.add_parser(command.__name__.strip("_"), help=summary, description=summary)
        sub.add_argument("--traceback", action="store_true", help="show where an error comes from")
        sub.set_defaults(command=command)
        if add_arguments:
            add_arguments(sub)
    return parser


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", metavar="PROBLEM", help="a registered name, or path/to/file.py:name")
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="an argument of the problem's function, as a Python literal; repeatable",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="random seed (default: 0)")


def _add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    _add_check_arguments(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help="result, .nc or .zarr (default: <problem's name>.nc)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the result if it exists, and an earlier run's checkpoint"
    )
    parser.add_argument("--steps", dest="max_steps", metavar="N", type=_count, help="most optimiser steps")
    parser.add_argument("--num-draws", metavar="N", type=_count, help="draws a step")
    parser.add_argument("--restarts", dest="num_restarts", metavar="N", type=_count, help="flows fitted at once")
    parser.add_argument(
        "--snapshots", dest="num_snapshots", metavar="N", type=_count, help="times that draws are kept, for movie"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        help="what resume goes on from, till the result is saved (default: OUT.ckpt)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="CHECKPOINT", type=Path, help="left by a fit that was stopped")
    parser.add_argument(
        "problem",
        metavar="PROBLEM",
        nargs="?",
        help="path/to/file.py:name, where the fit was of one: its code runs only if it is named here",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="result (default: CHECKPOINT without .ckpt)")
    parser.add_argument("--overwrite", action="store_true", help="replace the result if it exists")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a result saved by fit")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the PNG files (default: beside FILE)")
    parser.add_argument("--overwrite", action="store_true", help="replace the PNG files if they exist")


def _add_movie_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a result saved by fit --snapshots")
    parser.add_argument("--out", metavar="MOVIE", type=Path, help=".gif or .mp4 (default: FILE with the suffix .gif)")
    parser.add_argument("--overwrite", action="store_true", help="replace the movie if it exists")


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a result saved by fit")
    parser.add_argument("--out", metavar="PAGE", type=Path, help="the page (default: FILE with the suffix .html)")
    parser.add_argument("--overwrite", action="store_true", help="replace the page if it exists")


def _setting(text: str) -> tuple[str, Any]:
    key, equals, literal = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"Expected KEY=VALUE; got {text!r}.")
    try:
        return key, ast.literal_eval(literal)
    # What is too deep for a literal is no literal either.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return key, literal


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"Expected a whole number > 0; got {text!r}.")
    return int(text)


def _seed(text: str) -> int:
    # Without 64-bit mode JAX keeps the lower half of a larger seed: two runs would silently be one.
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"Expected a whole number from 0 to 2^32 - 1; got {text!r}.")
    return int(text)


# The commands: each takes the parsed arguments and returns the exit code.


def _list(arguments: argparse.Namespace) -> int:
    """List the registered statistics and problems, with units, packages and versions."""
    from ._problem import _REGISTRY as problems
    from .statistics import _REGISTRY as statistics

    faults: list[str] = []
    for kind, registry, column, describe in (
        ("statistic", statistics, "unit", lambda found: str(found.unit or "-")),
        ("problem", problems, "arguments", _signature),
    ):
        providers = registry.providers()
        rows = [_row(provider, registry.get, describe, faults) for provider in providers]
        print(_table((kind, "package", "version", column), rows), end="\n\n")
        faults += _conflicts(kind, providers)
    for fault in faults:
        print(f"! {fault}")
    return DONE


def _check(arguments: argparse.Namespace) -> int:
    """Examine a problem before a long run: shapes, finiteness, gradients, feasibility."""
    import jax

    report = _problem(arguments).check(jax.random.key(arguments.seed))
    print(report)
    return DONE if report.passed else NOT_SATISFIED


def _fit(arguments: argparse.Namespace) -> int:
    """Find the maximum-entropy distribution of a problem and save it."""
    import jax

    from . import fit
    from ._checkpoint import clear

    problem = _problem(arguments)
    path = arguments.out or Path(f"{_file_name(problem.name)}.nc")
    _check_output(path, overwrite=arguments.overwrite)
    options = {name: getattr(arguments, name) for name in ("max_steps", "num_draws", "num_restarts", "num_snapshots")}
    given = {name: option for name, option in options.items() if option is not None}
    checkpoint = arguments.checkpoint or _beside(path)
    if arguments.overwrite:
        clear(checkpoint)
    if arguments.quiet:
        given["progress"] = False
    go_on = _how_to_go_on(checkpoint, arguments.problem)
    with _told_where_to_go_on(checkpoint, go_on):
        found = fit(jax.random.key(arguments.seed), problem, checkpoint=checkpoint, **given)
    return _finished(found, path, checkpoint, go_on, overwrite=arguments.overwrite)


def _resume(arguments: argparse.Namespace) -> int:
    """Go on with a fit that was stopped, to the result that it would have had."""
    from . import resume
    from ._checkpoint import read

    checkpoint = arguments.file
    path = arguments.out or checkpoint.with_suffix("")
    if path == checkpoint:
        raise ValueError(f"Expected a checkpoint that ends in .ckpt, or --out; got {checkpoint}.")
    _check_output(path, overwrite=arguments.overwrite)
    given = arguments.problem
    name, settings = read(checkpoint).about["origin"] or ("", "{}")
    if given is None and ".py:" in name:
        raise ValueError(
            f"Expected the problem of {checkpoint} beside it; it is {name}, a program, which does not run because a checkpoint "
            f"names it. If you trust it: {_how_to_go_on(checkpoint, name)}"
        )
    # A registered problem is for `resume` to find.
    problem = None if given is None else _asked_for(given, settings)
    go_on = _how_to_go_on(checkpoint, given)
    with _told_where_to_go_on(checkpoint, go_on):
        found = resume(checkpoint, problem, progress=False if arguments.quiet else None)
    return _finished(found, path, checkpoint, go_on, overwrite=arguments.overwrite)


def _how_to_go_on(checkpoint: Path, problem: str | None) -> str:
    of_file = [problem] if problem is not None and ".py:" in problem else []
    return shlex.join(["numpyro-epi", "resume", str(checkpoint), *of_file])


@contextmanager
def _told_where_to_go_on(checkpoint: Path, go_on: str) -> Iterator[None]:
    """For a run that is stopped before it has a result."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if checkpoint.exists():
            when = " before the first step" if isinstance(stop, StoppedBeforeFirstStep) else ""
            print(f"interrupted{when}\nGo on with it: {go_on}")
        raise


def _finished(result: Any, path: Path, checkpoint: Path, go_on: str, *, overwrite: bool) -> int:
    from ._checkpoint import remove

    print(result)
    cut_by = result.settings["cut_by"]
    if cut_by and checkpoint.exists():
        print(f"Go on with it: {go_on}")
        return CUT_BY[cut_by]
    print(f"Saved {_save(result, path, overwrite=overwrite)}")
    if cut_by:  # Its checkpoint could not be written: what there is, is saved.
        return CUT_BY[cut_by]
    remove(checkpoint)
    return DONE if bool(result.satisfied) else NOT_SATISFIED


def _plot(arguments: argparse.Namespace) -> int:
    """Draw the figures of a saved result as PNG files."""
    from . import read_arviz
    from ._files import written_aside
    from ._gallery import gallery

    source = arguments.file
    folder = arguments.out or source.parent
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"Expected --out to be a folder; got {folder}, which is none.")
    tree = read_arviz(source)
    pictures = gallery(tree)
    paths = {kind: folder / f"{source.stem}-{kind}.png" for kind in pictures}
    for path in paths.values():
        _check_free(path, overwrite=arguments.overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, draw in pictures.items():
        with written_aside(paths[kind]) as aside:
            draw(tree).savefig(aside)
        print(f"Saved {paths[kind]}")
    return DONE


def _movie(arguments: argparse.Namespace) -> int:
    """Write a movie of a saved run whose fit kept draws."""
    from . import movie

    path = arguments.out or arguments.file.with_suffix(".gif")
    _check_free(path, overwrite=arguments.overwrite)
    print(f"Saved {movie(arguments.file, path, overwrite=arguments.overwrite)}")
    return DONE


def _report(arguments: argparse.Namespace) -> int:
    """Write one self-contained HTML page about a saved result."""
    from . import report

    path = arguments.out or arguments.file.with_suffix(".html")
    _check_free(path, overwrite=arguments.overwrite)
    print(f"Saved {report(arguments.file, path, overwrite=arguments.overwrite)}")
    return DONE


# Listing.


def _row(
    provider: Provider, load: Callable[[str], Any], describe: Callable[[Any], str], faults: list[str]
) -> tuple[str, ...]:
    try:
        detail = describe(load(provider.qualified))
    # One broken plugin, whatever it raises, must not hide the others.
    except Exception as error:
        detail = "broken"
        faults.append(_one_line(error).removeprefix("PluginError: "))
    return provider.name, provider.distribution, provider.version, detail


def _signature(function: Callable[..., Any]) -> str:
    found = signature(function).parameters.values()
    return ", ".join(p.name if p.default is Parameter.empty else f"{p.name}={p.default!r}" for p in found) or "-"


def _conflicts(kind: str, providers: Iterable[Provider]) -> list[str]:
    groups = itertools.groupby(providers, key=lambda provider: provider.name)
    claims = {name: list(group) for name, group in groups}
    return [
        f"{kind.capitalize()} {name!r} is claimed by {' and '.join(f'{p.distribution} {p.version}' for p in group)}; "
        f"ask for {' or '.join(repr(p.qualified) for p in group)}."
        for name, group in claims.items()
        if len(group) > 1
    ]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, rule, *rows))
    return "\n".join(lines)


# Finding the problem.


def _problem(arguments: argparse.Namespace) -> Any:
    settings = dict(arguments.settings)
    if len(settings) < len(arguments.settings):
        raise ValueError(f"Expected each --set key once; got {[key for key, _ in arguments.settings]}.")
    return _problem_of(arguments.problem, settings)


def _problem_of(given: str, settings: dict[str, Any]) -> Any:
    from ._problem import get_problem, with_origin

    path, colon, name = given.rpartition(":")
    if given.endswith(".py"):
        raise ValueError(f"Expected path/to/file.py:name; got {given!r}, which names no object of the file.")
    if colon and path.endswith(".py"):
        return with_origin(_from_file(Path(path), name, settings), f"{Path(path).resolve()}:{name}", settings)
    return get_problem(given, **settings)


def _asked_for(given: str, settings: str) -> Any:
    from ._problem import origin_arguments

    return _problem_of(given, origin_arguments(settings))


def _from_file(path: Path, name: str, settings: dict[str, Any]) -> Any:
    from ._problem import Problem

    if not path.is_file():
        raise ValueError(f"Expected a Python file that defines {name!r}; got {path}, which is no file.")
    namespace = vars(_import_file(path))
    if name not in namespace:
        own = [key for key, held in namespace.items() if getattr(held, "__module__", "") == namespace["__name__"]]
        problems = [key for key, held in namespace.items() if isinstance(held, Problem)]
        raise ValueError(f"Expected {path} to define {name!r}; got {', '.join(own + problems) or 'nothing'}.")
    found = namespace[name]
    if isinstance(found, Problem):
        if settings:
            raise ValueError(f"Expected no --set for {name!r}, a Problem already; got {sorted(settings)}.")
        return found
    try:
        problem = found(**settings) if callable(found) else found
    except AssertionError as error:
        # NumPyro's models ask for a key by an assertion without words.
        raise TypeError(
            f"Expected {name!r} to be, or to return, a Problem; calling it failed. If it is a NumPyro model, write a function "
            "that returns epi.Problem(model, property)."
        ) from error
    if not isinstance(problem, Problem):
        raise TypeError(f"Expected {name!r} to be, or to return, a Problem; got {type(problem).__name__}.")
    return problem


def _import_file(path: Path) -> Any:
    # As when a script is run, the files beside it can be imported; its own name must hide no installed module.
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(f"_numpyro_epi_file_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # The suffix .py always has a loader.
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Where the result goes.


def _file_name(name: str) -> str:
    # Short, since letters may take four bytes each and a file's name has 255.
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)[:50]


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.ckpt")


def _check_output(path: Path, *, overwrite: bool) -> None:
    """Find out before a long run whether its result can be saved."""
    from ._datatree import check_target

    _check_free(path, overwrite=overwrite)
    check_target(path, overwrite)


def _check_free(path: Path, *, overwrite: bool) -> None:
    from ._files import check_free

    check_free(path, overwrite=overwrite, advice="Pass --overwrite, or another --out.")
    if path.is_dir() and path.suffix != ".zarr":
        raise ValueError(f"Expected the output to be a file; got the folder {path}. Pass another --out.")


def _save(result: Any, path: Path, *, overwrite: bool) -> Path:
    from ._files import put

    # What is there goes only once the new result is complete; and only if we may: another run may have taken the name
    # since the check, and then both results stay.
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    free = next(candidate for candidate in itertools.chain([path], numbered) if not os.path.lexists(candidate))
    result.save(free)
    if free == path or not overwrite:
        return free
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    put(free, path)
    return path
