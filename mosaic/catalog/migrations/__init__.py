"""How a catalog's database comes to its present shape, step by step; run by `mosaic.catalog.migrate`."""
