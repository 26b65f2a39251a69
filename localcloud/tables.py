"""The reference tables of the sample company: `raw_st.users` and `raw_st.post_types` in the local Postgres."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.csv

from localcloud.samples import POST_TYPES

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS raw_st;
DROP TABLE IF EXISTS raw_st.users, raw_st.post_types;
CREATE TABLE raw_st.post_types (id smallint PRIMARY KEY, name varchar(50) NOT NULL);
CREATE TABLE raw_st.users (
    id integer PRIMARY KEY,
    reputation integer NOT NULL,
    creation_date timestamp NOT NULL,
    display_name varchar(40) NOT NULL,
    last_access_date timestamp NOT NULL,
    website_url varchar(200),
    location varchar(100),
    about_me text,
    views integer NOT NULL,
    up_votes integer NOT NULL,
    down_votes integer NOT NULL,
    account_id integer
);
"""

USER_COLUMNS = {
    "Id": "id",
    "Reputation": "reputation",
    "CreationDate": "creation_date",
    "DisplayName": "display_name",
    "LastAccessDate": "last_access_date",
    "WebsiteUrl": "website_url",
    "Location": "location",
    "AboutMe": "about_me",
    "Views": "views",
    "UpVotes": "up_votes",
    "DownVotes": "down_votes",
    "AccountId": "account_id",
}


def fill(connection: Any, users: pa.Table) -> None:
    """Make both tables anew and load them; `users` has Stack Exchange's column names. Commits."""
    post_types = pa.table({"id": [number for number, _ in POST_TYPES], "name": [name for _, name in POST_TYPES]})
    renamed = users.select(list(USER_COLUMNS)).rename_columns(list(USER_COLUMNS.values()))
    with connection, connection.cursor() as cursor:
        cursor.execute(SCHEMA)
        for table, rows in (("post_types", post_types), ("users", renamed)):
            text = io.BytesIO()
            pyarrow.csv.write_csv(rows, text)  # quotes every string, so that '' and NULL stay apart
            text.seek(0)
            cursor.copy_expert(
                f"COPY raw_st.{table} ({','.join(rows.column_names)}) FROM STDIN (FORMAT csv, HEADER)", text
            )
