"""What holds for the repository as a whole: quick imports, documented names, layers, no machine in any file."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DOCUMENTED = """
llava llava.constants llava.conversation llava.media llava.entry llava.mm_utils llava.cli.eval llava.data.base
llava.data.builder llava.data.dataset llava.data.dataset_impl.llava llava.data.datasets_mixture llava.data.utils
llava.eval.run_navigation llava.model.builder llava.model.configuration_llava llava.model.language_model.builder
llava.model.language_model.llava_llama llava.model.language_model.llava_qwen llava.model.llava_arch llava.model.loss
llava.model.multimodal_encoder.builder llava.model.multimodal_encoder.clip_encoder
llava.model.multimodal_encoder.siglip_encoder llava.model.multimodal_projector.base_projector
llava.model.multimodal_projector.builder llava.model.utils llava.train.args llava.train.callbacks.autoresume_callback
llava.train.llava_trainer llava.train.train llava.train.train_mem llava.utils.tokenizer llava.eval.run_vila
llava.utils.distributed llava.utils.io llava.utils.logging llava.utils.media llava.model.autoregressive_reconstruction
llava.model.continuous_autoregressive_reconstruction llava.model.video_frame_utils llava.train.autoregressive_trainer
llava.train.train_long llava.train.train_hybrid llava.train.sequence_parallel.ulysses_attn
llava.train.sequence_parallel.hybrid_attn llava.trl llava.trl.trainer llava.cli.run
""".split()
"""Import paths that other people's code uses; they stay, wherever the code moves."""

BELONGS_TO_A_MACHINE = [
    "/" + "root/",
    "/" + "work/",
    "files.python" + "hosted",
    "index-" + "url",
    "registry.npm" + "js",
    "download.py" + "torch.org",
]


def tracked_files() -> list[Path]:
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in git.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_importing_llava_is_quick_and_brings_no_torch():
    program = (
        "import time, sys; t = time.perf_counter(); import llava; t = time.perf_counter() - t; "
        "print(t, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    seconds, *heavy = min(run.stdout.split() for run in runs)
    assert heavy == ["False", "False"]
    assert float(seconds) < 0.3


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_paths_are_importable(name):
    importlib.import_module(name)


def test_imports_point_down():
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("import-linter is not installed: pip install import-linter")
    result = subprocess.run([linter, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_no_file_names_a_machine_or_a_package_host():
    found = []
    for path in tracked_files():
        try:
            content = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {word}" for word in BELONGS_TO_A_MACHINE if word in content]
    assert found == []


def test_there_is_no_lock_file():
    names = {path.name for path in tracked_files()}
    assert not names & {"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock", "package-lock.json"}


def test_pinned_versions_satisfy_the_declared_ranges():
    packaging = pytest.importorskip("packaging.requirements")
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11+ reads pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    ranges = {r.name.lower(): r.specifier for r in map(packaging.Requirement, wanted)}
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    outside = [f"{name}=={version}" for name, version in pins if name in ranges and version not in ranges[name]]
    assert pins and outside == []


def test_every_local_link_of_the_documentation_leads_somewhere():
    broken = []
    for path in tracked_files():
        if path.suffix != ".md":
            continue
        for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
            if "://" not in link and not (path.parent / link).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []
