"""The layers of the package: imports point down only, and importing it is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_lowrank"
FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# From the bottom up. A part imports itself and the parts of the rows below its own; parts of one row stay apart.
LAYERS = (
    {"arrays", "errors", "files", "generators"},
    {"compilation"},
    {"piecewise", "scalars"},
    {"modules", "parameters", "shapes"},
    {"fixed_points"},
    {"dynamics", "encoders", "observations"},
    {"handlers"},
    {"models"},
    {"guides"},
    {"smc"},
    {"kalman"},
    {"infer"},
    {"data", "export", "metrics", "plots"},
    {"interop", "serialization"},
    {"training"},
    {"validation"},
    {"reports"},
)
HEIGHT = {part: height for height, row in enumerate(LAYERS) for part in row}

# Parts that import whatever they need, and that no part imports.
FRONT_DOORS = {"__init__", "__main__", "cli"}

# Parts that see less than what lies below them: results reach them as plain arrays and objects.
ONLY = {
    "data": {"arrays", "errors"},
    "export": {"errors"},
    "fixed_points": {"compilation", "errors", "piecewise"},
    "metrics": {"arrays", "errors"},
    "plots": {"arrays", "errors"},
}

# Where each optional or heavy library may be imported: at the top of these files, or deferred in these parts.
COMPILED = {f"dynamics/compiled/{name}.py" for name in ("arithmetic", "units")}
COMPILED |= {f"smc/compiled/{name}.py" for name in ("records", "likelihoods/base", "likelihoods/driven")}
AT_TOP = {
    "arviz": {"export/arviz.py"},
    "numba": COMPILED,
    "xarray": {"export/arviz.py"},
}
DEFERRED: dict[str, set[str]] = {
    "arviz": set(),
    "h5netcdf": {"data"},
    "h5py": {"data"},
    "jinja2": {"reports"},
    "loky": {"validation"},
    "matplotlib": {"plots"},
    "mne": {"data"},
    "numba": {"compilation"},
    "plotly": {"plots"},
    "pynapple": {"data"},
    "pynwb": {"data"},
    "xarray": {"data", "export"},
}


class Import(NamedTuple):
    """One imported module, as its full dotted name."""

    module: str
    line: int
    deferred: bool
    """Whether it stands in a function or under `if TYPE_CHECKING`, so that it does not run with the file."""


def part_of(path: Path) -> str:
    """Name of the part, a folder or a file right below the package, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_for_type_checkers(node: ast.AST) -> bool:
    """Whether a node is the block `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@cache
def imports(path: Path) -> list[Import]:
    """Every import of a file, wherever it stands, with relative names resolved."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    here = ("pyro_lowrank", *path.relative_to(PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferring = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS) or is_for_type_checkers(node)]
    deferred = {id(child) for node in deferring for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in deferred)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, id(node) in deferred)


def violations_of_layers(path: Path) -> list[str]:
    """Imports of the package's own modules that do not point down."""
    part = part_of(path)
    if part in FRONT_DOORS:
        return []
    if part not in HEIGHT:
        return [f"{part}: give it a place in LAYERS"]
    below = {other for other, height in HEIGHT.items() if height < HEIGHT[part]}
    allowed = ONLY.get(part, below) | {part}
    rows = []
    for found in imports(path):
        package, _, rest = found.module.partition(".")
        if package == "pyro_lowrank" and rest.partition(".")[0] not in allowed:
            rows.append(f"{path.relative_to(ROOT)}:{found.line}: {part} imports {found.module}")
    return rows


def test_imports_point_down() -> None:
    rows = [row for path in FILES for row in violations_of_layers(path)]
    assert not rows, "\n".join(rows)


@pytest.mark.parametrize("library", sorted(DEFERRED))
def test_optional_libraries_are_imported_only_where_used(library: str) -> None:
    rows = []
    for path in FILES:
        for found in imports(path):
            at_top = path.relative_to(PACKAGE).as_posix() in AT_TOP.get(library, set())
            lazily = found.deferred and part_of(path) in DEFERRED[library]
            if found.module.partition(".")[0] == library and not (at_top or lazily):
                rows.append(f"{path.relative_to(ROOT)}:{found.line}: imports {found.module}")
    assert not rows, "\n".join(rows)


def python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("part", ["data", "export", "fixed_points", "metrics", "plots"])
def test_what_takes_arrays_only_imports_neither_torch_nor_pyro(part: str) -> None:
    seen = {part} | ONLY[part]
    names = {f"pyro_lowrank.{part_of(path)}" for path in FILES if part_of(path) in seen}
    code = f"import {', '.join(['sys', *sorted(names)])}; print(*sorted({{'torch', 'pyro'}} & set(sys.modules)))"
    assert python(code).split() == []


def test_the_package_imports_no_library_for_files_or_figures() -> None:
    libraries = {"arviz", "h5netcdf", "h5py", "jinja2", "matplotlib", "mne", "pandas", "pynapple", "pynwb", "xarray"}
    heavy = python(
        "import sys, pyro_lowrank as plr\n"
        "for name in getattr(plr, '__all__', []):\n"
        "    name == 'to_arviz' or getattr(plr, name)\n"
        f"print(*sorted({libraries!r} & set(sys.modules)))"
    )
    assert heavy.split() == []


def length_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its `def` on, its docstring left out."""
    docstring = ast.get_docstring(function, clean=False)
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    return lines - (docstring.count("\n") + 1 if docstring else 0)


def test_files_and_functions_stay_short() -> None:
    rows = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            rows.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines, at most 400")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, FUNCTIONS) and length_without_docstring(node) > 60:
                rows.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} is longer than 60 lines")
    assert not rows, "\n".join(rows)


def forbidden_calls(path: Path) -> Iterator[str]:
    """Calls that print, unpickle, or change what belongs to the whole process."""
    shared_state = {"np.random.seed", "torch.manual_seed", "torch.set_default_device", "torch.set_default_dtype"}
    shared_state |= {"torch.set_num_threads", "warnings.filterwarnings"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        prints = name == "print" and part_of(path) != "cli"
        unpickles = name == "torch.load" and options.get("weights_only") != "True"
        unpickles |= name in {"np.load", "numpy.load"} and options.get("allow_pickle", "False") != "False"
        if prints or unpickles or name in shared_state:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}"


def test_nothing_prints_unpickles_or_changes_shared_state() -> None:
    rows = [row for path in FILES for row in forbidden_calls(path)]
    pickles = {"cloudpickle", "dill", "joblib", "pickle", "shelve"}
    for path in FILES:
        found = [i for i in imports(path) if i.module.partition(".")[0] in pickles]
        rows += [f"{path.relative_to(ROOT)}:{i.line}: imports {i.module}" for i in found]
    assert not rows, "\n".join(rows)
