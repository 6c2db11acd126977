"""The README's commands are commands: what they name exists, and those that end quickly run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from visattn.data import draw_scene

root = Path(__file__).parent.parent
readme = (root / "README.md").read_text()
blocks = re.findall(r"^```bash\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
commands = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
commands += re.findall(r"`((?:uv run |python |visattn )[^`]+)`", readme)
training = sorted({command for command in commands if "train.py" in command})
tools = sorted({command for command in commands if command.startswith("visattn ")})
benchmarks = sorted({command for command in commands if "visattn.benchmark" in command})


def test_the_two_commands_of_a_fresh_machine_are_there():
    assert {"uv run train.py model=vit_local", "uv run pytest"} <= set(commands)


@pytest.mark.parametrize("command", training)
def test_training_commands_compose(command):
    words = shlex.split(command)
    overrides = [word for word in words[words.index("train.py") + 1 :] if word not in ("-m", "--help")]
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        if "-m" in words:  # of a sweep the first run
            overrides = [part.split(",")[0] for part in overrides]
        compose("config", [part for part in overrides if not part.startswith("hydra/")])  # launchers are Hydra's own


@pytest.mark.parametrize("command", tools)
def test_tools_run_as_written(command, tmp_path):
    from PIL import Image

    Image.fromarray(draw_scene(0, 0, 96).image).save(tmp_path / "photo.jpg")
    if "score-captions" in command:
        (tmp_path / "captions_val2014.json").write_text(
            '{"annotations": [{"image_id": 1, "caption": "a dog runs"}, {"image_id": 2, "caption": "two cats"}]}'
        )
        results = '[{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "cats"}]'
        for name in ("results.json", "other.json"):
            (tmp_path / name).write_text(results)
    words = [sys.executable, "-m", "visattn", *shlex.split(command)[1:]]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", benchmarks)
def test_benchmarks_exist(command):
    words = shlex.split(command)
    words = words[words.index("visattn.benchmark") + 1 :]
    called = words[: 2 if words[0] == "zoo" else 1]  # which has commands of its own
    result = subprocess.run(
        [sys.executable, "-m", "visattn.benchmark", *called, "--help"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in result.stdout


def test_pictures_and_files_that_it_shows_are_there():
    for path in re.findall(r"\]\(((?!https?:)[^)#]+)\)", readme):
        assert (root / path).exists(), path


def test_python_examples_compile_and_import_what_exists():
    examples = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")
        imports = "\n".join(line for line in example.splitlines() if line.startswith(("import ", "from ")))
        exec(imports, {})
