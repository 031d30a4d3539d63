"""The playground as somebody uses it: headless Chromium, tiny-chat, the library of demo data."""

import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
from helpers import assert_no_hooks_left, random_vector
from playwright.sync_api import expect, sync_playwright

import steerlens as sl
from steerlens.playground import app, callbacks
from steerlens.playground.jobs import JobQueue
from steerlens.playground.library import RECIPES, Cut, Shelf
from steerlens.playground.request import Push, Trial, run
from steerlens.playground.script import python

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
BREAD = "How do I bake bread?"
CAR = "How do I steal a car?"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM, reason="no Chromium on the PATH; install it or set CHROMIUM to its path"
    ),
]


@pytest.fixture(scope="module")
def shelf(tiny_chat, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Shelf(tiny_chat, RECIPES)


@pytest.fixture(scope="module")
def address(shelf):
    queue = JobQueue()
    server = app.listen(app.make_app(shelf, queue).server, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()
    queue.close()


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking",
            ],
        )  # fmt: skip
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Opens pages; afterwards, none may have complained or asked for anything elsewhere."""
    contexts, wrong = [], []

    def look_out(page):
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((address, "data:", "blob:"))
                else wrong.append(request.url)
            ),
        )

    def open_page(**options):
        options.setdefault("viewport", {"width": 1280, "height": 900})
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        look_out(page)
        page.goto(address)
        page.wait_for_selector("#check.right")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def slowly(monkeypatch):
    """Every token takes its time."""

    def slow_run(*arguments):
        for outcome in run(*arguments):
            yield outcome
            time.sleep(0.2)

    monkeypatch.setattr(callbacks, "run", slow_run)


def wait_until(page, selector, begins):
    page.wait_for_function(
        "([at, text]) => document.querySelector(at).innerText.startsWith(text)",
        arg=[selector, begins],
    )


def send(page):
    """Send, and wait for the reply; the code tells it from the one before."""
    before = page.inner_text("#code")
    page.click("#send")
    page.wait_for_function(
        "before => document.querySelector('#code').innerText !== before", arg=before
    )
    wait_until(page, "#status", "Done")


def ask(page, prompt=BREAD):
    page.fill("#prompt", prompt)
    send(page)
    return page.inner_text("#unsteered"), page.inner_text("#steered")


INSIDE = """() => {
  const graph = document.querySelector("#cosines .js-plotly-plot").getBoundingClientRect();
  return [...document.querySelectorAll("#cosines .legendtext")].map(text => {
    const box = text.getBoundingClientRect();
    return box.width > 0 && box.top >= graph.top && box.bottom <= graph.bottom
      && box.left >= graph.left && box.right <= graph.right;
  });
}"""
"""Whether each entry of the legend is within the graph."""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_legend_of_the_figure_is_in_sight(open_page, width):
    page = open_page(viewport={"width": width, "height": 900})
    ask(page)
    page.wait_for_selector("#cosines .legendtext")
    page.wait_for_function(f"JSON.stringify(({INSIDE})()) === '[true,true]'")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def set_strength(page, value, name="refuse"):
    row = page.locator(f"[aria-label='vector {name}']")
    row.get_by_text("find one that leaves text whole").set_checked(False)
    box = row.locator("input[type=number]").last
    box.fill(str(value))
    box.press("Tab")


def set_threshold(page, name, value):
    box = page.locator(f"[aria-label='condition {name}'] input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def test_the_refusal_vector_refuses(open_page, tiny_chat):
    page = open_page()
    strength = page.locator("[aria-label='vector refuse'] input[type=number]").last
    expect(strength).to_be_disabled()
    unsteered, steered = ask(page)
    expect(strength).to_be_enabled()
    assert not sl.judges.refused(unsteered)
    assert sl.judges.refused(steered)
    assert unsteered == sl.generate(tiny_chat, [BREAD], max_new_tokens=40, progress=False)[0]
    assert_no_hooks_left(tiny_chat)
    assert page.locator("#tokens span").count() > 5
    expect(page.locator("#cosines .scatterlayer .trace")).to_have_count(2)  # drawn afterwards
    names = {}
    exec(page.inner_text("#code"), names)
    assert names["reply"] == steered


def test_what_is_made_is_what_the_code_gives(tiny_chat, shelf, monkeypatch):
    monkeypatch.setattr(sl, "load_model", {"tiny-chat": tiny_chat}.__getitem__)
    rule = "if harmful and not legal then steer"
    cuts = {
        "harmful": Cut(1, -0.9),
        "legal": Cut(1, 0.9),
    }  # whether tiny-chat tells the topics apart is not the matter
    trial = Trial((Push("refuse", (2, 3), 0.3),), CAR, rule=rule, cuts=cuts)
    *_, outcome = run(shelf, trial, {})
    names = {}
    exec(python(outcome.trial, shelf.made, "tiny-chat"), names)
    assert names["reply"] == outcome.replies[1]
    assert sl.judges.refused(outcome.replies[1])
    vectors = names["vectors"]
    assert list(vectors) == ["refuse", "harmful", "legal"]
    for name, vector in vectors.items():
        assert vector.directions.equal(shelf.made[name].vector.directions)


def test_enter_sends_what_a_preset_sets_and_other_settings_are_marked(open_page):
    page = open_page()
    page.click("#preset")
    page.click("text=II · refuse harm only")
    page.wait_for_function("document.querySelector('#rule').value === 'if harmful then refuse'")
    page.locator("#prompt").press("Shift+Enter")
    assert "\n" in page.input_value("#prompt")
    page.get_by_text("at five strengths").check()
    page.locator("#prompt").press("Enter")
    wait_until(page, "#status", "Done")
    expect(page.locator("#rungs tr")).to_have_count(5)
    expect(page.locator("#stale")).to_be_hidden()
    page.wait_for_selector("[aria-label='condition harmful'] input[type=number]")
    page.fill("#prompt", BREAD)
    page.wait_for_selector("#stale", state="visible")
    send(page)
    page.wait_for_selector("#stale", state="hidden")


def test_a_link_opens_a_page_with_the_same_settings(open_page, browser):
    page = open_page()
    page.fill("#rule", "if not legal then steer")
    page.fill("#prompt", CAR)
    set_strength(page, 0.2)
    page.wait_for_function("document.querySelector('#link').href.includes('#')")
    ask(page, CAR)
    link = page.evaluate("document.querySelector('#link').href")
    other = open_page()
    other.goto("about:blank")
    other.goto(link)
    other.wait_for_function(f"document.querySelector('#prompt')?.value === '{CAR}'")
    assert other.input_value("#rule") == "if not legal then steer"
    strength = other.locator("[aria-label='vector refuse'] input[type=number]").last
    assert strength.input_value() == "0.2"
    send(other)
    assert other.inner_text("#steered") == page.inner_text("#steered")


def test_no_strength_no_difference(open_page):
    page = open_page()
    set_strength(page, 0)
    unsteered, steered = ask(page)
    assert unsteered == steered != ""


def test_the_threshold_decides_whether_the_gate_fires(open_page):
    page = open_page()
    page.fill("#rule", "if harmful then steer")
    unsteered, steered = ask(page)
    assert steered == unsteered
    expect(page.locator("#gates")).to_have_text(re.compile("did not fire$"))
    condition = page.locator("[aria-label='condition harmful'] .seen")
    expect(condition).to_have_text(re.compile("does not fire$"))
    slider = page.locator("[aria-label='condition harmful'] [role=slider]")
    slider.focus()
    slider.press("Home")  # by keyboard, to the lowest
    page.wait_for_function("document.querySelector('.seen').innerText.endsWith(': fires')")
    unsteered, steered = ask(page)
    assert steered != unsteered
    expect(page.locator("#gates")).to_have_text(re.compile(": fired$"))
    set_threshold(page, "harmful", 0.05)
    page.wait_for_function("document.querySelector('.seen').innerText.endsWith('not fire')")


def test_a_bad_rule_is_reported_as_it_is_typed(open_page):
    page = open_page()
    page.locator("#rule").press_sequentially("if harmful or")
    page.wait_for_selector("#check.wrong")
    assert "expected the form" in page.inner_text("#check")
    page.fill("#rule", "if dangerous then steer")
    wait_until(page, "#check", "got the rule 'if dangerous then refuse' with the unknown condition")
    page.click("#send")
    wait_until(page, "#error", "got the rule 'if dangerous")
    assert page.inner_text("#steered") == ""
    page.fill("#rule", "if harmful or legal then steer")
    page.wait_for_selector("#check.right")
    ask(page)
    assert page.inner_text("#error") == ""


def test_stop_ends_the_reply_and_takes_the_hooks_off(open_page, tiny_chat, slowly):
    page = open_page()
    page.click("#send")
    wait_until(page, "#status", "Writing")
    page.click("#stop")
    wait_until(page, "#status", "Stopped after")
    assert_no_hooks_left(tiny_chat)
    stopped = page.inner_text("#steered")
    assert stopped
    expect(page.locator("#stop")).to_be_disabled()
    page.wait_for_timeout(800)
    assert page.inner_text("#steered") == stopped


def test_two_pages_take_turns_and_do_not_mix(open_page, tiny_chat, slowly):
    first, second = open_page(), open_page()
    set_strength(second, 0)
    second.fill("#prompt", CAR)
    first.click("#send")
    wait_until(first, "#status", "Writing")
    second.click("#send")
    wait_until(second, "#status", "Waiting for another tab (1 ahead)")
    second.click("#stop")
    wait_until(second, "#status", "Stopped after 0")
    second.click("#send")
    wait_until(second, "#status", "Waiting for another tab (1 ahead)")
    wait_until(first, "#status", "Done")
    wait_until(second, "#status", "Done")
    bread, car = sl.generate(tiny_chat, [BREAD, CAR], max_new_tokens=40, progress=False)
    assert first.inner_text("#unsteered") == bread
    assert sl.judges.refused(first.inner_text("#steered"))
    assert second.inner_text("#unsteered") == second.inner_text("#steered") == car
    assert_no_hooks_left(tiny_chat)


def test_a_dropped_vector_steers_and_another_page_does_not_see_it(open_page, tiny_chat, tmp_path):
    random_vector(tiny_chat).save(tmp_path / "My push.safetensors")
    (tmp_path / "broken.svec").write_text("{")
    page, other = open_page(), open_page()
    page.set_input_files("#upload input", tmp_path / "broken.svec")
    wait_until(page, "#uploaded", "'broken.svec' is not valid JSON")
    page.set_input_files("#upload input", tmp_path / "My push.safetensors")
    page.wait_for_selector("[aria-label='vector my_push']")
    page.wait_for_selector("[aria-label='condition my_push']")
    set_strength(page, 20, "my_push")
    unsteered, steered = ask(page)
    assert steered != unsteered
    assert "sl.SteeringVector.load('My push.safetensors')" in page.inner_text("#code")
    assert other.locator("[aria-label='condition my_push']").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_readable_on_a_phone_and_in_the_dark(open_page, tmp_path, width, scheme):
    page = open_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.fill("#rule", "if not harmful then steer")
    ask(page)
    page.wait_for_selector("#cosines .scatterlayer .trace")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{what}")
        for what in ("color", "backgroundColor")
    )
    assert (brightness(ink) > brightness(paper)) == (scheme == "dark")
    folder = Path(os.environ.get("STEERLENS_SCREENSHOTS", tmp_path))
    shot = folder / f"playground-{width}-{scheme}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 10_000


def brightness(colour):
    return sum(int(part) for part in colour[4:-1].split(","))
