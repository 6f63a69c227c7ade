"""The book's extension of Sphinx: verdicts and the API on the pages, and all without a network.

Pages get a description and lose scripts that they do not need (``page_head``); the search knows no
accents (``search_language``), and the bibliography's labels are the citations (``author_year``).

Directives
----------
``{scoreboard}``
    The counts of verdicts; with an argument, those of one paper.
``{findings}``
    Sentences with the badges of claims, one line each, ``claim-id (word): sentence``. Where a
    verdict is another one by now, the build stops.
``{ledger} PAPER``
    Every claim of a paper with its criterion, evidence and verdict; without, links to these pages.
``{corrections}``
    What the papers print and what should stand there, from the claims; with an argument, those of
    one paper.
``{verdicts} ANCHOR``
    Those of one chapter.
``{members} MODULE``
    Public names of a module: their table, and their docstrings.
``{plan} PROFILE``, ``{projections}``
    What the studies would take, and by which factor plans were off.
"""

from __future__ import annotations

import shutil
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from paperkit import arguments
from paperkit.experiments.engines.local import available_cores
from paperkit.publishing import author_year, page_head, sidebar
from paperkit.publishing.api_pages import Members
from paperkit.publishing.markdown_directive import MarkdownDirective
from paperkit.publishing.plan_pages import Plan, Projections
from paperkit.publishing.provenance import last_verified
from paperkit.publishing.search_language import AccentlessEnglish

if TYPE_CHECKING:
    from paperkit.ledger import Verdict

MATHJAX = Path("sphinx-mathjax-offline/static/mathjax")
PAPERS = ("Rényi", "SA-SAM", "Compression", "IGS")
"""Short names of the four papers, each of which has a row on the scoreboard."""

# Parts of the distribution that TeX input with the common HTML output needs: 2 of its 24 MB.
MATHJAX_PARTS = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions")


@cache
def _everything() -> list[Verdict]:
    # Several pages show them, and the records do not change while the book is built.
    from paperkit.ledger import verdicts

    return verdicts()


def _verdicts(paper: str | None = None) -> list[Verdict]:
    """Return all verdicts, or those of one paper.

    Raises
    ------
    ValueError
        If no claim is of that paper.
    """
    everything = _everything()
    if paper is not None:
        arguments.choice("paper", paper, dict.fromkeys(v.claim.paper for v in everything))
    return [verdict for verdict in everything if paper in (None, verdict.claim.paper)]


class Scoreboard(MarkdownDirective):
    """The counts of verdicts, of all papers or of one."""

    def markdown(self, argument: str | None) -> str:
        """Render the scoreboard of the paper named by the argument, or of all."""
        from paperkit.ledger import render

        return render.scoreboard(_verdicts(argument), () if argument else PAPERS)


class Findings(MarkdownDirective):
    """Sentences with the badges of the claims that they rest on."""

    optional_arguments = 0
    has_content = True

    def markdown(self, argument: str | None) -> str:
        """Render the lines of the directive's content."""
        from paperkit.ledger import render

        return render.findings(self.content, _verdicts())


class Ledger(MarkdownDirective):
    """Every claim with its criterion, its evidence and its verdict."""

    final_argument_whitespace = True

    def markdown(self, argument: str | None) -> str:
        """Render the ledger of the paper named by the argument, or the ways to all."""
        from paperkit.ledger import render

        if argument is None:
            return render.ledger_index(_verdicts())
        return render.ledger(_verdicts(argument))


class Corrections(MarkdownDirective):
    """What the papers print and what should stand there, paper by paper or of one."""

    def markdown(self, argument: str | None) -> str:
        """Render the corrections of the paper named by the argument, or of all."""
        from paperkit.ledger import render

        if argument is None:
            return render.corrections(_verdicts(), PAPERS)
        return render.correction_items(_verdicts(argument))


class Verdicts(MarkdownDirective):
    """The verdicts that one chapter earns."""

    required_arguments = 1
    optional_arguments = 0

    def markdown(self, argument: str | None) -> str:
        """Render the verdicts of the chapter named by the argument."""
        from paperkit.ledger import render, verdicts

        return render.with_links_to_the_ledger(render.of_chapter(verdicts(anchor=argument)))


def lead_to_the_ledger(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let the criteria's links, which in a notebook open a file, lead to the ledger page.

    Parameters
    ----------
    app : Sphinx
        Application.
    docname : str
        Name of the page.
    source : list of str
        Text of the page, changed in place.
    """
    from paperkit.ledger import render

    source[0] = render.with_links_to_the_ledger(source[0])


def copy_mathjax(app: Sphinx) -> None:
    """Put MathJax among the pages' own files, so that they render without a network.

    Parameters
    ----------
    app : Sphinx
        Application; only HTML builders are served.
    """
    if app.builder.format != "html":
        return
    origin = Path(str(distribution("sphinx-mathjax-offline").locate_file(MATHJAX)))
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        source, copy = origin / part, target / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, dirs_exist_ok=True)
        else:
            shutil.copy2(source, copy)


def write_on_all_cores(app: Sphinx, environment: BuildEnvironment) -> None:
    """Let the pages, which are read one by one, be written side by side.

    Reading cannot be: ``sphinx_proof`` does not put together what several processes have read.
    jupyter-book has no option for either.

    Parameters
    ----------
    app : Sphinx
        Application, which has read all pages.
    environment : BuildEnvironment
        Everything that was read.
    """
    cores = available_cores()
    # Sphinx takes one from the count for the process that prepares the pages.
    app.parallel = cores + 1 if cores > 1 else 1


def configure(app: Sphinx, config: Any) -> None:
    """Point Sphinx at the local MathJax and sign every page's footer.

    Parameters
    ----------
    app : Sphinx
        Application.
    config : sphinx.config.Config
        Configuration of the application, changed in place.
    """
    config.mathjax_path = "mathjax/tex-mml-chtml.js"
    config.html_theme_options = {
        **config.html_theme_options,
        "extra_footer": f"<p>{last_verified()}</p>",
        # Chapters and the pages under them. A deeper sidebar would list nothing more, because
        # it shows titles alone, and Sphinx would copy every page's sections for each page.
        "max_navbar_depth": 2,
    }
    # Without a default mode the theme's script reports an invalid mode on a reader's first page.
    config.html_context = {**config.html_context, "default_mode": "auto"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register directives, event handlers, the language of the search and the bibliography's style.

    Parameters
    ----------
    app : Sphinx
        Application.

    Returns
    -------
    dict
        Metadata for Sphinx: that it may read and write in parallel.
    """
    for name, directive in DIRECTIVES.items():
        app.add_directive(name, directive)
    app.connect("config-inited", configure)
    app.connect("builder-inited", copy_mathjax)
    app.connect("source-read", lead_to_the_ledger)
    app.connect("env-updated", write_on_all_cores)
    app.connect("html-page-context", page_head.complete)
    # After the theme, which puts its functions into the context.
    app.connect("html-page-context", sidebar.name_arrows, priority=900)
    app.add_search_language(AccentlessEnglish)
    author_year.register()
    return {"parallel_read_safe": True, "parallel_write_safe": True}


DIRECTIVES: dict[str, type[MarkdownDirective]] = {
    "scoreboard": Scoreboard,
    "findings": Findings,
    "ledger": Ledger,
    "corrections": Corrections,
    "verdicts": Verdicts,
    "members": Members,
    "plan": Plan,
    "projections": Projections,
}
