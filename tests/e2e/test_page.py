"""The page at `/`, in a real browser on a real pool."""

from __future__ import annotations

import io
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

import httpx
import pytest
import redis
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.api_keys import new_key
from modelyard import Body, Client
from tests.conftest import WaitUntil
from tests.e2e.conftest import MODEL, Digits, Pool
from tests.e2e.orders import register_orders
from tests.pool_samples import publish, record, unpublish

Served = tuple[Pool, str, Client]
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
PICTURES = Path(__file__).parents[2] / "docs" / "images"
MOST_PICTURE_BYTES = 150_000
PICTURE_TRAFFIC_S = 90.0  # only where pictures are taken
BEST, OTHER = "MNIST_PyTorch_Model 2", "MNIST_PyTorch_Model 1"
BROKEN_LINES = """text => {
    const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    const range = new Range();
    let broken = 0;
    while (texts.nextNode()) {
        range.selectNode(texts.currentNode);
        broken += texts.currentNode.data.trim() === text && range.getClientRects().length > 1;
    }
    return broken;
}"""


@pytest.fixture(scope="module")
def browser(system_tool: Callable[[str, str], str]) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=system_tool("chromium", "chromium"), args=[*FLAGS]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails its test where its script raises or its policy blocks something."""
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None,
    )
    yield page
    page.close()
    assert not faults


def test_the_page_shows_which_version_answers_and_follows_the_pool(
    served: Served, digits: Digits, page: Page
) -> None:
    _, url, client = served
    page.goto(f"{url}/")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(BEST)
    expect(rows.nth(0)).to_contain_text("chosen: highest val_accuracy")
    expect(rows.nth(1)).not_to_contain_text("chosen")
    expect(rows.nth(0)).to_contain_text(re.compile(r"0\.\d{4} ± 0\.\d{4}.*of the model on digits, \d+ rows"))
    expect(page.get_by_role("status")).to_have_text("live")
    done = page.locator("dl div").last
    before = done.inner_text()
    client.predict(digits.images[:1])
    expect(done).not_to_have_text(before, timeout=10_000)


def test_a_chart_tells_its_newest_values_and_those_under_the_pointer_in_every_chart(
    served: Served, page: Page
) -> None:
    _, url, _ = served
    page.goto(f"{url}/")
    charts = page.get_by_role("figure")
    backlog = charts.filter(has_text="Backlog").locator(".values")
    expect(backlog).to_have_text(re.compile(r"^\s*0\.0\s*0\.0\s*\d\d:\d\d$"), timeout=20_000)
    charts.filter(has_text="Throughput").locator(".u-over").hover(position={"x": 5, "y": 50})
    expect(charts.filter(has_text="Backlog").locator(".u-cursor-x")).not_to_have_class(re.compile("u-off"))


def test_a_form_sends_one_sample_to_all_versions(served: Served, page: Page) -> None:
    _, url, _ = served
    page.goto(f"{url}/#try")
    pad = page.locator("canvas.pad")
    pad.hover(position={"x": 126, "y": 40})
    page.mouse.down()
    pad.hover(position={"x": 120, "y": 210})
    page.mouse.up()
    page.get_by_role("button", name="Send to all versions").click()
    answers = page.get_by_role("article")
    expect(answers).to_have_count(2)
    for name in (BEST, OTHER):
        expect(page.get_by_role("heading", name=f"{name}: 200 succeeded")).to_be_visible()
    expect(answers.first).to_contain_text("class 1")  # a vertical stroke


def test_an_image_file_is_sent_as_it_is(served: Served, digits: Digits, page: Page) -> None:
    _, url, client = served
    file = io.BytesIO()
    Image.fromarray((digits.images[0, 0] * 255).astype("uint8")).save(file, "png")
    expected = client.predict(Body(file.getvalue(), "image/png")).predictions[0].predicted
    page.goto(f"{url}/#try")
    page.get_by_label("Drop a PNG or JPEG image").set_input_files(
        {"name": "digit.png", "mimeType": "image/png", "buffer": file.getvalue()}
    )
    expect(page.get_by_text("digit.png is sent")).to_be_visible()
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("article")).to_contain_text(f"class {expected}")


@pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's own, of the saved model
def test_a_version_of_columns_has_a_form_with_a_field_for_each_column_and_parameter(
    served: Served, page: Page
) -> None:
    pool, url, client = served
    register_orders(pool.folder, "Form")
    worker = pool.start("workers", MODEL_NAME="Form", MODEL_VERSION="1", MODELYARD_ALLOW_PICKLE_MODELS="true")
    pool.wait_for_workers(url, 3)
    try:
        page.goto(f"{url}/#try")
        target = page.get_by_label("Send to")
        target.select_option(label=target.get_by_role("option", name="Form 1").inner_text())
        page.get_by_label("text string").fill("now")
        page.get_by_label("n long").fill("7")
        page.get_by_label("factor long").fill("3")
        assert not Axe().run(page).violations_count
        page.get_by_role("button", name="Send", exact=True).click()
        answer = page.get_by_role("article").locator("pre").first
        expect(answer).to_contain_text('"upper": "NOW"')
        expect(answer).to_contain_text('"double": 21')
    finally:
        pool.stop(worker)
        client.control("forget", "Form", 1)


@contextmanager
def suspended(pool: Pool, client: Client) -> Iterator[None]:
    """The worker of version 1 is suspended: its supervisor, and its serving process."""
    supervisor = pool.processes[0]
    supervisor.send_signal(signal.SIGSTOP)
    serving = next(each.pid for row in client.workers() if row.worker == 1 for each in row.replicas)
    os.kill(serving, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(serving, signal.SIGCONT)
        supervisor.send_signal(signal.SIGCONT)


def test_jobs_are_listed_by_filters_that_stand_in_the_address_and_one_is_shown_in_detail(
    served: Served, digits: Digits, page: Page
) -> None:
    pool, url, client = served
    done = client.predict(digits.images[:1], version=1)
    with suspended(pool, client):
        waiting = client.submit(digits.images[:1], version=1)
        page.goto(f"{url}/#jobs?status=queued")
        page.get_by_role("button", name=waiting.id).click()
        shown = page.get_by_role("region", name=f"Job {waiting.id}")
        shown.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("1 of 1 cancelled")).to_be_visible()
        expect(shown).to_contain_text('"status": "cancelled"')
        expect(shown.get_by_role("button", name="Cancel")).to_have_count(0)
    page.get_by_role("combobox", name="Jobs").select_option("succeeded")
    assert "status=succeeded" in page.url
    page.get_by_role("button", name=done.id).click()
    expect(page.get_by_role("region", name=f"Job {done.id}")).to_contain_text('"status": "succeeded"')
    page.reload()
    expect(page.get_by_role("combobox", name="Jobs")).to_have_value("succeeded")


def test_a_job_is_opened_and_closed_by_the_keyboard_alone(served: Served, digits: Digits, page: Page) -> None:
    _, url, client = served
    job = client.predict(digits.images[:1])
    page.goto(f"{url}/#jobs?status=succeeded")
    row = page.get_by_role("button", name=job.id)
    row.focus()
    page.keyboard.press("Enter")
    shown = page.get_by_role("region", name=f"Job {job.id}")
    expect(shown).to_be_focused()
    page.keyboard.press("Escape")
    expect(shown).to_have_count(0)
    expect(row).to_be_focused()


def controller_with(pool: Pool, settings: dict[str, str]) -> str:
    """Start a further controller with settings of its own; returns its URL."""
    pool.environment.update(settings)
    try:
        return pool.controller()
    finally:
        for name in settings:
            del pool.environment[name]


def test_batch_files_are_listed_with_their_progress_their_bad_rows_and_what_failed(
    served: Served, digits: Digits, page: Page, tmp_path: Path
) -> None:
    pool, _, _ = served
    settings = {"MODELYARD_BATCH_FOLDER": f"{tmp_path}/kept", "MODELYARD_BATCH_MAX_OUTPUT_BYTES": "20000"}
    url = controller_with(pool, settings)
    line = f"{digits.images[0].round(4).ravel().tolist()}\n"
    few, many = tmp_path / "few.ndjson", tmp_path / "many.ndjson"
    few.write_text(line * 4 + "oops\n")
    many.write_text(line * 400)
    with Client(url) as client:
        page.goto(f"{url}/#jobs")
        done, large = (client.submit_batch(each, version=2) for each in (few, many))
        for each in (done, large):
            client.read_batch(each.id, wait_s=60)
        with suspended(pool, client):
            running, waiting = (client.submit_batch(few, version=1) for _ in range(2))
            rows = {
                each.id: page.get_by_role("row").filter(has_text=each.id)
                for each in (done, large, running, waiting)
            }
            expect(rows[running.id]).to_contain_text("running")
            expect(rows[waiting.id]).to_contain_text("waiting")
            assert not Axe().run(page).violations_count
            for each in (waiting, running):
                rows[each.id].get_by_role("button", name="Cancel").click()
                expect(rows[each.id]).to_contain_text("cancelled")
    expect(rows[large.id]).to_contain_text("failed")
    expect(rows[large.id]).to_contain_text("the output is larger than 20000 bytes")
    expect(rows[done.id].get_by_role("cell")).to_contain_text([done.id, "succeeded", "", "100 %", "5", "1"])
    for name, lines in (("Output", 5), ("Errors", 1)):
        with page.expect_download() as download:
            rows[done.id].get_by_role("link", name=name).click()
        assert len(download.value.path().read_text().splitlines()) == lines
    pool.stop(pool.serving(url))


def test_with_a_key_the_files_of_a_batch_are_downloaded_up_to_a_stated_size(
    served: Served, digits: Digits, page: Page, tmp_path: Path
) -> None:
    pool, _, _ = served
    operator, ann = new_key("ann", "operate")
    url = controller_with(
        pool, {"MODELYARD_API_KEYS": ann.line(), "MODELYARD_BATCH_FOLDER": f"{tmp_path}/kept"}
    )
    rows = tmp_path / "rows.ndjson"
    rows.write_text(f"{digits.images[0].round(4).ravel().tolist()}\n" * 4 + "oops\n")
    with Client(url, api_key=operator) as client:
        batch = client.submit_batch(rows, version=2)
        client.read_batch(batch.id, wait_s=60)
    page.goto(f"{url}/#jobs")
    page.get_by_label("API key").fill(operator)
    page.get_by_role("button", name="Show the pool").click()
    for name, lines, file in (("Output", 5, f"{batch.id}.ndjson"), ("Errors", 1, f"{batch.id}.bad.ndjson")):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.suggested_filename == file
        assert len(download.value.path().read_text().splitlines()) == lines
    (output,) = (tmp_path / "kept").glob(f"**/{batch.id}/output.ndjson")
    os.truncate(output, 2**28 + 1)
    page.get_by_role("link", name="Output").click()
    expect(page.get_by_role("alert")).to_contain_text(re.compile(f"larger than 256 MiB.*{batch.id}/output"))
    pool.stop(pool.serving(url))


def test_a_version_out_of_service_says_so_and_the_decision_is_shown(
    served: Served, digits: Digits, page: Page
) -> None:
    _, url, client = served
    client.control("disable", MODEL, 2, reason="drifts")
    try:
        page.goto(f"{url}/")
        row = page.get_by_role("row").filter(has_text=BEST)
        expect(row).to_contain_text("disabled: drifts")
        job = client.predict(digits.images[:1])
        page.get_by_role("link", name="Why").click()
        expect(page.get_by_role("region", name="Decisions").get_by_role("row").nth(1)).to_contain_text(
            "drifts"
        )
        page.get_by_label("Why did job").fill(job.id)
        page.get_by_role("button", name="Explain").click()
        expect(page.locator("form")).to_contain_text(f"{OTHER}: chosen by")
    finally:
        client.control("enable", MODEL, 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pictures_in_the_docs_show_this_page(
    served: Served, digits: Digits, browser: Browser, scheme: Literal["light", "dark"]
) -> None:
    """With UPDATE_PICTURES=1 it takes them again."""
    _, url, client = served
    for section in ("now", "try"):
        path = PICTURES / f"page-{section}-{scheme}.png"
        if os.environ.get("UPDATE_PICTURES"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 800})
            page.goto(f"{url}/#{section}")
            expect(page.get_by_role("status")).to_have_text("live")
            PREPARE[section](page, client, digits)
            taken = Image.open(io.BytesIO(page.screenshot(full_page=True)))
            taken.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
            page.close()
        with Image.open(path) as image:
            assert image.width == 1280
        assert path.stat().st_size <= MOST_PICTURE_BYTES


def prepare_now(page: Page, client: Client, digits: Digits) -> None:
    """Charts with some minutes of traffic, as far as the pool's history has them."""
    give_up_at = time.monotonic() + PICTURE_TRAFFIC_S
    while time.monotonic() < give_up_at:
        list(client.map(digits.images[:200, None]))
        client.predict(digits.images[:1], version=1)
    expect(page.get_by_role("img", name=re.compile("Throughput"))).to_be_visible()


