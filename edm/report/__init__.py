"""Tables and figures; the results files are their only source."""
