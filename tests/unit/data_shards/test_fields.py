"""What an id, a time or a flag may look like; test_prepare_formats.py reads whole files."""

import polars as pl

from longplay.data_shards.readers.fields import Columns, RowFilter, RowFormat, parse_rows


def test_a_flag_that_is_no_number_is_missing_in_any_case() -> None:
    header = ("user_id", "video_id", "time_ms", "is_click")
    table = pl.DataFrame([["1", "2", "3", flag] for flag in ("TRUE", "NaN", "", "no")], header, orient="row")
    form = RowFormat(columns=Columns(item="video_id", time="time_ms"), wanted=(RowFilter("is_click", 1),))
    keyed = table.rename({name: key for key, name in form.names().items()})
    parsed = parse_rows(keyed, form, "somewhere", 1)
    assert parsed.user.tolist() == [1]
    assert parsed.bad_rows.counts == {"missing:is_click": 2, "not_an_integer:is_click": 1}
