"""Files and command lines that are wrong, and the error that each must give."""

import os

import jax.numpy as jnp
import xarray as xr
from flowjax.distributions import Normal
from mistakes import RESULT, TINY, Row, folder, model, problem, z

import numpyro_epi as epi

FILES = [
    Row("read, missing", lambda: epi.read_arviz(folder() / "no.nc"), FileNotFoundError, "no.nc; there is no such file"),
    Row("read, a number", lambda: epi.read_arviz(3), TypeError, "int"),
    Row("read, suffix", lambda: epi.read_arviz("result.csv"), ValueError, r"ends in .nc .*; got result.csv"),
    Row("read, folder", lambda: epi.read_arviz(folder() / "folder.nc"), ValueError, "got the folder .*folder.nc"),
    Row("read, file", lambda: epi.read_arviz(folder() / "file.zarr"), ValueError, "got the file .*file.zarr"),
    Row(
        "read, empty folder",
        lambda: epi.read_arviz(folder() / "empty.zarr"),
        ValueError,
        "complete exported result at .*empty.zarr",
    ),
    Row(
        "read, text",
        lambda: epi.read_arviz(folder() / "text.nc"),
        ValueError,
        "complete exported result at .*text.nc; reading",
    ),
    Row(
        "read, empty",
        lambda: epi.read_arviz(folder() / "empty.nc"),
        ValueError,
        "complete exported result at .*empty.nc; reading",
    ),
    Row(
        "read, foreign",
        lambda: epi.read_arviz(folder() / "foreign.nc"),
        ValueError,
        r"numpyro_epi exported .*; .*foreign.nc has \[",
    ),
    Row(
        "read, plain HDF5", lambda: epi.read_arviz(folder() / "plain.nc"), ValueError, "at .*plain.nc|; .*plain.nc has"
    ),
    Row("read, odd letters", lambda: epi.read_arviz("n\udcff.nc"), FileNotFoundError, "there is no such file"),
    Row(
        "load, no result",
        lambda: epi.load(folder() / "exported.nc", TINY),
        ValueError,
        r"exported.nc has no group \['guide', 'verdict'\]",
    ),
    Row(
        "load, no problem",
        lambda: epi.load(folder() / "saved.nc", model),
        TypeError,
        "the Problem that was fitted; got <function model",
    ),
    Row(
        "load, another problem",
        lambda: epi.load(folder() / "saved.nc", problem(statistic=z)),
        ValueError,
        r"\['z\[0\]', 'z\[1\]'\]; .*saved.nc",
    ),
    Row(
        "load, another target",
        lambda: epi.load(folder() / "saved.nc", problem(mean=2.0)),
        ValueError,
        r"targets \[2.0\]; .*saved.nc has \[0.0\]",
    ),
    Row(
        "load, another flow",
        lambda: epi.load(folder() / "saved.nc", TINY, flow=lambda key, dim: Normal(jnp.zeros(dim))),
        ValueError,
        "arrays in .*saved.nc",
    ),
    Row(
        "load, flow a text",
        lambda: epi.load(folder() / "saved.nc", TINY, flow="default"),
        TypeError,
        "flow to be the builder .*'default'",
    ),
    Row("save, suffix", lambda: RESULT.save(folder() / "result.pkl"), ValueError, "ends in .nc .*; got .*result.pkl"),
    Row(
        "save, no folder",
        lambda: RESULT.save(folder() / "no" / "result.nc"),
        FileNotFoundError,
        "Expected a folder at .*no; there is none",
    ),
    Row(
        "save, existing",
        lambda: RESULT.save(folder() / "text.nc"),
        FileExistsError,
        "does not exist; got .*text.nc. Pass overwrite=True",
    ),
    Row(
        "save, link to nowhere",
        lambda: RESULT.save(folder() / "link.nc"),
        FileExistsError,
        "does not exist; got .*link.nc",
    ),
    Row(
        "save, over a folder",
        lambda: RESULT.save(folder() / "folder.nc", overwrite=True),
        FileExistsError,
        "folder.nc to be something h5netcdf",
    ),
    Row(
        "plot, a dictionary",
        lambda: epi.plot_pair({"a": 1}),
        TypeError,
        r"Expected exported data .*; got \{'a': 1\}. A result exports",
    ),
    Row("plot, the result itself", lambda: epi.plot_fit(RESULT), TypeError, "A result exports itself: result.to_arviz"),
    Row(
        "plot, parameters a text",
        lambda: epi.plot_pair(folder() / "exported.nc", parameters="z"),
        TypeError,
        r"got the string 'z'. Write \('z',\)",
    ),
    Row(
        "plot, unknown parameter",
        lambda: epi.plot_pair(folder() / "exported.nc", parameters=("q",)),
        ValueError,
        r"got \['q'\]",
    ),
    Row(
        "plot, no parameter",
        lambda: epi.plot_pair(folder() / "exported.nc", parameters=()),
        ValueError,
        "got an empty sequence",
    ),
    Row(
        "plot, no draw",
        lambda: epi.plot_pair(folder() / "exported.nc", num_draws=0),
        ValueError,
        "num_draws to be an integer >= 1; got 0",
    ),
    Row(
        "plot, a fraction",
        lambda: epi.plot_pair(folder() / "exported.nc", max_parameters=2.5),
        ValueError,
        "max_parameters .*; got 2.5",
    ),
    Row(
        "plot, no groups",
        lambda: epi.plot_statistics(xr.DataTree()),
        ValueError,
        r"Expected a group 'posterior_predictive'; got the groups \[\]",
    ),
    Row(
        "report, suffix",
        lambda: epi.report(folder() / "exported.nc", "page.pdf"),
        ValueError,
        "ends in .html or .htm; got page.pdf",
    ),
    Row(
        "report, existing",
        lambda: epi.report(folder() / "exported.nc", folder() / "page.html"),
        FileExistsError,
        "does not exist; got .*page.html",
    ),
    Row(
        "report, link",
        lambda: epi.report(folder() / "exported.nc", folder() / "link.html"),
        FileExistsError,
        "does not exist; got .*link.html",
    ),
    Row(
        "report, folder",
        lambda: epi.report(folder() / "exported.nc", folder() / "folder.html", overwrite=True),
        ValueError,
        "got the folder .*folder.html",
    ),
    Row(
        "report, no folder",
        lambda: epi.report(folder() / "exported.nc", folder() / "no" / "p.html"),
        FileNotFoundError,
        "Expected a folder at .*no;",
    ),
    *(
        Row(f"{name}, closed folder", call, PermissionError, "Expected a folder one can write to; got /proc/self")
        for name, call in (
            ("report", lambda: epi.report(folder() / "exported.nc", "/proc/self/p.html")),
            ("movie", lambda: epi.movie(folder() / "exported.nc", "/proc/self/p.gif")),
        )
        if os.path.isdir("/proc/self")
    ),
    Row(
        "report, a number", lambda: epi.report(3, folder() / "new.html"), TypeError, "Expected exported data .*; got 3"
    ),
]

