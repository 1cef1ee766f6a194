"""The API reference: public names as objects of Sphinx's Python domain, read from the source by griffe.

    ```{api} bsbr.store
    load
    Result
    ```

documents names of a module under the path by which they are imported, a class with its public methods, or with those
that are named behind a colon: `Result: select value`. The source is parsed, never imported, so a book is built without
PyTorch. Code in any page that is such a name leads to it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import griffe
from docutils import nodes
from docutils.statemachine import StringList
from griffe import DocstringSectionKind as Kind
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "bsbr"
DOCSTRINGS = {"returns_named_value": False, "returns_multiple_items": False, "warnings": False}
NAMED = "api-name"  # the class of a name that stands for itself: it is no link
STARS = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}


@functools.cache
def package() -> griffe.Module:
    """The whole library, without what it imports."""
    loaded = griffe.load(PACKAGE, search_paths=[ROOT], allow_inspection=False, resolve_aliases=True)
    assert isinstance(loaded, griffe.Module)
    return loaded


def find(path: str) -> griffe.Object:
    """What a dotted path such as `bsbr.store.load` names, where it is defined.

    Raises:
        ValueError: the library has no such name.
    """
    try:
        found = package()[path.removeprefix(f"{PACKAGE}.")]
        if isinstance(found, griffe.Module):  # hidden by its function of the same name, such as bsbr.store.compare
            found = found[found.name]
        return found.final_target if isinstance(found, griffe.Alias) else found
    except (KeyError, griffe.AliasResolutionError) as error:
        raise ValueError(f"there is no {path}: it must be the path by which a name is imported") from error


def listed(lines: Iterable[str]) -> dict[str, list[str]]:
    """The names that a directive asks for, each with the methods that it chooses, if it does."""
    parts = (line.partition(":") for line in lines if line.strip())
    return {name.strip(): methods.split() for name, _, methods in parts}


def members(item: griffe.Object, chosen: Sequence[str] = ()) -> list[griffe.Object]:
    """The methods and properties of a class that are documented with it: the chosen, or all that are public.

    Raises:
        ValueError: a chosen one is not there, or has no docstring.
    """
    found = item.members.values() if isinstance(item, griffe.Class) else ()
    public = [one for one in found if not one.name.startswith("_") and one.docstring and is_callable(one)]
    if missing := set(chosen) - {one.name for one in public}:
        raise ValueError(f"{item.path} documents no {', '.join(sorted(missing))}")
    return [one for one in public if not chosen or one.name in chosen]  # type: ignore[misc]


def is_callable(item: Any) -> bool:
    return isinstance(item, griffe.Function) or (isinstance(item, griffe.Attribute) and "property" in item.labels)


def sections(item: griffe.Object) -> list[griffe.DocstringSection]:
    return item.docstring.parse("google", **DOCSTRINGS) if item.docstring else []


def examples(item: griffe.Object) -> str:
    """The code of all examples in a docstring, as `>>>` lines with what they print."""
    found = [part for one in sections(item) if one.kind is Kind.examples for part in one.value]
    return "\n".join(text for kind, text in found if kind is Kind.examples)


def parameters(item: griffe.Object) -> list[griffe.Parameter]:
    """What a function or class is called with, less what Python passes itself."""
    if isinstance(item, griffe.Function):
        found = list(item.parameters)
        bound = isinstance(item.parent, griffe.Class) and "staticmethod" not in item.labels
        return found[1:] if bound else found
    if isinstance(item, griffe.Class):
        found = [one for one in item.parameters if one.name != "self"]
        return [*(one for one in fields(item) if one.name not in {known.name for known in found}), *found]
    return []


def fields(item: griffe.Class) -> list[griffe.Parameter]:
    """The fields of a named tuple or a config of transformers, which griffe takes for plain attributes."""
    if not {"NamedTuple", "PretrainedConfig"} & set(map(str, item.bases)):
        return []
    kind = griffe.ParameterKind.positional_or_keyword
    return [
        griffe.Parameter(one.name, annotation=one.annotation, kind=kind, default=one.value)
        for one in item.members.values()
        if isinstance(one, griffe.Attribute) and "property" not in one.labels and one.annotation is not None
    ]


def described(item: griffe.Object) -> dict[str, str]:
    """What is said of each parameter, in the docstring or, of a field, in the comment behind it."""
    found = {
        name: one.description
        for section in sections(item)
        if section.kind in (Kind.parameters, Kind.attributes)
        for one in section.value
        for name in one.name.replace("*", "").split(", ")
    }
    for one in item.members.values() if isinstance(item, griffe.Class) else ():
        if isinstance(one, griffe.Attribute) and one.name not in found and (said := comment(one)):
            found[one.name] = said
    return found


def comment(item: griffe.Attribute) -> str:
    if item.lineno is None or not isinstance(item.filepath, Path):
        return ""
    return item.filepath.read_text(encoding="utf-8").splitlines()[item.lineno - 1].partition("  # ")[2]


# -- As a page shows it ---------------------------------------------------------------------------


class Api(SphinxDirective):
    """`{api} module`, and in its content a name a line."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        wanted = ((f"{module}.{name}", methods) for name, methods in listed(self.content).items())
        return [self.entry(find(path), path, methods) for path, methods in wanted]

    def entry(self, item: griffe.Object, path: str, methods: Sequence[str] = ()) -> addnodes.desc:
        """A name under an anchor of its own, with its signature and all that its docstring says."""
        kind = object_type(item)
        desc = addnodes.desc("", domain="py", objtype=kind, desctype=kind, classes=["py", kind])
        ids = list(dict.fromkeys([path, item.path]))
        owner, _, name = path.rpartition(".")
        signature = addnodes.desc_signature("", "", ids=ids, module=item.module.path, fullname=name, classes=["sig"])
        in_class = isinstance(item.parent, griffe.Class)
        shown = f"{owner.rpartition('.')[2]}.{name}" if in_class else name
        signature["_toc_name"], signature["_toc_parts"] = name, tuple(path.split("."))
        self.state.document.note_explicit_target(signature)
        domain = self.env.get_domain("py")
        for one in ids:
            domain.note_object(one, kind, ids[0], aliased=one != ids[0], location=signature)  # type: ignore[attr-defined]
        signature += head(item, kind, owner, shown)
        content = addnodes.desc_content("", *self.body(item))
        content += [self.entry(one, f"{path}.{one.name}") for one in members(item, methods)]
        desc += [signature, content]
        return desc

    def body(self, item: griffe.Object) -> Iterator[nodes.Node]:
        found = sections(item)
        for section in found:
            if section.kind is Kind.text:
                yield from self.markdown(section.value)
        about = nodes.field_list()
        if rows := list(self.parameters(item)):
            called = isinstance(item, griffe.Function) or any(one.kind is Kind.parameters for one in found)
            about += field("Parameters" if called else "Fields", nodes.definition_list("", *rows))
        for section in found:
            if section.kind is Kind.returns:
                about += field("Returns", *self.markdown(section.value[0].description))
            elif section.kind is Kind.raises:
                about += field("Raises", self.raised(section.value))
            elif section.kind is Kind.admonition:
                entries = re.split(r"\n(?=\S)", section.value.contents)
                pairs = (entry.partition(": ")[::2] for entry in entries)
                about += field(section.value.kind.capitalize(), self.definitions(pairs))
        if about.children:
            yield about
        for section in found:
            if section.kind is Kind.examples:
                yield nodes.rubric("", "Examples" if len(section.value) > 1 else "Example")
                for kind, text in section.value:
                    yield from [code(text)] if kind is Kind.examples else self.markdown(text)

    def parameters(self, item: griffe.Object) -> Iterator[nodes.definition_list_item]:
        """Those of which something is said, each with its type and default."""
        said = described(item)
        for one in parameters(item):
            if text := said.get(one.name):
                term = nodes.term("", "", nodes.literal("", "", *declared(one), classes=[NAMED]))
                yield nodes.definition_list_item("", term, nodes.definition("", *self.markdown(text)))

    def raised(self, errors: Iterable[griffe.DocstringRaise]) -> nodes.definition_list:
        listed = nodes.definition_list()
        for one in errors:
            names = list(typed(one.annotation, nodes.literal))
            listed += nodes.definition_list_item(
                "", nodes.term("", "", *names), nodes.definition("", *self.markdown(one.description))
            )
        return listed

    def definitions(self, pairs: Iterable[tuple[str, str]]) -> nodes.definition_list:
        listed = nodes.definition_list()
        for name, text in pairs:
            term = nodes.term("", "", nodes.literal("", name, classes=[NAMED]))
            listed += nodes.definition_list_item("", term, nodes.definition("", *self.markdown(text)))
        return listed

    def markdown(self, text: str) -> list[nodes.Node]:
        lines = StringList(text.splitlines(), source=self.get_source_info()[0])
        place = nodes.Element()
        self.state.nested_parse(lines, self.content_offset, place)
        return place.children


