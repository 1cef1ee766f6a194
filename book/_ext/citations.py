"""Citations as a link of authors and year into the bibliography, where an entry names the pages that cite it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pybtex.plugin
from docutils import nodes
from pybtex.style.formatting.plain import Style as Plain
from pybtex.style.template import field as content
from pybtex.style.template import href, join, sentence
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode
from sphinxcontrib.bibtex import plugin
from sphinxcontrib.bibtex.style.referencing import BaseReferenceStyle, BracketStyle, PersonStyle
from sphinxcontrib.bibtex.style.template import join2, post_text, pre_text, reference, year


@dataclass
class Cited(BaseReferenceStyle):
    """`{cite:p}` as (Hu et al., 2024), `{cite:t}` as Hu et al. (2024)."""

    person: PersonStyle = field(default_factory=lambda: PersonStyle(other=" et al."))
    bracket: BracketStyle = field(default_factory=lambda: BracketStyle("(", ")", sep="; "))

    def role_names(self) -> Iterable[str]:
        return ["p", "t"]

    def inner(self, role_name: str) -> Any:
        names = self.person.author_or_editor_or_title(full=False)
        said = join(sep=", ")[names, year] if role_name == "p" else join[names, " (", year, ")"]
        return join2(sep1=" ", sep2=", ")[pre_text, reference[said], post_text]

    def outer(self, role_name: str, children: list[Any]) -> Any:
        return self.bracket.outer(children, brackets=role_name == "p")


class Entries(Plain):
    """Entries by the first author and the year, each with its title for the link to the work."""

    def sort(self, entries: Iterable[Any]) -> list[Any]:
        return sorted(entries, key=lambda e: (str(e.persons["author"][0]).strip("{}").lower(), e.fields["year"]))

    def format_title(self, e: Any, which_field: str, as_sentence: bool = True) -> Any:
        title = href[content("url", raw=True), content(which_field)]
        return sentence[title] if as_sentence else title

    def format_btitle(self, e: Any, which_field: str, as_sentence: bool = True) -> Any:
        if which_field == "title":
            return self.format_title(e, which_field, as_sentence)
        return super().format_btitle(e, which_field, as_sentence)

    def format_web_refs(self, e: Any) -> Any:
        return join[""]


class List(SphinxPostTransform):
    """The bibliography as a list of entries without labels, each with the pages that cite it."""

    default_priority = 6  # after the entries are made, and before links are resolved

    def run(self, **kwargs: Any) -> None:
        for box in list(self.document.findall(nodes.container)):
            entries = [entry for entry in box.children if isinstance(entry, nodes.citation)]
            if entries:
                box.replace_self(nodes.bullet_list("", *map(self.item, entries), classes=["references"]))

    def item(self, entry: nodes.citation) -> nodes.list_item:
        text = entry.next_node(nodes.paragraph)
        pages = list(self.citing(entry["ids"][0]))
        for i, page in enumerate(pages):
            title = nodes.inline("", self.env.titles[page].astext())
            link = make_refnode(self.app.builder, self.env.docname, page, None, title)
            text += [nodes.Text(" Cited by " if i == 0 else ", "), link]
        if pages:
            text += nodes.Text(".")
        return nodes.list_item("", text, ids=entry["ids"])

    def citing(self, name: str) -> Iterable[str]:
        """The pages that cite the entry of this address, in the order of the book."""
        domain: Any = self.env.get_domain("cite")
        keys = {found.key for found in domain.citations if found.citation_id == name}
        pages = {one.docname for one in domain.citation_refs if any(cited.key in keys for cited in one.targets)}
        order = [self.config.root_doc, *self.env.toctree_includes[self.config.root_doc]]
        return sorted(pages, key=order.index)


def setup(app: Sphinx) -> dict[str, bool]:
    plugin.register_plugin("sphinxcontrib.bibtex.style.referencing", "book", Cited)
    pybtex.plugin.register_plugin("pybtex.style.formatting", "book", Entries)
    app.add_post_transform(List)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
