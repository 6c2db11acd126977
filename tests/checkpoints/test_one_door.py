"""What comes from outside comes through one door, and runs no code."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import visattn
from visattn.checkpoints import load_pretrained, save_pretrained

package = Path(visattn.__file__).parent


def calls():
    """File and dotted name of every call in the package and in train.py."""
    for file in [*package.rglob("*.py"), package.parent / "train.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file.relative_to(package.parent).as_posix(), ast.unparse(node.func), node


def test_there_is_one_torch_load_and_it_reads_data_only():
    loads = [(file, node) for file, name, node in calls() if name in ("torch.load", "torch.serialization.load")]
    assert [file for file, _ in loads] == ["visattn/checkpoints/native.py"]
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in loads[0][1].keywords}
    assert arguments["weights_only"] == "True"


def test_nothing_unpickles_or_evaluates_what_it_reads():
    refused = {"pickle.load", "pickle.loads", "torch.hub.load", "eval", "exec", "yaml.load", "joblib.load"}
    assert [(file, name) for file, name, _ in calls() if name in refused] == []
    assert not any(keyword.arg == "allow_pickle" for _, _, node in calls() for keyword in node.keywords)


def test_a_hub_id_that_cannot_be_had_is_named():
    with pytest.raises(FileNotFoundError, match=r"visattn-nobody/no-such-model: there is no such file or folder, and"):
        load_pretrained("visattn-nobody/no-such-model")


def test_a_hub_id_in_the_cache_loads_without_network(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    torch.manual_seed(0)
    model = visattn.create_model("vit_tiny", 3, 32, depth=1, dim=24, num_heads=2)
    save_pretrained(model, repository / "snapshots" / commit)
    program = "import visattn; print(visattn.load_pretrained('somebody/some-model').num_classes)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "3"


def test_a_config_that_names_files_elsewhere_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format": "visattn-1"}')
    index = {"weight_map": {"head.weight": "../../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names files outside its folder"):
        load_pretrained(tmp_path)