CLI = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["fti", "x"], "invalid choice: 'fti'"),
    "unknown option": (["fit", "x", "--stpes", "5"], "unrecognized arguments: --stpes"),
    "no problem": (["fit"], "required: PROBLEM"),
    "unknown problem": (["check", "dynamics.oscilator"], "Expected a registered problem; got 'dynamics.oscilator'"),
    "problem a file": (["check", "{0}/problems.py"], "Expected path/to/file.py:name; got '.*problems.py'"),
    "no such file": (["fit", "{0}/none.py:build"], "Expected a Python file that defines 'build'; got .*none.py"),
    "no such object": (["fit", "{0}/problems.py:biuld"], "to define 'biuld'; got .*build"),
    "object of another type": (
        ["fit", "{0}/problems.py:number"],
        "Expected 'number' to be, or to return, a Problem; got int",
    ),
    "model for a problem": (["fit", "{0}/problems.py:model"], "Expected 'model' to be, or to return, a Problem"),
    "set, no value": (["fit", "x", "--set", "mean"], "Expected KEY=VALUE; got 'mean'"),
    "set, no name": (["fit", "x", "--set", "=3"], "Expected KEY=VALUE; got '=3'"),
    "set, name a number": (["fit", "x", "--set", "1=2"], "Expected KEY=VALUE; got '1=2'"),
    "set, twice": (
        ["fit", "{0}/problems.py:build", "--set", "mean=1", "--set", "mean=2"],
        r"each --set key once; got \['mean', 'mean'\]",
    ),
    "set, unknown": (["fit", "{0}/problems.py:build", "--set", "men=1"], "argument 'men'"),
    "set, missing": (["fit", "{0}/problems.py:sized"], "missing 1 required keyword-only argument: 'size'"),
    "set, a text": (
        ["fit", "{0}/problems.py:build", "--set", "mean=high"],
        "Expected mean of 'z' to be numbers; got 'high'",
    ),
    "set, nan": (["fit", "{0}/problems.py:build", "--set", "mean=1e999"], "Expected a finite mean for 'z'; got inf"),
    "set, of wrong type": (["fit", "{0}/problems.py:sized", "--set", "size=[1]"], "TypeError: .*list"),
    "set, zero": (["fit", "{0}/problems.py:sized", "--set", "size=0"], "ZeroDivisionError: .*by zero"),
    "set, for a ready one": (
        ["fit", "{0}/problems.py:ready", "--set", "mean=1"],
        r"Expected no --set for 'ready', .*; got \['mean'\]",
    ),
    "set, deep": (["fit", "x", "--set", "mean=" + "(" * 5000], "Expected a registered problem; got 'x'"),
    "set, many signs": (["fit", "x", "--set", f"mean={'-' * 5000}1"], "Expected a registered problem; got 'x'"),
    "set, more signs": (["fit", "x", "--set", f"mean={'-' * 100_000}1"], "Expected a registered problem; got 'x'"),
    "set, no key": (["fit", "x", "--set", "mean={[]: 1}"], "Expected a registered problem; got 'x'"),
    "snapshots zero": (["fit", "x", "--snapshots", "0"], "Expected a whole number > 0; got '0'"),
    "checkpoint, text": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/n.nc", "--checkpoint", "{0}/text.nc"],
        "Expected no checkpoint yet; got .*text.nc",
    ),
    "checkpoint, text to replace": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/n.nc", "--checkpoint", "{0}/text.nc", "--overwrite"],
        "Expected a checkpoint to replace; .*text.nc is none",
    ),
    "checkpoint, no folder": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/n.nc", "--checkpoint", "{0}/no/c"],
        "Expected a folder for the checkpoint; .*no is none",
    ),
    "checkpoint, a folder": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/n.nc", "--checkpoint", "{0}/folder.nc"],
        "Expected a file for the checkpoint; got the folder .*folder.nc",
    ),
    "checkpoint, empty": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/n.nc", "--checkpoint", ""],
        "Expected a file for the checkpoint",
    ),
    "resume, nothing": (["resume"], "required: CHECKPOINT"),
    "resume, missing": (["resume", "{0}/none.nc.ckpt"], "Expected a checkpoint; there is no .*none.nc.ckpt"),
    "resume, text": (
        ["resume", "{0}/text.nc.ckpt", "--out", "{0}/n.nc"],
        "Expected 'numpyro-epi checkpoint [0-9]+' at the start of .*text.nc.ckpt",
    ),
    "resume, no suffix": (["resume", "{0}/run"], "Expected a checkpoint that ends in .ckpt, or --out; got .*run"),
    "resume, other suffix": (["resume", "{0}/run.csv.ckpt"], "ends in .nc .*; got .*run.csv"),
    "resume, existing": (["resume", "{0}/exported.nc.ckpt"], "does not exist; got .*exported.nc. Pass --overwrite"),
    "resume, a folder": (["resume", "{0}/folder.ckpt", "--out", "{0}/n.nc"], "Expected a checkpoint; there is no"),
    "movie, missing": (["movie", "{0}/none.nc"], "none.nc; there is no such file"),
    "movie, text": (["movie", "{0}/text.nc"], "complete exported result at .*text.nc"),
    "movie, no draws kept": (["movie", "{0}/exported.nc", "--out", "{0}/n.gif"], "num_snapshots"),
    "movie, existing": (["movie", "{0}/exported.nc", "--out", "{0}/page.html"], "does not exist; got .*page.html"),
    "movie, suffix": (["movie", "{0}/exported.nc", "--out", "{0}/n.png"], "ends in .*; got .*n.png"),
    "steps negative": (["fit", "x", "--steps", "-5"], "Expected a whole number > 0; got '-5'"),
    "steps zero": (["fit", "x", "--steps", "0"], "Expected a whole number > 0; got '0'"),
    "steps too large": (
        ["fit", "{0}/problems.py:ready", "--steps", "1000000000000"],
        "max_steps .*; got 1000000000000",
    ),
    "steps in other digits": (["fit", "x", "--steps", "²"], "Expected a whole number > 0; got '²'"),
    "draws a fraction": (["fit", "x", "--num-draws", "1.5"], "Expected a whole number > 0; got '1.5'"),
    "draws too few": (
        ["fit", "{0}/problems.py:ready", "--num-draws", "2", "--out", "{0}/n.nc"],
        "num_draws to be an integer >= 4; got 2",
    ),
    "restarts a word": (["fit", "x", "--restarts", "two"], "Expected a whole number > 0; got 'two'"),
    "seed a word": (["fit", "x", "--seed", "lucky"], "Expected a whole number from 0 to .*; got 'lucky'"),
    "seed negative": (["check", "x", "--seed", "-1"], "Expected a whole number from 0 to .*; got '-1'"),
    "seed too large": (
        ["check", "x", "--seed", "4294967296"],
        "Expected a whole number from 0 to .*; got '4294967296'",
    ),
    "out, suffix": (["fit", "{0}/problems.py:ready", "--out", "{0}/r.csv"], "ends in .nc .*; got .*r.csv"),
    "out, no folder": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/no/r.nc"],
        "Expected a folder at .*no; there is none",
    ),
    "out, existing": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/text.nc"],
        "does not exist; got .*text.nc. Pass --overwrite",
    ),
    "out, link": (["fit", "{0}/problems.py:ready", "--out", "{0}/link.nc"], "does not exist; got .*link.nc"),
    "out, folder": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/folder.nc", "--overwrite"],
        "to be a file; got the folder .*folder.nc",
    ),
    "out, not ours": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/empty.zarr", "--overwrite"],
        "empty.zarr to be something zarr wrote",
    ),
    "plot, missing": (["plot", "{0}/none.nc"], "none.nc; there is no such file"),
    "plot, text": (["plot", "{0}/text.nc", "--out", "{0}/figures"], "complete exported result at .*text.nc"),
    "plot, foreign": (["plot", "{0}/foreign.nc", "--out", "{0}/figures"], "numpyro_epi exported"),
    "plot, existing": (["plot", "{0}/exported.nc"], "does not exist; got .*exported-pair.png. Pass --overwrite"),
    "plot, to a file": (
        ["plot", "{0}/exported.nc", "--out", "{0}/text.nc"],
        "Expected --out to be a folder; got .*text.nc",
    ),
    "report, missing": (["report", "{0}/none.nc"], "none.nc; there is no such file"),
    "report, text": (["report", "{0}/text.nc"], "complete exported result at .*text.nc"),
    "report, existing": (["report", "{0}/exported.nc", "--out", "{0}/page.html"], "does not exist; got .*page.html"),
    "report, to a folder": (
        ["report", "{0}/exported.nc", "--out", "{0}/folder.html", "--overwrite"],
        "to be a file; got the folder",
    ),
    "report, suffix": (["report", "{0}/exported.nc", "--out", "{0}/page.txt"], "ends in .html or .htm; got .*page.txt"),
}
