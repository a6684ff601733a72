import pytest

from core.errors import ConfigurationError
from core.presets.fields import all_fields, schema_as_json, schema_as_markdown
from core.presets.loading import ResolvedPreset, resolve_preset
from core.presets.schema import ALTERNATIVES

MINIMAL = '[data]\nfiles = "builtin:atlas"\n'


@pytest.fixture
def preset_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="base.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def errors_of(*args, **kwargs):
    with pytest.raises(ConfigurationError) as caught:
        resolve_preset(*args, **kwargs)
    return str(caught.value).splitlines()


# -- what is too much
@pytest.mark.parametrize(
    ("text", "n_lines", "words"),
    [
        ("".join(f"key{n} = 1\n" for n in range(3_000)) + MINIMAL, 51, "and 2,950 more errors"),
        (f"{MINIMAL}include_genes = {list(range(3_000))}", 51, "and 2,950 more errors"),
        (MINIMAL + "[a" + ".a" * 30_000 + "]", 1, "not valid TOML: nested too deeply"),
        (MINIMAL + "x" + ' . "b"' * 30_000 + " = 1", 1, "not valid TOML: nested too deeply"),
        (MINIMAL + "x = " + "[" * 30_000, 1, "not valid TOML: nested too deeply"),
        ("#" * 10**7 + "\n" + MINIMAL, 1, "it has more than 10 million bytes"),
        (MINIMAL + "genes = '" + "x" * 10**6 + "'", 1, "...)"),
        (MINIMAL + "x" * 10**6 + " = 1", 1, "characters left out"),
        (MINIMAL + "[data.phenotypes]\n" + "".join(f"p{n} = 'a'\n" for n in range(201)), 1,
         "has 201 entries, and at most 200 are possible"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)  # fmt: skip
def test_a_preset_without_end_is_refused_in_few_lines(preset_file, text, n_lines, words):
    errors = errors_of(preset_file(text))
    assert len(errors) == n_lines
    assert words in errors[-1]
    assert max(map(len, errors)) < 1_200


# -- what is accepted
def test_later_sources_win_and_every_value_knows_where_it_came_from(preset_file):
    path = preset_file(
        MINIMAL + "genes = 1\n[train]\nseed = 1\nbatch_size = 1\nlog_steps = 1\neval_steps = 1\n"
    )
    overlay = preset_file(
        "[train]\nseed = 2\nbatch_size = 2\nlog_steps = 2\neval_steps = 2", "o.toml"
    )
    resolved = resolve_preset(
        path,
        overlays=[overlay],
        environment={
            "TFX_TRAIN__SEED": "3",
            "TFX_TRAIN__BATCH_SIZE": "3",
            "TFX_TRAIN__LOG_STEPS": "3",
        },
        options={"train.seed": 4, "train.batch_size": 4, "train.eval_cells": None},
        assignments=["train.seed=5"],
    )
    train = resolved.preset.train
    assert (train.seed, train.batch_size, train.log_steps, train.eval_steps) == (5, 4, 3, 2)
    provenance = resolved.provenance
    assert provenance["train.seed"] == "--set"
    assert provenance["train.batch_size"] == "--batch-size"
    assert provenance["train.log_steps"] == "TFX_TRAIN__LOG_STEPS"
    assert provenance["train.eval_steps"] == "o.toml:5"
    assert provenance["data.genes"] == "base.toml:3"
    assert provenance["train.eval_cells"] == "default"


def test_tables_merge_by_key_and_lists_replace(preset_file):
    path = preset_file(
        '[data]\nfiles = ["a", "b"]\n[data.phenotypes]\nsex = "gender"\ntissue = "organ"\n'
    )
    overlay = preset_file('[data]\nfiles = ["c"]\nphenotypes.sex = false\n', "o.toml")
    data = resolve_preset(path, overlays=[overlay]).preset.data
    assert data.files == ["c"]
    assert data.phenotypes == {"sex": False, "tissue": "organ"}


def test_the_genes_of_a_file_join_those_of_the_preset(preset_file):
    preset_file("XIST\n# a comment\n\nFOS, JUN # and another\n", "genes.txt")
    text = f'{MINIMAL}include_genes = ["CD4", "FOS"]\ngenes_file = "genes.txt"\n'
    resolved = resolve_preset(preset_file(text))
    assert resolved.preset.data.include_genes == ["CD4", "FOS", "XIST", "JUN"]
    preset_file("OTHER\n", "genes.txt")  # a run keeps the names that it began with
    assert ResolvedPreset.from_toml(resolved.to_toml()).preset == resolved.preset


def test_a_preset_is_named_by_itself_else_by_its_file(preset_file):
    assert resolve_preset(preset_file(MINIMAL, "liver.toml")).name == "liver"
    named = resolve_preset(preset_file('name = "kidney"\n' + MINIMAL))
    assert named.name == named.preset.name == "kidney"


def test_a_name_from_a_file_is_fit_for_a_folder(preset_file):
    assert resolve_preset(preset_file(MINIMAL, "my liver (2).toml")).name == "my-liver-2"
    assert resolve_preset(preset_file(MINIMAL, "..toml")).name == "run"


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(preset_file, name):
    (error,) = errors_of(preset_file(f"name = '{name}'\n{MINIMAL}"))
    assert error.startswith("base.toml:1: name: must be letters, digits")
    assert error.endswith(f"(got {name!r})")


def test_options_alone_can_make_a_preset():
    resolved = resolve_preset(None, options={"data.files": ["a.h5ad"]})
    assert resolved.preset.data.files == ["a.h5ad"]


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("train.device=cpu", "train", "device", "cpu"),
        ("train.max_steps=1e5", "train", "max_steps", 100_000),
        ("train.learning_rate=1", "train", "learning_rate", 1.0),
        ("data.matrix=2024", "data", "matrix", "2024"),
        ("data.store='none'", "data", "store", "none"),
        ("masking.genes=uniform", "masking", "genes", "uniform"),
        ("masking.genes=1", "masking", "genes", 1.0),
        ("encoding.edges=[0, 1.5]", "encoding", "edges", [0.0, 1.5]),
        ("encoding.edges=edges.json", "encoding", "edges", "edges.json"),
        ('data.phenotypes."my col"=x', "data", "phenotypes", {"my col": "x"}),
    ],
)
def test_text_from_the_command_line_is_read_as_the_key_wants_it(
    preset_file, assignment, section, key, value
):
    preset = resolve_preset(preset_file(MINIMAL), assignments=[assignment]).preset
    got = getattr(getattr(preset, section), key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["", "none"])
