"""The HTML page: same bytes, harmless names, nothing fetched; sorted and hovered in Chromium."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_results import HOSTILE, failed, make

from ctxext import report
from ctxext.records import Record, Store, sealed
from ctxext.report import page, series
from ctxext.report.page import plot
from ctxext.system.names import printable

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
ATTACKS = [
    *(name for name in HOSTILE if "\ud800" not in name),
    "</script><script>document.title = 'pwned'</script>",
    "<img src=x onerror=\"document.title = 'pwned'\">",
    "\" onpointerenter=\"document.title='pwned'\" x='",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "</title></style></table>",
]


def cell(method: str, length: int, value: float, **more: Any) -> Record:
    return make(requested=method, length=length, value=value, **more)


def passkey(method: str, length: int, found: float) -> Record:
    parts = [{"name": f"depth {d}", "depth": d, "value": found, "n": 4} for d in (0.0, 0.5, 1.0)]
    return cell(method, length, found, task="passkey", metric="passkey", parts=parts, buckets=[])


EXAMPLE = [
    cell("rope", 64, 9.5, stderr=0.5),
    cell("rope", 128, 90.0),
    cell("ntk", 64, 10.25),
    cell("ntk", 128, 12.0, stderr=0.25),
    cell("yarn", 64, 8.0),
    failed(requested="yarn", length=128),
    cell("pi", 64, 100.0),
    *(passkey(method, length, 0.75) for method in ("rope", "ntk") for length in (64, 128)),
]


class Reader(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.code: list[str] = []
        self.inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        (self.code if self.inside in ("script", "style") else self.texts).append(data)


def hostile_records(names: list[str]) -> list[Record]:
    data = {"name": names[-1], "sha256": "ab" * 32, "tokens": 1000}
    about = {"model": names[0], "data": data}
    records = [cell(m, n, 9.0, **about) for m in ("rope", *names) for n in (64, 128)]
    records += [passkey(m, n, 0.5) | about for m in names for n in (64, 128)]
    return [sealed(record) for record in records]


def test_the_same_records_give_the_same_ascii_bytes() -> None:
    text = page.render(EXAMPLE)
    assert text.encode("ascii") == page.render(EXAMPLE[::-1]).encode("ascii")
    assert text.startswith("<!doctype html>")
    done = subprocess.run(
        [sys.executable, "-c", FRESH], input=json.dumps(EXAMPLE), capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout == hashlib.sha256(text.encode()).hexdigest()


FRESH = """
import hashlib, json, sys
from ctxext.report import render
text = render(json.load(sys.stdin), "html")
assert not {"torch", "transformers"} & sys.modules.keys()
print(hashlib.sha256(text.encode()).hexdigest(), end="")
"""


def test_names_are_text_and_nothing_else() -> None:
    read, plain = Reader(page.render(hostile_records(ATTACKS))), Reader(page.render(EXAMPLE))
    assert {tag for tag, _ in read.elements} == {tag for tag, _ in plain.elements}
    assert read.code == plain.code
    known = {name for _, attributes in plain.elements for name in attributes}
    assert {name for _, attributes in read.elements for name in attributes} <= known
    shown = [text.strip() for text in read.texts]
    for name in ATTACKS:
        assert printable(name).strip() in shown
    tips = [attributes["data-tip"] for _, attributes in read.elements if "data-tip" in attributes]
    assert any(tip.startswith("<img src=x onerror=") for tip in tips)


@pytest.mark.parametrize("records", [EXAMPLE, hostile_records(ATTACKS), []])
def test_nothing_is_fetched(records: list[Record]) -> None:
    read = Reader(page.render(records))
    loading = ("src", "srcset", "data", "poster", "action", "formaction", "background", "ping")
    for _, attributes in read.elements:
        assert not attributes.keys() & set(loading)
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in attributes.get("style", "")
    assert {"link", "img", "iframe", "base", "object"}.isdisjoint(tag for tag, _ in read.elements)
    code = "".join(read.code)
    assert not re.search(r"https?:|//\w|url\(|@import|import\s*\(|fetch|XMLHttp|innerHTML", code)


def test_the_page_lets_its_browser_run_its_own_script_only() -> None:
    source = page.render(EXAMPLE)
    (rule,) = [a["content"] for _, a in Reader(source).elements if "http-equiv" in a]
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    script_rule = f"script-src 'sha256-{digest}'"
    assert rule == f"default-src 'none'; style-src 'unsafe-inline'; {script_rule}"


def test_thirty_methods_all_look_different_and_keep_their_look() -> None:
    methods = [f"ntk:factor={n}" for n in range(2, 31)]
    records = [cell(m, n, 9.0 + k) for k, m in enumerate(["rope", *methods]) for n in (64, 128)]
    looks = plot.looks(records)
    assert len(set(looks.values())) == len(looks) == 30
    part = [p for p in page._parts(records, ()) if p["kind"] == "plot"]
    assert len(part) >= 2
    for drawn in part:
        assert {line["method"]: line["look"] for line in drawn["lines"]} == looks


def test_dots_stand_at_their_values() -> None:
    (part,) = [p for p in page._parts(EXAMPLE, ()) if p["title"].endswith("perplexity by length")]
    lines = {line["method"]: line for line in part["lines"]}
    assert [len(lines[m]["dots"]) for m in ("rope", "ntk", "yarn", "pi")] == [2, 2, 1, 1]
    places = [
        float(dot["y"].rstrip("%")) for m in ("yarn", "rope", "ntk") for dot in lines[m]["dots"]
    ]
    values = [math.log(v) for v in (8.0, 9.5, 90.0, 10.25, 12.0)]
    steps = [
        (value - values[0]) / (place - places[0])
        for value, place in zip(values[1:], places[1:], strict=True)
    ]
    assert steps == pytest.approx([steps[0]] * 4, rel=1e-2)
    assert steps[0] < 0
    ntk = [dot["text"] for dot in lines["ntk"]["dots"]]
    assert ntk == ["64: 10.25 ± 0.1", "128: 12 ± 0.25"]
    assert lines["rope"]["bars"].count("M") == 2


def test_the_page_goes_into_the_folder_and_nothing_to_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ctxext.cli import app as cli

    for record in EXAMPLE:
        Store(tmp_path).write(record)
    monkeypatch.setattr(
        sys, "argv", f"ctxext report --write --format html --no-plots --out {tmp_path}".split()
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert not ended.value.code
    assert told.out == ""
    assert (tmp_path / "report.html").read_text() == report.render(EXAMPLE, "html")
    assert f"wrote {tmp_path / 'report.html'}" in told.err.splitlines()


# In a browser.

needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} found")

DRIVER = """
const told = { errors, violations };
const table = document.querySelectorAll("table.sortable")[NUMBER];
const methods = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const heads = table.tHead.rows[0].cells;
const sorted = (column) => {
  heads[column].querySelector("button").click();
  return [heads[column].ariaSort, methods()];
};
told.written = methods();
told.short = [sorted(1), sorted(1), sorted(1)];
told.long = [sorted(2), sorted(2)];
told.names = [sorted(0), sorted(0)];
heads[1].querySelector("button").focus();
told.focus = document.activeElement.textContent;
const tip = document.getElementById("tip");
const hover = (element, kind) => {
  const box = element.getBoundingClientRect();
  const [clientX, clientY] = [box.left + box.width / 2, box.top + box.height / 2];
  const event = new PointerEvent(kind, { clientX, clientY, bubbles: true });
  (element.closest(".area") || element).dispatchEvent(event);
  return [tip.hidden, ...[...tip.children].map((row) => row.textContent)];
};
told.before = tip.hidden;
told.plots = [...document.querySelectorAll(".plot")].map((plot) =>
  [...plot.querySelectorAll(".line use")].map((dot) => [
    dot.textContent.trim().replace("\\n", ""), hover(dot, "pointermove")]));
