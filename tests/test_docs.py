"""README and pages: what they point to is there."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
LINK = re.compile(r"(?s)\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_to_files(page):
    text = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    places = [link.split("#")[0] for link in LINK.findall(text) if "://" not in link]
    here = page.parent  # from the root a code host shows folders too
    there = Path.exists if here == ROOT else Path.is_file
    assert not [place for place in places if place and not there(here / place)]


@pytest.mark.parametrize("page", PAGES[2:], ids=lambda page: page.name)
def test_every_page_has_a_picture_or_a_command(page):
    text = page.read_text(encoding="utf-8")
    assert "![" in text or "```" in text


def test_every_page_is_in_the_contents():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"(?m)^([a-z]+)$", index))
    assert {page.stem for page in PAGES[2:]} - {"index"} == listed


def test_commands_of_the_pages_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z]+):", makefile))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"(?m)(?:^|`)make ([a-z]+)", text))
        assert named <= targets, page.name


def test_the_readme_is_three_screens():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version = {{{version}}}" in re.sub(" +", " ", "\n".join(lines))
