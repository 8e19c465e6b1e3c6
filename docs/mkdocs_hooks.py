"""What MkDocs does for this site beside its settings: pages of bench/, and docstrings as Markdown."""

import re
from pathlib import Path

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

#: The files of bench/ to which the pages link, although they lie outside docs/.
LINKED = ("bench/RESULTS.md", "bench/reference.py", "bench/results/loss-digits.png")
ROLE = re.compile(r":\w+:`~?([^`]+)`")  # :func:`read`
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)  # net: denoiser …


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the linked files under their own names."""
    root = Path(config.config_file_path).parent
    for name in LINKED:
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Makes links between docs/ and bench/ links between pages of the site."""
    return markdown.replace("](../bench/", "](bench/").replace("](../docs/", "](../")


class Docstrings(Extension):
    """Shows arguments as a list and references as code."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = ARGUMENT.sub(r"\n* **\1**: ", text)