def prepare_try(page: Page, client: Client, digits: Digits) -> None:
    """A drawn seven, and the answers of both versions."""
    pad = page.locator("canvas.pad")
    pad.hover(position={"x": 70, "y": 60})
    page.mouse.down()
    for x, y in ((180, 60), (120, 210)):
        box = pad.bounding_box()
        assert box
        page.mouse.move(box["x"] + x, box["y"] + y, steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Send to all versions").click()
    expect(page.get_by_role("article")).to_have_count(2)


PREPARE = {"now": prepare_now, "try": prepare_try}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("section", ["now", "jobs", "why", "try", "pool"])
def test_the_page_has_no_accessibility_violation(
    served: Served, browser: Browser, scheme: Literal["light", "dark"], section: str
) -> None:
    _, url, _ = served
    page = browser.new_page(color_scheme=scheme)
    page.goto(f"{url}/#{section}")
    expect(page.get_by_role("status")).to_have_text("live")
    found = Axe().run(page)
    page.close()
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [360, 768, 1024, 2560])
def test_the_page_fits_the_width_of_the_screen(served: Served, browser: Browser, width: int) -> None:
    _, url, _ = served
    page = browser.new_page(viewport={"width": width, "height": 700})
    widths = {}
    for section in ("now", "jobs", "why", "try", "pool"):
        page.goto(f"{url}/#{section}")
        expect(page.get_by_role("status")).to_have_text("live")
        expect(page.locator(".card").first).to_be_visible()
        widths[section] = page.evaluate("document.documentElement.scrollWidth")
        for table in page.locator(".scroll").all():
            assert table.evaluate("each => each.scrollWidth - each.clientWidth") <= 0, section
        assert page.evaluate(BROKEN_LINES, BEST) == 0, section
    page.close()
    assert max(widths.values()) <= width, widths


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (90, "no_break_" + "x" * 150),
        (91, ("words " * 30).strip()),
        (92, "<img src=x onerror=alert(1)>"),
        (93, "نموذج_الصور_الكبيرة"),
        (94, "🦄 名前"),
    ],
)
def test_an_odd_name_of_a_model_leaves_every_column_in_sight(
    served: Served, page: Page, wait_until: WaitUntil, number: int, name: str
) -> None:
    pool, url, _ = served
    version = f"{url}/models/{quote(name, safe='')}/versions/3"
    with redis.Redis.from_url(pool.redis_url) as client:
        worker = record(3, worker=number, model_name=name, warnings=["<b>" + "w" * 300])
        publish(client, worker, ttl_s=60)
        try:
            page.set_viewport_size({"width": 1280, "height": 800})
            for section in ("now", "why", "pool"):
                page.goto(f"{url}/#{section}")
                row = page.get_by_role("row").filter(has_text=name)
                expect(row.locator(".name").first).to_have_text(
                    re.compile(f"^\\W?\\s*{re.escape(name)}\\W? 3")
                )
                for table in page.locator(".scroll").all():
                    assert table.evaluate("each => each.scrollWidth - each.clientWidth") <= 0, section
        finally:
            unpublish(client, worker)
            wait_until(lambda: httpx.delete(version).is_success, what="the version can be forgotten")


