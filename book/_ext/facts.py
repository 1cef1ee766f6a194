"""What each page says of itself: a description, a preview for other sites, a footer; and the site's own addresses.

The address of the repository and that of the site are set in `_config.yml` (`repository.url`, `html.baseurl`) and
nowhere else: as long as they are empty, no button, link or sitemap pretends to know them.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import citing

LONGEST = 200  # characters of a description
PREVIEW = "_static/preview.png"


def offer_repository(app: Sphinx, config: Config) -> None:
    """Show the buttons that lead to the repository where its address is known."""
    known = bool(config.html_theme_options.get("repository_url"))
    config.html_theme_options |= {"use_repository_button": known, "use_issues_button": known}


def remember(app: Sphinx) -> None:
    """Read the citation once a build."""
    cited = citing.citation()
    app.bsbr_footer = citing.in_words(cited, citing.newest())  # type: ignore[attr-defined]


def tell(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Add the description and the preview to a page's head, and authors, licence, version and date to its foot."""
    title = re.sub(r"<[^>]+>", "", html.unescape(str(context.get("title", ""))))
    own = app.env.metadata.get(page, {}).get("description")  # of a page that does not open with its question
    described = str(own or description(doctree) or app.config.html_title)
    meta = [
        ("name", "description", described),
        ("property", "og:type", "article"),
        ("property", "og:site_name", app.config.html_title or app.config.project),
        ("property", "og:title", title),
        ("property", "og:description", described),
        ("name", "twitter:card", "summary"),
    ]
    if base := app.config.html_baseurl:
        meta += [
            ("property", "og:url", urljoin(base, f"{page}.html")),
            ("property", "og:image", urljoin(base, PREVIEW)),
        ]
    tags = "".join(f'\n<meta {kind}="{name}" content="{html.escape(value)}"/>' for kind, name, value in meta)
    context["metatags"] = str(context.get("metatags", "")) + tags
    cite, changes = (context["pathto"](f"book/{name}") for name in ("cite", "changelog"))
    context["theme_extra_footer"] = (
        f'<p>{html.escape(app.bsbr_footer)} · <a href="{cite}">How to cite</a> · <a href="{changes}">Changelog</a></p>'  # type: ignore[attr-defined]
    )


def description(doctree: nodes.document | None) -> str:
    """The first paragraph of a page, which is its question, up to a whole word."""
    if doctree is None:
        return ""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 20:
            return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"
    return ""


def write_sitemap(app: Sphinx, exception: Exception | None) -> None:
    """List all pages for search engines, where the site's address is known."""
    if exception is not None or app.builder.name != "html" or not app.config.html_baseurl:
        return
    pages = sorted(app.env.found_docs)
    urls = "".join(
        f"<url><loc>{html.escape(urljoin(app.config.html_baseurl, page))}.html</loc></url>" for page in pages
    )
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{urls}</urlset>\n'
    Path(app.outdir, "sitemap.xml").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", offer_repository)
    app.connect("builder-inited", remember)
    app.connect("html-page-context", tell)
    app.connect("build-finished", write_sitemap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
