from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.pool_file import Endpoint, NamedVersion, Serve, find_pool_file, read_pool_file
from app.server_errors import ConfigurationError
from app.settings import Settings, load

WRONG = """\
[[serve]]
model = "digits"
version = [1]
replicas = [3, 1]
device = "gpu"

[[serve]]
models = "x"
versions = [0]

[endpoints.shop]
models = ["digits"]
default = true
pinned = "other/3"
polcy = "best"

[endpoints.lab]
models = ["digit"]
[endpoints."a b"]
default = "yes"
[endpoint.x]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "modelyard.toml"
    path.write_text(text)
    return path


def test_all_mistakes_of_a_file_are_named_at_once_with_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path, WRONG)
    with pytest.raises(ConfigurationError) as caught:
        read_pool_file(path)
    said = [
        line.removeprefix("modelyard: ").removeprefix(f"{path}:") for line in caught.value.detail.splitlines()
    ]
    assert said == [
        "3: `version` is unknown; did you mean `versions`?",
        "4: `replicas` is [3, 1]: expected the smaller number first: [1, 3]",
        "5: `device` is 'gpu': expected `auto`, `cpu`, `cuda` or `cuda:N`",
        "7: `model` is missing",
        "8: `models` is unknown; did you mean `model`?",
        "9: `versions` is [0]: expected numbers from 1, aliases, `latest`, `best`, or tags such as `serve=true`",
        "14: `pinned` is 'other/3': expected a version of the endpoint; other/3 does not belong to it",
        "15: `polcy` is unknown; did you mean `policy`?",
        "18: no [[serve]] entry serves digit; did you mean digits?",
        "19: 'a b' is not an endpoint's name; expected letters, digits and `_.-`",
        "20: `default` is 'yes': expected `true` or `false`",
        "21: `endpoint` is unknown; expected [[serve]] or [endpoints.NAME]",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[serve]", "is not TOML"),
        ("serve = [1]", ":1: this is not one table; expected [[serve]]"),
        ("[[endpoints.a]]\nmodels='a'", ":1: this is not one table; expected [[serve]], or [endpoints.NAME]"),
        ("[[serve]]\nmodel='a/b'", ":2: `model` is 'a/b': expected the name of a registered model"),
        ("[[serve]]\nmodel='a'\nenvironment='conda'", ":3: `environment` is 'conda': expected \"local\" or"),
        ("[[serve]]\nmodel='a'\nversions=[[1]]\n[[serve]]\nmodel='a'", ":3: `versions` is [[1]]: expected"),
        ("[endpoints.a]\nmodels='a'\ndeadline_s=0", ":3: `deadline_s` is 0: expected a number of seconds"),
        ("[endpoints.a]\nmodels='a'\npolicy='first'", ":3: `policy` is 'first': expected \"best\","),
        ("[[serve]]\nmodel='a'\nmetrik='f1'", ":3: `metrik` is unknown; did you mean `metric`?"),
        ("[[serve]]\nmodel='a'\ndirection='up'", ':3: `direction` is \'up\': expected "higher" or "lower"'),
        ("[[serve]]\nmodel='a'\ntask='ranking'", ":3: `task` is 'ranking': expected \"classification\" or"),
        ("[[serve]]\nmodel='a'\nmetric='rmse'", ":3: rmse needs `direction` beside it"),
        ("[[serve]]\nmodel='a'\ndirection='lower'", ":3: `direction` needs `metric` beside it"),
        (
            "[[serve]]\nmodel='a'\nmetric='val_accuracy'\ndirection='lower'",
            ":4: of val_accuracy the higher value is better",
        ),
        (
            "[[serve]]\nmodel='a'\nversions='best'\n[[serve]]\nmodel='a'\nmetric='f1'\ndirection='higher'",
            ":6: the entries of a need one `metric`, because `best` is a version of it",
        ),
        ("[serve]\nmodel = 'a'", ":1: [serve] is one table; expected [[serve]]"),
        ("serve = [{model = 'a', replica = 2}]", ":1: `replica` is unknown; did you mean `replicas`?"),
        ("[endpoints.a]\n[endpoints.b]\n", ":2: the endpoint has no versions"),
        (
            "[[serve]]\nmodel = 'digits'\n[endpoints.a]\nmodels = 'digit'",
            ":4: no [[serve]] entry serves digit; did you mean digits?",
        ),
        (
            "[endpoints.a]\nmodels = 'a'\ndefault = true\n[endpoints.b]\nmodels = 'b'\ndefault = true",
            ":6: only one endpoint can be the default, and a is one already",
        ),
    ],
)
def test_mistake_is_described(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_pool_file(written(tmp_path, text))
    assert told in caught.value.detail


def test_entries_and_endpoints_are_read_in_short_and_long_forms(tmp_path: Path) -> None:
    file = read_pool_file(
        written(
            tmp_path,
            """
            [[serve]]
            model = "digits"
            versions = ["champion", 3, "4", "serve=true"]
            replicas = 2
            [[serve]]
            model = "flowers"
            versions = "latest"
            replicas = [1, 4]
            [endpoints.shop]
            models = "digits"
            pinned = 3
            [endpoints.lab]
            versions = ["digits/4", "flowers/1"]
            default_version = "flowers/1"
            """,
        )
    )
    assert file.serve == (
        Serve(model="digits", versions=("champion", 3, 4, "serve=true"), replicas=(2, 2)),
        Serve(model="flowers", versions=("latest",), replicas=(1, 4)),
    )
    assert file.endpoints["shop"] == Endpoint(models=("digits",), pinned=NamedVersion("digits", 3))
    assert file.endpoints["lab"].default_version == NamedVersion("flowers", 1)
    assert file.place("serve", 1, "versions").endswith("modelyard.toml:8")


def test_file_that_begins_with_a_byte_order_mark_is_read_and_a_version_named_twice_counts_once(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "\ufeff[[serve]]\nmodel = 'digits'\nversions = [1, ' 1 ', '1', ' old']\n")
    assert read_pool_file(path).serve == (Serve(model="digits", versions=(1, "old")),)


def test_the_example_of_the_page_is_right(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "pool.md"
    (example,) = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert read_pool_file(written(tmp_path, example)).serve


def test_file_is_found_in_the_working_directory_or_by_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_pool_file(load(Settings)) is None
    here = written(tmp_path, "")
    assert find_pool_file(load(Settings)) == here
    assert find_pool_file(load(Settings, pool_file=Path("/dev/null"))) == Path("/dev/null")
    with pytest.raises(ConfigurationError, match="MODELYARD_FILE"):
        find_pool_file(load(Settings, pool_file=tmp_path / "absent.toml"))
