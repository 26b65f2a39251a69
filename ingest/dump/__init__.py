"""A Stack Exchange data dump (Posts.xml, Users.xml; a folder or .7z archives) becomes Posts files and reference tables.

`import_dump` writes one Parquet file a day, a month or a year, or one for all; `import_users` fills `raw_st.users` and
`raw_st.post_types`.

How Posts.xml is read: its rows are ordered by Id, which is nearly but not strictly the order of their dates (a post
that was migrated from another site keeps its date and gets a new Id). So `scan` first finds, without parsing, which
byte ranges of the dump belong to each file. No intermediate copy is written: the dump itself is read again. Then `rows`
reads the ranges of each file, and the file is written once, complete. Files are independent of each other, which keeps
several threads and a resumed import simple.
"""

from ingest.dump.posts import import_dump
from ingest.dump.report import DumpReport, Progress
from ingest.dump.scan import Unit
from ingest.dump.source import dump_origin, site_prefix
from ingest.dump.users import import_users, replace_reference_tables

__all__ = [
    "DumpReport",
    "Progress",
    "Unit",
    "dump_origin",
    "import_dump",
    "import_users",
    "replace_reference_tables",
    "site_prefix",
]