def object_type(item: griffe.Object) -> str:
    if isinstance(item, griffe.Class):
        return "exception" if is_exception(item) else "class"
    if isinstance(item, griffe.Attribute):
        return "property"
    if not isinstance(item.parent, griffe.Class):
        return "function"
    return next((kind for kind in ("classmethod", "staticmethod") if kind in item.labels), "method")


def is_exception(item: griffe.Class) -> bool:
    return any(str(base).endswith("Error") for base in item.bases)


def head(item: griffe.Object, kind: str, owner: str, shown: str) -> Iterator[nodes.Node]:
    """`class bsbr.Name(argument: type = default) → type`."""
    if kind not in ("function", "method"):
        yield addnodes.desc_annotation("", f"{kind} ")
    if kind in ("class", "exception", "function"):
        yield addnodes.desc_addname("", f"{owner}.")
    yield addnodes.desc_name("", shown)
    if isinstance(item, griffe.Function) or (kind == "class" and parameters(item)):
        yield addnodes.desc_parameterlist("", "", *arguments(parameters(item)))
    returned = item.annotation if isinstance(item, griffe.Attribute) else getattr(item, "returns", None)
    if returned is not None and str(returned) != "None":
        yield addnodes.desc_returns("", "", *typed(returned))


def arguments(found: list[griffe.Parameter]) -> Iterator[addnodes.desc_parameter]:
    before: griffe.ParameterKind | None = None
    for one in found:
        if one.kind is griffe.ParameterKind.keyword_only and before not in (one.kind, *STARS):
            yield addnodes.desc_parameter("", "", addnodes.desc_sig_operator("", "*"))
        if one.kind is not before is griffe.ParameterKind.positional_only:
            yield addnodes.desc_parameter("", "", addnodes.desc_sig_operator("", "/"))
        before = one.kind
        yield addnodes.desc_parameter("", "", nodes.Text(STARS.get(one.kind, "")), *declared(one))


