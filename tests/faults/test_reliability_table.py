"""Tests that the table of docs/reliability.md agrees with the raw results."""

from tests.faults.table import DOCUMENT, table, with_table


def test_the_document_has_the_table_of_its_results():
    document = DOCUMENT.read_text()
    assert with_table(document, table()) == document
