"""Datasets → rows: on the Hub, in a folder like those of the Hub, or saved by `save_to_disk`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.errors import UsageError, short
from ctxext.system.hub import why_offline
from ctxext.tasks.data.files import listed, parquet_column, suffix

SPLIT, COLUMN = "test", "text"
_BLOCK = 2**20  # bytes of a file that are fetched at once


class Table(NamedTuple):
    """The rows of a column, as they are asked for, and where they come from."""

    rows: Iterator[str]
    facts: dict[str, str | None]


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict made the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_table(where: str, path: str, rest: str, config: str | None, begin: bool) -> Table:
    """The rows of a dataset.

    Args:
        where: how to call it in a message.
        path: its name on the Hub, or a folder.
        rest: `[split[:column]]`; `[column]` too for a saved Dataset, which has no splits.
        begin: whether only the first rows will be asked for, so that no more is to be fetched.

    Raises:
        UsageError: there is no such dataset, configuration, split or column; what there is.
            Errors of what is read on the way come from the rows.
    """
    import datasets

    datasets.disable_progress_bars()
    offline = None if Path(path).exists() else why_offline()
    split, column, *more = (*re.split(r":(?![^\[]*\])", rest), "")  # none within [ ]
    if not path or any(more):
        raise UsageError(f"malformed {where}: write hf:name[:split[:column]][,config=NAME]")
    try:
        if is_saved(Path(path)):
            if config is not None:
                raise UsageError(f"{where}: what save_to_disk made has no config: leave it out")
            return _saved(where, path, split, column)
        column = column or COLUMN
        builder = _builder(where, path, config)
        split = _split(where, builder, split)
        table = _begin(where, builder, split, column) if begin else None
        if table is None:
            builder.download_and_prepare()
            table = _rows(where, builder.as_dataset(split=split), column)
    except UsageError:
        raise
    except Exception as error:
        why = f"{offline}: {short(error, 150)}" if offline else short(error, 200)
        raise UsageError(f"{where} cannot be loaded: {why}") from error
    facts = {"config": builder.config.name, "split": split, "column": column}
    return Table(_guarded(where, table, column), facts)


def _builder(where: str, path: str, config: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(path, config)
    except ValueError:
        names: list[str] = []
        with contextlib.suppress(Exception):
            names = datasets.get_dataset_config_names(path)
        if not names or config in names:
            raise
        what = f"no configuration {config!r}" if config else "several configurations"
        raise UsageError(f"{where} has {what}: add ,config=NAME: valid: {listed(names)}") from None


def _split(where: str, builder: Any, split: str) -> str:
    """The split, or without a name `test` or the only one; refused before anything is fetched.

    Of a sum or a slice, such as `train+test[:10%]`, each part must be there.
    """
    valid = [str(name) for name in builder.config.data_files or builder.info.splits or ()]
    split = split or (valid[0] if len(valid) == 1 else SPLIT)
    for part in split.split("+"):
        if valid and (name := part.partition("[")[0].strip()) not in (*valid, "all"):
            raise UsageError(f"{where} has no split {name!r}: valid: {listed(valid)}")
    return split


def _begin(where: str, builder: Any, split: str, column: str) -> Iterator[Any] | None:
    """The rows as they come over the network; None for a split that datasets cannot stream.

    Parquet is read here: the reader of datasets leaves threads of Arrow's behind, which abort the
    process at its end where not all was read.
    """
    if not re.fullmatch(r"[\w.]+", split):
        return None
    files = (builder.config.data_files or {}).get(split)
    if files and all(suffix(str(file)) == ".parquet" for file in files):
        return _parquet(where, [str(file) for file in files], column)
    return _rows(where, builder.as_streaming_dataset(split=split), column)


def _parquet(where: str, files: list[str], column: str) -> Iterator[Any]:
    import fsspec

    for file in files:
        with fsspec.open(file, "rb", block_size=_BLOCK) as opened:
            yield from parquet_column(opened, column, where)


def _rows(where: str, rows: Any, column: str) -> Iterator[Any]:
    """The values of a column of a Dataset, or of an IterableDataset that may not know its own."""
    names = rows.column_names
    if names and column not in names:
        raise UsageError(f"{where} has no column {column!r}: valid: {listed(names)}")
    for row in rows.select_columns([column]) if names else rows:
        if column not in row:
            raise UsageError(f"{where} has no column {column!r}: valid: {listed(row)}")
        yield row[column]


def _guarded(where: str, values: Iterator[Any], column: str) -> Iterator[str]:
    """The values, which are text; what fails on the way is one line."""
    try:
        for value in values:
            if not isinstance(value, str):
                raise UsageError(f"{where}: column {column!r} is not text")
            yield value
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where} cannot be loaded: {short(error, 200)}") from error


def _saved(where: str, path: str, split: str, column: str) -> Table:
    """What `save_to_disk` wrote: the splits of a DatasetDict, or one Dataset."""
    import datasets

    found = datasets.load_from_disk(path)
    if isinstance(found, datasets.DatasetDict):
        names = list(found)
        split = split or (names[0] if len(names) == 1 else SPLIT)
        if split not in names:
            raise UsageError(f"{where} has no split {split!r}: valid: {listed(names)}")
        found = found[split]
    else:
        split, column = "", column or split
    column = column or COLUMN
    facts = {"split": split or None, "column": column}
    return Table(_guarded(where, _rows(where, found, column), column), facts)
