"""Pictures of a run as HTML and inline SVG: nothing is fetched, everything from strangers is escaped."""
