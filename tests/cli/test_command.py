"""The command as a whole: it starts fast, and explains itself."""

import subprocess
import sys

import pytest


def test_help_needs_neither_torch_nor_time():
    program = (
        "import sys, time; start = time.process_time(); sys.argv = ['visattn', '--help']\n"
        "from visattn.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(time.process_time() - start, sorted({'torch', 'timm', 'matplotlib', 'lightning'} & set(sys.modules)))"
    )
    # The least of some: other work on the machine only adds.
    times = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        seconds, _, loaded = result.stdout.splitlines()[-1].partition(" ")
        assert loaded == "[]"
        assert "attend" in result.stdout
        times.append(float(seconds))
    assert min(times) < 0.5


@pytest.mark.parametrize(
    "command", ["models", "classify", "caption", "detect", "attend", "demo", "score-captions", "score-detections"]
)
def test_every_command_has_help(command, run):
    code, output, _ = run(command, "--help")
    assert code == 0
    assert "Usage" in output
    if command != "score-captions":
        assert f"visattn {command}" in output  # an example


def test_the_module_is_the_command():
    result = subprocess.run([sys.executable, "-m", "visattn", "--help"], capture_output=True, text=True, check=True)
    assert "classify" in result.stdout


def test_an_unknown_command_is_named(run):
    code, _, errors = run("clasify")
    assert code == 2
    assert "clasify" in errors
