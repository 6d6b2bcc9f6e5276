"""README and the pages: every command has only flags that its script takes, and every link leads somewhere."""

import re
import shlex

import pytest
from conftest import REPOSITORY

GUIDES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("tests/**/*.md")])
PAGES = [*GUIDES, *sorted(REPOSITORY.glob("experiments/**/*.md"))]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands():
    """(page, words) of each command of a script of this repository, but for the experiments' own scripts."""
    for page in GUIDES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if any(word.endswith(".py") for word in words):
                    yield page.name, words


@pytest.fixture(scope="module")
def flags(script_server):
    """script -> the flags that its --help names."""
    known = {}

    def of(script):
        if script not in known:
            code, printed, errors = script_server.run(script, "--help")
            assert code == 0, errors
            known[script] = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", printed))
        return known[script]

    return of


def test_commands_have_flags_that_their_scripts_take(flags):
    found = list(commands())
    assert len(found) > 20
    for page, words in found:
        at = next(number for number, word in enumerate(words) if word.endswith(".py"))
        given = {word for word in words[at + 1 :] if re.match(r"--?[a-z]", word)}
        assert given <= flags(words[at]), f"{page}: {' '.join(words)}"


def anchors(page) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