const area = document.querySelector(".area");
area.dispatchEvent(new PointerEvent("pointerleave"));
told.after = tip.hidden;
told.map = hover(document.querySelector("[data-tip]"), "pointerenter");
const key = (name) => {
  area.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
  return tip.textContent;
};
told.keys = [key("ArrowRight"), key("ArrowRight")];
const legend = document.querySelectorAll(".legend button")[1];
legend.click();
told.hidden = [legend.ariaPressed, document.querySelectorAll(".line")[1].style.display];
const theme = document.getElementById("theme");
told.themes = [0, 1, 2].map(() => {
  theme.click();
  return [theme.textContent, getComputedStyle(document.body).backgroundColor];
});
told.wide = document.documentElement.scrollWidth - innerWidth;
told.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
told.title = document.title;
const outcome = document.createElement("pre");
outcome.id = "outcome";
outcome.textContent = JSON.stringify(told);
document.body.append(outcome);
"""
WATCH = """<script>
const errors = [], violations = [];
addEventListener("error", (event) => errors.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (e) => violations.push(e.blockedURI));
</script>"""


def browse(path: Path, width: int = 1200) -> tuple[str, str]:
    """The DOM after the page's scripts ran, and what the browser logged of the page."""
    profile = path.with_suffix(".profile")
    options = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"),
        *(f"--window-size={width},900", f"--user-data-dir={profile}", "--dump-dom"),
    ]
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *options, path.as_uri()], capture_output=True, timeout=60, check=True
    )
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    return done.stdout.decode(), "\n".join(line for line in lines if "CONSOLE" in line)


def drive(
    path: Path, source: str, number: int, width: int = 1200, script: str = DRIVER
) -> tuple[dict[str, Any], str]:
    """What the driver found in a copy of the page that also lets the driver's scripts run."""
    opened = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", source)
    assert opened != source
    driver = f"<script>{{{script.replace('NUMBER', str(number))}}}</script></body>"
    opened = opened.replace("<style>", f"{WATCH}<style>", 1).replace("</body>", driver)
    path.write_text(opened)
    dom, console = browse(path, width)
    (told,) = re.findall(r'<pre id="outcome">(.*?)</pre>', dom, re.S)
    return json.loads(html.unescape(told)), console


