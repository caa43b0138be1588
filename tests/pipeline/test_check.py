"""``make check``: what it says of a log, and that it writes nothing."""

from pathlib import Path

import pytest

from pipeline.check import describe_log
from pipeline.errors import ConfigError, DataError
from pipeline.experiment import Experiment, load_experiment


def experiment(raw: Path) -> Experiment:
    return load_experiment("movielens-100k", raw=str(raw))


def test_a_log_is_described_by_type_time_examples_and_refused_rows(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t10\t5\t881250949\n2\t11\t7\t881250950\ntorn\t1")
    before = sorted(tmp_path.rglob("*"))
    text = describe_log(experiment(tmp_path))
    assert "1 rating from 1997-12-04 15:55:49+00:00" in text
    assert "'item_id': '10'" in text
    assert "1 refused: rating is not between 0.5 and 5 (first in line 2: '2\\t11\\t7\\t881250950')" in text
    assert "1 refused: torn last line (first in line 3: 'torn\\t1')" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_the_storefront_has_nothing_to_check_and_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to check"):
        describe_log(load_experiment("demo"))
    with pytest.raises(DataError, match="nowhere"):
        describe_log(experiment(tmp_path / "nowhere"))
