import pytest

from paperkit.experiments import Study
from paperkit.experiments.fingerprint import fingerprint, imported_modules
from paperkit.experiments.study import study_named

PARTS = "selftest_parts/arithmetic.py"


def code():
    return fingerprint(study_named("selftest_measure"))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (PARTS, "# A comment.", "# Another one.\n\n    # And more."),
        (PARTS, '"""Return the double."""', '"""Return twice the value."""'),
        (PARTS, '    """Return the double."""\n', ""),
        (PARTS, '"""Doubles."""', "'''Two.'''"),
        (PARTS, "return 2 * value", "return (2\n        * value)"),
        ("selftest_measure.py", '    """Measure a run."""\n', ""),
    ],
)
def test_comments_docstrings_and_formatting_do_not_change_it(studies_folder, edit, name, old, new):
    before = code()
    edit(name, old, new)
    assert code() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (PARTS, "return 2 * value", "return value + value"),
        ("selftest_measure.py", '"large": 10.0', '"large": 10.5'),
        ("selftest_training.py", "STEPS = 4", "STEPS = 5"),
        ("selftest_parts/__init__.py", "__all__ = ", "print()\n\n__all__ = "),
    ],
)
def test_code_of_the_study_of_what_it_imports_and_of_what_it_needs_changes_it(
    studies_folder, edit, name, old, new
):
    before = code()
    edit(name, old, new)
    assert code() != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("selftest_parts/unrelated.py", "3 * value", "4 * value"),
        ("selftest_parts/__init__.py", "import triple", "import triple as thrice"),
        ("selftest_parts/__init__.py", '"triple"]', '"triple", "more"]'),
    ],
)
def test_a_neighbour_in_the_same_package_does_not_change_it(studies_folder, edit, name, old, new):
    before = code()
    edit(name, old, new)
    assert code() == before


def test_imports_inside_functions_are_followed(studies_folder, edit):
    edit(
        "selftest_measure.py",
        '    """Measure a run."""',
        "    from .selftest_parts.unrelated import triple as thrice\n",
    )
    before = code()
    edit("selftest_parts/unrelated.py", "3 * value", "4 * value")
    assert code() != before


def test_the_framework_around_studies_does_not_enter_it(studies_folder):
    modules = imported_modules(study_named("selftest_measure"))
    assert modules == [
        "paperkit.experiments.studies.selftest_measure",
        "paperkit.experiments.studies.selftest_parts.arithmetic",
        "paperkit.experiments.studies.selftest_training",
    ]


def test_the_numerical_rooms_enter_it(studies_folder, edit):
    edit(
        "selftest_measure.py",
        "import json\n",
        "import json\nimport paperkit.linalg.gram\n",
    )
    assert "paperkit.linalg.gram" in imported_modules(study_named("selftest_measure"))


def test_what_a_package_does_beside_passing_names_on_is_followed(studies_folder, edit):
    edit("selftest_parts/__init__.py", "__all__ = ", "triple(1)\n\n__all__ = ")
    before = code()
    edit("selftest_parts/unrelated.py", "3 * value", "4 * value")
    assert code() != before


def test_a_function_named_like_a_neighbouring_module_does_not_bring_that_module(
    studies_folder, edit
):
    edit(
        "selftest_parts/arithmetic.py",
        "def double",
        "def unrelated(value):\n    return 0\n\n\ndef double",
    )
    edit(
        "selftest_measure.py",
        "selftest_parts import double",
        "selftest_parts.arithmetic import double, unrelated  # noqa: F401",
    )
    modules = imported_modules(study_named("selftest_measure"))
    assert not any(module.endswith("unrelated") for module in modules)


def test_a_study_without_a_module_is_refused():
    class Run:
        def __call__(self, configuration, context):
            return {}

    run = Run()
    run.__module__ = "nowhere"
    with pytest.raises(ValueError, match="must be defined in a module"):
        fingerprint(Study("any", "?", lambda profile: [], run))
