"""`tfx export`: a folder for the Hub, which tfx reads again."""

import json

import yaml

from core.model.folder import CellModel


def test_the_folder_for_the_hub_loads_again_and_names_no_private_path(tfx, tiny_run, tmp_path):
    (tmp_path / "hub" / ".git").mkdir(parents=True)  # of a clone
    result = tfx(
        "export", "tiny", "--hub", "hub", "--name", "my-lab/tiny", "--licence", "CC-BY-4.0", "--json"
    )  # fmt: skip
    assert result.code == 0, result.stderr
    hub = tmp_path / "hub"
    assert {str(hub.relative_to(tmp_path) / one.name) for one in hub.iterdir()} == {
        *result.json["files"],
        "hub/.git",
    }
    for path in hub.iterdir():
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text()
            assert str(tiny_run) not in path.read_text()
    _, front, card = (hub / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert (metadata["license"], metadata["model_name"]) == ("cc-by-4.0", "tiny")
    assert metadata["library_name"] == "transformerics"
    assert "single-cell" in metadata["tags"]
    assert 'tfx.CellModel.load(snapshot_download("my-lab/tiny"))' in card
    assert card.count("## Licence\n\nCC-BY-4.0.") == 1
    assert json.loads((hub / "config.json").read_text())["architectures"] == ["TfxModel"]

    own, exported = CellModel.load(tiny_run / "model"), CellModel.load(hub)
    for name, tensor in own.network.state_dict().items():
        assert (exported.network.state_dict()[name] == tensor).all()
    assert exported.provenance["sources"] == ["builtin:atlas?cells=600&seed=0"]

    again = tfx("export", "tiny", "--hub", "hub")
    assert again.code == 2
    assert "has README.md, tfx.json, model.safetensors and" in again.stderr
    again = tfx("export", "tiny", "--hub", "hub", "--overwrite")
    assert again.code == 0
    assert "the licence is not stated; give --licence" in again.stderr
    assert yaml.safe_load((hub / "README.md").read_text().split("---")[1])["license"] == "other"
    assert 'snapshot_download("OWNER/tiny")' in (hub / "README.md").read_text()
