"""What the documents say runs, and their figures are those of the records."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def run(code, **kwargs):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], text=True, capture_output=True, **kwargs)


def test_the_readme_examples_run(tmp_path):
    repair = "from softgate.integrations import torchvision_cpu\ntorchvision_cpu.repair()\n"
    result = run(repair + "\n".join(blocks("README.md")), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "normalizers.softmax" in result.stdout


@pytest.mark.parametrize("room", ["choosing", "detection", "dynamic", "losses", "optim", "policy", "routing"])
def test_the_example_of_the_room_runs(room, tmp_path):
    result = run("\n".join(blocks(f"docs/{room}.md")), cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_examples_of_the_diagnosis_run(tmp_path):
    repair = "from softgate.integrations import torchvision_cpu\ntorchvision_cpu.repair()\n"
    result = run(repair + "\n".join(blocks("docs/diagnose.md")), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "sink_share" in result.stdout


def test_the_example_of_compare_runs(tmp_path):
    result = run("\n".join(blocks("docs/compare.md")), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "softmax" in result.stdout and (tmp_path / "runs/mine/index.html").exists()


def test_the_contributing_example_passes_its_test_and_the_conformance_suite(tmp_path):
    method, test = blocks("CONTRIBUTING.md")
    (tmp_path / "capped.py").write_text(method)
    test = test.replace("softgate.normalizers", "capped") + "\ntest_a_large_limit_is_softmax()\n"
    test += "from softgate.testing import check_op\nprint(check_op(capped_softmax, quick=True, examples=20))\n"
    result = run(test, cwd=tmp_path)
    assert result.returncode == 0, result.stderr + result.stdout


def test_figures_in_the_documents_are_those_of_the_records():
    result = subprocess.run([sys.executable, ROOT / "tools" / "publish.py", "--check"], text=True, capture_output=True)
    assert result.returncode == 0, result.stderr


def test_documents_link_to_files_that_exist():
    pages = (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    )
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
