"""The page that a person reads: one self-contained HTML file from one or several run folders.

Every number comes from the folders' result.json, metrics.csv and config.yaml. Needs the standard library and plotly's
script only, so that a page is there at once. The pictures are SVG; `interactive` puts plotly's figures over them.
"""

from kd.report.page import write_page

__all__ = ["write_page"]
