"""The site without what slows a first look or weighs much: scripts that block, source maps, icons that no page shows.

The theme loads a script of all icons (1.5 MB), and the fonts of all icons beside. When the pages are written, this
keeps the icons that they use, as a font, and lets every script wait for the page.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx

ICON = re.compile(r"\bfa-[a-z0-9-]+")
RULE = re.compile(r'((?:\.fa-[\w-]+:{1,2}before,?)+)\{content:"(\\[0-9a-f]+|[^"\\]+)"\}')
PRIVATE = re.compile(r"[\"']\\([ef][0-9a-f]{3})[\"']")  # where a style sheet itself has an icon, such as a download's
FACE = re.compile(r"@font-face\{[^{}]*?vendor/fontawesome/webfonts/(fa-[\w-]+)\.woff2[^{}]*\}")
SCRIPT = re.compile(r'<script((?: [\w-]+="[^"]*")*? src="([^"]*)"[^>]*)></script>')
MARKS = re.compile(r'<span class="pre">([^<]*)</span>|<span class="w">([^<]*)</span>')
# What a later inline script of the page uses while it is read.
AT_ONCE = ("documentation_options.js",)
NOT_WANTED = re.compile(r"\s*<script defer src=\"[^\"]*scripts/fontawesome\.js[^\"]*\"></script>")


def slim(app: Sphinx, exception: Exception | None) -> None:
    """Change the written site; a second time changes nothing."""
    if exception is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    for page in site.rglob("*.html"):
        before = page.read_text(encoding="utf-8")
        after = thinner(let_scripts_wait(before))
        if after != before:
            page.write_text(after, encoding="utf-8")
    for notebook in (site / "_downloads").rglob("*.ipynb"):
        notebook.write_text(lighter(notebook.read_text(encoding="utf-8")), encoding="utf-8")
    static = site / "_static"
    for file in [*static.rglob("*.map"), static / "scripts" / "fontawesome.js"]:
        file.unlink(missing_ok=True)
    shutil.rmtree(static / "locales", ignore_errors=True)  # of the theme: the site speaks English
    keep_icons(static, used_icons(site))


def let_scripts_wait(page: str) -> str:
    """A page whose scripts run when it is read, in their order."""

    def wait(found: re.Match[str]) -> str:
        name = re.sub(r"[?#].*", "", found[2]).rsplit("/", 1)[-1]
        stays = name in AT_ONCE or re.search(r"\b(defer|async)\b", found[1])
        return found[0] if stays else f"<script defer{found[1]}></script>"

    return SCRIPT.sub(wait, NOT_WANTED.sub("", page))


def thinner(page: str) -> str:
    """A page without the elements that mark each word of a name, or blanks in code, for no style of this site."""
    return MARKS.sub(r"\1\2", page)


def lighter(notebook: str) -> str:
    """A notebook whose charts are kept once: as plotly's JSON, which JupyterLab draws, without this site's HTML."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "application/vnd.plotly.v1+json" in data:
                data.pop("text/html", None)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def used_icons(site: Path) -> set[str]:
    """Names of icons that a page or a script of the site speaks of."""
    files = [*site.rglob("*.html"), *(site / "_static").rglob("*.js")]
    return {name for file in files for name in ICON.findall(file.read_text(encoding="utf-8"))}


def keep_icons(static: Path, used: set[str]) -> None:
    """Leave the used icons in the theme's style sheet and in one small font for each of its faces that has some."""
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    fonts = static / "vendor" / "fontawesome" / "webfonts"
    if not (fonts / "fa-solid-900.ttf").exists():
        return  # done already
    text = sheet.read_text(encoding="utf-8")
    characters: set[int] = set()

    def rule(found: re.Match[str]) -> str:
        names = [name for name in found[1].split(",") if ICON.search(name) and ICON.search(name)[0] in used]  # type: ignore[index]
        if not names:
            return ""
        code = found[2]
        characters.add(int(code[1:], 16) if code.startswith("\\") else ord(code))
        return f'{",".join(names)}{{content:"{code}"}}'

    text = RULE.sub(rule, text)
    others = [file.read_text(encoding="utf-8") for file in static.rglob("*.css") if file != sheet]
    characters |= {int(code, 16) for css in (text, *others) for code in PRIVATE.findall(css)}
    made = {}
    for font in sorted(fonts.glob("*.ttf"), key=lambda file: "solid" not in file.name):
        here = characters & set(TTFont(font).getBestCmap()) - {code for codes in made.values() for code in codes}
        if here:
            made[font.stem] = here
            font.with_suffix(".woff").write_bytes(subset_of(font, here))

    def face(found: re.Match[str]) -> str:
        if found[1] not in made:
            return ""
        return re.sub(
            r"src:[^;}]*", f'src:url(../vendor/fontawesome/webfonts/{found[1]}.woff) format("woff")', found[0]
        )

    sheet.write_text(FACE.sub(face, text), encoding="utf-8")
    for file in [*fonts.glob("*.ttf"), *fonts.glob("*.woff2")]:
        file.unlink()


def subset_of(font: Path, characters: set[int]) -> bytes:
    """These characters of a font, as WOFF."""
    options = subset.Options(flavor="woff", layout_features=[], name_IDs=[1, 2], notdef_outline=False)
    loaded = subset.load_font(str(font), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(loaded)
    written = io.BytesIO()
    subset.save_font(loaded, written, options)
    return written.getvalue()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", slim)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
