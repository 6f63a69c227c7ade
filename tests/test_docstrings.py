"""What the API pages make of docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import paperkit

ROLES = re.compile(r":\w+:`[^`]*`")


def test_no_property_has_a_colon_in_its_first_line() -> None:
    # Sphinx would take what stands before it for the property's type.
    found = []
    for path in sorted(Path(paperkit.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                decorators = " ".join(ast.unparse(one) for one in node.decorator_list)
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                if "property" in decorators and ":" in ROLES.sub("", first):
                    found.append(f"{path.name}: {node.name}")
    assert not found
