"""Records of Parquet files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sfumato.data.records import Record, no_field, refuse_twice, text_of
from sfumato.data.tally import Tally
from sfumato.errors import DataError


def read_parquet(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a buffer a row group, which may be the whole file, is not loaded at once.
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            names = file.schema_arrow.names
            for field in fields:
                if field not in names:
                    raise DataError(no_field(str(path), field, names))
            refuse_twice([f for f in fields if names.count(f) > 1], str(path))
            tally.pass_over(set(names) - set(fields))
            number = 0
            for batch in file.iter_batches(batch_size=2**10, columns=list(dict.fromkeys(fields))):
                columns = [batch.column(field).to_pylist() for field in fields]
                for texts in zip(*columns, strict=True):
                    number += 1
                    record = dict(zip(fields, texts, strict=True))
                    where = f"{path}, row {number}"
                    yield tuple(text_of(record, field, where) for field in fields)
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a whole parquet file: {error}") from error
