"""The Parquet log: a plain table that any data tool reads while it is written."""