def test_the_page_says_that_its_controller_is_gone_and_recovers(served: Served, page: Page) -> None:
    pool, _, _ = served
    url = pool.controller()
    page.goto(f"{url}/")
    expect(page.get_by_role("status")).to_have_text("live")
    pool.stop(pool.serving(url))
    expect(page.get_by_role("alert")).to_contain_text("as last seen")
    expect(page.locator("tbody tr")).to_have_count(2)
    again = pool.start("cli", "serve", "--port", str(urlsplit(url).port))
    expect(page.get_by_role("status")).to_have_text("live", timeout=30_000)
    expect(page.get_by_role("alert")).to_have_count(0)
    pool.stop(again)


def test_the_page_shows_the_pool_without_javascript(served: Served, browser: Browser) -> None:
    _, url, _ = served
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"{url}/")
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator("tbody tr").first).to_contain_text(BEST)
    page.context.close()


def test_a_guarded_pool_is_shown_to_operators_only(served: Served, page: Page) -> None:
    pool, _, _ = served
    operator, ann = new_key("ann", "operate")
    reader, bob = new_key("bob", "predict")
    keys = {
        "MODELYARD_API_KEYS": f"{ann.line()},{bob.line()}",
        "MODELYARD_MLFLOW_URL": "http://mlflow.example/",
    }
    url = controller_with(pool, keys)
    page.goto(f"{url}/")
    for key, shown in ((reader, "role `operate`"), (operator, BEST)):
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Show the pool").click()
        expect(page.locator("main")).to_contain_text(shown)
    page.get_by_role("link", name="Pool").click()
    expect(page.locator("td[data-label^=Memory]").first).to_have_text(re.compile(r"\d+"))
    of_version = page.get_by_role("link", name=BEST)
    expect(of_version).to_have_attribute("href", f"http://mlflow.example/#/models/{MODEL}/versions/2")
    assert httpx.get(f"{url}/events").status_code == 401
    assert BEST not in httpx.get(f"{url}/").text
    pool.stop(pool.serving(url))
