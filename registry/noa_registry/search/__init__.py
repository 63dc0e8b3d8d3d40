"""Search: which versions are there with this name, tag, metric, digest, format, dataset, alias or age?

`grammar` reads a query, `planning` makes one statement of it, `pages` runs it page by page, and `indexing` writes what
is searched (`parameters` the texts of parameters). `hints` says which name in a query that finds nothing is unknown.
"""