@needs_browser
def test_a_browser_sorts_and_tells_values(tmp_path: Path) -> None:
    told, console = drive(tmp_path / "page.html", page.render(EXAMPLE), 1)
    assert (told["errors"], told["violations"], told["requests"], console) == ([], [], [], "")
    assert told["written"] == ["rope", "ntk", "pi", "yarn"]
    upwards = ["yarn", "rope", "ntk", "pi"]  # 8, 9.5, 10.25, 100: by number, not by text
    expected = [("ascending", upwards), ("descending", upwards[::-1]), ("none", told["written"])]
    assert list(map(tuple, told["short"])) == expected
    # pi is missing and yarn ran out of memory: both last, whichever the direction
    assert told["long"] == [
        ["ascending", ["ntk", "rope", "pi", "yarn"]],
        ["descending", ["rope", "ntk", "pi", "yarn"]],
    ]
    assert told["names"][0] == ["ascending", ["ntk", "pi", "rope", "yarn"]]
    assert told["focus"] == "64"
    assert (told["before"], told["after"]) == (True, True)
    by_length = [p for p in told["plots"] if any("128: 12 ± 0.25" in dot for dot, _ in p)]
    assert by_length
    for shown in told["plots"]:
        for dot, (hidden, *rows) in shown:
            assert not hidden
            assert any(row.replace("\n", "") in dot.replace("\n", "") for row in rows)
    assert ["ntk128: 12 ± 0.25", [False, "ntk128: 12 ± 0.25"]] in by_length[0]
    assert told["map"] == [False, "rope\nlength 64, depth 0: 75.0 % found"]
    assert all(key.startswith("rope") for key in told["keys"])
    assert told["keys"][0] != told["keys"][1]
    assert told["hidden"] == ["false", "none"]
    (first, light), (second, dark), (third, auto) = told["themes"]
    assert [first, second, third] == ["theme: light", "theme: dark", "theme: auto"]
    assert light == auto == "rgb(255, 255, 255)"
    assert dark == "rgb(20, 23, 26)"


@needs_browser
def test_a_browser_runs_no_script_but_the_page_s_own(tmp_path: Path) -> None:
    source = page.render(hostile_records(ATTACKS))
    told, console = drive(tmp_path / "open.html", source, 0, width=500)
    assert (told["errors"], told["requests"], told["title"]) == ([], [], "ctxext report")
    assert console == ""
    assert told["wide"] <= 0  # nothing sticks out on a narrow screen
    (tmp_path / "closed.html").write_text(source)
    dom, console = browse(tmp_path / "closed.html")
    assert console == ""
    assert re.search(r'<html[^>]* class="js"', dom)  # the page's own script was let in


KEYS = """
const area = document.querySelectorAll(".area")[NUMBER];
const legend = area.closest(".plot").querySelectorAll(".legend button");
const dots = [...area.querySelectorAll(".line")].map((line) => line.querySelectorAll("use").length);
const key = () => area.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
legend[0].click();
key();
const outcome = document.createElement("pre");
outcome.id = "outcome";
outcome.textContent = JSON.stringify({ dots, tip: document.getElementById("tip").hidden });
document.body.append(outcome);
"""


@needs_browser
def test_arrow_keys_end_where_all_that_is_drawn_is_out_of_view(tmp_path: Path) -> None:
    records = [make(requested=name, length=n) for name in ("rope", "ntk") for n in (64, 128)]
    exploded = [r | {"value": 1e9} if r["requested"] == "ntk" else r for r in records]
    number = [f.name for f in series.figures(exploded)].index("perplexity--tiny--stdlib")
    told, _ = drive(tmp_path / "keys.html", page.render(exploded), number, script=KEYS)
    assert told == {"dots": [2, 0], "tip": True}


def luminance(hexed: str) -> float:
    """The relative luminance of a colour, as WCAG 2 has it."""
    parts = [int(hexed[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_numbers_on_maps_can_be_read() -> None:
    records = [passkey("rope", 64 + n, n / 100) for n in range(101)]
    text = page.render(records)
    cells = re.findall(r"background: (#\w{6}); color: (#\w{3})\"", text)
    assert len(cells) == 3 * 101
    for ground, ink in cells:
        low, high = sorted((luminance(ground), 1.0 if ink == "#fff" else 0.0))
        assert (high + 0.05) / (low + 0.05) >= 4.4


def test_a_share_no_map_has_is_drawn_at_its_end() -> None:
    odd = passkey("rope", 64, 0.5)
    odd["parts"] = [part | {"value": 1e308} for part in odd["parts"]]
    assert 'style="background: #fee838' in page.render([sealed(odd)])
