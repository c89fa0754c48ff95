"""Reports: pages in Markdown made HTML, tables and pictures."""
