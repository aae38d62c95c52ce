"""The shape of the package: imports point down the layers, importing is light, and every public name is explained."""

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import numpyro_epi

PACKAGE = Path(numpyro_epi.__file__).parent
LAYERS = (
    (
        "_types",
        "_arguments",
        "_process",
        "_keys",
        "_registry",
        "_html",
        "_files",
        "_stop",
        "_seal",
        "_budget",
        "_untrusted_hdf5",
        "_untrusted_zarr",
        "_inspection",
        "_datatree",
        "_products",
    ),
    ("_marginals", "_normals"),
    ("statistics", "signals", "matrices", "multipliers", "flows", "_mirror", "_priors", "_simulator", "_summits"),
    ("_property", "_problem", "_conditioned", "_guide", "_check"),
    ("objectives", "_outcome", "_responses", "_derivatives", "_density", "_result"),
    (
        "_loop",
        "_fresh",
        "_journal",
        "_checkpoint",
        "_kept",
        "_collective",
        "_noise",
        "_reference",
        "_chain_settings",
        "_path",
        "_chains",
        "_weights",
        "_pilot",
        "_nested",
        "_pool",
        "_certificate",
        "_weighed",
        "_search",
        "_work",
        "_reach",
        "_ladder",
        "_dual_weights",
        "_dual_chains",
        "_dual",
        "_gradients",
        "starts",
        "_optimizer",
        "_begin",
        "_settled",
        "_memory",
        "_restarts",
        "_snapshots",
        "_chunks",
        "_method",
        "_plan",
        "_fit",
    ),
    ("_axes", "_arviz", "_store", "_tilted"),
    (
        "_exported",
        "_canvas",
        "_overlays",
        "_pair",
        "_certificate_plot",
        "_matrix",
        "_predictive",
        "_slices",
        "_plots",
        "_gallery",
        "_movie",
        "_report",
    ),
    ("_cli",),
)
"""From the ground up; within a layer too, a module imports only what stands left of it."""

ORDER = {name: position for position, name in enumerate(name for layer in LAYERS for name in layer)}

UPWARD = {
    ("_problem", "_check"),
    ("_result", "_arviz"),
    ("_result", "_store"),
    ("_result", "_tilted"),
    ("_dual", "_tilted"),
}
"""Methods that hand their object to a module above, which they import when called."""

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported(statement: ast.stmt) -> Iterator[str]:
    """Modules of this package that one statement imports."""
    if isinstance(statement, ast.ImportFrom) and statement.level:
        if statement.module:
            yield statement.module.split(".")[0]
        else:
            yield from (alias.name for alias in statement.names if alias.name in ORDER)


def is_type_checking(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def split_imports(module: str) -> tuple[set[str], set[str]]:
    """What a module imports when it is imported, and what only when something in it is called."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    inner = [s for s in ast.walk(tree) if isinstance(s, ast.FunctionDef)]
    later = {name for function in inner for s in ast.walk(function) for name in imported(s)}
    at_once = {name for s in tree.body if not is_type_checking(s) for part in ast.walk(s) for name in imported(part)}
    return at_once - later, later


def test_every_module_has_a_layer():
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    at_once, later = split_imports(module)
    assert {name for name in at_once if ORDER[name] >= ORDER[module]} == set()
    assert {name for name in later if ORDER[name] >= ORDER[module] and (module, name) not in UPWARD} == set()


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_the_package_from_within(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = [alias.name for s in ast.walk(tree) if isinstance(s, ast.Import) for alias in s.names]
    absolute = [s.module or "" for s in ast.walk(tree) if isinstance(s, ast.ImportFrom) and not s.level]
    assert [name for name in names + absolute if name.split(".")[0] == "numpyro_epi"] == []


def test_importing_makes_no_array_and_loads_nothing_slow():
    """On a platform that does not exist every array is an error."""
    program = (
        "import sys, numpyro_epi\n"
        "print(sorted({'arviz', 'blackjax', 'matplotlib', 'pandas', 'scipy.optimize', 'xarray'} & set(sys.modules)))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", numpyro_epi.__all__)
def test_every_public_name_is_explained(name):
    found = getattr(numpyro_epi, name)
    if inspect.ismodule(found):
        for inner in found.__all__:
            value = getattr(found, inner)
            # An alias, such as that of a callable's type, explains itself in the text below it.
            if inspect.isclass(value) or inspect.isfunction(value):
                assert inspect.getdoc(value), f"{name}.{inner}"
    assert inspect.getdoc(found)


@pytest.mark.parametrize("name", [n for n in numpyro_epi.__all__ if inspect.isclass(getattr(numpyro_epi, n))])
def test_every_public_method_is_explained(name):
    """An override may rely on its abstract method."""
    for method, found in vars(getattr(numpyro_epi, name)).items():
        if not method.startswith("_") and (inspect.isfunction(found) or isinstance(found, property)):
            assert inspect.getdoc(getattr(getattr(numpyro_epi, name), method)), f"{name}.{method}"
