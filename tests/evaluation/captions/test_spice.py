"""The adapter to the official SPICE, with a small program of our own in its place."""

import shutil
import subprocess
import sys
import time

import pytest

from visattn.evaluation.captions import SpiceUnavailable, evaluate, spice

REFERENCES, CANDIDATES = [["a dog", "the dog runs"], ["two cats"]], ['a "red" dog', "cats"]

needs_compiler = pytest.mark.skipif(
    shutil.which("javac") is None or shutil.which("jar") is None, reason="needs a Java compiler"
)

# Scores a caption by its place; the captions "sleep" and "fail" make it do that.
PROGRAM = r"""
import java.nio.file.*;
import java.util.*;

public class Spice {
    public static void main(String[] arguments) throws Exception {
        String text = Files.readString(Path.of(arguments[0]));
        List<String> flags = Arrays.asList(arguments);
        Path cache = Path.of(flags.get(flags.indexOf("-cache") + 1));
        Files.writeString(cache.resolve("starts.txt"), "once\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        if (text.contains("\"test\": \"sleep\"")) Thread.sleep(60000);
        if (text.contains("\"test\": \"fail\"")) { System.err.println("no parser \u00e9"); System.exit(3); }
        int images = text.split("\"image_id\"").length - 1;
        StringBuilder scores = new StringBuilder("[");
        for (int image = images - 1; image >= 0; image--) {
            String value = image == 2 ? "null" : "0." + (image + 1);
            scores.append("{\"image_id\": " + image + ", \"scores\": {\"All\": {\"f\": " + value + "}}}");
            scores.append(image > 0 ? "," : "]");
        }
        Files.writeString(Path.of(flags.get(flags.indexOf("-out") + 1)), scores);
    }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A package pycocoevalcap, in a folder with a space in its name, whose SPICE is the program above."""
    root = tmp_path_factory.mktemp("site packages")
    folder = root / "pycocoevalcap" / "spice"
    (folder / "lib").mkdir(parents=True)
    (root / "pycocoevalcap" / "__init__.py").touch()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (folder / "lib" / name).touch()
    (root / "Spice.java").write_text(PROGRAM)
    subprocess.run(["javac", "Spice.java"], cwd=root, check=True)
    subprocess.run(["jar", "cfe", str(folder / "spice-1.0.jar"), "Spice", "Spice.class"], cwd=root, check=True)
    return root


@pytest.fixture
def installed(program, tmp_path, monkeypatch):
    """Makes that package the one that is found, and returns the cache folder."""
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    monkeypatch.syspath_prepend(program)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "visattn" / "spice"


@needs_compiler
def test_one_virtual_machine_scores_all_captions_and_their_order_is_kept(installed):
    assert spice(REFERENCES, CANDIDATES) == [0.1, 0.2]
    assert (installed / "starts.txt").read_text() == "once\n"


@needs_compiler
def test_a_score_that_the_program_leaves_out_is_nan(installed):
    assert repr(spice([["a"]] * 4, ["a"] * 4)) == "[0.1, 0.2, nan, 0.4]"


@needs_compiler
def test_evaluate_gives_the_mean_over_images(installed):
    scores = evaluate({7: ["a dog"], 9: ["two cats"]}, {7: "a dog", 9: "cats"}, ["SPICE"])
    assert scores.corpus["SPICE"] == pytest.approx(0.15)
    assert scores.per_image == {7: {"SPICE": 0.1}, 9: {"SPICE": 0.2}}


@needs_compiler
def test_a_program_that_hangs_is_stopped_after_the_time_limit(installed):
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"longer than 1\.5 seconds and was stopped"):
        spice([["a"]], ["sleep"], timeout=1.5)
    assert time.monotonic() - start < 20
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(installed) not in running


@needs_compiler
def test_what_a_failing_program_printed_is_in_the_message(installed):
    with pytest.raises(RuntimeError, match="ended with status 3: no parser"):
        spice([["a"]], ["fail"])


@needs_compiler
def test_a_missing_model_is_named_with_the_place_it_belongs_to(installed, program):
    model = program / "pycocoevalcap" / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar"
    model.unlink()
    try:
        with pytest.raises(SpiceUnavailable, match=r"needs stanford-corenlp-3.6.0-models.jar; .*belong in .*lib"):
            spice(REFERENCES, CANDIDATES)
    finally:
        model.touch()


def test_without_java_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpiceUnavailable, match="no `java` is on the PATH"):
        evaluate({1: ["a"], 2: ["b"]}, {1: "a", 2: "b"}, ["SPICE"])
