"""The pages people read: one self-contained HTML file per reproduction, and an index over all of them."""

from softgate.lab.page.index import index_page as index_page
from softgate.lab.page.paper import paper_page as paper_page
