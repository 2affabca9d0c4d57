"""From `data` settings to files, and from records to three sets that share no group."""

import pytest

from mlx_hybrid.config import DataConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.records.files import SAMPLE_FILES, find_sources
from mlx_hybrid.records.record import Record, Source, split_records


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')


def paths(sources: tuple[Source, ...]) -> tuple:
    assert all(source.name == str(source.path) for source in sources)
    return tuple(source.path for source in sources)


def test_files_folders_and_splits_are_found(tmp_path):
    plain, folder, split = tmp_path / "a.jsonl", tmp_path / "many", tmp_path / "split"
    train = (plain, folder / "deep" / "y.jsonl.gz", folder / "x.jsonl", split / "train.jsonl")
    touch(*train, folder / "notes.md", split / "valid.jsonl", tmp_path / "b.jsonl")
    named = tuple(map(str, (plain, folder, split)))
    sources = find_sources(DataConfig(paths=named, test=(str(tmp_path / "b.jsonl"),)))
    found = [paths(part) for part in (sources.train, sources.valid, sources.test)]
    assert found == [train, (split / "valid.jsonl",), (tmp_path / "b.jsonl",)]


def test_files_are_used_as_their_names_say(tmp_path):
    part = "00000-of-00001"
    names = (f"train-{part}.jsonl", f"validation-{part}.parquet", "test.jsonl.gz", "notes.jsonl")
    touch(*(tmp_path / "data" / name for name in names))
    sources = find_sources(DataConfig(paths=(str(tmp_path),)))
    parts = ([path.name for path in paths(part)] for part in (sources.train, sources.valid, sources.test))
    assert list(parts) == [[names[0]], [names[1]], [names[2]]]


@pytest.mark.parametrize(
    ("names", "test"),
    [(("a.jsonl", "./a.jsonl"), ()), (("split", "split/train.jsonl"), ()), (("a.jsonl",), ("a.jsonl",))],
)
def test_a_file_is_read_once(names, test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a.jsonl", tmp_path / "split" / "train.jsonl")
    with pytest.raises(ConfigError, match=r"\.jsonl: is named twice; name each file once, for one use"):
        find_sources(DataConfig(paths=names, test=test))


def test_the_bundled_samples_have_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = paths(find_sources(DataConfig(paths=("samples",))).train)
    assert [path.name for path in found] == list(SAMPLE_FILES)


def test_what_is_not_there_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "tests" / "test.jsonl", tmp_path / "tests" / "more.jsonl")
    for config, message in [
        (DataConfig(paths=("tests",)), "has test.jsonl but no train file; name the files to train on"),
        (DataConfig(), "No data"),
        (DataConfig(paths=("none.jsonl",)), "data.paths: none.jsonl is not there"),
        (DataConfig(paths=("a/none.jsonl",)), "data.paths: a/none.jsonl is not there"),
        (DataConfig(paths=("a/none.json",)), "data.paths: a/none.json is not there"),
        (DataConfig(paths=("a/none.CSV",)), "data.paths: a/none.CSV is not there"),
        (DataConfig(paths=("empty",)), "no .jsonl file in the folder"),
        (DataConfig(paths=("samples",), valid=("none.jsonl",)), "data.valid: none.jsonl is not there"),
        (DataConfig(paths=("samples",), test=("none.jsonl",)), "data.test: none.jsonl is not there"),
        (DataConfig(paths=("owner/data",)), "owner/data: no such file or folder here, and no data set"),
    ]:
        with pytest.raises(ConfigError, match=message):
            find_sources(config)


def records(count: int, groups: int = 0) -> list[Record]:
    """Every record alone, or in one of some groups."""
    own = ({"group": i % groups} if groups else {} for i in range(count))
    return [Record({"text": str(i), **group}, "d.jsonl", i + 1) for i, group in enumerate(own)]


def numbers(part: list[Record]) -> list[int]:
    return [record.line for record in part]


@pytest.mark.parametrize("groups", [0, 25])
def test_shares_are_held_back_and_nothing_is_lost(groups):
    everything = records(100, groups)
    split = split_records(everything, [], [], DataConfig(valid_share=0.1, test_share=0.2), seed=0)
    assert (len(split.train), len(split.valid), len(split.test)) == (68, 12, 20) if groups else (70, 10, 20)
    assert sorted(numbers(split.train) + numbers(split.valid) + numbers(split.test)) == list(range(1, 101))
    for part in (split.train, split.valid, split.test):
        assert numbers(part) == sorted(numbers(part))  # in the order of the files


def test_a_group_is_never_torn_apart():
    split = split_records(records(200, 30), [], [], DataConfig(valid_share=0.2, test_share=0.2), seed=3)
    parts = [{record.fields["group"] for record in part} for part in (split.train, split.valid, split.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_the_split_follows_the_seed():
    first, same, other = (split_records(records(60), [], [], DataConfig(), seed=seed) for seed in (1, 1, 2))
    assert numbers(first.test) == numbers(same.test) != numbers(other.test)


def test_named_sets_are_taken_as_they_are():
    valid, test = records(3), records(4)
    split = split_records(records(50), valid, test, DataConfig(), seed=0)
    assert (split.valid, split.test, len(split.train)) == (valid, test, 50)


def test_something_is_always_left_to_train_on():
    split = split_records(records(1), [], [], DataConfig(valid_share=0.5, test_share=0.5), seed=0)
    assert len(split.train) == 1
    with pytest.raises(DataError, match="No record is left to train on"):
        split_records([], [], [], DataConfig(), seed=0)


def test_of_a_governed_folder_only_what_was_kept_is_used(tmp_path):
    touch(tmp_path / "kept.jsonl", tmp_path / "rejected.jsonl", tmp_path / "manifest.json")
    assert paths(find_sources(DataConfig(paths=(str(tmp_path),))).train) == (tmp_path / "kept.jsonl",)
