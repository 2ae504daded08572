"""The table of docs/reliability.md is what its raw results say."""

from tests.faults.table import DOCUMENT, table, with_table


def test_the_document_has_the_table_of_its_results():
    document = DOCUMENT.read_text()
    assert with_table(document, table()) == document
