"""What the site needs beside Sphinx: plotly.js where a chart is, and formulas that KaTeX reads whole."""

import shutil
from pathlib import Path
from typing import Any

import plotly
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def add_chart_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load plotly.js (some megabytes) only where a chart asks for it."""
    if "plotly-graph-div" in context.get("body", ""):
        # Not deferred: a chart's own script runs while the page loads.
        app.add_js_file("plotly.min.js", priority=100)
        app.add_js_file("charts.js", loading_method="defer")
    if "map-explorer" in context.get("body", ""):
        app.add_js_file("attention_maps.js", loading_method="defer")


def copy_plotly(app: Sphinx, exception: Exception | None) -> None:
    """Put the installed plotly.js among the site's own files."""
    if exception is None and app.builder.format == "html":
        shutil.copyfile(PLOTLY_JS, Path(app.outdir) / "_static" / "plotly.min.js")


def read_data_again(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Execute the pages of book/ at every build: what they read from data/ may be newer than they are."""
    return [page for page in env.found_docs if page.startswith("book/")]


def spell_out_comparisons(app: Sphinx, doctree: nodes.document, page: str) -> None:
    r"""Write < and > in displayed formulas as \lt and \gt: sphinxcontrib-katex puts them into the HTML unescaped."""
    for formula in doctree.findall(nodes.math_block):
        latex = formula.astext().replace("<", r"\lt ").replace(">", r"\gt ")
        formula.children = [nodes.Text(latex)]


def setup(app: Sphinx) -> dict[str, bool]:
    # Jupyter Book always passes this setting of an extension that _config.yml leaves out.
    app.add_config_value("comments_config", {}, "html")
    app.connect("env-get-outdated", read_data_again)
    app.connect("doctree-resolved", spell_out_comparisons)
    app.connect("html-page-context", add_chart_scripts)
    app.connect("build-finished", copy_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
