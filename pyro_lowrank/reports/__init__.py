"""Reports: one page that shows what was fitted, how it went, and what came out."""