def test_a_value_is_taken_back_by_none_or_nothing(preset_file, text):
    path = preset_file(MINIMAL + "[train]\nmax_steps = 10\n")
    resolved = resolve_preset(path, assignments=[f"train.max_steps={text}"])
    assert resolved.preset.train.max_steps is None
    assert resolved.provenance["train.max_steps"] == "default"


def test_a_stronger_source_replaces_the_alternative_of_a_weaker_one(preset_file):
    path = preset_file(MINIMAL + "[train]\nmax_steps = 10\n")
    train = resolve_preset(path, assignments=["train.epochs=2"]).preset.train
    assert (train.max_steps, train.epochs) == (None, 2.0)


def test_tool_settings_in_the_environment_are_not_preset_keys(preset_file):
    environment = {"TFX_TRACEBACK": "1", "TFX_TEST_DATA": "x", "PATH": "y", "TFX_NAME": "liver"}
    assert resolve_preset(preset_file(MINIMAL), environment=environment).name == "liver"


def test_a_byte_order_mark_and_windows_lines_are_accepted(tmp_path):
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert resolve_preset(path).preset.data.files == ["builtin:atlas"]


def test_the_resolved_preset_round_trips_with_its_provenance(preset_file):
    path = preset_file(
        'name = "a"\n[data]\nfiles = ["x  # \\"y\\"", "z"]\n'
        '[data.phenotypes]\n"my col" = "c # d"\nage = false\n[train]\nepochs = 2\n',
        "odd  # name\t.toml",
    )
    resolved = resolve_preset(path, assignments=["train.learning_rate=1e-5"])
    text = resolved.to_toml()
    assert ResolvedPreset.from_toml(text) == resolved
    assert resolve_preset(preset_file(text, "config.toml")).preset == resolved.preset
    assert "learning_rate = 1e-05  # --set" in text


def test_a_default_read_back_is_still_not_asked_for(preset_file):
    resolved = resolve_preset(preset_file(MINIMAL), assignments=["data.split.seed=3"])
    for one in (resolved, ResolvedPreset.from_toml(resolved.to_toml())):
        assert one.preset.data.split.model_fields_set == {"seed"}


