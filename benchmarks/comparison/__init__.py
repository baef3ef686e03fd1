"""Contenders that take turns under the same loads: rounds, medians, ratios, tables, plots, files of results."""
