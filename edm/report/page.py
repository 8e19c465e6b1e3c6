"""Self-contained HTML pages, without other files, scripts or network."""

import html
from collections.abc import Iterable, Sequence

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }}
h1 {{ font-size: 1.5rem; line-height: 1.3 }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 0 }}
div {{ overflow-x: auto }}
table {{ border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222; margin: 1rem 0 }}
th, td {{ padding: .2rem .7rem; text-align: right; white-space: nowrap; vertical-align: top }}
th:first-child, .text {{ text-align: left; font-weight: normal }}
.text {{ white-space: normal; overflow-wrap: anywhere; min-width: 4rem }}
thead th, thead th:first-child {{ border-bottom: 1px solid #222; font-weight: 600; white-space: nowrap }}
tr.total > * {{ border-top: 1px solid #222; font-weight: 600 }}
td.missing {{ color: #767676; font-style: italic }}
p, li {{ color: #444; font-size: 13px }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def page(title: str, *parts: str) -> str:
    """A complete page; title is text, the parts are HTML."""
    return _PAGE.format(title=html.escape(title), body="\n".join(filter(None, parts)))


def frame(head: str, body: str) -> str:
    """A table of HTML rows; a wide table scrolls."""
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1, total: bool = False) -> str:
    """A table of text. The first ``text`` columns are words, the others numbers; total: the last row is a sum."""
    kind = lambda index: ' class="text"' if index < text else ""
    names = "".join(f"<th{kind(index)}>{html.escape(name)}</th>" for index, name in enumerate(head))
    lines = ["".join(f"<{'td' if index else 'th'}{kind(index)}>{html.escape(cell)}</{'td' if index else 'th'}>"
                     for index, cell in enumerate(row)) for row in rows]  # fmt: skip
    marks = [""] * (len(lines) - 1) + [' class="total"' if total else ""]
    return frame(names, "\n".join(f"<tr{mark}>{line}</tr>" for mark, line in zip(marks, lines, strict=False)))


def paragraphs(*texts: str) -> str:
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts if text)


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"
