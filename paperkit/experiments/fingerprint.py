"""A fingerprint of the code behind a study: what it imports, without comments or docstrings.

The walk is static: it reads import statements, those inside functions too, and executes
nothing. A name that a package's ``__init__`` only passes on is followed to the module that
defines it, so that a new neighbour in the same package makes no record stale.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import paperkit
from paperkit.experiments import studies
from paperkit.experiments.study import Study, study_named

# A study imports `Study` and `RunContext`, and what runs, stores, judges or draws its records
# does not change their metrics: a better sentence in a verdict must not make them stale.
FRAMEWORK = (
    "paperkit.experiments",
    "paperkit.ledger",
    "paperkit.publishing",
    "paperkit.plotting",
    "paperkit.cli",
)


def fingerprint(study: Study) -> str:
    """Return the SHA-256 of the code that a run of the study imports from this package.

    It covers the syntax trees of the study's module, of the modules of the studies that it
    needs, and of every module of ``paperkit`` that they import, directly or not, except the
    framework around studies. Formatting, comments and docstrings do not count.

    Parameters
    ----------
    study : Study

    Returns
    -------
    str
        The sum in 64 hexadecimal digits.

    Raises
    ------
    ValueError
        If the study's ``run`` is not defined in a module with a file.
    """
    digest = hashlib.sha256()
    for name, content in sorted(_closure(_roots(study)).items()):
        digest.update(f"{name}\n{content}\n".encode())
    return digest.hexdigest()


def code_behind(text: str, modules: Iterable[str] = ()) -> dict[str, str]:
    """Return the code of this package that a script imports, the framework included, by module.

    Parameters
    ----------
    text : str
        Source of the script.
    modules : iterable of str
        Modules that it loads by name, without a statement that says so.

    Returns
    -------
    dict of str to str
        By module, its syntax tree without comments and docstrings; under ``""`` the script's.
    """
    code = _code(text)
    roots = {*_imports(code.imports, "", is_package=False), *modules}
    return {"": code.content, **_closure(roots, framework=True)}


def imported_modules(study: Study) -> list[str]:
    """Return the names of the modules that the study's fingerprint covers, sorted."""
    return sorted(_closure(_roots(study)))


def _roots(study: Study) -> set[str]:
    module = sys.modules.get(getattr(study.run, "__module__", ""))
    if getattr(module, "__file__", None) is None or module is None:
        raise ValueError(
            f"the run function of study {study.name!r} must be defined in a module of "
            f"{studies.__name__}, not in a notebook or as an object without a module."
        )
    roots = {module.__name__}
    for name in study.needs:
        roots |= _roots(study_named(name))
    return roots


def _closure(roots: set[str], *, framework: bool = False) -> dict[str, str]:
    contents: dict[str, str] = {}
    waiting = sorted(roots)
    while waiting:
        name = waiting.pop()
        left_out = not framework and _is_framework(name) and name not in roots
        if name in contents or left_out:
            continue
        path = _source(name) or Path(str(sys.modules[name].__file__))
        code = _code(path.read_text(encoding="utf-8"))
        waiting.extend(_imports(code.imports, name, is_package=path.name == "__init__.py"))
        waiting.extend(_acting_packages(name))
        contents[name] = code.content
    return contents


def _acting_packages(module: str) -> Iterator[str]:
    """Yield the packages above a module whose ``__init__`` does more than pass names on."""
    while "." in module:
        module = module.rpartition(".")[0]
        path = _source(module)
        if path is not None and _code(path.read_text(encoding="utf-8")).acts:
            yield module


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class _Code:
    """A file's syntax tree without docstrings, as text, and what of it the walk needs."""

    content: str
    imports: tuple[ast.Import | ast.ImportFrom, ...]
    acts: bool


@cache
def _code(text: str) -> _Code:
    tree = ast.parse(text)
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        elif isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    acts = not all(_passes_on(node) for node in tree.body)
    return _Code(ast.dump(tree), tuple(imports), acts)


def _passes_on(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    return isinstance(node, ast.Import | ast.ImportFrom)


def _is_framework(name: str) -> bool:
    if name.startswith(f"{studies.__name__}."):
        return False
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in FRAMEWORK)


def _source(name: str) -> Path | None:
    """Return the file of a module of this package, found without importing it."""
    parts = name.split(".")
    if parts[0] != paperkit.__name__:
        return None
    search = [Path(entry) for entry in paperkit.__path__]
    path = next((f for f in (entry / "__init__.py" for entry in search) if f.is_file()), None)
    for depth, part in enumerate(parts[1:], start=2):
        path = _find(search, part)
        if path is None or (depth < len(parts) and path.name != "__init__.py"):
            return None
        # An imported package may have been given further folders.
        loaded = sys.modules.get(".".join(parts[:depth]))
        search = [Path(entry) for entry in getattr(loaded, "__path__", [path.parent])]
    return path


def _find(search: list[Path], part: str) -> Path | None:
    for folder in search:
        for candidate in (folder / part / "__init__.py", folder / f"{part}.py"):
            if candidate.is_file():
                return candidate
    return None


def _imports(
    statements: Iterable[ast.Import | ast.ImportFrom], importer: str, *, is_package: bool
) -> Iterator[str]:
    for node in statements:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _source(alias.name) is not None:
                    yield alias.name
        else:
            origin = _origin(node, importer, is_package=is_package)
            if _source(origin) is not None:
                for alias in node.names:
                    yield _definer(origin, alias.name)


def _origin(node: ast.ImportFrom, importer: str, *, is_package: bool) -> str:
    """Return the absolute name of the module that a ``from`` statement names."""
    if node.level == 0:
        return node.module or ""
    parts = importer.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def _definer(package: str, name: str) -> str:
    """Follow a name through the ``__init__`` files that pass it on to the module it is from."""
    submodule = f"{package}.{name}"
    if _source(submodule) is not None:
        return submodule
    path = _source(package)
    if path is None or path.name != "__init__.py":
        return package
    for node in _code(path.read_text(encoding="utf-8")).imports:
        if isinstance(node, ast.ImportFrom):
            origin = _origin(node, package, is_package=True)
            for alias in node.names:
                # An import of the package from itself would lead back here.
                if (alias.asname or alias.name) == name and origin != package:
                    return _definer(origin, alias.name) if _source(origin) else package
    return package
