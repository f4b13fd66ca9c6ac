"""A run or a comparison as one page that needs nothing beside it: words, tables, plots."""