def test_a_damaged_resolved_preset_is_refused():
    with pytest.raises(ConfigurationError, match=r"^run/config\.toml:1: not valid TOML"):
        ResolvedPreset.from_toml("[data", where="run/config.toml")


# -- what is refused
def test_all_errors_of_all_sources_come_at_once_in_order(preset_file):
    path = preset_file(
        """\
[data]
files = ["a", 3]
gens = 3
[encoding]
kind = "bined"
[train]
learning_rate = -1
"""
    )
    overlay = preset_file("[model]\nlayers = 1.5\n", "o.toml")
    assert errors_of(
        path,
        overlays=[overlay],
        environment={"TFX_TRAIN__SEED": "x"},
        options={"train.save_steps": 0},
        assignments=["loss.smoothing=2", "no"],
    ) == [
        "base.toml:2: data.files[1]: must be a string (got 3)",
        "base.toml:3: data.gens: unknown key; did you mean 'genes'?",
        "base.toml:5: encoding.kind: must be 'binary', 'binned' or 'continuous' (got 'bined'); "
        "did you mean 'binned'?",
        "base.toml:7: train.learning_rate: must be greater than 0 (got -1)",
        "o.toml:2: model.layers: must be a whole number (got 1.5)",
        "TFX_TRAIN__SEED: train.seed: must be a whole number (got 'x')",
        "--save-steps: train.save_steps: must be at least 1 (got 0)",
        "--set loss.smoothing=2: must be below 1 (got 2)",
        "--set no: must be KEY=VALUE, as in train.batch_size=8",
    ]


def test_an_option_is_named_as_the_command_names_it(preset_file):
    names = {"train.max_steps": "--steps"}
    (error,) = errors_of(preset_file(MINIMAL), options={"train.max_steps": 0}, option_names=names)
    assert error == "--steps: train.max_steps: must be at least 1 (got 0)"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "[masking]\ngenes = 1.5",
            "masking.genes: must be a number from 0 to 1 or 'uniform' (got 1.5)",
        ),
        (
            "[masking]\ngenes = 'unifrom'",
            "masking.genes: must be a number from 0 to 1 or 'uniform' (got 'unifrom'); "
            "did you mean 'uniform'?",
        ),
        (
            "[encoding]\nedges = 3",
            "encoding.edges: must be 'equal_width', 'quantile', 'gene_quantile', a list of "
            "numbers or a string (got 3)",
        ),
        ("[encoding]\nedges = [1, 'x']", "encoding.edges[1]: must be a number (got 'x')"),
        ("[data.phenotypes]\nsex = 3", "data.phenotypes.sex: must be a string or false (got 3)"),
    ],
)
def test_a_key_of_several_kinds_gives_one_readable_line(preset_file, text, error):
    (line,) = errors_of(preset_file(text), options={"data.files": "a"})
    assert line == f"base.toml:2: {error}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch_size = '8'", "must be a whole number (got '8')"),
        ("batch_size = true", "must be a whole number (got true)"),
        ("learning_rate = inf", "must be a finite number (got inf)"),
        ("learning_rate = nan", "must be a finite number (got nan)"),
        ("device = 'gpu'", "must be 'auto', 'cpu', 'cuda' or 'mps' (got 'gpu')"),
        ("seed = 99999999999999999999", "is too large for a 64-bit integer"),
        ("seed = 2024-01-01", "must be a whole number (got 2024-01-01)"),
        ("seed = { a = 1 }", "must be a whole number (got { a = 1 })"),
    ],
)
def test_values_of_the_wrong_kind_are_shown(preset_file, line, message):
    (error,) = errors_of(preset_file(f"{MINIMAL}[train]\n{line}\n"))
    assert error == f"base.toml:4: train.{line.split()[0]}: {message}"


def test_an_empty_list_of_files_is_refused(preset_file):
    assert errors_of(preset_file("[data]\nfiles = []")) == [
        "base.toml:2: data.files: must not be empty"
    ]


def test_a_missing_key_points_at_its_table(preset_file):
    (error,) = errors_of(preset_file("name = 'x'\n[data]\ngenes = 3\n"))
    assert error == (
        "base.toml:2: data.files: is missing; it must be a string or a list of strings"
    )


def test_a_value_where_a_table_belongs_is_refused(preset_file):
    assert errors_of(preset_file("train = 3\n" + MINIMAL)) == [
        "base.toml:1: train: must be a table (got 3)"
    ]
    assert errors_of(preset_file(MINIMAL + "phenotypes = 'sex'")) == [
        "base.toml:3: data.phenotypes: must be a table (got 'sex')"
    ]


