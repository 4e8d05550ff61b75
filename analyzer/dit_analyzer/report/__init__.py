"""One HTML file that shows traces: `data` says what, `drawing` where lines go, `page` how it is written."""
