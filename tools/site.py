"""What the site has beside docs/: pages of other folders, and the help of every command.

A hook of mkdocs (https://www.mkdocs.org/user-guide/configuration/#hooks): pages that are
made, and links that lead out of docs/. A link to a file of the tree becomes its name, as a
site has no tree.
"""

import contextlib
import io
import json
import os
import posixpath
import re
import sys

from mkdocs.structure.files import File

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Page of the site -> file of the tree.
BROUGHT = {
    "protocol.md": "transport/PROTOCOL.md",
    "changelog.md": "CHANGELOG.md",
    "ros.md": "ros/README.md",
}
_PLACE = {path: page for page, path in BROUGHT.items()}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files, config):
    """Add the pages that are not in docs/."""
    for page, path in BROUGHT.items():
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            files.append(File.generated(config, page, content=file.read()))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(File.generated(config, page_of(file.src_uri), content=cells(file)))
    files.append(File.generated(config, "reference/cli.md", content=commands()))
    return files


def page_of(notebook):
    """Return the page of a notebook."""
    return notebook[: -len("ipynb")] + "md"


def cells(file):
    """Return a notebook as a page, and where its file is."""
    with open(file.abs_src_path, encoding="utf-8") as opened:
        found = json.load(opened)["cells"]
    form = {"code": "```python\n{}\n```", "markdown": "{}"}
    parts = [form[cell["cell_type"]].format("".join(cell["source"])) for cell in found]
    parts.append(f"(`docs/{file.src_uri}` in a checkout.)")
    return "\n\n".join(parts)


def on_page_markdown(markdown, page, config, files):
    """Turn links out of docs/ into pages or names."""
    here = page.file.src_uri
    origin = BROUGHT.get(here, posixpath.join("docs", here))

    def put(match):
        words, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, _, anchor = target.partition("#")
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        found = _PLACE.get(whole)
        if found is None and whole.startswith("docs/"):
            found = whole[len("docs/") :]
            if found.endswith(".ipynb"):
                found = page_of(found)
        if found is None:
            if not os.path.exists(os.path.join(ROOT, whole)):
                return match[0]  # mkdocs says that it leads nowhere
            return words if words.strip("`") == whole else f"{words} (`{whole}`)"
        relative = posixpath.relpath(found, posixpath.dirname(here) or ".")
        return f"[{words}]({relative}{'#' + anchor if anchor else ''})"

    # Not inside of fenced blocks.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(p if p.startswith("```") else _LINK.sub(put, p) for p in parts)


def commands():
    """Return a page with the help of every command."""
    sys.path.insert(0, os.path.join(ROOT, "src"))
    from draftwire.cli import whole_parser
    from draftwire.cli.completion import words_of

    lines = ["# Commands", "", "`draftwire COMMAND --help` says the same.", ""]
    for words, _ in words_of(whole_parser()):
        if words:
            lines += [f"{'#' * len(words)}# draftwire {' '.join(words)}", "", "```text"]
            lines += [_help(*words), "```", ""]
    return "\n".join(lines)


def _help(*words):
    from draftwire.cli import main

    said = io.StringIO()
    os.environ["COLUMNS"] = "78"
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return said.getvalue().rstrip()
