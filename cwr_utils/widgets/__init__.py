"""Explorers for notebooks: maps of one photo, and searches of a collection.

They hold no mathematics. What is shown is a function of a frozen view (`CamView`,
`SearchView`), which tests call without a browser.
"""

from cwr_utils.widgets.cams import CamExplorer, CamView, show_cams
from cwr_utils.widgets.search import SearchExplorer, SearchView, show_match, show_search

__all__ = [
    "CamExplorer",
    "CamView",
    "SearchExplorer",
    "SearchView",
    "show_cams",
    "show_match",
    "show_search",
]
