"""What the site needs beside Sphinx: charts as they are drawn now, and formulas that KaTeX reads whole."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core.read import standard_nb_read
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from bsbr.show import charts, map_explorer

NAME = re.compile(r'id="chart-([^"]+)" class="plotly-graph-div"|class="plotly-graph-div" id="chart-([^"]+)"')
MAPS = "_maps"  # the site's folder of attention maps, a script a layer
# A whole address in a bundle; those of XML namespaces only name something.
ADDRESS = re.compile(r"https?://(?!www\.w3\.org/)[\w.-]+\.[a-z]{2,}[^\"'`\s)<]*")


def read_notebook(text: str) -> NotebookNode:
    """A published notebook with its charts as this code draws them: each is kept as a description, for JupyterLab."""
    notebook = standard_nb_read(text)
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    for data in (output["data"] for output in outputs if charts.MIME in output.get("data", {})):
        before = "".join(data.get("text/html", ""))
        found = NAME.search(before)
        if found is None:
            continue
        name = found[1] or found[2]
        again = map_explorer.again if '<div class="map-explorer">' in before else _chart
        data["text/html"] = again(before, data[charts.MIME], name)
    return notebook


def _chart(_: str, description: dict[str, Any], name: str) -> str:
    return charts.markup(description, name)


def add_chart_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Draw charts where there are some; plotly.js is loaded when one is seen, and a layer's maps when it is chosen.

    The book as a single page, which is printed and kept as one file, names all of them instead.
    """
    body = context.get("body", "")
    if "plotly-graph-div" not in body:
        return
    single = app.builder.name == "singlehtml"
    if single:
        app.add_js_file("plotly/plotly.min.js", loading_method="defer")
    app.add_js_file("charts.js", loading_method="defer")
    if "map-explorer" not in body:
        return
    app.add_js_file("attention_maps.js", loading_method="defer")
    folder = Path(app.outdir) / MAPS
    folder.mkdir(exist_ok=True)
    files: list[str] = []

    def write(name: str, script: str) -> str:
        (folder / name).write_text(script, encoding="utf-8")
        files.append(f"{MAPS}/{name}" if single else str(context["pathto"](f"{MAPS}/{name}", 1)))
        return files[-1]

    context["body"] = map_explorer.apart(body, write)
    if single:
        context["body"] += "".join(f'<script defer src="{file}"></script>' for file in files)


def keep_at_home(app: Sphinx, exception: Exception | None) -> None:
    """Take every address of another host out of the site's plotly.js: there are some to which it sends a chart."""
    bundle = Path(app.outdir) / "_static" / "plotly" / "plotly.min.js"
    if exception is None and app.builder.format == "html" and bundle.exists():
        bundle.write_text(ADDRESS.sub("", bundle.read_text(encoding="utf-8")), encoding="utf-8")


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
    app.connect("build-finished", keep_at_home)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
