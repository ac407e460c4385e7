"""From finished runs to numbers, tables and a page."""