def test_a_known_key_in_the_wrong_table_is_named_with_its_table(preset_file):
    (error,) = errors_of(preset_file(MINIMAL + "[train]\nhidden_size = 8"))
    assert error.endswith("train.hidden_size: unknown key; did you mean 'model.hidden_size'?")


def test_an_unknown_section_names_the_nearest(preset_file):
    (error,) = errors_of(preset_file(MINIMAL + "[trainn]\nseed = 1\n"))
    assert error == "base.toml:3: trainn: unknown key; did you mean 'train'?"


def test_single_underscores_in_a_variable_are_pointed_out(preset_file):
    assert errors_of(preset_file(MINIMAL), environment={"TFX_TRAIN_SEED": "1"}) == [
        "TFX_TRAIN_SEED: unknown setting; did you mean TFX_TRAIN__SEED?"
    ]


def test_a_rule_between_keys_points_at_the_key_that_broke_it(preset_file):
    path = preset_file(MINIMAL + "[model]\nheads = 3\nhidden_size = 8\n")
    assert errors_of(path) == [
        "base.toml:5: model: hidden_size must be a multiple of heads (got 8 and 3)"
    ]
    (error,) = errors_of(preset_file(MINIMAL), assignments=["model.heads=3"])
    assert error.startswith("--set model.heads=3: model: hidden_size must be a multiple")


def test_a_rule_between_keys_is_checked_beside_a_wrong_value(preset_file):
    path = preset_file(MINIMAL + "[train]\nmax_steps = 1\nepochs = 1\nseed = -1\n")
    assert errors_of(path) == [
        "base.toml:5: train: give max_steps or epochs, not both",
        "base.toml:6: train.seed: must be at least 0 (got -1)",
    ]


def test_text_that_is_not_toml_names_its_line(preset_file):
    (error,) = errors_of(preset_file("[data]\nfiles = \n"))
    assert error == "base.toml:2: not valid TOML: Invalid value (column 9)"
    (error,) = errors_of(preset_file("[data]\nfiles = [\n\n"))
    assert error.startswith("base.toml:2: not valid TOML")


def test_bytes_that_are_not_text_name_their_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_bytes(b"[data]\nfiles = '\xff'\n")
    assert errors_of(tmp_path / "base.toml") == ["base.toml:2: is not UTF-8 text"]


def test_a_missing_overlay_is_one_error_among_the_others(preset_file, tmp_path):
    path = preset_file(MINIMAL + "genes = 0\n")
    assert errors_of(path, overlays=[tmp_path / "none.toml"]) == [
        "base.toml:3: data.genes: must be at least 1 (got 0)",
        "none.toml: cannot be read (no such file or directory)",
    ]


def test_bytes_of_the_environment_that_are_not_text_are_refused(preset_file):
    (error,) = errors_of(preset_file(MINIMAL), environment={"TFX_DATA__STORE": "a\udcff"})
    assert error == "TFX_DATA__STORE: data.store: is not UTF-8 text (got 'a\\udcff')"


# -- presets that extend others
def test_a_preset_says_only_what_differs_from_the_one_it_extends(preset_file):
    preset_file(
        'name = "first"\n' + MINIMAL + "genes = 10\n[train]\nmax_steps = 5\nseed = 1\n", "a.toml"
    )
    preset_file('extends = "a.toml"\n[data]\ngenes = 20\n[train]\nepochs = 2\n', "b.toml")
    last = preset_file('extends = "b.toml"\n[train]\nseed = 3\n', "c.toml")
    resolved = resolve_preset(last)
    preset = resolved.preset
    assert (preset.data.genes, preset.train.seed) == (20, 3)
    assert (preset.train.epochs, preset.train.max_steps) == (2, None), "the stronger alternative"
    assert resolved.name == "c", "a name is not handed down"
    assert resolved.provenance["data.files"] == "a.toml:3"
    assert resolved.provenance["data.genes"] == "b.toml:3"
    assert ResolvedPreset.from_toml(resolved.to_toml()).preset == preset
    assert resolve_preset(last, assignments=["train.max_steps=7"]).preset.train.epochs is None


