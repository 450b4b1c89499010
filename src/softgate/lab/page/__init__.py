"""The pages people read: one self-contained HTML file per reproduction, and an index over all of them."""

from softgate.lab.page.index import PAGE as PAGE
from softgate.lab.page.index import RESULTS as RESULTS
from softgate.lab.page.index import write_index as write_index
from softgate.lab.page.paper import paper_page as paper_page
