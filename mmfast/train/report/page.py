"""The frame of a report: one HTML file with its style, no script and no address in it.

Texts and names of files come from strangers: everything goes through :func:`text` or :func:`tag`,
which escape it, and a policy in the page forbids what could come through all the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

# Control characters and halves of pairs, which HTML forbids, and what turns the direction of the
# text around it, by which one name could pass for another.
_UNFIT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"

STYLE = """
:root { color-scheme: light dark; --ink: #1a1c1f; --soft: #5b626b; --line: #d9dde2; --paper: #fff;
  --card: #f6f7f9; --blue: 0, 114, 178; --red: 190, 60, 20; --bar: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --soft: #9da5af; --line: #3a4048;
  --paper: #15181c; --card: #1e2227; --blue: 70, 160, 225; --red: 235, 110, 70; --bar: #4aa3dc } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; padding-top: 0.5rem;
  border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem }
p { max-width: 48rem; margin: 0.5rem 0 }
.soft, figcaption { color: var(--soft); font-size: 0.875rem }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; margin: 0.5rem 0; font-size: 0.9rem }
a { color: rgb(var(--blue)) }
.warning { border-left: 4px solid rgb(var(--red)); padding-left: 0.7rem }
.wide { overflow-x: auto; max-width: 100%; background-repeat: no-repeat;
  background-size: 1.5rem 100%, 1.5rem 100%, 0.6rem 100%, 0.6rem 100%;
  background-position: left, right, left, right;
  background-attachment: local, local, scroll, scroll; background-image:
  linear-gradient(to right, var(--paper) 40%, transparent),
  linear-gradient(to left, var(--paper) 40%, transparent),
  linear-gradient(to right, var(--line), transparent),
  linear-gradient(to left, var(--line), transparent) } /* shade at an edge: there is more */
table { border-collapse: collapse; font-size: 0.9rem; margin: 0.5rem 0 }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; max-width: 26rem }
th { font-weight: 600; vertical-align: bottom } tr > :first-child { min-width: 6.5rem }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.grid { display: grid; gap: 1rem 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)) }
.cards { display: grid; gap: 0.8rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem;
  font-size: 0.9rem; overflow-wrap: anywhere; min-width: 0 }
.card p { margin: 0.35rem 0 } .card img { display: block; margin: 0 auto 0.5rem; max-width: 100%;
  border-radius: 4px; background: #fff } .card img.small { width: 96px; image-rendering: pixelated }
.card img.strip { display: inline-block; width: 48%; margin: 0 1% 0.3rem 0 }
audio { width: 100%; height: 2.2rem }
.tiles { display: grid; gap: 0.8rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  margin: 1rem 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 0.6rem 0.8rem } .tile b { display: block; font-size: 1.5rem; line-height: 1.3;
  font-variant-numeric: tabular-nums } .tile span { color: var(--soft); font-size: 0.8rem;
  display: block; overflow-wrap: anywhere }
figure { margin: 0; min-width: 0 } figure svg { width: 100%; height: auto; max-width: 34rem }
.confusion td { text-align: center; padding: 0.3rem 0.45rem; min-width: 2.2rem; border: 0;
  font-variant-numeric: tabular-nums; font-size: 0.85rem }
.confusion tr > :first-child { min-width: 7rem; max-width: 11rem }
.confusion th { border: 0; padding: 0.2rem 0.5rem 0.2rem 0; font-weight: 400 }
.confusion thead th { text-align: center; padding: 0.2rem 0.45rem }
.swatch { display: inline-block; width: 0.7rem; height: 0.7rem; border-radius: 2px;
  margin-right: 0.4rem } td:has(> .swatch) { white-space: nowrap }
.bar { display: flex; height: 1.2rem; border-radius: 4px; overflow: hidden; margin: 0.5rem 0 }
.meter { display: block; height: 0.7rem; min-width: 1px; background: var(--bar); border-radius: 2px;
  margin-top: 0.35rem } td.meters { width: 40%; min-width: 6rem }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem;
  overflow-x: auto; font-size: 0.8rem; line-height: 1.4 }
summary { cursor: pointer; padding: 0.3rem 0 } .good { color: rgb(var(--blue)); font-weight: 600 }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.1rem 1rem;
  font-size: 0.9rem } dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 30rem) { body { padding: 0.7rem } th.n { white-space: normal }
  dl { grid-template-columns: 1fr } dd { margin-bottom: 0.4rem }
  .confusion td { min-width: 1.7rem; padding: 0.3rem 0.1rem }
  .confusion thead th { padding: 0.2rem 0.1rem } .confusion th { font-size: 0.8rem } }
@media print { .card, figure, tr { break-inside: avoid } nav { display: none } }
"""


def text(value: object, most: int | None = None) -> str:
    """A value as text of HTML, of at most so many characters."""
    shown = _UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(value))
    if most is not None and len(shown) > most:
        shown = f"{shown[:most]} … ({len(shown)} characters)"
    return escape(shown)


def tag(name: str, *inner: str, **attributes: object) -> str:
    """An element around what is HTML already; ``class_`` stands for the attribute ``class``."""
    told = "".join(f' {key.rstrip("_")}="{text(value)}"' for key, value in attributes.items())
    return f"<{name}{told}>{''.join(inner)}</{name}>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already.

    Args:
        heads: of the columns; none for a table without.
        rows: the cells.
        numbers: the columns that hold numbers, which are set to the right.
    """

    def line(kind: str, cells: Sequence[str]) -> str:
        return tag(
            "tr",
            *(
                tag(kind, cell, class_="n") if column in numbers else tag(kind, cell)
                for column, cell in enumerate(cells)
            ),
        )

    head = tag("thead", line("th", heads)) if heads else ""
    body = tag("tbody", *(line("td", cells) for cells in rows))
    return tag("div", tag("table", head, body), class_="wide")


def facts(values: Iterable[tuple[str, object]]) -> str:
    """A list of names and values."""
    return tag("dl", *(tag("dt", text(n)) + tag("dd", text(v, 2000)) for n, v in values))


def section(title: str, *parts: str) -> tuple[str, str]:
    """A section by its title, for :func:`page`; nothing of one without parts remains."""
    return title, "\n".join(part for part in parts if part)


def page(title: str, intro: str, sections: Iterable[tuple[str, str]]) -> str:
    """The whole file: title, what comes first, links, and the sections that hold something."""
    filled = [(name, body) for name, body in sections if body]
    places = [re.sub(r"\W+", "-", name.lower()) for name, _ in filled]
    links = [
        tag("a", text(name), href=f"#{place}")
        for place, (name, _) in zip(places, filled, strict=True)
    ]
    bodies = [
        tag("section", tag("h2", text(name)), body, id=place)
        for place, (name, body) in zip(places, filled, strict=True)
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',  # or browsers ask the host for one
            f"<title>{text(title)}</title><style>{STYLE}</style></head><body>",
            tag("header", tag("h1", text(title)), intro, tag("nav", *links)),
            tag("main", *bodies),
            "</body></html>\n",
        ]
    )


def write_page(html: str, path: Path) -> None:
    """Write a page whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        partial.write_text(html, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
