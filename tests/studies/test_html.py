"""Pages in a headless browser: they load, answer their controls, and fit a phone, in the dark."""

import os
import shutil
import time

import pytest
from studies_made import make_study

from steerlens.studies.reports import report

pytestmark = pytest.mark.slow


def eventually(holds, seconds=20):
    """The page's own policy forbids Playwright's waiting functions, which are evaluated text."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: install it, or set BROWSER_PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return report(make_study(tmp_path_factory.mktemp("study"))).as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the study's page; what the browser complains of fails the test."""
    complaints, pages = [], []

    def open_page(**options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if is_foreign(asked) else 0)
        page.goto(address)
        # what is folded is drawn when it is opened
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        n_plots = page.locator(".plot").count()
        eventually(lambda: page.locator(".plot .plot-container").count() == n_plots)
        return page

    def is_foreign(request):
        return not request.url.startswith((address, "data:", "blob:"))

    yield open_page
    for page in pages:
        page.close()
    assert not complaints


def test_the_page_loads_and_runs_no_text(opened):
    page = opened()
    assert page.locator(".plot .main-svg").count() >= 6
    assert page.evaluate("window.hurt") is None


def shown_curve(figure):
    return figure.evaluate(
        "f => f.querySelector('.plot')._fullData.filter(t => t.visible === true)[0].x[0]"
    )


def test_the_slider_moves_the_curve_by_keyboard(opened):
    page = opened()
    figure = page.locator("figure", has=page.locator("input[type=range]"))
    before, title = shown_curve(figure), figure.locator("h3").inner_text()
    slider = figure.locator("input[type=range]")
    assert slider.input_value() == "2"  # the planted layer
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert figure.locator("output").inner_text() == "2"
    eventually(lambda: shown_curve(figure) != before)
    assert figure.locator("h3").inner_text() != title
    assert "layer 2" in figure.locator("h3").inner_text()


def test_the_menu_chooses_the_heatmap(opened):
    page = opened()
    figure = page.locator("figure", has=page.locator("select"))
    figure.locator("select").select_option("2")
    visible = "f => f.querySelector('.plot').data.map(t => t.visible)"
    eventually(lambda: figure.evaluate(visible) == [False, False, True, False])
    assert "cheer" in figure.locator("h3").inner_text()


def test_the_dark_scheme_reaches_page_and_figures(opened):
    page = opened(color_scheme="dark")

    def ground():
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " document.querySelector('.plot .main-svg').style.background]"
        )

    assert ground() == ["rgb(22, 24, 28)"] * 2
    page.emulate_media(color_scheme="light")
    eventually(lambda: ground() == ["rgb(255, 255, 255)"] * 2)


def test_a_phone_scrolls_only_down(opened):
    page = opened(viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_first_tab_skips_to_the_results(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")


def test_a_folded_figure_is_drawn_when_its_section_is_opened(browser, address):
    page = browser.new_page()
    page.goto(address)
    eventually(lambda: page.locator(".plot .plot-container").count() > 0)
    section = page.locator("section", has=page.locator("input[type=range]"))
    plots = section.locator(".plot")
    assert section.locator(".plot .plot-container").count() == 0
    section.locator("summary h2").click()
    eventually(lambda: section.locator(".plot .plot-container").count() == plots.count())
    widths = plots.evaluate_all("all => all.map(p => p.querySelector('.main-svg').clientWidth)")
    assert min(widths) > 300
    page.close()


def test_lines_get_lighter_in_the_dark(opened):
    page = opened(color_scheme="dark")
    figure = page.locator("figure", has=page.locator("input[type=range]"))
    color = "f => f.querySelector('.plot').data.find(t => t.name === 'F1').line.color"
    assert figure.evaluate(color) == "#5AA9E6"
    page.emulate_media(color_scheme="light")
    eventually(lambda: figure.evaluate(color) == "#0072B2")
