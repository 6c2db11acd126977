import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.interpret.small_captioners import captioner_of
from visattn.checkpoints import save_pretrained
from visattn.cli.demo import describe, describe_upload, looked_at
from visattn.interpret import draw_attention, view_of, word_attention
from visattn.interpret.pictures import enlarge

# Gradio stays out of this process: it leaves event loops open, which pytest -W error would hold against other tests.
needs_extra = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra visattn[demo] is not installed")


@pytest.fixture(scope="module")
def model():
    return captioner_of("encoder")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_picture_is_described_as_the_model_does_it(model, pictures):
    description = describe(model, pictures / "plain.png", beams=3, max_words=5)
    ((caption,),) = model.caption(pictures / "plain.png", num_beams=3, max_new_tokens=5)
    assert description.text == caption.text
    assert [word.word for word in description.words] == caption.text.split()
    with Image.open(pictures / "plain.png") as picture:
        expected = enlarge(view_of(model.preprocess, picture), 480)
        image = model.preprocess(picture)[None]
    assert np.array_equal(np.asarray(description.view), np.asarray(expected))
    words = word_attention(model, image, caption.token_ids)
    for number, word in enumerate(words):
        drawn, title = looked_at(description, number)
        difference = np.asarray(drawn, dtype=float) - np.asarray(draw_attention(expected, word.attention), dtype=float)
        assert np.abs(difference).max() <= 4  # of 255: the maps are kept in half precision
        assert f"“{word.word}”" in title
        assert f"{word.probability:.0%}" in title


def test_an_upload_is_described_or_said_by_its_own_name_not_to_be_a_picture(model, pictures):
    description, text, title = describe_upload(model, {"path": str(pictures / "cmyk.jpg")}, 3, 5)
    assert (description.text, title) == (text, "Caption")
    assert len(description.words) == len(text.split()) == 5
    (pictures / "empty.png").touch()
    stored = pictures / "0a1b2c.png"
    stored.write_text("no picture")
    for path, name in ((pictures / "empty.png", None), (stored, "my photo.png")):
        description, text, title = describe_upload(model, {"path": str(path), "orig_name": name}, 3, 5)
        assert (description, title) == (None, "This cannot be described")
        assert text.startswith(f"{name or 'empty.png'}: is no picture")
    assert describe_upload(model, None, 3, 5) == (None, "", "Caption")


def test_the_missing_extra_is_named(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, output, errors = run("demo", "--no-browser")
    assert (code, output) == (1, "")
    assert 'pip install "visattn[demo]"' in errors


@needs_extra
def test_a_classifier_is_refused(checkpoints, run):
    code, _, errors = run("demo", "--no-browser", "-c", checkpoints["vit"])
    assert code == 1
    assert "vit: writes no captions, it is a classifier" in errors


@needs_extra
def test_a_port_that_is_taken_is_named(model, tmp_path):
    save_pretrained(model, tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-m", "visattn", "demo", "-c", str(tmp_path), "--no-browser", "--port", port]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"port {port} at 127.0.0.1 is not to be had" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; it looks nowhere but at the page."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        found = own if own.exists() else shutil.which("chromium") or shutil.which("google-chrome")
        if found is None:
            pytest.skip("there is no Chromium: apt-get install chromium")
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        quiet += ["--disable-background-networking", "--disable-component-update"]
        with started.chromium.launch(executable_path=found, args=quiet) as chromium:
            yield chromium


@pytest.fixture
def server(model, tmp_path):
    """The command itself, and the address that it prints."""
    save_pretrained(model, tmp_path / "captioner")
    options = ["--no-browser", "--port", str(free_port()), "-c", str(tmp_path / "captioner")]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    command = [sys.executable, "-m", "visattn", "demo", *options, "--max-words", "5"]
    # A shell ignores SIGINT for what it runs in the background, tests included, and so would the server.
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **heeds) as process:
        try:
            address = process.stdout.readline().split()[0]
            yield address
            process.send_signal(signal.SIGINT)
            assert process.wait(180) == 0  # beside other tests on two cores
        finally:
            process.kill()


@needs_extra
def test_in_a_browser_a_word_of_a_dropped_picture_is_clicked(model, browser, server, pictures):
    page = browser.new_page()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.set_default_timeout(60_000)
    page.goto(server)
    content = base64.b64encode((pictures / "plain.png").read_bytes()).decode()
    dropped = page.evaluate_handle(
        """content => {
            const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "plain.png", {type: "image/png"}));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#picture button:has(input[type=file])", "drop", {"dataTransfer": dropped})

    description = describe(model, pictures / "plain.png", beams=5, max_words=5)
    words = page.locator("#words label")
    words.first.wait_for()
    assert page.input_value("#caption textarea") == description.text
    assert words.all_inner_texts() == [word.word for word in description.words]
    for number in (3, 1):
        drawn, title = looked_at(description, number)
        words.nth(number).click()
        page.get_by_text(title).wait_for()
        shown = page.request.get(page.locator("#looked img").get_attribute("src")).body()
        with Image.open(BytesIO(shown)) as picture:
            difference = np.asarray(picture.convert("RGB"), dtype=float) - np.asarray(drawn, dtype=float)
        assert np.abs(difference).max() <= 1

    page.locator("#picture button:is([aria-label='Clear'], [aria-label='Remove Image'])").first.click()
    words.first.wait_for(state="detached")
    assert page.input_value("#caption textarea") == ""
    (pictures / "damaged.jpg").write_bytes((pictures / "cmyk.jpg").read_bytes()[:500])
    page.set_input_files("#picture input[type=file]", pictures / "damaged.jpg")
    page.get_by_text("This cannot be described").wait_for()
    assert page.input_value("#caption textarea").startswith("damaged.jpg: truncated or damaged")
    assert {url.split("/")[2] for url in requests if url.startswith("http")} == {server.split("/")[2]}
    page.close()
