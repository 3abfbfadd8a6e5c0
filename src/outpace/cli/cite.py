"""`outpace cite`: the papers behind a method, as BibTeX."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from outpace.errors import ConfigError

__all__ = ["cite"]


def cite(
    method: Annotated[str, typer.Argument(help="A method, or a paper's number; `outpace papers` lists all.")],
) -> None:
    """Print the BibTeX entries of a method's papers, or of the paper with a number."""
    from outpace import papers
    from outpace.methods import catalogue

    if method.isdecimal():
        found = papers.find(method)
    else:
        entry = catalogue.find(method)
        own = [paper for paper in papers.papers() if f"method {method}" in paper["runs"]]
        found = own or [entry["paper"]]  # a plug-in's own is in no catalogue
    if not found[0]:
        raise ConfigError(f"The method {method!r} comes from no paper.", f"`outpace methods {method}` tells about it.")
    typer.echo("\n\n".join(map(bibtex, found)))


def bibtex(paper: dict[str, Any]) -> str:
    """Return a paper of the catalogue as a BibTeX entry; author lists stay as short as the catalogue has them."""
    authors = [name.strip() for name in paper["authors"].removesuffix(" et al.").split(",")]
    if paper["authors"].endswith(" et al."):
        authors.append("others")
    word = next(iter(re.findall(r"[a-z]{4,}", paper["title"].lower())), "paper")
    key = re.sub(r"[^a-z]", "", authors[0].split()[-1].lower()) + str(paper["year"]) + word
    facts = {"title": f"{{{paper['title']}}}", "author": " and ".join(authors), "year": paper["year"]}
    if paper["arxiv"]:
        facts |= {"eprint": paper["arxiv"], "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{paper['arxiv']}"}
    return f"@misc{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in facts.items()) + "}"
