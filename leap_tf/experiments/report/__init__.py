"""Reports on studies, made from tables of runs (run_tables.py): pages of tables and figures."""