def declared(one: griffe.Parameter) -> Iterator[nodes.Node]:
    """`name: type = default`."""
    yield addnodes.desc_sig_name("", one.name)
    if one.annotation is not None:
        yield from [nodes.Text(": "), *typed(one.annotation)]
    if one.default is not None and one.kind not in STARS:
        yield nodes.Text(" = " if one.annotation is not None else "=")
        yield nodes.inline("", quoted(str(one.default)), classes=["default_value"])


def typed(annotation: str | griffe.Expr | None, show: Any = nodes.inline) -> Iterator[nodes.Node]:
    """An annotation, in which each name of the library leads to where it is documented."""
    for one in annotation.iterate(flat=True) if isinstance(annotation, griffe.Expr) else (str(annotation),):
        name = getattr(one, "name", None)
        if name is None:
            yield nodes.Text(quoted(str(one)))
        elif str(one.canonical_path).startswith(f"{PACKAGE}."):  # type: ignore[union-attr]
            yield reference(str(one.canonical_path), show("", name))  # type: ignore[union-attr]
        else:
            yield show("", name)


def quoted(source: str) -> str:
    return re.sub(r"^'([^'\"]*)'$", r'"\1"', source)


def code(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="pycon")


def field(name: str, *body: nodes.Node) -> nodes.field:
    return nodes.field("", nodes.field_name("", name), nodes.field_body("", *body))


def reference(target: str, shown: nodes.Node) -> addnodes.pending_xref:
    """A link to a name if some page documents it, else what is shown alone."""
    options = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refexplicit": True, "refwarn": False}
    return addnodes.pending_xref("", shown, **options, if_documented=True)


def plain(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.Element) -> nodes.Node | None:
    return shown if node.get("if_documented") else None


# -- Links from everywhere ------------------------------------------------------------------------


class LinkNames(SphinxPostTransform):
    """Code that is a documented name leads to it: everywhere within the reference, in other pages the first time."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        known = self.env.get_domain("py").objects  # type: ignore[attr-defined]
        public = {name: f"{PACKAGE}.{name}" for name in package().exports or () if f"{PACKAGE}.{name}" in known}
        linked: set[str] = set()
        for literal in list(self.document.findall(nodes.literal)):
            if NAMED in literal["classes"] or any(isinstance(one, NOT_IN) for one in ancestors(literal)):
                continue
            name = re.sub(r"\((|…|\.\.\.)\)$", "", literal.astext())
            owner = next((one for one in ancestors(literal) if isinstance(one, addnodes.desc)), None)
            found = within(owner, name, known) or public.get(name) or (name if name in known else None)
            if found is None or (owner is None and found in linked):
                continue
            linked.add(found)
            literal.replace_self(reference(found, literal.deepcopy()))


NOT_IN = (nodes.title, nodes.reference, addnodes.pending_xref, addnodes.desc_signature, addnodes.download_reference)


def ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    while (parent := node.parent) is not None:
        yield parent
        node = parent


def within(desc: nodes.Node | None, name: str, known: Iterable[str]) -> str | None:
    """The name as what is documented there would say it: of the same class, or of the same module."""
    if not isinstance(desc, addnodes.desc) or not re.fullmatch(r"[\w.]+", name):
        return None
    own = desc.next_node(addnodes.desc_signature)["ids"]  # type: ignore[index]
    owners = [path.rsplit(".", count)[0] for path in own for count in range(path.count("."))]
    return next((f"{one}.{name}" for one in [*own, *owners] if f"{one}.{name}" in known), None)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("api", Api)
    app.add_post_transform(LinkNames)
    app.connect("missing-reference", plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
