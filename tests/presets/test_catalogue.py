import pytest

from core.errors import ConfigurationError
from core.presets import catalogue
from core.presets.catalogue import find_preset, list_presets


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "base.toml").write_text("# The atlas, small\n\n[data]\n", encoding="utf-8")
    (folder / "pbmc68k.toml").write_text("[data]\n# not a title\n", encoding="utf-8")
    monkeypatch.setattr(catalogue.resources, "files", lambda _package: folder)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    return folder


def test_bundled_presets_are_listed_by_name_with_their_first_comment(bundled):
    assert [(preset.name, preset.title) for preset in list_presets()] == [
        ("base", "The atlas, small"),
        ("pbmc68k", ""),
    ]


@pytest.mark.parametrize("name", ["base", "base.toml", "presets/base.toml", "presets/base"])
def test_a_bundled_preset_is_found_by_any_spelling(bundled, name):
    assert find_preset(name) == bundled / "base.toml"


def test_a_file_outranks_a_bundled_preset(bundled, tmp_path):
    own = tmp_path / "home" / "base.toml"
    own.write_text("", encoding="utf-8")
    assert find_preset("base.toml").resolve() == own
    assert find_preset("base") == bundled / "base.toml"


@pytest.mark.parametrize("name", ["bsae", "presets/bsae.toml", "elsewhere/base.toml"])
def test_an_unknown_preset_names_the_nearest(bundled, name):
    with pytest.raises(ConfigurationError) as caught:
        find_preset(name)
    assert str(caught.value) == (
        f"{name!r} is neither a file nor a preset name; did you mean 'base'? "
        "(bundled presets: base, pbmc68k)"
    )


def test_a_misspelt_file_names_the_nearest_beside_it(bundled, tmp_path):
    folder = tmp_path / "home" / "mine"
    folder.mkdir()
    (folder / "lung.toml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"did you mean 'lung\.toml'\?"):
        find_preset(folder / "lugn.toml")


@pytest.mark.parametrize("name", [".", "\0", "x" * 5000, ""])
def test_what_cannot_be_a_file_is_refused_in_one_sentence(bundled, name):
    with pytest.raises(ConfigurationError, match="bundled presets: base, pbmc68k"):
        find_preset(name)


@pytest.mark.parametrize("folder", ["published", "originals", "presets/originals"])
def test_a_published_preset_is_found_under_the_old_folder_too(folder):
    name = "polygene-258-binary"
    assert find_preset(f"{folder}/{name}").parts[-2:] == ("published", f"{name}.toml")


def test_the_package_lists_its_own_presets():
    assert all(preset.path.is_file() for preset in list_presets())
