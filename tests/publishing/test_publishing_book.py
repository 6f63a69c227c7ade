"""The book is staged whole, points to the right repository and shows computed verdicts."""

import gc
import json
import subprocess
import weakref
from pathlib import Path

import pytest
import yaml

from paperkit.publishing import book, provenance
from paperkit.publishing.commands import SMOKE_PROCESSOR_SECONDS, smoke_verdict
from paperkit.publishing.notebooks import Duration, NotebookError

ROOT = Path(__file__).resolve().parents[2]
TOC = """format: jb-book
root: book/index
parts:
  - caption: Start
    chapters:
      - file: notebooks/01_a
"""
CONFIGURATION = """title: é
repository: {branch: main}
launch_buttons: {binderhub_url: "https://binder.example"}
html: {use_repository_button: true, use_issues_button: true}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one page and one chapter."""
    for folder in ("book", "notebooks", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "_config.yml").write_text(CONFIGURATION)
    (tmp_path / "book" / "index.md").write_text("# Title\n")
    (tmp_path / "results" / "study.jsonl").write_text("")
    for name in ("CHANGELOG.md", "LICENSE"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_staging_replaces_an_earlier_build_and_takes_the_given_notebooks(repository: Path) -> None:
    executed, target = repository / "01_a.ipynb", repository / "staged"
    executed.write_text("{}")
    target.mkdir()
    (target / "stale.md").write_text("old")
    book.stage(repository, target, [executed])
    staged = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert staged == {
        "_config.yml",
        "_toc.yml",
        "CHANGELOG.md",
        "LICENSE",
        "book/index.md",
        "notebooks/01_a.ipynb",
        "results/study.jsonl",
    }


def test_contents_list_the_pages_under_a_page_after_it(repository: Path) -> None:
    nested = "        sections:\n          - file: book/b\n          - file: book/c\n"
    (repository / "_toc.yml").write_text(TOC + nested + "      - file: book/d\n")
    pages = ["book/index", "notebooks/01_a", "book/b", "book/c", "book/d"]
    assert book.contents(repository) == pages


def test_the_chapters_are_numbered_in_the_order_of_their_files() -> None:
    # The builder counts the entries of all numbered parts together, from one.
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    numbered = [part for part in parts if part.get("numbered")]
    files = [chapter["file"] for part in numbered for chapter in part["chapters"]]
    assert [int(Path(file).name[:2]) for file in files] == list(range(1, len(files) + 1))
    assert files == [page for page in book.contents(ROOT) if page.startswith("notebooks/")]


def test_a_chapter_without_outputs_is_refused_with_the_remedy(repository: Path) -> None:
    with pytest.raises(book.BookError, match="no executed notebook for 01_a; run `make refresh`"):
        book.stage(repository, repository / "staged", [repository / "01_a.ipynb"])


@pytest.mark.parametrize(
    ("remote", "environment", "expected"),
    [
        (None, {}, None),
        ("https://git.example/a/b.git", {}, None),
        ("https://github.com/a/b.git", {}, "https://github.com/a/b"),
        ("git@github.com:a/b.c.git", {}, "https://github.com/a/b.c"),
        (
            "git@github.com:a/b.git",
            {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "c/d"},
            "https://github.com/c/d",
        ),
    ],
)
def test_the_repository_is_that_of_the_environment_then_that_of_the_remote(
    tmp_path: Path, remote: str | None, environment: dict[str, str], expected: str | None
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    if remote:
        subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", remote], check=True)
    assert book.repository_url(tmp_path, environment) == expected


def test_buttons_lead_to_the_repository(repository: Path) -> None:
    config = book.configuration(repository, "https://github.com/a/b")
    assert config == yaml.safe_load(CONFIGURATION) | {
        "repository": {"branch": "main", "url": "https://github.com/a/b"}
    }


def test_without_a_repository_no_button_leads_to_it(repository: Path) -> None:
    buttons = {"use_repository_button": False, "use_issues_button": False}
    assert book.configuration(repository, None) == {"title": "é", "html": buttons}
    # The book's own configuration has what is taken away here.
    assert not any(book.configuration(ROOT, None)["html"][button] for button in buttons)


def _published(folder: Path, dates: list[str]) -> None:
    from paperkit.experiments.records import Record, to_json

    records = [
        Record(
            study="s",
            profile="laptop",
            configuration={"seed": seed},
            metrics={},
            provenance={
                "date": date,
                "commit": f"{seed}" * 40,
                "device": "cpu (x86_64, 2 cores)",
                "dirty": False,
                "fingerprint": "",
            },
        )
        for seed, date in enumerate(dates)
    ]
    lines = [to_json(record) for record in records]
    assert all(json.loads(line) for line in lines)
    (folder / "results" / "s.jsonl").write_text("\n".join(lines) + "\n")


def test_last_verified_is_the_newest_published_record(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "results" / "study.jsonl").unlink()
    monkeypatch.setenv("PAPERKIT_ROOT", str(repository))
    assert provenance.last_verified() == "Not verified yet: no record has been published."
    _published(repository, ["2026-01-02T00:00:00Z", "2026-03-04T00:00:00Z", "2026-02-01T00:00:00Z"])
    assert provenance.last_verified() == (
        "Last verified 2026-03-04, at commit 1111111111, on cpu (x86_64, 2 cores)."
    )


def test_a_devices_name_is_shown_as_text(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERKIT_ROOT", str(repository))
    _published(repository, ["2026-01-02T00:00:00Z"])
    path = repository / "results" / "s.jsonl"
    path.write_text(path.read_text().replace("cpu (x86_64, 2 cores)", "<script>*</script>"))
    assert provenance.last_verified().endswith(", on &#60;script&#62;&#42;&#60;/script&#62;.")


def test_the_smoke_limit_is_the_one_that_contributors_are_told() -> None:
    told = f"at most {SMOKE_PROCESSOR_SECONDS} processor seconds"
    assert told in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_smoke_limit_counts_processor_seconds_and_not_the_clock() -> None:
    limit = SMOKE_PROCESSOR_SECONDS
    assert "MORE THAN" not in smoke_verdict("a.py", Duration(wall=100.0 * limit, processor=limit))
    assert "MORE THAN" in smoke_verdict("a.py", Duration(wall=1.0, processor=1.1 * limit))
    with pytest.raises(NotebookError, match=r"a\.py took 121 processor seconds"):
        smoke_verdict("a.py", Duration(wall=1.0, processor=3 * limit + 1))


def _small_book(folder: Path, text: str) -> Path:
    (folder / "_config.yml").write_text("title: Small\nexecute: {execute_notebooks: 'off'}\n")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: page\n")
    (folder / "page.md").write_text(f"# A page\n\n{text}\n")
    return folder


class _Referent:
    """A class whose objects can be referred to weakly."""


def test_a_book_is_built_in_this_process_which_stays_as_it_was(tmp_path, capsys):
    collections, frozen = gc.get_threshold(), gc.get_freeze_count()
    # Code that ran earlier may have left proxies of objects that are gone, which raise an error
    # when they are looked at.
    referent = _Referent()
    left_over = weakref.proxy(referent)
    del referent
    with pytest.raises(ReferenceError):
        isinstance(left_over, _Referent)
    assert any(it is left_over for it in gc.get_objects())
    page = book.build(_small_book(tmp_path, "Nothing more."))
    assert page.is_file() and (page.parent / "page.html").is_file()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (collections, frozen)
    assert capsys.readouterr().out == ""


def test_a_warning_stops_the_build_and_is_shown(tmp_path, capsys):
    collections = gc.get_threshold()
    with pytest.raises(book.BookError, match="did not build"):
        book.build(_small_book(tmp_path, "See {ref}`nowhere`."))
    assert "undefined label: 'nowhere'" in capsys.readouterr().err
    assert gc.get_threshold() == collections