def test_a_preset_extends_a_bundled_one_by_name_and_a_file_beside_it(preset_file, tmp_path):
    (tmp_path / "there").mkdir()
    preset_file("[train]\nseed = 8\n" + MINIMAL, "there/own.toml")
    near = preset_file('extends = "own.toml"\n', "there/near.toml")
    assert resolve_preset(near).preset.train.seed == 8
    far = preset_file('extends = "polygene-512-binned"\n[data]\nfiles = "mine.h5ad"\n', "far.toml")
    preset = resolve_preset(far).preset
    assert (preset.data.files, preset.data.genes, preset.model.head) == (
        ["mine.h5ad"],
        512,
        "joint",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extends = "polygene-512-bind"\n', "did you mean 'polygene-512-binned'?"),
        ('extends = "base.toml"\n', "base.toml:1: extends: 'base.toml' extends this one in turn"),
        ("extends = 3\n", "base.toml:1: extends: must be a preset's name or file (got 3)"),
    ],
)
def test_what_cannot_be_extended_is_named_by_line(preset_file, text, said):
    path = preset_file(text + MINIMAL)
    assert said in errors_of(path)[0]


def test_a_fault_in_an_extended_preset_is_named_there(preset_file):
    preset_file(MINIMAL + "[train]\nseed = -1\n", "a.toml")
    path = preset_file('extends = "a.toml"\n', "b.toml")
    assert errors_of(path) == ["a.toml:4: train.seed: must be at least 0 (got -1)"]


def test_only_a_preset_extends(preset_file):
    path = preset_file(MINIMAL)
    overlay = preset_file('extends = "base"\n', "o.toml")
    expected = ["o.toml:1: extends: only a preset extends another; give several --config"]
    assert errors_of(path, overlays=[overlay]) == expected


# -- classification
def test_an_obs_column_that_is_classified_becomes_a_phenotype(preset_file):
    path = preset_file(
        MINIMAL + '[classification]\ncolumn = "leiden"\n[train]\ntask = "classification"\n'
    )
    resolved = resolve_preset(path)
    assert resolved.preset.data.phenotypes == {"leiden": "leiden"}
    assert resolved.preset.classified == "leiden"
    again = ResolvedPreset.from_toml(resolved.to_toml())
    assert again.preset == resolved.preset


@pytest.mark.parametrize(
    ("column", "phenotypes", "name"),
    [
        ("tissue", "", "tissue"),
        ("development_stage", "", "age"),
        ("organ", 'tissue = "organ"', "tissue"),
    ],
)
def test_a_phenotypes_name_or_column_is_enough(preset_file, column, phenotypes, name):
    path = preset_file(
        f'{MINIMAL}[data.phenotypes]\n{phenotypes}\n[classification]\ncolumn = "{column}"\n'
        f'[train]\ntask = "classification"\n'
    )
    assert resolve_preset(path).preset.classified == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[train]\ntask = "classification"\n', "needs classification.column"),
        ('[classification]\ncolumn = "a"\n', "needs train.task = 'classification'"),
        ('[classification]\npositive = "a"\n', "positive and given need a column"),
        (
            '[data.phenotypes]\nsex = false\n[classification]\ncolumn = "sex"\n[train]\ntask = "classification"\n',
            "data.phenotypes.sex = false leaves out",
        ),
        (
            '[classification]\ncolumn = "sex"\ngiven = ["sex"]\n[train]\ntask = "classification"\n',
            "given must not name the column to predict",
        ),
    ],
)
def test_a_classification_says_what_and_says_so(preset_file, text, said):
    (error,) = errors_of(preset_file(MINIMAL + text))
    assert said in error
    assert error.startswith("base.toml")


def test_every_key_has_a_meaning():
    assert [field.path for field in all_fields() if not field.info.description] == []


def test_the_page_has_a_row_for_every_key():
    page = schema_as_markdown()
    for field in all_fields():
        name = "NAME" if field.is_table else field.path[-1]
        assert f"| `{name}` | {field.wanted} |" in page
    assert "| `genes` | a number from 0 to 1 or 'uniform' | `0.15` |" in page
    assert "## [data.split]" in page


def test_the_json_schema_names_every_section():
    schema = schema_as_json()
    assert {"data", "encoding", "masking", "model", "loss", "train", "generate"} <= set(
        schema["properties"]
    )
    assert schema["additionalProperties"] is False


def test_alternatives_are_pairs_of_keys_of_the_schema():
    known = {field.path for field in all_fields() if field.is_nullable}
    assert set(ALTERNATIVES) <= known
    assert all(ALTERNATIVES[other] == one for one, other in ALTERNATIVES.items())
